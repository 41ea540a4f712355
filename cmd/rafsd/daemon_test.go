package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestStartAsKataDoes: command lines of both runtimes, stale sockets in place.
func TestStartAsKataDoes(t *testing.T) {
	for name, tt := range map[string]struct {
		args    string
		warning bool
	}{
		"L1 Go runtime":             {"virtiofs --log-level info --apisock {api} --sock {sock}", false},
		"L2 Rust runtime":           {"virtiofs --hybrid-mode --log-level info --apisock {api} --sock {sock}", false},
		"L3 Go with extra args":     {"virtiofs --log-level info --apisock {api} --sock {sock} --thread-pool-size=1 --announce-submounts", true},
		"L4 Rust with extra args":   {"virtiofs --hybrid-mode --log-level info --apisock {api} --sock {sock} --thread-pool-size=1 -o announce_submounts", true},
		"L5 relative":               {"virtiofs --sock v.sock --apisock a.sock", false},
		"L8 warn":                   {"virtiofs --log-level warn --apisock={api} --sock={sock}", false},
		"L9 identity":               {"virtiofs --apisock {api} --sock {sock} --id x --supervisor /s", false},
		"options after one another": {"virtiofs -A{api} --sock {sock} --queues 2 --linger 1s --first-connect 1h", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			for _, stale := range []string{"v.sock", "a.sock"} { // L6
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, stale)})
				if err != nil {
					t.Fatal(err)
				}
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			p := launch(t, options{dir: dir}, strings.Fields(tt.args)...)
			p.ready()
			for _, socket := range []string{p.sock, p.api} {
				info, err := os.Lstat(socket)
				if err != nil || info.Mode() != os.ModeSocket|0o600 {
					t.Errorf("%s: mode %v, %v, want Srw-------", socket, info.Mode(), err)
				}
			}
			i := p.info()
			if i.BackendCollection == nil || len(i.BackendCollection) != 0 { // L15
				t.Errorf("backend_collection of a new daemon: %v", i.BackendCollection)
			}
			if strings.Contains(tt.args, "--id") && (i.ID == nil || *i.ID != "x" || i.Supervisor == nil || *i.Supervisor != "/s") {
				t.Errorf("id and supervisor are %v, %v", i.ID, i.Supervisor)
			}
			if n := strings.Count(p.out.String(), "thread-pool-size"); tt.warning != (n == 1) {
				t.Errorf("%d warnings, want one: %v", n, tt.warning)
			}
			p.stop(syscall.SIGTERM)
			for _, socket := range []string{p.sock, p.api} {
				if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", socket, err)
				}
			}
		})
	}
}

// TestCommandLinesThatEnd: L7 to L10 and the personalities.
func TestCommandLinesThatEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		args string
		code int
		want string
	}{
		"version of a command": {"virtiofs --version", 0, "Rustc:"},
		"help":                 {"--help", 0, "Subcommands:"},
		"help of a command":    {"virtiofs --help", 0, "--bootstrap FILE"},
		"no folder":            {"virtiofs --sock {dir}/absent/s", 1, "absent"},
		"no bootstrap":         {"virtiofs --sock {sock} --bootstrap {dir}/absent --localfs-dir {dir}", 1, "absent"},
		"no config":            {"virtiofs --sock {sock} --bootstrap {dir}/absent --config {dir}/absent.json", 1, "absent.json"},
		"no settings":          {"virtiofs --sock {sock} --settings {dir}/absent.toml", 1, "absent.toml"},
		"no descriptor":        {"virtiofs --fd 200", 1, "200"},
		"upgrade":              {"virtiofs --sock {sock} --upgrade", 1, "cannot take over"},
		"unknown option":       {"virtiofs --sock {sock} --bootstrp x", 2, "did you mean --bootstrap?"},
		"fuse":                 {"fuse --mountpoint /m --bootstrap b --config c --thread-num 4 --log-rotation-size 1", 1, "not supported yet"},
		"singleton":            {"singleton --fscache /d --fscache-threads 4", 1, "not supported"},
		"fuse by option":       {"--mountpoint /m --config c", 1, "not supported yet"},
		"nothing":              {"", 2, "virtiofs, fuse, singleton, completion"},
		"completion":           {"completion bash", 0, "--first-connect"},
		"completion of what":   {"completion", 2, "bash, zsh or fish"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := launch(t, options{}, strings.Fields(tt.args)...)
			if code := p.exit(patience); code != tt.code || !strings.Contains(p.out.String(), tt.want) {
				t.Errorf("exit code %d, want %d with %q", code, tt.code, tt.want)
			}
			for _, socket := range []string{p.sock, p.api} {
				if _, err := os.Lstat(socket); err == nil {
					t.Errorf("%s was left behind", socket)
				}
			}
			if _, reason, _ := strings.Cut(p.out.String(), "Error: "); tt.code == 1 && strings.Count(reason, "\n") != 1 {
				t.Error("the reason is not one line at the end")
			}
		})
	}
}

