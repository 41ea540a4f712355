package main

import (
	"context"
	"errors"
	"fmt"
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
)

// startRegistry starts a registry with the blobs of an image.
func startRegistry(t testing.TB, v variant, o testregistry.Options) *testregistry.Registry {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	for _, id := range v.blobIDs(t) {
		data, err := os.ReadFile(filepath.Join(v.blobs, id))
		if err != nil {
			t.Fatal(err)
		}
		r.AddBlobAs(id, data)
	}
	return r
}

func (v variant) blobIDs(t testing.TB) []string {
	t.Helper()
	files, err := os.ReadDir(v.blobs)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, f := range files {
		if f.Type().IsRegular() {
			ids = append(ids, f.Name())
		}
	}
	return ids
}

// registryConfig is a version 1 text as nydus-snapshotter writes it.
func registryConfig(r *testregistry.Registry, workDir, more string) string {
	return fmt.Sprintf(`{"device":{"backend":{"type":"registry","config":{"readahead":false,"scheme":%q,"host":%q,"repo":"library/app",`+
		`"timeout":1,"connect_timeout":1,"proxy":{"fallback":false}%s}},"cache":{"type":"blobcache","config":{"work_dir":%q}},"id":"/x"},`+
		`"mode":"direct","enable_xattr":true,"warmup":1}`, r.Scheme(), r.Host(), more, workDir)
}

// TestLazy is the claim of the whole product: one small file costs one request
// of at most the amplification and a chunk; a second read costs nothing, and
// neither does one after a restart.
func TestLazy(t *testing.T) {
	const amplification, chunk = 1 << 20, 1 << 20
	for _, tt := range []struct {
		name    string
		variant string
		o       testregistry.Options
		more    string
	}{
		{"v6", "v6-dir-zstd-rootfs", testregistry.Options{}, ""},
		{"v5", "v5-dir-zstd-rootfs", testregistry.Options{}, ""},
		{"bearer, TLS, redirect", "v6-dir-zstd-rootfs",
			testregistry.Options{Auth: testregistry.Bearer, User: "u", Password: "CANARY", TLS: true, Redirect: true},
			`,"auth":"dTpDQU5BUlk=","skip_verify":true`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := corpusVariant(t, tt.variant)
			r := startRegistry(t, v, tt.o)
			work := shortDir(t)
			file := someFile(t, v)
			config := registryConfig(r, work, tt.more)
			for _, round := range []string{"first", "after a restart"} {
				p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
				p.ready()
				p.mount("/image", v.bootstrap, config)
				_, c := p.guest()
				if round == "first" {
					if n := r.Counts(""); n.Requests != 0 {
						t.Errorf("mounting and connecting asked the registry %d times", n.Requests)
					}
				}
				checkFile(t, c, "/image", file)
				// The guest has its bytes before the registry has sent the last one
				// of the range, and counts it.
				waitUntil(t, "a range was served", func() bool { return r.Counts("").Ranges > 0 })
				checkFile(t, c, "/image", file)
				p.info()
				p.stop(syscall.SIGTERM)
				n := r.Counts("")
				t.Logf("%s: %s of %d bytes: %d ranges, %d bytes", round, file.Path, file.Size, n.Ranges, n.Bytes)
				if n.Ranges != 1 || n.Whole != 0 || n.Bytes > amplification+chunk {
					t.Errorf("%s: %d ranges, %d whole, %d bytes; want 1, 0, at most %d", round, n.Ranges, n.Whole, n.Bytes, amplification+chunk)
				}
				if strings.Contains(p.out.String(), "dTpDQU5BUlk") {
					t.Error("the credentials are in the log")
				}
			}
		})
	}
}

// badDay is one way in which a registry can fail.
type badDay struct {
	name  string
	fault testregistry.Fault
	o     testregistry.Options
	act   func(*testregistry.Registry) // instead of fault
	undo  func(*testregistry.Registry) error
	cause string // what the log says of it
	// patient: the daemon gets through it by itself, no read fails
	patient bool
}

