package config

import "math"

// Defaults that several parts share.
const (
	defaultBatchSize    = 1 << 20
	defaultPrefetchSize = 1 << 20
	defaultThreads      = 8
	defaultTimeout      = 5 // seconds
	defaultScheme       = "https"
	defaultWorkDir      = "."
	defaultMode         = "direct"
)

// readV2 reads a text of version 2. Anything with a whole number under "version"
// is one; what else is wrong with it is for Check to say.
func readV2(top object) (*Config, error) {
	top.require("version")
	c := &Config{
		Version:          int(top.u32("version", 0)),
		ID:               top.str("id", ""),
		ExternalBackends: externalBackends(top),
	}
	if b, ok := top.object("backend"); ok {
		c.Backend = backendV2(b)
	}
	if o, ok := top.object("cache"); ok {
		c.Cache = &Cache{
			Type:       o.str("type", ""),
			Compressed: o.boolean("compressed", false),
			Validate:   o.boolean("validate", false),
			Prefetch:   prefetchV2(o),
		}
		if f, ok := o.object("filecache"); ok {
			c.Cache.FileCache = fileCache(f)
		}
		if f, ok := o.object("fscache"); ok {
			c.Cache.FSCache = fsCache(f)
		}
	}
	if o, ok := top.object("rafs"); ok {
		c.RAFS = &RAFS{
			Mode:            o.str("mode", defaultMode),
			BatchSize:       o.uint("batch_size", defaultBatchSize, math.MaxInt64),
			Validate:        o.boolean("validate", false),
			VerifyMetadata:  o.boolean("verify_metadata", false),
			EnableXattr:     o.boolean("enable_xattr", false),
			IOStatsFiles:    o.boolean("iostats_files", false),
			AccessPattern:   o.boolean("access_pattern", false),
			LatestReadFiles: o.boolean("latest_read_files", false),
			Prefetch:        prefetchV2(o),
		}
	}
	if o, ok := top.object("overlay"); ok {
		o.require("upper_dir")
		o.require("work_dir")
		c.Overlay = &Overlay{UpperDir: o.str("upper_dir", ""), WorkDir: o.str("work_dir", "")}
	}
	if err := top.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func backendV2(b object) *Backend {
	b.require("type")
	out := &Backend{Type: b.str("type", "")}
	for _, kind := range []string{"localdisk", "localfs", "oss", "s3", "registry", "http-proxy"} {
		if o, ok := b.object(kind); ok {
			out.read(kind, o)
		}
	}
	return out
}

// read fills the part of b that is of the named kind from o; it tells whether
// there is such a kind.
func (b *Backend) read(kind string, o object) bool {
	switch kind {
	case "localdisk":
		b.LocalDisk = &LocalDisk{
			DevicePath: o.str("device_path", ""),
			DisableGPT: o.boolean("disable_gpt", false),
		}
	case "localfs":
		b.LocalFS = &LocalFS{
			BlobFile: o.str("blob_file", ""),
			Dir:      o.str("dir", ""),
			AltDirs:  o.strings("alt_dirs"),
		}
	case "oss":
		o.require("endpoint")
		o.require("bucket_name")
		b.OSS = &OSS{
			Scheme:          o.str("scheme", defaultScheme),
			Endpoint:        o.url("endpoint"),
			BucketName:      o.str("bucket_name", ""),
			ObjectPrefix:    o.str("object_prefix", ""),
			AccessKeyID:     o.secret("access_key_id"),
			AccessKeySecret: o.secret("access_key_secret"),
			HTTP:            httpOptions(o),
		}
	case "s3":
		o.require("endpoint")
		o.require("region")
		o.require("bucket_name")
		b.S3 = &S3{
			Scheme:          o.str("scheme", defaultScheme),
			Endpoint:        o.url("endpoint"),
			Region:          o.str("region", ""),
			BucketName:      o.str("bucket_name", ""),
			ObjectPrefix:    o.str("object_prefix", ""),
			AccessKeyID:     o.secret("access_key_id"),
			AccessKeySecret: o.secret("access_key_secret"),
			HTTP:            httpOptions(o),
		}
	case "registry":
		o.require("host")
		o.require("repo")
		b.Registry = &Registry{
			Scheme:             o.str("scheme", defaultScheme),
			Host:               o.url("host"),
			Repo:               o.str("repo", ""),
			Auth:               o.secret("auth"),
			RegistryToken:      o.secret("registry_token"),
			BlobURLScheme:      o.str("blob_url_scheme", ""),
			BlobRedirectedHost: o.url("blob_redirected_host"),
			HTTP:               httpOptions(o),
		}
	case "http-proxy":
		o.require("addr")
		b.HTTPProxy = &HTTPProxy{
			Addr: o.url("addr"),
			Path: o.str("path", ""),
			HTTP: httpOptions(o),
		}
	default:
		return false
	}
	return true
}

func httpOptions(o object) HTTP {
	h := HTTP{
		SkipVerify:     o.boolean("skip_verify", false),
		CACertFiles:    o.strings("ca_cert_files"),
		Timeout:        o.u32("timeout", defaultTimeout),
		ConnectTimeout: o.u32("connect_timeout", defaultTimeout),
		RetryLimit:     uint8(o.uint("retry_limit", 0, math.MaxUint8)),
		Mirrors:        []Mirror{},
	}
	p, _ := o.object("proxy")
	h.Proxy = Proxy{
		URL:                        p.url("url"),
		PingURL:                    p.url("ping_url"),
		Fallback:                   p.boolean("fallback", true),
		CheckInterval:              p.uint("check_interval", 5, math.MaxUint64),
		CheckPauseElapsed:          p.uint("check_pause_elapsed", 300, math.MaxUint64),
		UseHTTP:                    p.boolean("use_http", false),
		DragonflySchedulerEndpoint: p.str("dragonfly_scheduler_endpoint", ""),
	}
	for _, m := range o.objects("mirrors") {
		m.require("host")
		h.Mirrors = append(h.Mirrors, Mirror{
			Host:                m.url("host"),
			PingURL:             m.url("ping_url"),
			Headers:             m.stringMap("headers"),
			HealthCheckInterval: m.uint("health_check_interval", 5, math.MaxUint64),
			FailureLimit:        uint8(m.uint("failure_limit", 5, math.MaxUint8)),
		})
	}
	return h
}

func fileCache(o object) *FileCache {
	return &FileCache{
		WorkDir:                    o.str("work_dir", defaultWorkDir),
		DisableIndexedMap:          o.boolean("disable_indexed_map", false),
		EnableEncryption:           o.boolean("enable_encryption", false),
		EnableConvergentEncryption: o.boolean("enable_convergent_encryption", false),
		EncryptionKey:              o.secret("encryption_key"),
	}
}

func fsCache(o object) *FSCache {
	return &FSCache{WorkDir: o.str("work_dir", defaultWorkDir)}
}

func prefetchV2(parent object) Prefetch {
	o, ok := parent.object("prefetch")
	if !ok {
		return Prefetch{}
	}
	o.require("enable")
	return Prefetch{
		Enable:         o.boolean("enable", false),
		Threads:        o.uint("threads", defaultThreads, math.MaxInt64),
		BatchSize:      o.uint("batch_size", defaultPrefetchSize, math.MaxInt64),
		BandwidthLimit: o.u32("bandwidth_limit", 0),
		PrefetchAll:    o.boolean("prefetch_all", false),
		StreamPrefetch: o.boolean("stream_prefetch", false),
	}
}

func externalBackends(parent object) []ExternalBackend {
	out := []ExternalBackend{}
	for _, o := range parent.objects("external_backends") {
		out = append(out, ExternalBackend{
			Patch:  o.stringMap("patch"),
			Type:   o.str("type", ""),
			Config: o.stringMap("config"),
		})
	}
	return out
}
