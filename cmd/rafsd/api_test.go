package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/internal/vmm"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// The statements of the contract about the HTTP API, through its socket, of a
// daemon started as Kata starts it.

func startAPI(t *testing.T, more ...string) *process {
	t.Helper()
	p := launch(t, options{}, append(strings.Fields(kataGo), more...)...)
	p.ready()
	return p
}

// raw sends bytes on a connection of its own and returns the answers.
func (p *process) raw(requests string, answers int) (out []*http.Response, bodies []string) {
	p.t.Helper()
	c, err := net.Dial("unix", p.api)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.WriteString(c, requests); err != nil {
		p.t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for range answers {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			p.t.Fatalf("%.60q: %v", requests, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			p.t.Fatal(err)
		}
		out, bodies = append(out, resp), append(bodies, string(body))
	}
	return out, bodies
}

// isError wants an answer to be an error of the API's shape.
func isError(t *testing.T, what string, status int, body string, want int, text string) {
	t.Helper()
	var e struct{ Code, Message *string }
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Code == nil || e.Message == nil {
		t.Errorf("%s: the body %q is no error of the API: %v", what, body, err)
		return
	}
	if status != want || *e.Code != "UNDEFINED" || !strings.Contains(*e.Message, text) {
		t.Errorf("%s: %d %s, want %d with %q", what, status, body, want, text)
	}
}

func TestL11_SupervisorIsNotUsed(t *testing.T) {
	p := startAPI(t, "--id", "i", "--supervisor", "/run/s.sock")
	status, body := p.call("PUT", "/api/v1/daemon/fuse/sendfd", "")
	isError(t, "sendfd", status, body, 501, "no descriptor")
}

// TestL14_InfoIsNeverDelayed: while a mount takes its time, another caller asks.
func TestL14_InfoIsNeverDelayed(t *testing.T) {
	p := startAPI(t)
	resp, body := p.raw("GET /api/v1/daemon HTTP/1.1\r\nHost: 2f72756e\r\nContent-Type: application/json\r\n\r\n", 1)
	var info struct {
		Version map[string]any `json:"version"`
		State   any            `json:"state"`
	}
	if err := json.Unmarshal([]byte(body[0]), &info); err != nil || resp[0].StatusCode != 200 || info.State != "RUNNING" {
		t.Fatalf("%d %s, %v", resp[0].StatusCode, body[0], err)
	}
	for _, key := range []string{"package_ver", "git_commit", "build_time", "profile", "rustc"} {
		if s, ok := info.Version[key].(string); !ok || s == "" {
			t.Errorf("version.%s is %v", key, info.Version[key])
		}
	}
	// A fifo that nobody writes to: a mount that opened it would wait for ever.
	fifo := filepath.Join(shortDir(t), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var others sync.WaitGroup
	for i := range 20 {
		others.Go(func() { p.tryMount(fmt.Sprintf("/m%d", i), fifo, `{"version":2}`) })
	}
	start := time.Now()
	p.info()
	if took := time.Since(start); took > time.Second {
		t.Errorf("the state came after %v", took)
	}
	others.Wait()
}

func TestL15_NoMounts(t *testing.T) {
	p := startAPI(t)
	for path, want := range map[string]string{"/api/v1/daemon": "{}", "/api/v2/daemon": "null"} {
		_, body := p.call("GET", path, "")
		var info map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &info); err != nil || string(info["backend_collection"]) != want || string(info["id"]) != "null" {
			t.Errorf("%s: %s, want a backend_collection of %s", path, body, want)
		}
	}
}

// TestL16_SilentConnections: they stay, and are in nobody's way; a thousand of them,
// and as many as there may be.
func TestL16_SilentConnections(t *testing.T) {
	p := startAPI(t)
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	for range 1000 {
		c, err := net.Dial("unix", p.api)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	p.info()
	for i, c := range silent {
		if i%100 != 0 {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a silent connection: %v, want it open", err)
		}
	}
	// After them, above the bound: an answer, not silence.
	for {
		c, err := net.Dial("unix", p.api)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
		if len(silent)%128 != 0 {
			continue
		}
		if err := c.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) && len(b) == 0 {
			if len(silent) > 6000 {
				t.Fatal("6000 connections and no end")
			}
			continue
		}
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(b))), nil)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		body, _ := io.ReadAll(resp.Body)
		isError(t, "one connection too many", resp.StatusCode, string(body), 503, "too many connections")
		break
	}
	if err := silent[0].SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(silent[0], "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(silent[0]), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("the first silent connection, used at last: %v, %v", resp, err)
	}
}

