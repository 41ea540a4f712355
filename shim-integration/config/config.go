package config

// Config is the configuration of one RAFS mount in the shape that nydusd calls
// version 2, whichever version the text was of. It is immutable once parsed.
// Printed as JSON it is what GET /api/v1/daemon shows: every optional part
// present, secrets masked.
type Config struct {
	Version          int               `json:"version"`
	ID               string            `json:"id"` // names the mount's back-end in metrics
	Backend          *Backend          `json:"backend"`
	ExternalBackends []ExternalBackend `json:"external_backends"`
	Cache            *Cache            `json:"cache"`
	RAFS             *RAFS             `json:"rafs"`
	Overlay          *Overlay          `json:"overlay"`
}

// Backend says where blobs come from: Type names the one part that counts.
type Backend struct {
	Type      string     `json:"type"`
	LocalDisk *LocalDisk `json:"localdisk"`
	LocalFS   *LocalFS   `json:"localfs"`
	OSS       *OSS       `json:"oss"`
	S3        *S3        `json:"s3"`
	Registry  *Registry  `json:"registry"`
	HTTPProxy *HTTPProxy `json:"http-proxy"`
}

// LocalDisk finds blobs as partitions of a disk.
type LocalDisk struct {
	DevicePath string `json:"device_path"`
	DisableGPT bool   `json:"disable_gpt"`
}

// LocalFS finds a blob as BlobFile, or as a file named by the blob's id in Dir,
// then in AltDirs.
type LocalFS struct {
	BlobFile string   `json:"blob_file"`
	Dir      string   `json:"dir"`
	AltDirs  []string `json:"alt_dirs"`
}

// HTTP is what every back-end that speaks HTTP can be told.
type HTTP struct {
	SkipVerify     bool     `json:"skip_verify"`     // accept any certificate
	CACertFiles    []string `json:"ca_cert_files"`   // further roots, PEM
	Timeout        uint32   `json:"timeout"`         // seconds without progress; 0 = none
	ConnectTimeout uint32   `json:"connect_timeout"` // seconds; 0 = none
	RetryLimit     uint8    `json:"retry_limit"`     // tries after the first
	Proxy          Proxy    `json:"proxy"`
	Mirrors        []Mirror `json:"mirrors"`
}

// Proxy is an HTTP proxy, or a peer-to-peer agent that acts as one.
type Proxy struct {
	URL                        URL    `json:"url"`
	PingURL                    URL    `json:"ping_url"`
	Fallback                   bool   `json:"fallback"`            // go direct while the proxy fails
	CheckInterval              uint64 `json:"check_interval"`      // seconds
	CheckPauseElapsed          uint64 `json:"check_pause_elapsed"` // seconds
	UseHTTP                    bool   `json:"use_http"`
	DragonflySchedulerEndpoint string `json:"dragonfly_scheduler_endpoint"`
}

// Mirror is another place with the same blobs, tried before the origin.
type Mirror struct {
	Host                URL     `json:"host"` // with its scheme
	PingURL             URL     `json:"ping_url"`
	Headers             Headers `json:"headers"`
	HealthCheckInterval uint64  `json:"health_check_interval"` // seconds
	FailureLimit        uint8   `json:"failure_limit"`         // failures in a row until it is left alone
}

// OSS is an object store of that kind; a blob's key is ObjectPrefix + blob id.
type OSS struct {
	Scheme          string `json:"scheme"`
	Endpoint        URL    `json:"endpoint"`
	BucketName      string `json:"bucket_name"`
	ObjectPrefix    string `json:"object_prefix"`
	AccessKeyID     Secret `json:"access_key_id"`
	AccessKeySecret Secret `json:"access_key_secret"`
	HTTP
}

// S3 is an object store of that kind; a blob's key is ObjectPrefix + blob id.
type S3 struct {
	Scheme          string `json:"scheme"`
	Endpoint        URL    `json:"endpoint"`
	Region          string `json:"region"`
	BucketName      string `json:"bucket_name"`
	ObjectPrefix    string `json:"object_prefix"`
	AccessKeyID     Secret `json:"access_key_id"`
	AccessKeySecret Secret `json:"access_key_secret"`
	HTTP
}