var badDays = []badDay{
	{name: "500 for ever", fault: testregistry.Fault{Kind: testregistry.Status, Status: 500}, cause: "500"},
	{name: "500 once", fault: testregistry.Fault{Kind: testregistry.Status, Status: 500, Times: 1}, patient: true},
	{name: "429 with Retry-After", fault: testregistry.Fault{Kind: testregistry.Status, Status: 429, RetryAfter: "1", Times: 1}, patient: true},
	{name: "429 for ever", fault: testregistry.Fault{Kind: testregistry.Status, Status: 429, RetryAfter: "2"}, cause: "429"},
	{name: "404", fault: testregistry.Fault{Kind: testregistry.Status, Status: 404}, cause: "404"},
	{name: "truncated body", fault: testregistry.Fault{Kind: testregistry.Truncate}, cause: "break off"},
	{name: "truncated once", fault: testregistry.Fault{Kind: testregistry.Truncate, Times: 1}, patient: true},
	{name: "wrong range", fault: testregistry.Fault{Kind: testregistry.WrongRange}, cause: "got bytes 1-5"},
	{name: "lying range", fault: testregistry.Fault{Kind: testregistry.LyingRange}, cause: "digest mismatch"},
	{name: "wrong bytes", fault: testregistry.Fault{Kind: testregistry.WrongBytes}, cause: "digest mismatch"},
	{name: "wrong bytes once", fault: testregistry.Fault{Kind: testregistry.WrongBytes, Times: 1}, patient: true},
	{name: "a page instead", fault: testregistry.Fault{Kind: testregistry.Page}, cause: ""},
	{name: "hangs", fault: testregistry.Fault{Kind: testregistry.Hang, Delay: time.Minute}, cause: "timeout"},
	{name: "hangs in the body", fault: testregistry.Fault{Kind: testregistry.HangBody, Delay: time.Minute}, cause: "stands still"},
	{name: "connection reset", fault: testregistry.Fault{Kind: testregistry.Reset}, cause: "EOF"},
	{name: "expired token", o: testregistry.Options{Auth: testregistry.Bearer, HideExpiry: true},
		act: func(r *testregistry.Registry) { r.ExpireTokens() }, patient: true},
	{name: "down at the start", act: func(r *testregistry.Registry) { r.Down() },
		undo: func(r *testregistry.Registry) error { return r.Up() }, cause: "refused"},
}

// TestBadDays: whatever a registry does, no wrong byte is served, the error says
// where and why, other mounts go on, and all is well when the registry is.
func TestBadDays(t *testing.T) {
	// Two daemons, since errors are logged at a limited rate.
	half := len(badDays) / 2
	for i, days := range [][]badDay{badDays[:half], badDays[half:]} {
		t.Run(fmt.Sprintf("daemon %d", i), func(t *testing.T) {
			t.Parallel()
			testBadDays(t, days)
		})
	}
}

func testBadDays(t *testing.T, days []badDay) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	local := corpusVariant(t, "v5-dir-lz4-blake3-small")
	settings := filepath.Join(shortDir(t), "rafsd.toml")
	// Without amplification, so that each file is a request of its own.
	if err := os.WriteFile(settings, []byte("[read]\ndeadline = \"1500ms\"\namplification = 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--settings", settings, "--log-format", "json")
	p.ready()
	_, c := p.guest()
	p.mount("/local", local.bootstrap, localConfig(local.blobs, shortDir(t)))
	var wg sync.WaitGroup
	for i, day := range days {
		// Subtests in parallel would run two at a time on two CPUs; these wait most
		// of their time.
		wg.Go(func() {
			for _, fault := range day.run(t, p, c, fmt.Sprintf("/day%d", i), v, local) {
				t.Errorf("%s: %v", day.name, fault)
			}
		})
	}
	wg.Wait()
	if n := len(p.info().BackendCollection); n != len(days)+1 {
		t.Errorf("%d mounts", n)
	}
	p.stop(syscall.SIGTERM)
}