func TestL17_KeepAliveAndPipelines(t *testing.T) {
	p := startAPI(t)
	one := "GET /api/v1/daemon HTTP/1.1\r\nHost: unix\r\n\r\n"
	resp, _ := p.raw(one+"GET /api/v1/none HTTP/1.1\r\nHost: unix\r\n\r\n"+one, 3)
	for i, want := range []int{200, 404, 200} {
		if resp[i].StatusCode != want {
			t.Errorf("answer %d: %d, want %d", i, resp[i].StatusCode, want)
		}
	}
}

func TestL18_PathsAreExact(t *testing.T) {
	p := startAPI(t)
	for _, path := range []string{"/api/v1/daemon/", "//api/v1/daemon", "/api/v1/../v1/daemon", "/", "/api/v1"} {
		resp, body := p.raw("GET "+path+" HTTP/1.1\r\nHost: unix\r\n\r\n", 1)
		isError(t, path, resp[0].StatusCode, body[0], 404, "no such endpoint")
	}
	if resp, _ := p.raw("GET http://localhost/api/v1/daemon HTTP/1.1\r\nHost: localhost\r\n\r\n", 1); resp[0].StatusCode != 200 {
		t.Errorf("an absolute target: %d", resp[0].StatusCode)
	}
}

func TestL19_MountBodies(t *testing.T) {
	p := startAPI(t)
	for what, tt := range map[string]struct{ path, body, text string }{
		"no mountpoint": {"/api/v1/mount", `{"source":"/","fs_type":"passthrough_fs","config":""}`, "mountpoint"},
		"not JSON":      {"/api/v1/mount?mountpoint=/m", `not json`, "JSON"},
		"no config":     {"/api/v1/mount?mountpoint=/m", `{"source":"/","fs_type":"passthrough_fs"}`, "config"},
		"no source":     {"/api/v1/mount?mountpoint=/m", `{"fs_type":"passthrough_fs","config":""}`, "source"},
	} {
		for _, method := range []string{"POST", "PUT"} {
			status, body := p.call(method, tt.path, tt.body)
			isError(t, method+" "+what, status, body, 400, tt.text)
		}
	}
}

func TestL20_LogLevel(t *testing.T) {
	p := startAPI(t)
	if status, body := p.call("PUT", "/api/v1/daemon", `{"log_level":"DEBUG"}`); status != 204 || body != "" {
		t.Fatalf("%d %s", status, body)
	}
	p.info()
	if err := p.out.waitForLine("level=DEBUG", "/api/v1/daemon"); err != nil {
		t.Error(err)
	}
	status, body := p.call("PUT", "/api/v2/daemon", `{"log_level":"x"}`)
	isError(t, "level x", status, body, 500, "log level")
	status, body = p.call("PUT", "/api/v1/daemon", `{"level":"info"}`)
	isError(t, "no level", status, body, 400, "log_level")
	if status, _ := p.call("PUT", "/api/v1/daemon", `{"log_level":"off"}`); status != 204 {
		t.Error(status)
	}
	// The line that says so comes through the keeper, maybe after the answer.
	if err := p.out.waitForLine("to=off"); err != nil {
		t.Error(err)
	}
	quiet := len(p.out.String())
	p.call("PUT", "/api/v1/daemon", `{`)
	p.info()
	if now := p.out.String(); len(now) != quiet {
		t.Errorf("at level off it says %s", now[quiet:])
	}
}

func TestL21_OtherMethods(t *testing.T) {
	p := startAPI(t)
	for _, method := range []string{"HEAD", "PATCH", "OPTIONS", "FROB", "DELETE", "POST"} {
		requests := method + " /api/v1/daemon HTTP/1.1\r\nHost: unix\r\nContent-Length: 0\r\n\r\n"
		c, err := net.Dial("unix", p.api)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		req := &http.Request{Method: method}
		for i, send := range []string{requests, "GET /api/v1/daemon HTTP/1.1\r\nHost: unix\r\n\r\n"} {
			if _, err := io.WriteString(c, send); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				req = nil
			}
			resp, err := http.ReadResponse(r, req)
			if err != nil {
				t.Fatalf("%s, answer %d: %v", method, i, err)
			}
			body, err := io.ReadAll(resp.Body)
			switch {
			case err != nil:
				t.Fatal(err)
			case i == 1 && resp.StatusCode != 200:
				t.Errorf("after %s: %d", method, resp.StatusCode)
			case i == 0 && (resp.StatusCode < 400 || resp.StatusCode > 499):
				t.Errorf("%s: %d, want 4xx", method, resp.StatusCode)
			case i == 0 && method != "HEAD":
				isError(t, method, resp.StatusCode, string(body), resp.StatusCode, "")
			}
		}
		c.Close()
	}
}

// mountDir asks for a directory of the host, as Kata does.
func (p *process) mountDir(query, dir string) (int, string) {
	p.t.Helper()
	return p.call("POST", "/api/v1/mount?mountpoint="+query, fmt.Sprintf(`{"fs_type":"passthrough_fs","source":%q,"config":""}`, dir))
}