// Registry is an OCI registry; a blob is a layer blob of Repo.
type Registry struct {
	Scheme             string `json:"scheme"`
	Host               URL    `json:"host"`
	Repo               string `json:"repo"`
	Auth               Secret `json:"auth"`           // base64 of user:password
	RegistryToken      Secret `json:"registry_token"` // a bearer token, ready to use
	BlobURLScheme      string `json:"blob_url_scheme"`
	BlobRedirectedHost URL    `json:"blob_redirected_host"`
	HTTP
}

// HTTPProxy serves blobs below Path of an HTTP server or a unix socket.
type HTTPProxy struct {
	Addr URL    `json:"addr"`
	Path string `json:"path"`
	HTTP
}

// ExternalBackend describes where an image's external blobs are.
type ExternalBackend struct {
	Patch  map[string]Secret `json:"patch"`
	Type   string            `json:"type"`
	Config map[string]Secret `json:"config"`
}

// Cache says where fetched chunks are kept.
type Cache struct {
	Type       string     `json:"type"` // blobcache = filecache, fscache, "" = dummycache = none
	Compressed bool       `json:"compressed"`
	Validate   bool       `json:"validate"`
	Prefetch   Prefetch   `json:"prefetch"`
	FileCache  *FileCache `json:"filecache"`
	FSCache    *FSCache   `json:"fscache"`
}

// WorkDir returns the folder that the cache is to live in, "" if there is none.
func (c *Cache) WorkDir() string {
	switch {
	case c == nil:
		return ""
	case c.FileCache != nil && (c.Type == "blobcache" || c.Type == "filecache"):
		return c.FileCache.WorkDir
	case c.FSCache != nil && c.Type == "fscache":
		return c.FSCache.WorkDir
	}
	return ""
}

// FileCache is a cache in files.
type FileCache struct {
	WorkDir                    string `json:"work_dir"`
	DisableIndexedMap          bool   `json:"disable_indexed_map"`
	EnableEncryption           bool   `json:"enable_encryption"`
	EnableConvergentEncryption bool   `json:"enable_convergent_encryption"`
	EncryptionKey              Secret `json:"encryption_key"` // 64 hex digits
}

// FSCache is a cache kept by the kernel's fscache.
type FSCache struct {
	WorkDir string `json:"work_dir"`
}

// RAFS says how the file system behaves.
type RAFS struct {
	Mode            string   `json:"mode"`                      // direct or cached; no difference here
	BatchSize       uint64   `json:"batch_size"`                // bytes that one read of a blob may be widened to
	Validate        bool     `json:"validate"`                  // without effect: verification is always on
	VerifyMetadata  bool     `json:"verify_metadata,omitempty"` // ours: recompute the digests of all inodes before the mount
	EnableXattr     bool     `json:"enable_xattr"`
	IOStatsFiles    bool     `json:"iostats_files"`
	AccessPattern   bool     `json:"access_pattern"`
	LatestReadFiles bool     `json:"latest_read_files"`
	Prefetch        Prefetch `json:"prefetch"`
}

// Prefetch says what to fetch before anyone asks.
type Prefetch struct {
	Enable         bool   `json:"enable"`
	Threads        uint64 `json:"threads"`
	BatchSize      uint64 `json:"batch_size"`      // bytes
	BandwidthLimit uint32 `json:"bandwidth_limit"` // bytes per second, 0 = none
	PrefetchAll    bool   `json:"prefetch_all"`
	StreamPrefetch bool   `json:"stream_prefetch"`
}

// Overlay asks for a writable layer over the image.
type Overlay struct {
	UpperDir string `json:"upper_dir"`
	WorkDir  string `json:"work_dir"`
}

// LocalDir returns the configuration of an image whose blobs are files in dir,
// named by their ids. It names no folder for the cache: nydusd uses dir itself,
// but who hands us blobs to read does not expect us to write beside them.
func LocalDir(dir string) *Config {
	return &Config{
		Version:          2,
		Backend:          &Backend{Type: "localfs", LocalFS: &LocalFS{Dir: dir, AltDirs: []string{}}},
		ExternalBackends: []ExternalBackend{},
		RAFS:             &RAFS{Mode: defaultMode, BatchSize: defaultBatchSize, EnableXattr: true},
	}
}