// run plays one bad day at a mountpoint and returns all that went wrong.
func (day badDay) run(t *testing.T, p *process, c *vmm.Client, at string, v, local variant) (faults []error) {
	fail := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	ctx := testContext(t)
	files := filesOfDifferentChunks(t, v)
	r := startRegistry(t, v, day.o)
	mount := func() bool {
		start := time.Now()
		status, body := p.tryMount(at, v.bootstrap, registryConfig(r, shortDir(t), ""))
		if took := time.Since(start); status != 204 || took > slack(time.Second) { // L27
			fail("the mount: %d %s after %v", status, body, took)
		}
		return status == 204
	}
	early := day.o.Auth == testregistry.Bearer // a first read, so that there is a token to expire
	if early {
		if !mount() {
			return faults
		}
		if err := tryFile(ctx, c, at, files[1]); err != nil {
			fail("before the bad day: %w", err)
		}
	}
	undo := func() error { return nil }
	if day.act != nil {
		day.act(r)
	} else {
		stop := r.Fail(day.fault)
		undo = func() error { stop(); return nil }
	}
	if day.undo != nil {
		undo = func() error { return day.undo(r) }
	}
	if !early && !mount() {
		return faults
	}

	err := tryFile(ctx, c, at, files[0])
	switch {
	case day.patient && err != nil:
		fail("read: %w, want it to succeed", err)
	case !day.patient && !errors.Is(err, syscall.EIO):
		fail("read: %v, want EIO", err)
	}
	if !day.patient {
		line := fmt.Sprintf("blob %s offset ", v.blobIDs(t)[0])
		if err := p.out.waitForLine(r.Host(), line, day.cause); err != nil {
			fail("%w", err)
		}
	}
	if err := tryFile(ctx, c, "/local", someFile(t, local)); err != nil {
		fail("another mount suffers: %w", err)
	}
	if err := undo(); err != nil {
		fail("%w", err)
	}
	for _, file := range files {
		err := tryFile(ctx, c, at, file)
		for errors.Is(err, syscall.EIO) && day.fault.RetryAfter != "" {
			err = tryFile(ctx, c, at, file) // we were asked to stay away a while
		}
		if err != nil {
			fail("after the bad day: %w", err)
		}
	}
	return faults
}

// filesOfDifferentChunks returns some files of an image that are not equal.
func filesOfDifferentChunks(t *testing.T, v variant) []manifest.Entry {
	t.Helper()
	var files []manifest.Entry
	seen := map[[32]byte]bool{}
	for _, e := range v.want {
		if e.Type == manifest.Regular && e.Size > 0 && !seen[e.SHA256] {
			seen[e.SHA256] = true
			files = append(files, e)
		}
		if len(files) == 4 {
			return files
		}
	}
	t.Fatal("the image has too few files")
	return nil
}

// TestWaitsForTheRegistry: a read that began while the registry was down is
// answered once it is up.
func TestWaitsForTheRegistry(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	r.Down()
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	_, c := p.guest()
	done := make(chan error, 1)
	file := someFile(t, v)
	go func() { done <- tryFile(testContext(t), c, "/image", file) }()
	p.out.waitFor(t, "trying again")
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}

// TestEndsWhileAReadWaits: L44, and an umount ends what waits in the mount.
func TestEndsWhileAReadWaits(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	r.Fail(testregistry.Fault{Kind: testregistry.Hang, Delay: time.Minute})
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	_, c := p.guest()
	file := someFile(t, v)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := func(at string) chan error {
		t.Helper()
		before := r.Counts("").Faults
		p.mount(at, v.bootstrap, registryConfig(r, shortDir(t), `,"timeout":60`))
		done := make(chan error, 1)
		go func() { done <- tryFile(ctx, c, at, file) }()
		waitUntil(t, "the registry was asked", func() bool { return r.Counts("").Faults > before })
		return done
	}
	done := begin("/gone")
	start := time.Now()
	if status, body := p.call("DELETE", "/api/v1/mount?mountpoint=/gone", ""); status != 204 {
		t.Errorf("DELETE: %d %s", status, body)
	}
	if err := <-done; err == nil {
		t.Error("the read succeeded")
	}
	if took := time.Since(start); took > slack(time.Second) {
		t.Errorf("the umount ended the read after %v", took)
	}
	done = begin("/waits")
	p.stop(syscall.SIGTERM)
	cancel() // a front-end whose back-end is gone waits for ever
	<-done
}