func TestL22_PassthroughBeforeTheVMM(t *testing.T) {
	p, dir := startAPI(t), shortDir(t)
	start := time.Now()
	if status, body := p.mountDir("/containers", dir); status != 204 || body != "" {
		t.Fatalf("%d %q, want 204 and nothing", status, body)
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if err := os.WriteFile(dir+"/f", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, c := p.guest()
	if b, err := readFile(testContext(t), c, "/containers/f"); err != nil || string(b) != "text" {
		t.Errorf("the guest reads %q, %v", b, err)
	}
	if got := p.info().BackendCollection["/containers"]; !strings.Contains(string(got), `"backend_type":"PassthroughFs"`) || !strings.Contains(string(got), `"config":null`) {
		t.Errorf("the mount is shown as %s", got)
	}
}

func TestL23_EncodedMountpoint(t *testing.T) {
	p, dir := startAPI(t), shortDir(t)
	if status, _ := p.mountDir("%2Fcontainers", dir); status != 204 {
		t.Fatal(status)
	}
	if got := p.info().BackendCollection; len(got) != 1 || got["/containers"] == nil {
		t.Errorf("mounts: %v", got)
	}
}

func TestL24_SecondMount(t *testing.T) {
	p, dir := startAPI(t), shortDir(t)
	if err := os.WriteFile(dir+"/f", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _ := p.mountDir("/containers", dir); status != 204 {
		t.Fatal(status)
	}
	_, c := p.guest()
	ctx := testContext(t)
	e, err := c.Resolve(ctx, "/containers/f")
	if err != nil {
		t.Fatal(err)
	}
	status, body := p.mountDir("%2Fcontainers", "/")
	isError(t, "a second mount", status, body, 500, "already mounted")
	if _, err := c.Getattr(ctx, e.NodeID); err != nil {
		t.Errorf("the first mount after it: %v", err)
	}
}

func TestL25_SourceIsMissing(t *testing.T) {
	p := startAPI(t)
	status, body := p.mountDir("/containers", "/absent/dir")
	isError(t, "a missing directory", status, body, 500, "/absent/dir")
	if n := len(p.info().BackendCollection); n != 0 {
		t.Errorf("%d mounts", n)
	}
}

const containerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// snapshotterConfig is what nydus-snapshotter writes, with keys that only older and
// newer ones know.
func snapshotterConfig(host, workDir string) string {
	return fmt.Sprintf(`{"device":{"id":"/snap1","backend":{"type":"registry","config":{"readahead":false,"host":%q,"repo":"library/app",`+
		`"scheme":"http","proxy":{"fallback":false},"timeout":1,"connect_timeout":1,"mirrors":[{"host":"http://%s","headers":{"X-Registry":"r"},"failure_limit":5,"health_check_interval":5}],`+
		`"blob_redirected_host":""}},"cache":{"type":"blobcache","compressed":false,"config":{"work_dir":%q,"disable_indexed_map":false}}},`+
		`"mode":"direct","digest_validate":false,"enable_xattr":true,"amplify_io":1048576,"warmup":3,"id_mapping":[0,1000,1],"key_of_tomorrow":{"x":[1]},`+
		`"fs_prefetch":{"enable":false,"prefetch_all":false,"threads_count":8,"merging_size":1048576,"bandwidth_rate":0,"stream_prefetch":false}}`, host, host, workDir)
}

func TestL26_SnapshotterConfig(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := startAPI(t)
	at := "/rafs/" + containerID + "/lowerdir"
	start := time.Now()
	p.mount(at, v.bootstrap, snapshotterConfig(r.Host(), shortDir(t)))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	_, c := p.guest()
	checkFile(t, c, at, someFile(t, v))
}

// TestL27_RegistryDown: the mount does not ask it, and reads end at the deadline.
func TestL27_RegistryDown(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	dir := shortDir(t)
	settings := filepath.Join(dir, "rafsd.toml")
	if err := os.WriteFile(settings, []byte("[read]\ndeadline = \"300ms\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startAPI(t, "--settings", settings)
	p.mount("/image", v.bootstrap, snapshotterConfig("127.0.0.1:1", dir))
	_, c := p.guest()
	if err := tryFile(testContext(t), c, "/image", someFile(t, v)); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read: %v, want EIO", err)
	}
	p.info()
}

func TestL28_OtherConfigForms(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p, work := startAPI(t), shortDir(t)
	p.mount("/json", v.bootstrap, localConfig(v.blobs, work))
	p.mount("/toml", v.bootstrap, fmt.Sprintf("version = 2\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = %q\n"+
		"[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = %q\n[rafs]\nenable_xattr = true\n", v.blobs, work))
	_, c := p.guest()
	for _, at := range []string{"/json", "/toml"} {
		checkFile(t, c, at, someFile(t, v))
	}
}

func TestL29_BrokenConfigs(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p := startAPI(t)
	for config, text := range map[string]string{`{"version":1}`: "version", `{`: "line 1 column 1"} {
		status, body := p.tryMount("/m", v.bootstrap, config)
		isError(t, config, status, body, 500, text)
	}
}

func TestL30_AgainAtTheSamePath(t *testing.T) {
	v6, v5 := corpusVariant(t, "v6-dir-zstd-blake3-small"), corpusVariant(t, "v5-dir-lz4-blake3-small")
	p, work := startAPI(t), shortDir(t)
	at := "/rafs/" + containerID + "/lowerdir"
	p.mount(at, v6.bootstrap, localConfig(v6.blobs, work))
	_, c := p.guest()
	ctx, file := testContext(t), someFile(t, v6)
	stale, err := c.Resolve(ctx, at+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := p.call("DELETE", "/api/v1/mount?mountpoint="+at, ""); status != 204 || body != "" {
		t.Errorf("%d %q", status, body)
	}
	status, body := p.call("DELETE", "/api/v1/mount?mountpoint="+at, "")
	isError(t, "a second DELETE", status, body, 500, "not mounted")
	p.mount(at, v5.bootstrap, localConfig(v5.blobs, work))
	if _, err := c.Getattr(ctx, stale.NodeID); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a node of the old image: %v, want ESTALE", err)
	}
	checkFile(t, c, at, file)
}

func TestL31_LookedUpBefore(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p := startAPI(t)
	_, c := p.guest()
	ctx := testContext(t)
	if e, err := c.Lookup(ctx, vmm.RootID, "rafs"); !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("rafs before: %+v, %v, want an ENOENT that is not kept", e, err)
	}
	p.mount("/rafs/c/lowerdir", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	checkFile(t, c, "/rafs/c/lowerdir", someFile(t, v))
}

// openFiles is the number of the daemon's descriptors, its worker's included.
func (p *process) openFiles() (n int) {
	p.t.Helper()
	for _, pid := range vmm.Processes(p.cmd.Process.Pid) {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			p.t.Fatal(err)
		}
		n += len(list)
	}
	return n
}

// TestL32_MountsThatComeAndGo: a thousand rounds of an image and a directory, with
// a guest there, leave nothing.
func TestL32_MountsThatComeAndGo(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	dir, work := shortDir(t), shortDir(t)
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{binary: binary}, strings.Fields(kataGo)...)
	p.ready()
	_, c := p.guest()
	config, file := localConfig(v.blobs, work), someFile(t, v)
	round := func() {
		t.Helper()
		p.mount("/image", v.bootstrap, config)
		if status, body := p.mountDir("/dir", dir); status != 204 {
			t.Fatal(status, body)
		}
		if _, err := c.Resolve(testContext(t), "/image"+file.Path); err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{"/image", "/dir"} {
			if status, body := p.call("DELETE", "/api/v1/mount?mountpoint="+at, ""); status != 204 {
				t.Fatal(status, body)
			}
		}
	}
	for range 100 {
		round()
	}
	p.client.CloseIdleConnections()
	files, memory := p.openFiles(), rssAnon(t, p.cmd.Process.Pid)
	for range 900 {
		round()
	}
	p.client.CloseIdleConnections()
	waitUntil(t, "no more open files than before", func() bool { return p.openFiles() <= files })
	after := rssAnon(t, p.cmd.Process.Pid)
	t.Logf("open files %d, RssAnon %.1f MiB before, %.1f MiB after 900 rounds", files, float64(memory)/mib, float64(after)/mib)
	// The heap breathes with the collector by more than a twentieth of so little.
	if after > memory+memory/20+2*mib {
		t.Errorf("RssAnon grew from %d to %d", memory, after)
	}
}

// TestL33_ThousandMounts: all of them can be read.
func TestL33_ThousandMounts(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p, work := startAPI(t), shortDir(t)
	config := localConfig(v.blobs, work)
	// A hundred at the same time.
	errs := make(chan error, 1000)
	slots := make(chan struct{}, 100)
	for i := range 1000 {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			body, err := json.Marshal(map[string]string{"fs_type": "rafs", "source": v.bootstrap, "config": config})
			if err != nil {
				errs <- err
				return
			}
			resp, err := p.client.Post("http://unix/api/v1/mount?mountpoint="+url.QueryEscape(fmt.Sprintf("/rafs/c%d/lowerdir", i)), "application/json", strings.NewReader(string(body)))
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != 204 {
					err = fmt.Errorf("mount %d: %s", i, resp.Status)
				}
			}
			errs <- err
		}()
	}
	for range 1000 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.info().BackendCollection); n != 1000 {
		t.Errorf("%d mounts are shown", n)
	}
	_, c := p.guest()
	ctx, file := testContext(t), someFile(t, v)
	for i := range 1000 {
		if err := tryFile(ctx, c, fmt.Sprintf("/rafs/c%d/lowerdir", i), file); err != nil {
			t.Fatal(err)
		}
	}
}

