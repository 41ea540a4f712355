package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// The mount API, through its socket, of a daemon started as Kata starts it.

func (p *process) mountAPI() *client.Client {
	p.t.Helper()
	c, err := client.Dial(testContext(p.t), filepath.Join(p.dir, "rafsd.ttrpc"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func mountRequest(at, bootstrap, config string) *mountv1.MountRequest {
	return &mountv1.MountRequest{Mountpoint: at, Source: bootstrap, Config: config}
}

func TestMountAPISocket(t *testing.T) {
	p := startAPI(t)
	socket := filepath.Join(p.dir, "rafsd.ttrpc")
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	i, err := p.mountAPI().Info(testContext(t))
	if err != nil || i.GetState() != "RUNNING" || int(i.GetPid()) != p.cmd.Process.Pid || i.GetGitCommit() != p.info().Version.GitCommit {
		t.Errorf("%v, %v", i, err)
	}
	p.stop(syscall.SIGTERM)
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
	// Named, without an HTTP API; over a stale one.
	dir := shortDir(t)
	stale(t, filepath.Join(dir, "rafsd.ttrpc"))
	p = launch(t, options{dir: dir}, "virtiofs", "--sock", "{sock}", "--ttrpc", "{dir}/rafsd.ttrpc")
	p.out.waitFor(t, "msg=ready")
	if _, err := p.mountAPI().Info(testContext(t)); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
	// Without either there is none.
	p = launch(t, options{}, "virtiofs", "--sock", "{sock}")
	p.out.waitFor(t, "msg=ready")
	if _, err := os.Lstat(filepath.Join(p.dir, "rafsd.ttrpc")); err == nil {
		t.Error("a socket that nobody asked for")
	}
	p.stop(syscall.SIGTERM)
}

// events collects what a watch yields.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) add(v *mountv1.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, strings.TrimSpace(strings.TrimPrefix(v.GetKind().String(), "EVENT_KIND_")+" "+v.GetState()+v.GetMountpoint()))
	return nil
}

func (e *events) has(want ...string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range want {
		if !slices.Contains(e.all, w) {
			return false
		}
	}
	return true
}

func (e *events) count(what string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, have := range e.all {
		if have == what {
			n++
		}
	}
	return n
}

// TestShim does what a shim does with three images while a guest reads them.
func TestShim(t *testing.T) {
	v6, v5 := corpusVariant(t, "v6-dir-zstd-blake3-small"), corpusVariant(t, "v5-dir-lz4-blake3-small")
	p, work := startAPI(t), shortDir(t)
	api := p.mountAPI()
	ctx := testContext(t)
	var seen events
	watched := make(chan error, 1)
	go func() { watched <- p.mountAPI().Watch(ctx, seen.add) }()
	waitUntil(t, "the watch begins", func() bool { return seen.has("STATE RUNNING") })

	data, err := os.ReadFile(v6.bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	for _, at := range []string{"/a", "/b", "/c"} {
		m, err := api.Mount(ctx, &mountv1.MountRequest{Mountpoint: at, Source: v6.bootstrap, Config: localConfig(v6.blobs, work), BootstrapDigest: digest})
		if err != nil || m.GetMountpoint() != at || m.GetMountId() == 0 || m.GetBackendType() != "localfs" || len(m.GetBlobs()) != len(v6.blobIDs(t)) {
			t.Fatalf("mount %s: %v, %v", at, m, err)
		}
	}
	_, c := p.guest()
	file := someFile(t, v6)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := tryFile(ctx, c, "/a", file); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	e, err := c.Resolve(ctx, "/b"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Remount(ctx, &mountv1.MountRequest{Mountpoint: "/b", Source: v6.bootstrap, Config: localConfig(v6.blobs, shortDir(t))}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Getattr(ctx, e.NodeID); err != nil {
		t.Errorf("after a remount of the same image: %v", err)
	}
	if _, err := api.Remount(ctx, &mountv1.MountRequest{Mountpoint: "/b", Source: v5.bootstrap, Config: localConfig(v5.blobs, work)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Getattr(ctx, e.NodeID); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("after a remount of another image: %v, want ESTALE", err)
	}
	checkFile(t, c, "/b", file)
	list, err := api.List(ctx, true)
	if err != nil || len(list) != 3 || list[0].GetBootstrapDigest() != digest || list[1].GetBootstrapDigest() == digest || list[1].GetBootstrapDigest() == "" {
		t.Errorf("%v, %v", list, err)
	}
	if err := api.Umount(ctx, "/c"); err != nil {
		t.Error(err)
	}
	close(stop)
	readers.Wait()

	// Errors have classes.
	request := func(change func(r *mountv1.MountRequest)) error {
		r := &mountv1.MountRequest{Mountpoint: "/x", Source: v6.bootstrap, Config: localConfig(v6.blobs, work)}
		change(r)
		_, err := api.Mount(ctx, r)
		return err
	}
	for what, tt := range map[string]struct {
		err  error
		want error
	}{
		"mounted twice":     {request(func(r *mountv1.MountRequest) { r.Mountpoint = "/a" }), client.ErrExists},
		"no such bootstrap": {request(func(r *mountv1.MountRequest) { r.Source = "/absent" }), client.ErrNotFound},
		"broken config":     {request(func(r *mountv1.MountRequest) { r.Config = "{" }), client.ErrInvalid},
		"relative":          {request(func(r *mountv1.MountRequest) { r.Mountpoint = "x" }), client.ErrInvalid},
		"another type":      {request(func(r *mountv1.MountRequest) { r.FsType = "ext4" }), client.ErrInvalid},
		"another back-end": {request(func(r *mountv1.MountRequest) {
			r.Config = `{"version":2,"backend":{"type":"oss","oss":{"endpoint":"e","bucket_name":"b"}},"rafs":{}}`
		}), client.ErrUnsupported},
		"another digest":   {request(func(r *mountv1.MountRequest) { r.BootstrapDigest = strings.Repeat("0", 64) }), client.ErrPrecondition},
		"no digest":        {request(func(r *mountv1.MountRequest) { r.BootstrapDigest = "xyz" }), client.ErrInvalid},
		"nothing there":    {api.Umount(ctx, "/none"), client.ErrNotFound},
		"nothing to fetch": {api.Prefetch(ctx, "/none"), client.ErrNotFound},
		"a relative path":  {api.Prefetch(ctx, "/a", "x"), client.ErrInvalid},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", what, tt.err, tt.want)
		}
	}
	m, err := api.Metrics(ctx)
	if err != nil || len(m.GetImages()) != 2 || m.GetImages()[0].GetDataRead() == 0 || len(m.GetOps()) == 0 {
		t.Errorf("%v, %v", m, err)
	}
	waitUntil(t, "all events came", func() bool {
		return seen.has("MOUNTED /a", "MOUNTED /b", "MOUNTED /c", "FRONT_END_CONNECTED", "REMOUNTED /b", "UMOUNTED /c")
	})
	p.stop(syscall.SIGTERM)
	if err := <-watched; !errors.Is(err, io.EOF) {
		t.Errorf("the watch ended with %v, want EOF", err)
	}
	if !seen.has("STATE STOPPED") {
		t.Errorf("no event of the end: %v", seen.all)
	}
}

// TestPrefetch: in the background, a list or all; what is there then needs no
// registry, and watchers hear of the end, of trouble, and of its end.
func TestPrefetch(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := startAPI(t)
	api, ctx := p.mountAPI(), testContext(t)
	var seen events
	go p.mountAPI().Watch(ctx, seen.add) //nolint:errcheck // it ends with the daemon
	waitUntil(t, "the watch begins", func() bool { return seen.has("STATE RUNNING") })
	file := someFile(t, v)
	if _, err := api.Mount(ctx, &mountv1.MountRequest{Mountpoint: "/some", Source: v.bootstrap, Config: registryConfig(r, shortDir(t), ""), PrefetchFiles: []string{file.Path}}); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "a file is prefetched", func() bool { return seen.has("PREFETCHED /some") })
	var cache struct {
		Ready bool   `json:"data_all_ready"`
		Bytes uint64 `json:"prefetch_data_amount"`
		Begin int64  `json:"prefetch_begin_time_secs"`
		End   int64  `json:"prefetch_end_time_secs"`
	}
	p.get("/api/v1/metrics/blobcache?id=/x", &cache)
	if cache.Bytes < file.Size || cache.Ready || cache.Begin == 0 || cache.End == 0 {
		t.Errorf("after one file of %d bytes: %+v", file.Size, cache)
	}
	if err := api.Umount(ctx, "/some"); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Mount(ctx, &mountv1.MountRequest{Mountpoint: "/all", Source: v.bootstrap, Config: registryConfig(r, shortDir(t), "")}); err != nil {
		t.Fatal(err)
	}
	if err := api.Prefetch(ctx, "/all"); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "all is prefetched", func() bool { return seen.has("PREFETCHED /all") })
	p.get("/api/v1/metrics/blobcache?id=/x", &cache)
	if !cache.Ready {
		t.Errorf("after all of it: %+v", cache)
	}
	// A remount prefetches too: into a new cache, so that there is something to do.
	again := &mountv1.MountRequest{Mountpoint: "/all", Source: v.bootstrap, Config: registryConfig(r, shortDir(t), ""), PrefetchFiles: []string{"relative"}}
	if _, err := api.Remount(ctx, again); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a remount with a relative path to prefetch: %v", err)
	}
	again.PrefetchFiles = []string{"/"}
	if _, err := api.Remount(ctx, again); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "all is prefetched after a remount", func() bool { return seen.count("PREFETCHED /all") == 2 })
	r.Close()
	_, c := p.guest()
	for _, e := range filesOfDifferentChunks(t, v) {
		checkFile(t, c, "/all", e)
	}
	p.stop(syscall.SIGTERM)
}

// TestMountAPIBounds: what clients ask for and leave behind does not pile up.
func TestMountAPIBounds(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := startAPI(t)
	api, ctx := p.mountAPI(), testContext(t)
	for range 300 { // more than may watch at a time
		left := errors.New("left")
		if err := api.Watch(ctx, func(*mountv1.Event) error { return left }); err != nil && !errors.Is(err, left) && !errors.Is(err, client.ErrPrecondition) {
			t.Fatal(err)
		}
	}
	waitUntil(t, "a watch has room", func() bool {
		found := errors.New("found")
		return errors.Is(api.Watch(ctx, func(*mountv1.Event) error { return found }), found)
	})
	r.Close() // orders wait
	if _, err := api.Mount(ctx, &mountv1.MountRequest{Mountpoint: "/a", Source: v.bootstrap, Config: registryConfig(r, shortDir(t), "")}); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 100 {
		err := api.Prefetch(ctx, "/a")
		if errors.Is(err, client.ErrPrecondition) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("100 orders on an image whose registry is gone were all taken")
	}
	if err := api.Umount(ctx, "/a"); err != nil {
		t.Fatal(err)
	}
	p.stop(syscall.SIGTERM)
}

// TestBackendHealth: a registry that goes and comes back is told of.
func TestBackendHealth(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := startAPI(t)
	ctx := testContext(t)
	var seen events
	go p.mountAPI().Watch(ctx, seen.add) //nolint:errcheck // it ends with the daemon
	waitUntil(t, "the watch begins", func() bool { return seen.has("STATE RUNNING") })
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	r.Fail(testregistry.Fault{Kind: testregistry.Status, Status: 500, Times: 3})
	_, c := p.guest()
	checkFile(t, c, "/image", someFile(t, v)) // it waits until the registry is back
	waitUntil(t, "both events came", func() bool { return seen.has("BACKEND_FAILING", "BACKEND_RECOVERED") })
}

// cycles mounts and umounts images by many clients at the same time.
func TestMountAPICycles(t *testing.T) {
	cycles := 1000
	if os.Getenv("RAFSD_LONG") == "1" {
		cycles = 10_000
	}
	const clients = 50
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{binary: binary}, strings.Fields(kataGo)...)
	p.ready()
	config := localConfig(v.blobs, shortDir(t))
	// A watcher that never reads is in nobody's way.
	deaf := p.mountAPI()
	reading := make(chan struct{})
	go deaf.Watch(context.Background(), func(*mountv1.Event) error { <-reading; return nil }) //nolint:errcheck // it is cut off
	defer close(reading)

	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	errs := make(chan error, clients)
	for i := range clients {
		go func() {
			errs <- func() error {
				api, err := client.Dial(ctx, filepath.Join(p.dir, "rafsd.ttrpc"))
				if err != nil {
					return err
				}
				defer api.Close()
				at := fmt.Sprintf("/rafs/c%d", i)
				for range cycles / clients {
					if _, err := api.Mount(ctx, &mountv1.MountRequest{Mountpoint: at, Source: v.bootstrap, Config: config}); err != nil {
						return err
					}
					if err := api.Umount(ctx, at); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.info().BackendCollection); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	t.Logf("RssAnon after %d cycles: %.1f MiB", cycles, float64(rssAnon(t, p.cmd.Process.Pid))/mib)
	p.stop(syscall.SIGTERM)
}

// TestMountAPIOtherUser: a caller of another user is cut off.
func TestMountAPIOtherUser(t *testing.T) {
	needRoot(t)
	if os.Getenv("RAFSD_TEST_OTHER_USER") != "" {
		return
	}
	p := startAPI(t)
	socket := filepath.Join(p.dir, "rafsd.ttrpc")
	// Its mode keeps others away already; what is behind it is tested here.
	for path, mode := range map[string]os.FileMode{p.dir: 0o755, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(shortDir(t), "rafs")
	build := exec.Command("go", "build", "-o", binary, "../rafs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	for uid, ok := range map[uint32]bool{0: true, 65534: false} {
		cmd := exec.Command(binary, "ctl", "--socket", socket, "info")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if (err == nil) != ok || ok != strings.Contains(string(out), "RUNNING") {
			t.Errorf("user %d: %v\n%s", uid, err, out)
		}
		if !ok && strings.Count(strings.TrimSpace(string(out)), "\n") != 0 {
			t.Errorf("user %d: the error is not one line: %s", uid, out)
		}
	}
	p.out.waitFor(t, "uid="+strconv.Itoa(65534))
	p.info()
}

// TestMountAPIGarbage: what is no message ends its own connection.
func TestMountAPIGarbage(t *testing.T) {
	p := startAPI(t)
	socket := filepath.Join(p.dir, "rafsd.ttrpc")
	for _, garbage := range []string{
		"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 1000), "\x00\x00\x00\x01", // and then nothing
		"\x7f\xff\xff\xff\x00\x00\x00\x01\x01\x00", "\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00", strings.Repeat("\x00\x00\x00\x02\x00\x00\x00\x03\x01\x00ab", 100),
	} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, garbage); err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Error(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(c)
		c.Close()
	}
	if _, err := p.mountAPI().Info(testContext(t)); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}