// TestBootstrapFromTheStart: RUNNING and the mount visible before any VMM, the
// tree right, the session one without OPEN requests.
func TestBootstrapFromTheStart(t *testing.T) {
	for _, name := range []string{"v6-dir-zstd-blake3-small", "v5-dir-lz4-blake3-small"} {
		t.Run(name, func(t *testing.T) {
			v := corpusVariant(t, name)
			work := shortDir(t)
			config := filepath.Join(work, "config.json")
			if err := os.WriteFile(config, []byte(localConfig(v.blobs, work)), 0o600); err != nil {
				t.Fatal(err)
			}
			p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--bootstrap", v.bootstrap, "--config", config)
			_, c := p.guest()
			checkTree(t, c, v)
			p.stop(syscall.SIGTERM)
		})
	}
}

// checkTree compares all that a guest sees with what is true.
func checkTree(t *testing.T, c *vmm.Client, v variant) {
	t.Helper()
	got, err := c.Walk(testContext(t), vmm.Walk{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := manifest.Compare(got, v.want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
		t.Errorf("the guest sees another tree:\n%s", diff)
	}
}

// TestMountsByTheAPI: images come and go under a guest that stays.
func TestMountsByTheAPI(t *testing.T) {
	v6, v5 := corpusVariant(t, "v6-dir-zstd-blake3-small"), corpusVariant(t, "v5-dir-lz4-blake3-small")
	work := shortDir(t)
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	ctx := testContext(t)
	_, c := p.guest()

	// L31: a name that was not there a moment ago.
	if _, err := c.Lookup(ctx, vmm.RootID, "rafs"); !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("lookup of rafs before any mount: %v, want ENOENT", err)
	}
	p.mount("/rafs/c1/lowerdir", v6.bootstrap, localConfig(v6.blobs, work))
	p.mount("%2Frafs%2Fc2%2Flowerdir", v5.bootstrap, localConfig(v5.blobs, work))
	if status, body := p.tryMount("/rafs/c2/lowerdir", v5.bootstrap, localConfig(v5.blobs, work)); status != 500 || !strings.Contains(body, "already mounted") { // L24
		t.Errorf("a second mount at the same path: %d %s", status, body)
	}
	if got := p.info().BackendCollection; len(got) != 2 || got["/rafs/c1/lowerdir"] == nil || got["/rafs/c2/lowerdir"] == nil {
		t.Errorf("backend_collection: %v", got)
	}
	file := someFile(t, v6)
	for _, at := range []string{"/rafs/c1/lowerdir", "/rafs/c2/lowerdir"} {
		checkFile(t, c, at, file)
	}

	// L30: gone, and another image at the same place.
	stale, err := c.Resolve(ctx, "/rafs/c1/lowerdir"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{204, 500} {
		if status, body := p.call("DELETE", "/api/v1/mount?mountpoint=/rafs/c1/lowerdir", ""); status != want {
			t.Errorf("DELETE %d: %d %s, want %d", i, status, body, want)
		}
	}
	p.mount("/rafs/c1/lowerdir", v5.bootstrap, localConfig(v5.blobs, work))
	if _, err := c.Getattr(ctx, stale.NodeID); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a node of the old image: %v, want ESTALE", err)
	}
	checkFile(t, c, "/rafs/c1/lowerdir", file)

	// Empty folders go with the last mount in them.
	for _, at := range []string{"/rafs/c1/lowerdir", "/rafs/c2/lowerdir"} {
		if status, body := p.call("DELETE", "/api/v1/mount?mountpoint="+at, ""); status != 204 {
			t.Errorf("DELETE %s: %d %s", at, status, body)
		}
	}
	if _, err := c.Lookup(ctx, vmm.RootID, "rafs"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("lookup of rafs after the last umount: %v, want ENOENT", err)
	}
	p.mount("/", v6.bootstrap, localConfig(v6.blobs, work))
	checkTree(t, c, v6)
	p.stop(syscall.SIGINT)
}

// someFile returns a regular file of the image with some content.
func someFile(t *testing.T, v variant) manifest.Entry {
	t.Helper()
	for _, e := range v.want {
		if e.Type == manifest.Regular && e.Size > 1000 {
			return e
		}
	}
	t.Fatal("the image has no such file")
	return manifest.Entry{}
}

// checkFile reads a file of an image that is mounted at a place.
func checkFile(t *testing.T, c *vmm.Client, at string, file manifest.Entry) {
	t.Helper()
	if err := tryFile(testContext(t), c, at, file); err != nil {
		t.Error(err)
	}
}

// TestMountErrorsByTheAPI: bodies and sources that are wrong, L19, L25, L29.
func TestMountErrorsByTheAPI(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	garbage := filepath.Join(work, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no bootstrap", 10000)), 0o600); err != nil {
		t.Fatal(err)
	}
	good := localConfig(v.blobs, work)
	for name, tt := range map[string]struct{ at, bootstrap, config, want string }{
		"no bootstrap":      {"/m", filepath.Join(work, "absent"), good, "absent"},
		"a folder":          {"/m", work, good, work},
		"garbage":           {"/m", garbage, good, garbage},
		"relative":          {"m", v.bootstrap, good, "not an absolute path"},
		"version 1":         {"/m", v.bootstrap, `{"version":1}`, "version"},
		"broken":            {"/m", v.bootstrap, `{`, "line 1"},
		"a secret in error": {"/m", v.bootstrap, `{"version":2,"backend":{"type":"registry","registry":{"auth":"CANARY","host":7,"repo":"r"}}}`, "host"},
		"work_dir a file":   {"/m", v.bootstrap, localConfig(v.blobs, garbage), garbage},
		"oss": {"/m", v.bootstrap, `{"version":2,"backend":{"type":"oss","oss":{"endpoint":"e","bucket_name":"b","access_key_secret":"CANARY"}},"rafs":{}}`,
			"oss: not supported yet"},
	} {
		status, body := p.tryMount(tt.at, tt.bootstrap, tt.config)
		if status != 500 || !strings.Contains(body, tt.want) || !strings.Contains(body, `"code":"UNDEFINED"`) {
			t.Errorf("%s: %d %s, want 500 with %q", name, status, body, tt.want)
		}
	}
	if n := len(p.info().BackendCollection); n != 0 {
		t.Errorf("failed mounts left %d", n)
	}
	p.mount("/m", v.bootstrap, good)
}

// TestEndOfLife: L43 to L47.
func TestEndOfLife(t *testing.T) {
	t.Run("a VMM is connected", func(t *testing.T) {
		p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
		p.ready()
		p.guest()
		p.stop(syscall.SIGTERM)
	})
	t.Run("the VMM goes and another comes", func(t *testing.T) {
		p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--linger", "200ms")
		vm, _ := p.guest()
		vm.Kill()
		vm, _ = p.guest()
		vm.Close()
		if code := p.exit(patience); code != 0 {
			t.Errorf("exit code %d after the VMM has gone, want 0", code)
		}
	})
	t.Run("somebody only looks whether we listen", func(t *testing.T) {
		p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--linger", "1ms")
		p.ready()
		second := launch(t, options{dir: p.dir}, "virtiofs", "--sock", "{sock}")
		if code := second.exit(patience); code != 1 || !strings.Contains(second.out.String(), "another process listens") {
			t.Errorf("a second daemon at our socket: exit code %d", code)
		}
		p.out.waitFor(t, "front-end gone")
		p.guest()
		p.stop(syscall.SIGTERM)
	})
	t.Run("no VMM ever", func(t *testing.T) {
		p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--first-connect", "50ms")
		if code := p.exit(patience); code != 1 || !strings.Contains(p.out.String(), "no VMM connected within 50ms") {
			t.Errorf("exit code %d, want 1 with the reason", code)
		}
	})
	t.Run("a client of the API is silent", func(t *testing.T) {
		p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
		p.ready()
		conn, err := net.Dial("unix", p.api)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p.stop(syscall.SIGTERM)
	})
}

// TestInheritedSocket: a listening descriptor and a connected one, in both
// spellings.
func TestInheritedSocket(t *testing.T) {
	for _, spelling := range []string{"--fd=3", "--fd 3"} {
		t.Run("listening "+spelling, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			f, err := l.File()
			if err != nil {
				t.Fatal(err)
			}
			p := launch(t, options{files: []*os.File{f}}, append([]string{"virtiofs"}, strings.Fields(spelling)...)...)
			f.Close()
			l.Close()
			p.sock = path
			_, c := p.guest()
			if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
				t.Error(err)
			}
			p.stop(syscall.SIGTERM)
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("a socket that is not ours was removed: %v", err)
			}
		})
	}
}