// TestL34_Secrets: wherever a configuration can hold a credential, none of it is
// shown. What every test's daemon prints and answers is searched for CANARY.
func TestL34_Secrets(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	p := launch(t, options{}, strings.Fields(strings.Replace(kataGo, "info", "trace", 1))...)
	p.ready()
	registry := fmt.Sprintf(`{"version":2,"id":"/x","backend":{"type":"registry","registry":{"scheme":"http","host":"127.0.0.1:1","repo":"r",`+
		`"auth":"Q0FOQVJZOkNBTkFSWQ==","registry_token":"CANARY","timeout":1,"proxy":{"url":"http://CANARY:CANARY@127.0.0.1:1","fallback":true},`+
		`"mirrors":[{"host":"http://127.0.0.1:1","headers":{"Authorization":"CANARY"}}]},`+
		`"oss":{"endpoint":"e","bucket_name":"b","access_key_id":"CANARY","access_key_secret":"CANARY"},`+
		`"s3":{"endpoint":"e","region":"r","bucket_name":"b","access_key_id":"CANARY","access_key_secret":"CANARY"}},`+
		`"cache":{"type":"filecache","filecache":{"work_dir":%q,"encryption_key":"CANARY"}},"rafs":{"enable_xattr":true}}`, work)
	status, body := p.tryMount("/image", v.bootstrap, registry)
	if status != 204 {
		t.Logf("with a key of a cache: %d %s", status, body)
		registry = strings.Replace(registry, `,"encryption_key":"CANARY"`, "", 1)
		p.mount("/image", v.bootstrap, registry)
	}
	_, c := p.guest()
	go tryFile(testContext(t), c, "/image", someFile(t, v)) //nolint:errcheck // it waits for a registry that is not there
	time.Sleep(50 * time.Millisecond)
	if status, body := p.call("PUT", "/api/v1/config?id=/x", `{"registry_auth":"Q0FOQVJZMjpDQU5BUlkyCANARY"}`); status == 500 {
		isError(t, "a broken credential", status, body, 500, "")
	}
	for _, r := range routesOf(t) {
		status, body := p.call("GET", r+"?id=/x&mountpoint=/image", "")
		if strings.Contains(body, "CANARY") || strings.Contains(body, "Q0FOQVJZ") {
			t.Errorf("GET %s: %d shows a secret: %s", r, status, body)
		}
	}
	api, ctx := p.mountAPI(), testContext(t)
	r := &mountv1.MountRequest{Mountpoint: "/again", Source: v.bootstrap, Config: registry}
	mounted, err := api.Mount(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	_, twice := api.Mount(ctx, r)
	r.Mountpoint, r.Config = "/broken", strings.Replace(registry, `"version":2`, `"version":"2"`, 1)
	_, broken := api.Mount(ctx, r)
	list, err := api.List(ctx, true)
	if twice == nil || broken == nil || err != nil {
		t.Errorf("mounted twice: %v; broken configuration: %v; list: %v", twice, broken, err)
	}
	if shown := fmt.Sprint(mounted, twice, broken, list); strings.Contains(shown, "CANARY") || strings.Contains(shown, "Q0FOQVJZ") {
		t.Errorf("the mount API shows a secret: %s", shown)
	}
	p.stop(syscall.SIGTERM)
	if strings.Contains(p.out.String(), "Q0FOQVJZ") {
		t.Error("a credential is in the log")
	}
	if err := filepath.WalkDir(p.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "CANARY") || strings.Contains(string(b), "Q0FOQVJZ") {
			t.Errorf("%s holds a secret", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// routesOf are all paths that can be asked.
func routesOf(t *testing.T) []string {
	t.Helper()
	return []string{
		"/api/v1/daemon", "/api/v2/daemon", "/api/v1/daemon/events", "/api/v1/daemon/backend", "/api/v1/metrics",
		"/api/v1/metrics/files", "/api/v1/metrics/pattern", "/api/v1/metrics/inflight", "/api/v1/metrics/backend",
		"/api/v1/metrics/blobcache", "/api/v1/config", "/api/v2/blobs", "/api/v1/none",
	}
}

func TestL35_LongBodies(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p := startAPI(t)
	config := localConfig(v.blobs, shortDir(t))
	config = strings.TrimSuffix(config, "}") + `,"more":"` + strings.Repeat("x", 60<<10) + `"}`
	p.mount("/image", v.bootstrap, config)
	status, body := p.call("POST", "/api/v1/mount?mountpoint=/m", `{"source":"`+strings.Repeat("x", 2<<20)+`"}`)
	isError(t, "2 MiB", status, body, 400, "longer than")
}

// TestL50_Exit: the answer comes, and then the end.
func TestL50_Exit(t *testing.T) {
	p := startAPI(t)
	p.guest()
	if status, body := p.call("PUT", "/api/v1/daemon/exit", ""); status != 204 || body != "" {
		t.Errorf("%d %q, want 204 and nothing", status, body)
	}
	start := time.Now()
	if code := p.exit(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Logf("gone %v after the answer", time.Since(start))
	if _, err := os.Lstat(p.api); err == nil {
		t.Error("the API's socket is still there")
	}
}

// fsMetrics is what GET metrics answers.
type fsMetrics struct {
	ID      string   `json:"id"`
	Opens   int64    `json:"nr_opens"`
	Data    uint64   `json:"data_read"`
	Blocks  []uint64 `json:"block_count_read"`
	Hits    []uint64 `json:"fop_hits"`
	Errors  []uint64 `json:"fop_errors"`
	Latency []uint64 `json:"fop_cumulative_latency_total"`
	Dist    []uint64 `json:"read_latency_dist"`
}

func (p *process) get(path string, to any) {
	p.t.Helper()
	status, body := p.call("GET", path, "")
	if status != 200 {
		p.t.Fatalf("GET %s: %d %s", path, status, body)
	}
	if err := json.Unmarshal([]byte(body), to); err != nil {
		p.t.Fatalf("GET %s: %s: %v", path, body, err)
	}
}

func TestL57_FSMetrics(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p, work := startAPI(t), shortDir(t)
	status, body := p.call("GET", "/api/v1/metrics", "")
	isError(t, "no image", status, body, 404, "")
	p.mount("/one", v.bootstrap, localConfig(v.blobs, work))
	file := someFile(t, v)
	_, c := p.guest()
	checkFile(t, c, "/one", file)
	if _, err := c.Resolve(testContext(t), "/one/absent"); err == nil {
		t.Error("a name that is not there is")
	}
	var m fsMetrics
	p.get("/api/v1/metrics", &m)
	const open, read, lookup = 2, 4, 9
	if m.ID != "/one" || len(m.Blocks) != 8 || len(m.Hits) != 15 || len(m.Errors) != 15 || len(m.Latency) != 15 || len(m.Dist) != 8 {
		t.Errorf("the shape is %+v", m)
	}
	if m.Data != file.Size || m.Opens != 0 || m.Hits[open] != 1 || m.Hits[read] == 0 || m.Hits[lookup] < 2 || m.Errors[read] != 0 {
		t.Errorf("after one file of %d bytes was read: %+v", file.Size, m)
	}
	p.mount("/two", v.bootstrap, localConfig(v.blobs, work))
	status, body = p.call("GET", "/api/v1/metrics", "")
	isError(t, "two images, no id", status, body, 404, "")
	p.get("/api/v1/metrics?id=/two", &m)
	if m.ID != "/two" || m.Data != 0 {
		t.Errorf("the other image: %+v", m)
	}
	status, body = p.call("GET", "/api/v1/metrics?id=/three", "")
	isError(t, "an unknown id", status, body, 404, "/three")
	// What must be asked for is not there.
	if _, body := p.call("GET", "/api/v1/metrics/files?id=/one", ""); body != "{}" {
		t.Errorf("files: %s", body)
	}
	for _, path := range []string{"/api/v1/metrics/pattern?id=/one", "/api/v1/metrics/files?id=/one&latest=true"} {
		if _, body := p.call("GET", path, ""); body != "[]" {
			t.Errorf("%s: %s", path, body)
		}
	}
	config := strings.Replace(localConfig(v.blobs, work), `"rafs":{`, `"rafs":{"iostats_files":true,"access_pattern":true,"latest_read_files":true,`, 1)
	p.mount("/all", v.bootstrap, config)
	checkFile(t, c, "/all", file)
	var files map[string]struct {
		Data uint64 `json:"data_read"`
	}
	p.get("/api/v1/metrics/files?id=/all", &files)
	var sum uint64
	for _, f := range files {
		sum += f.Data
	}
	if sum != file.Size {
		t.Errorf("files: %v", files)
	}
	var pattern []struct {
		Ino   uint64 `json:"ino"`
		Reads uint64 `json:"nr_read"`
		Secs  int64  `json:"first_access_time_secs"`
	}
	p.get("/api/v1/metrics/pattern?id=/all", &pattern)
	if len(pattern) != 1 || pattern[0].Reads == 0 || pattern[0].Secs == 0 {
		t.Errorf("pattern: %+v", pattern)
	}
	var latest [][]uint64
	p.get("/api/v1/metrics/files?id=/all&latest=true", &latest)
	if len(latest) != 1 || latest[0][0] != pattern[0].Ino {
		t.Errorf("latest: %v", latest)
	}
	p.get("/api/v1/metrics/files?id=/all&latest=true", &latest)
	if len(latest) != 0 {
		t.Errorf("latest, once more: %v", latest)
	}
	var sb map[string]any
	p.get("/api/v1/daemon/backend?mountpoint=/one", &sb)
	for key, want := range map[string]float64{"magic": 0xe0f5e1e2, "version": 0x600, "chunk_size": 1 << 20} {
		if sb[key] != want {
			t.Errorf("superblock: %s is %v, want %v", key, sb[key], want)
		}
	}
}

func TestL58_CacheMetrics(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p, work := startAPI(t), shortDir(t)
	p.mount("/image", v.bootstrap, registryConfig(r, work, ""))
	var m struct {
		Files   []string `json:"underlying_files"`
		Store   string   `json:"store_path"`
		Partial uint64   `json:"partial_hits"`
		Whole   uint64   `json:"whole_hits"`
		Total   uint64   `json:"total"`
		Ready   bool     `json:"data_all_ready"`
	}
	p.get("/api/v1/metrics/blobcache?id=/x", &m)
	if len(m.Files) != len(v.blobIDs(t)) || m.Store != work || m.Ready || m.Total != 0 {
		t.Errorf("before any read: %+v", m)
	}
	_, c := p.guest()
	file := someFile(t, v)
	checkFile(t, c, "/image", file)
	p.get("/api/v1/metrics/blobcache?id=/x", &m)
	if m.Partial == 0 || m.Total != m.Partial+m.Whole {
		t.Errorf("after a file: %+v", m)
	}
	for _, e := range v.want {
		if e.Type == manifest.Regular {
			checkFile(t, c, "/image", e)
		}
	}
	p.get("/api/v1/metrics/blobcache?id=/x", &m)
	if !m.Ready || m.Whole == 0 {
		t.Errorf("after all of it was read: %+v", m)
	}
	var b struct {
		Type  string     `json:"backend_type"`
		Reads uint64     `json:"read_count"`
		Bytes uint64     `json:"read_amount_total"`
		Dist  []uint64   `json:"read_cumulative_latency_millis_dist"`
		Sizes [][]uint64 `json:"read_latency_sizes_dist"`
	}
	p.get("/api/v1/metrics/backend?id=/x", &b)
	if b.Type != "registry" || b.Reads == 0 || b.Bytes == 0 || len(b.Dist) != 8 || len(b.Sizes) != 8 || len(b.Sizes[0]) != 8 {
		t.Errorf("back-end: %+v", b)
	}
	status, body := p.call("GET", "/api/v1/metrics/backend?id=/y", "")
	isError(t, "an unknown id", status, body, 404, "/y")
}

// TestConfigIsRenewed: a registry wants other credentials than the mount came with,
// and the daemon is told.
func TestConfigIsRenewed(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{Auth: testregistry.Basic, User: "u", Password: "right"})
	p := startAPI(t)
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), `,"auth":"dTp3cm9uZw=="`)) // u:wrong
	_, c := p.guest()
	file := someFile(t, v)
	if err := tryFile(testContext(t), c, "/image", file); !errors.Is(err, syscall.EIO) {
		t.Fatalf("with wrong credentials: %v, want EIO", err)
	}
	status, body := p.call("PUT", "/api/v1/config?id=/x", `{"registry_auth":"dTpyaWdodA==","another":"x"}`)
	isError(t, "an unknown key", status, body, 500, "another")
	if err := tryFile(testContext(t), c, "/image", file); !errors.Is(err, syscall.EIO) {
		t.Errorf("a refused change had an effect: %v", err)
	}
	if status, body := p.call("PUT", "/api/v1/config?id=/x", `{"registry_auth":"dTpyaWdodA=="}`); status != 204 || body != "" { // u:right
		t.Fatalf("%d %s", status, body)
	}
	checkFile(t, c, "/image", file)
	var shown map[string]string
	p.get("/api/v1/config?id=/x", &shown)
	if shown["registry_auth"] != "***" {
		t.Errorf("the configuration is shown as %v", shown)
	}
	p.get("/api/v1/config", &shown)
	if shown["/x:registry_auth"] != "***" {
		t.Errorf("all configurations are shown as %v", shown)
	}
	status, body = p.call("PUT", "/api/v1/config?id=/y", `{"registry_auth":"eA=="}`)
	isError(t, "an unknown id", status, body, 404, "/y")
	status, body = p.call("PUT", "/api/v1/config?id=/x", `{"registry_auth":7}`)
	isError(t, "not a string", status, body, 400, "registry_auth")
}

func TestL59_WhatAVirtualMachinesDaemonRefuses(t *testing.T) {
	p := startAPI(t)
	entry := `{"type":"bootstrap","id":"i","domain_id":"d","config":{}}`
	for what, want := range map[string]struct {
		status int
		body   string
	}{
		"PUT /api/v1/daemon/fuse/takeover":        {400, ""},
		"PUT /api/v1/daemon/start":                {400, ""},
		"PUT /api/v2/blobs":                       {501, entry},
		"GET /api/v2/blobs?domain_id=d":           {501, ""},
		"DELETE /api/v2/blobs?domain_id=d":        {501, ""},
		"DELETE /api/v2/blobs?blob_id=b":          {501, ""},
		"GET /api/v1/metrics/inflight":            {500, ""},
		"GET /api/v1/daemon/backend?mountpoint=/": {500, ""},
	} {
		method, path, _ := strings.Cut(what, " ")
		status, body := p.call(method, path, want.body)
		isError(t, what, status, body, want.status, "")
	}
	status, body := p.call("PUT", "/api/v2/blobs", `{"type":"bootstrap","id":"i"}`)
	isError(t, "a blob without a configuration", status, body, 400, "config")
	p.info()
}

func TestEventsAreKept(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	dir := shortDir(t)
	settings := filepath.Join(dir, "rafsd.toml")
	if err := os.WriteFile(settings, []byte("[read]\ndeadline = \"100ms\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startAPI(t, "--settings", settings)
	p.mount("/image", v.bootstrap, snapshotterConfig("127.0.0.1:1", dir))
	_, c := p.guest()
	if err := tryFile(testContext(t), c, "/image", someFile(t, v)); err == nil {
		t.Fatal("a read without a registry succeeds")
	}
	var e struct {
		MaxErrors int      `json:"max_errors"`
		Total     int      `json:"total_errors"`
		MaxSize   int      `json:"max_size"`
		Size      int      `json:"total_size"`
		Errors    []string `json:"errors"`
	}
	p.get("/api/v1/daemon/events", &e)
	if e.MaxErrors != 500 || e.MaxSize != 51200 || e.Total == 0 || len(e.Errors) != e.Total || !strings.Contains(e.Errors[0], " GMT - ") || !strings.Contains(e.Errors[0], v.blobIDs(t)[0]) {
		t.Errorf("%+v", e)
	}
}

// TestRemountByTheAPI: the same bootstrap changes the configuration only; another
// one makes what the guest has stale.
func TestRemountByTheAPI(t *testing.T) {
	v6, v5 := corpusVariant(t, "v6-dir-zstd-blake3-small"), corpusVariant(t, "v5-dir-lz4-blake3-small")
	p, work := startAPI(t), shortDir(t)
	remount := func(at, fsType, bootstrap, config string) (int, string) {
		t.Helper()
		body, err := json.Marshal(map[string]string{"fs_type": fsType, "source": bootstrap, "config": config})
		if err != nil {
			t.Fatal(err)
		}
		return p.call("PUT", "/api/v1/mount?mountpoint="+at, string(body))
	}
	p.mount("/image", v6.bootstrap, localConfig("/nowhere", work))
	if status, _ := p.mountDir("/dir", work); status != 204 {
		t.Fatal(status)
	}
	_, c := p.guest()
	ctx, file := testContext(t), someFile(t, v6)
	e, err := c.Resolve(ctx, "/image"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(work, "copy")
	data, err := os.ReadFile(v6.bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, body := remount("/image", "rafs", copied, localConfig(v6.blobs, work)); status != 204 || body != "" {
		t.Fatalf("the same bootstrap: %d %s", status, body)
	}
	if _, err := c.Getattr(ctx, e.NodeID); err != nil {
		t.Errorf("a node after the configuration changed: %v", err)
	}
	checkFile(t, c, "/image", file) // by now the blobs are where they are said to be
	if status, body := remount("/image", "rafs", v5.bootstrap, localConfig(v5.blobs, work)); status != 204 {
		t.Fatalf("another bootstrap: %d %s", status, body)
	}
	if _, err := c.Getattr(ctx, e.NodeID); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a node of the old image: %v, want ESTALE", err)
	}
	checkFile(t, c, "/image", file)
	for what, tt := range map[string]struct{ at, fsType, text string }{
		"nothing there": {"/none", "rafs", "not mounted"},
		"a directory":   {"/dir", "rafs", "only images"},
		"to another":    {"/image", "passthrough_fs", "only images"},
	} {
		status, body := remount(tt.at, tt.fsType, v6.bootstrap, localConfig(v6.blobs, work))
		isError(t, what, status, body, 500, tt.text)
	}
	status, body := remount("/image", "rafs", work+"/absent", localConfig(v6.blobs, work))
	isError(t, "no bootstrap", status, body, 500, "absent")
	checkFile(t, c, "/image", file)
}
