package config_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// snapshotter is a version 1 text as nydus-snapshotter writes it, with keys that
// nydusd has never heard of.
const snapshotter = `{"device":{"backend":{"type":"registry","config":{"readahead":false,"host":"registry.test:5000",
"repo":"library/app","auth":"dXNlcjpwYXNz","scheme":"http","proxy":{"fallback":false},"retry_limit":3,
"mirrors":[{"host":"http://mirror.test","headers":{"X-Dragonfly":"a"},"failure_limit":2}],"dir":"/foreign"}},
"cache":{"type":"blobcache","config":{"work_dir":"/var/lib/cache","disable_indexed_map":false}},"id":"/123"},
"mode":"direct","digest_validate":true,"verify_metadata":true,"enable_xattr":true,"amplify_io":65536,"warmup":1,"id_mapping":[0,1,2],
"fs_prefetch":{"enable":true,"threads_count":4}}`

func TestParseV1(t *testing.T) {
	c, err := config.Parse(snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Backend.Registry
	if r == nil || r.Host.Reveal() != "registry.test:5000" || r.Repo != "library/app" || r.Scheme != "http" {
		t.Fatalf("registry = %+v", r)
	}
	if got := r.Auth.Reveal(); got != "dXNlcjpwYXNz" {
		t.Errorf("auth = %q", got)
	}
	if r.Proxy.Fallback || r.Timeout != 5 || r.ConnectTimeout != 5 || r.RetryLimit != 3 {
		t.Errorf("proxy.fallback %v, timeout %d, connect_timeout %d, retry_limit %d; want false 5 5 3",
			r.Proxy.Fallback, r.Timeout, r.ConnectTimeout, r.RetryLimit)
	}
	if len(r.Mirrors) != 1 || r.Mirrors[0].Host.Reveal() != "http://mirror.test" ||
		r.Mirrors[0].Headers["X-Dragonfly"].Reveal() != "a" || r.Mirrors[0].FailureLimit != 2 {
		t.Errorf("mirrors = %+v", r.Mirrors)
	}
	if c.Version != 2 || c.ID != "/123" || c.Cache.WorkDir() != "/var/lib/cache" {
		t.Errorf("version %d, id %q, work_dir %q", c.Version, c.ID, c.Cache.WorkDir())
	}
	want := config.Prefetch{Enable: true, Threads: 4, BatchSize: 1 << 20, PrefetchAll: true}
	if d := cmp.Diff(want, c.RAFS.Prefetch); d != "" {
		t.Errorf("fs_prefetch (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, c.Cache.Prefetch); d != "" {
		t.Errorf("cache prefetch is not taken from fs_prefetch (-want +got):\n%s", d)
	}
	if !c.RAFS.EnableXattr || !c.RAFS.VerifyMetadata || !c.RAFS.Validate || c.RAFS.BatchSize != 65536 {
		t.Errorf("rafs = %+v", c.RAFS)
	}
	if err := c.Supported(); err != nil {
		t.Errorf("Supported: %v", err)
	}
}

const localV2 = `{"version":2,"id":"x","backend":{"type":"localfs","localfs":{"dir":"/blobs","alt_dirs":["/a","/b"]}},
"cache":{"type":"filecache","filecache":{"work_dir":"/cache"}},"rafs":{}}`

const localTOML = `
version = 2
id = "x"
backend.type = "localfs"
backend.localfs.dir = "/blobs"
backend.localfs.alt_dirs = ["/a", "/b"]
unknown.key = 1979-05-27
[cache]
type = "filecache"
[cache.filecache]
work_dir = "/cache"
[rafs]
`

func TestTheThreeFormsOfOneConfiguration(t *testing.T) {
	v1 := `{"device":{"id":"x","backend":{"type":"localfs","config":{"dir":"/blobs","alt_dirs":["/a","/b"]}},
		"cache":{"type":"filecache","config":{"work_dir":"/cache"}}},"mode":"direct"}`
	var shown []string
	var keys []config.Key
	for _, text := range []string{localV2, localTOML, v1} {
		c, err := config.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, string(b))
		keys = append(keys, c.StoreKey())
	}
	if shown[0] != shown[1] || shown[0] != shown[2] {
		t.Errorf("the three forms differ:\n%s", strings.Join(shown, "\n"))
	}
	if keys[0] != keys[1] || keys[0] != keys[2] {
		t.Error("the three forms would not share a blob store")
	}
	want := `{"version":2,"id":"x","backend":{"type":"localfs","localdisk":null,"localfs":{"blob_file":"","dir":"/blobs",` +
		`"alt_dirs":["/a","/b"]},"oss":null,"s3":null,"registry":null,"http-proxy":null},"external_backends":[],` +
		`"cache":{"type":"filecache","compressed":false,"validate":false,"prefetch":{"enable":false,"threads":0,` +
		`"batch_size":0,"bandwidth_limit":0,"prefetch_all":false,"stream_prefetch":false},"filecache":{"work_dir":"/cache",` +
		`"disable_indexed_map":false,"enable_encryption":false,"enable_convergent_encryption":false,"encryption_key":null},` +
		`"fscache":null},"rafs":{"mode":"direct","batch_size":1048576,"validate":false,"enable_xattr":false,` +
		`"iostats_files":false,"access_pattern":false,"latest_read_files":false,"prefetch":{"enable":false,"threads":0,` +
		`"batch_size":0,"bandwidth_limit":0,"prefetch_all":false,"stream_prefetch":false}},"overlay":null}`
	if shown[0] != want {
		t.Errorf("shown as\n%s\nwant\n%s", shown[0], want)
	}
}

// v2 makes a version 2 text with a registry that has the further keys, and the
// further top-level keys.
func v2(registry, top string) string {
	return `{"version":2,"backend":{"type":"registry","registry":{"host":"h","repo":"r"` + registry + `}}` + top + `}`
}

func TestParseFaults(t *testing.T) {
	rafs := `,"rafs":{"mode":"direct"}`
	tests := map[string]struct{ text, want string }{
		"empty":                      {" \n", "text is empty"},
		"not UTF-8":                  {"{\"version\":2,\"id\":\"\xff\"}", "not valid UTF-8"},
		"an open brace":              {"{", "line 1 column 1: not JSON: the text ends too early"},
		"JSON list":                  {"[1]", "want a JSON object, found a list"},
		"JSON and more":              {localV2 + "x", "text goes on behind"},
		"a broken comma":             {"{\n \"a\":1,\n}", "line 3 column 1: not JSON"},
		"neither form":               {"key value", "neither JSON nor TOML"},
		"version 1 as number":        {`{"version":1}`, "key version: 1 is not a known version"},
		"version a string":           {`{"version":"2"}`, "key version: want a whole number, found a string"},
		"version negative":           {`{"version":-2}`, "key version: want a whole number from 0 to"},
		"version a fraction":         {`{"version":2.0}`, "key version: want a whole number from 0 to"},
		"TOML version missing":       {`id = "x"`, "key version: missing"},
		"v2 without back-end":        {`{"version":2}`, "key backend: missing"},
		"v2 without rafs":            {v2("", ""), "key rafs: missing"},
		"v2 meant as v1":             {`{"version":2,"device":{"backend":{}}}`, "key backend: missing"},
		"v1 without mode":            {`{"device":{"backend":{"type":"localfs","config":{"dir":"/"}}}}`, "key mode: missing"},
		"v1 without device":          {`{"mode":"direct"}`, "key device: missing"},
		"v1 without back-end":        {`{"mode":"direct","device":{}}`, "key device.backend: missing"},
		"v1 without back-end type":   {`{"mode":"direct","device":{"backend":{"config":{}}}}`, "key device.backend.type: missing"},
		"v1 without back-end config": {`{"mode":"direct","device":{"backend":{"type":"localfs"}}}`, "key device.backend.config: missing"},
		"v1 http-proxy":              {`{"mode":"direct","device":{"backend":{"type":"http-proxy","config":{"addr":"http://x"}}}}`, `unknown back-end type "http-proxy"`},
		"v1 back-end unknown":        {`{"mode":"direct","device":{"backend":{"type":"tape","config":{}}}}`, `key device.backend.type: unknown back-end type "tape"`},
		"v1 cache without config":    {`{"mode":"direct","device":{"backend":{"type":"localfs","config":{"dir":"/"}},"cache":{"type":"blobcache"}}}`, "key device.cache.config: missing"},
		"v1 mode unknown":            {`{"mode":"fast","device":{"backend":{"type":"localfs","config":{"dir":"/"}}}}`, `key mode: want direct or cached, found "fast"`},
		"registry host missing":      {`{"version":2,"backend":{"type":"registry","registry":{"repo":"r"}}}`, "key backend.registry.host: missing"},
		"registry host empty":        {`{"version":2,"backend":{"type":"registry","registry":{"host":"","repo":"r"}}` + rafs + `}`, "key host: empty"},
		"registry scheme":            {v2(`,"scheme":"ftp"`, rafs), "key scheme: want one of"},
		"registry part missing":      {`{"version":2,"backend":{"type":"registry"}` + rafs + `}`, "key registry: missing"},
		"timeout a string":           {v2(`,"timeout":"7"`, rafs), "key backend.registry.timeout: want a whole number, found a string"},
		"timeout too big":            {v2(`,"timeout":4294967296`, rafs), "key backend.registry.timeout: want a whole number from 0 to 4294967295"},
		"retry_limit too big":        {v2(`,"retry_limit":256`, rafs), "key backend.registry.retry_limit: want a whole number from 0 to 255"},
		"skip_verify a number":       {v2(`,"skip_verify":1`, rafs), "key backend.registry.skip_verify: want true or false, found a number"},
		"mirrors an object":          {v2(`,"mirrors":{}`, rafs), "key backend.registry.mirrors: want a list, found an object"},
		"a mirror a string":          {v2(`,"mirrors":["x"]`, rafs), "key backend.registry.mirrors[0]: want an object, found a string"},
		"a mirror without host":      {v2(`,"mirrors":[{}]`, rafs), "key backend.registry.mirrors[0].host: missing"},
		"a mirror's header":          {v2(`,"mirrors":[{"host":"h","headers":{"X":1}}]`, rafs), "key backend.registry.mirrors[0].headers.X: want a string, found a number"},
		"ca_cert_files":              {v2(`,"ca_cert_files":["a",2]`, rafs), "key backend.registry.ca_cert_files[1]: want a string, found a number"},
		"proxy a string":             {v2(`,"proxy":"http://p"`, rafs), "key backend.registry.proxy: want an object, found a string"},
		"batch_size too big":         {v2("", `,"rafs":{"batch_size":268435457}`), "268435457 is more than 268435456"},
		"prefetch without enable":    {v2("", `,"rafs":{"prefetch":{}}`), "key rafs.prefetch.enable: missing"},
		"prefetch without threads":   {v2("", `,"rafs":{"prefetch":{"enable":true,"threads":0}}`), "key rafs.prefetch.threads (threads_count): 0 is not from 1 to 1024"},
		"prefetch too big":           {v2("", `,"rafs":{"prefetch":{"enable":true,"batch_size":268435457}}`), "key rafs.prefetch.batch_size"},
		"cache type dummy":           {v2("", rafs+`,"cache":{"type":"dummy"}`), `key cache.type: unknown cache type "dummy"`},
		"cache without its part":     {v2("", rafs+`,"cache":{"type":"blobcache"}`), "cache type blobcache: key filecache: missing"},
		"work_dir empty":             {v2("", rafs+`,"cache":{"type":"blobcache","filecache":{"work_dir":""}}`), "key work_dir: empty"},
		"fscache without its part":   {v2("", rafs+`,"cache":{"type":"fscache"}`), "cache type fscache: key fscache: missing"},
		"overlay without work_dir":   {v2("", rafs+`,"overlay":{"upper_dir":"/u"}`), "key overlay.work_dir: missing"},
		"localfs without a place":    {`{"version":2,"backend":{"type":"localfs","localfs":{}}` + rafs + `}`, "one of the keys blob_file and dir"},
		"back-end type unknown":      {`{"version":2,"backend":{"type":"tape"}` + rafs + `}`, `key backend.type: unknown back-end type "tape"`},
		"oss without bucket":         {`{"version":2,"backend":{"type":"oss","oss":{"endpoint":"e","bucket_name":""}}` + rafs + `}`, "back-end oss: key bucket_name: empty"},
		"s3 without region":          {`{"version":2,"backend":{"type":"s3","s3":{"endpoint":"","region":"","bucket_name":"b"}}` + rafs + `}`, "back-end s3: key region: empty"},
		"http-proxy address":         {`{"version":2,"backend":{"type":"http-proxy","http-proxy":{"addr":"sock"}}` + rafs + `}`, "key addr: want http://"},
		"localdisk without path":     {`{"version":2,"backend":{"type":"localdisk","localdisk":{}}` + rafs + `}`, "key device_path: empty"},
		"TOML nested without end":    {"version = 2\na = " + strings.Repeat("[", 100000), "brackets, braces and dots"},
		"JSON nested without end":    {`{"a":` + strings.Repeat("[", 100000), "not JSON"},
		"too long":                   {strings.Repeat(" ", 1<<20) + "x", "text of 1048577 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse(tt.text)
			if err == nil {
				t.Fatalf("Parse accepted it as %+v, want an error with %q", c, tt.want)
			}
			if !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want one with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %q", err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	c, err := config.Parse(v2(`,"auth":null,"timeout":null`, `,"rafs":{},"cache":null`))
	if err != nil {
		t.Fatal(err)
	}
	r := c.Backend.Registry
	if r.Scheme != "https" || r.Timeout != 5 || r.ConnectTimeout != 5 || r.RetryLimit != 0 || r.Auth.IsSet() {
		t.Errorf("registry = %+v", r)
	}
	wantProxy := config.Proxy{Fallback: true, CheckInterval: 5, CheckPauseElapsed: 300}
	if d := cmp.Diff(wantProxy, r.Proxy, cmp.Comparer(func(a, b config.URL) bool { return a.Reveal() == b.Reveal() })); d != "" {
		t.Errorf("proxy (-want +got):\n%s", d)
	}
	if c.Cache != nil || c.Cache.WorkDir() != "" {
		t.Errorf("cache = %+v", c.Cache)
	}
	if d := cmp.Diff(&config.RAFS{Mode: "direct", BatchSize: 1 << 20}, c.RAFS); d != "" {
		t.Errorf("rafs (-want +got):\n%s", d)
	}
	dummy, err := config.Parse(v2("", `,"rafs":{},"cache":{"type":"dummycache"}`))
	if err != nil || dummy.Cache.WorkDir() != "" {
		t.Errorf("dummycache: %+v, %v", dummy, err)
	}
	dot, err := config.Parse(v2("", `,"rafs":{},"cache":{"type":"blobcache","filecache":{}}`))
	if err != nil || dot.Cache.WorkDir() != "." {
		t.Errorf("work_dir without a value: %v, %v, want .", dot, err)
	}
}

func TestUnsupported(t *testing.T) {
	rafs := `,"rafs":{}`
	tests := map[string]struct{ text, want string }{
		"oss": {`{"version":2,"backend":{"type":"oss","oss":{"endpoint":"e","bucket_name":"b"}}` + rafs + `}`, "back-end type oss: not supported yet"},
		"s3":  {`{"version":2,"backend":{"type":"s3","s3":{"endpoint":"e","region":"r","bucket_name":"b"}}` + rafs + `}`, "back-end type s3: not supported yet"},
		"http-proxy": {`{"version":2,"backend":{"type":"http-proxy","http-proxy":{"addr":"https://p"}}` + rafs + `}`,
			"back-end type http-proxy: not supported yet"},
		"localdisk": {`{"version":2,"backend":{"type":"localdisk","localdisk":{"device_path":"/dev/x"}}` + rafs + `}`,
			"back-end type localdisk: not supported yet"},
		"overlay": {v2("", rafs+`,"overlay":{"upper_dir":"/u","work_dir":"/w"}`), "key overlay"},
		"encrypted cache": {v2("", rafs+`,"cache":{"type":"blobcache","filecache":{"enable_encryption":true}}`),
			"enable_encryption: not supported yet"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Supported(); !errors.Is(err, config.ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Supported() = %v, want ErrUnsupported with %q", err, tt.want)
			}
		})
	}
}

func TestStoreKeyTellsWhatMatters(t *testing.T) {
	base := v2(`,"auth":"a"`, `,"rafs":{},"cache":{"type":"blobcache","filecache":{"work_dir":"/c"}}`)
	key := func(text string) config.Key {
		c, err := config.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return c.StoreKey()
	}
	if key(base) != key(strings.Replace(base, `"version":2`, `"version":2,"id":"other","new":{}`, 1)) {
		t.Error("the id alone gives another store")
	}
	for old, new := range map[string]string{
		`"auth":"a"`: `"auth":"b"`,
		`"host":"h"`: `"host":"i"`,
		`"/c"`:       `"/d"`,
		`"rafs":{}`:  `"rafs":{"batch_size":1}`,
	} {
		if key(base) == key(strings.Replace(base, old, new, 1)) {
			t.Errorf("%s instead of %s gives the same store", new, old)
		}
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	good, long := filepath.Join(dir, "good"), filepath.Join(dir, "long")
	for path, text := range map[string]string{good: localTOML, long: localTOML + strings.Repeat("#", 1<<20)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := config.ReadFile(good); err != nil || c.Backend.LocalFS.Dir != "/blobs" {
		t.Errorf("ReadFile(good) = %+v, %v", c, err)
	}
	for _, path := range []string{long, filepath.Join(dir, "absent")} {
		if _, err := config.ReadFile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("ReadFile(%s): %v, want an error that names the file", path, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{snapshotter, localV2, localTOML, v2(`,"mirrors":[{"host":"h"}]`, ""), "{", "a=[", "version=2\n[[backend]]\n",
		`{"version":2,"backend":[]}`, `{"device":{"backend":{"type":"oss","config":{}}},"mode":""}`, "version = 2\nbackend.type = \"s3\"\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Parse(text)
		if err != nil {
			if len(err.Error()) > 4096 {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
			return
		}
		// What was accepted prints, hashes, and can be judged.
		if _, err := json.Marshal(c); err != nil {
			t.Fatalf("accepted, but does not print: %v", err)
		}
		if a, b := c.StoreKey(), c.StoreKey(); a != b {
			t.Fatal("StoreKey is not a function of the configuration")
		}
		_ = c.Supported()
		_ = c.Ignored()
	})
}