// TestL48_OutputNobodyReads: the pipe is full, then closed; the guest does not
// notice.
func TestL48_OutputNobodyReads(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := launch(t, options{stderr: w}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--log-level", "debug")
	w.Close()
	p.ready()
	p.mount("/", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	_, c := p.guest()
	checkTree(t, c, v) // writes more than a pipe holds
	r.Close()
	checkTree(t, c, v)
	p.info()
	p.stop(syscall.SIGTERM)
}

// TestBootstrapCutShort: another process truncates the file under our map. The
// daemon lives, other mounts go on.
func TestBootstrapCutShort(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	data, err := os.ReadFile(v.bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(work, "bootstrap")
	if err := os.WriteFile(victim, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/cut", victim, localConfig(v.blobs, work))
	p.mount("/whole", v.bootstrap, localConfig(v.blobs, work))
	_, c := p.guest()
	file := someFile(t, v)
	checkFile(t, c, "/cut", file)
	if err := os.Truncate(victim, 0); err != nil {
		t.Fatal(err)
	}
	if err := tryFile(testContext(t), c, "/cut", file); !errors.Is(err, syscall.EIO) {
		t.Errorf("a file of the image that was cut: %v, want EIO", err)
	}
	checkFile(t, c, "/whole", file)
	if state := p.info().State; state != "RUNNING" {
		t.Errorf("state %s", state)
	}
	p.stop(syscall.SIGTERM)
}

// tryFile reads a file of an image that is mounted at a place and compares it
// with what is true.
func tryFile(ctx context.Context, c *vmm.Client, at string, file manifest.Entry) error {
	data, err := readFile(ctx, c, at+file.Path)
	if err != nil {
		return err
	}
	return compareFile(at, file, data)
}
