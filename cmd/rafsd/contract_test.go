package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/vmm"
)

// The statements of the contract with Kata's runtimes, nydus-snapshotter and
// operators, each as a test named by its number: what the callers do is replayed,
// not seen. Where a statement has a time bound, ten times that is a guard against
// hanging; how long it takes is logged.

// kataGo and kataRust are the command lines of Kata's two runtimes.
const (
	kataGo        = "virtiofs --log-level info --apisock {api} --sock {sock}"
	kataRust      = "virtiofs --hybrid-mode --log-level info --apisock {api} --sock {sock}"
	readinessLine = "Waiting for vhost-user socket connection"
)

// runsAsKataWants starts rafsd as Kata does and wants what Kata waits for.
func runsAsKataWants(t *testing.T, o options, argv string) *process {
	t.Helper()
	p := launch(t, o, strings.Fields(argv)...)
	took := p.ready()
	t.Logf("RUNNING %v after exec", took)
	if took > time.Second {
		t.Errorf("RUNNING %v after exec, want 100 ms", took)
	}
	for _, s := range []string{p.sock, p.api} {
		c, err := net.Dial("unix", s)
		if err != nil {
			t.Errorf("nobody listens at %s: %v", s, err)
			continue
		}
		c.Close()
	}
	return p
}

func TestL01_GoRuntimeStarts(t *testing.T) {
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := runsAsKataWants(t, options{binary: binary}, kataGo)
	if strings.Contains(p.out.String(), "options without effect") {
		t.Error("a warning about options that have an effect")
	}
	p.stop(syscall.SIGTERM)
}

func TestL02_RustRuntimeStarts(t *testing.T) {
	p := runsAsKataWants(t, options{}, kataRust)
	p.stop(syscall.SIGTERM)
}

// warnsOnce wants one warning that names the ignored options.
func warnsOnce(t *testing.T, p *process, names ...string) {
	t.Helper()
	p.out.waitFor(t, "msg=ready") // later than the warning
	if n := strings.Count(p.out.String(), "options without effect"); n != 1 {
		t.Errorf("%d warnings about ignored options, want 1", n)
	}
	for _, name := range names {
		if !strings.Contains(p.out.String(), name) {
			t.Errorf("the warning does not name %s", name)
		}
	}
}

func TestL03_GoRuntimeWithDefaultExtraArgs(t *testing.T) {
	p := runsAsKataWants(t, options{}, kataGo+" --thread-pool-size=1 --announce-submounts")
	warnsOnce(t, p, "--thread-pool-size", "--announce-submounts")
	p.stop(syscall.SIGTERM)
}

func TestL04_RustRuntimeWithDefaultExtraArgs(t *testing.T) {
	p := runsAsKataWants(t, options{}, kataRust+" --thread-pool-size=1 -o announce_submounts")
	warnsOnce(t, p, "--thread-pool-size", "-o")
	p.stop(syscall.SIGTERM)
}

func TestL05_RelativeSockets(t *testing.T) {
	p := runsAsKataWants(t, options{}, "virtiofs --hybrid-mode --log-level info --apisock a.sock --sock v.sock")
	p.stop(syscall.SIGTERM)
}

// stale leaves a socket file that nobody listens at.
func stale(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestL06_StaleSocketsAreReplaced(t *testing.T) {
	dir := shortDir(t)
	stale(t, filepath.Join(dir, "v.sock"))
	stale(t, filepath.Join(dir, "a.sock"))
	p := launch(t, options{dir: dir}, strings.Fields(kataGo)...)
	for strings.Count(p.out.String(), "msg=ready") == 0 { // the stale one refuses until then
		time.Sleep(time.Millisecond)
		if time.Since(p.started) > patience {
			t.Fatal("never ready")
		}
	}
	p.ready()
	p.guest()
	p.stop(syscall.SIGTERM)
}

// ends wants a command line to end with a code and a text, and to leave nothing.
func ends(t *testing.T, argv string, code int, text string) {
	t.Helper()
	p := launch(t, options{}, strings.Fields(argv)...)
	if got := p.exit(patience); got != code || !strings.Contains(p.out.String(), text) {
		t.Errorf("%s: exit code %d, want %d with %q", argv, got, code, text)
	}
	list, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != "empty.toml" {
			t.Errorf("%s: %s was left", argv, e.Name())
		}
	}
}

func TestL07_NoSocket(t *testing.T) {
	ends(t, "virtiofs --apisock {api}", 2, "one of --sock and --fd is required")
}

func TestL08_LogLevels(t *testing.T) {
	ends(t, "virtiofs --sock {sock} --log-level off", 2, "none of trace, debug, info, warn, error")
	p := runsAsKataWants(t, options{}, strings.Replace(kataGo, "info", "warn", 1))
	p.stop(syscall.SIGTERM)
}

func TestL09_IDAndSupervisor(t *testing.T) {
	ends(t, "virtiofs --sock {sock} --id x", 2, "need each other")
	ends(t, "virtiofs --sock {sock} --supervisor x", 2, "need each other")
	p := runsAsKataWants(t, options{}, kataGo+" --id name --supervisor {dir}/s.sock")
	if i := p.info(); i.ID == nil || *i.ID != "name" || i.Supervisor == nil || *i.Supervisor != p.dir+"/s.sock" {
		t.Errorf("id %v, supervisor %v", i.ID, i.Supervisor)
	}
	p.stop(syscall.SIGTERM)
}

func TestL10_VersionAgreesWithTheAPI(t *testing.T) {
	v := launch(t, options{}, "--version")
	if code := v.exit(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p := runsAsKataWants(t, options{}, kataGo)
	_, after, ok := strings.Cut(v.out.String(), "Git Commit:")
	commit, _, _ := strings.Cut(after, "\n")
	if got := p.info().Version.GitCommit; !ok || strings.TrimSpace(commit) != got || got == "" {
		t.Errorf("--version says %q, the API %q", strings.TrimSpace(commit), got)
	}
	if !strings.HasPrefix(v.out.String(), "\rVersion:") {
		t.Errorf("--version begins with %q", v.out.String())
	}
	p.stop(syscall.SIGTERM)
}

func TestL12_SocketPathLength(t *testing.T) {
	dir := shortDir(t)
	path := func(n int) string { return dir + "/" + strings.Repeat("x", n-len(dir)-1) }
	p := launch(t, options{}, "virtiofs", "--sock", path(107), "--apisock", "{api}")
	p.sock = path(107)
	p.ready()
	p.guest()
	p.stop(syscall.SIGTERM)
	for _, argv := range []string{"virtiofs --sock " + path(108), "virtiofs --sock {sock} --apisock " + path(108)} {
		ends(t, argv, 1, "108 bytes")
	}
}

// TestL13_SocketOwners: Kata may run the VMM as the owner of the folder.
func TestL13_SocketOwners(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	if err := os.Chown(dir, 1000, 1001); err != nil {
		t.Fatal(err)
	}
	p := runsAsKataWants(t, options{dir: dir}, kataGo)
	for path, uid := range map[string]uint32{p.sock: 1000, p.api: 0} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != uid || st.Mode&0o777 != 0o600 {
			t.Errorf("%s belongs to %d with mode %#o, want %d and 0600", filepath.Base(path), st.Uid, st.Mode&0o777, uid)
		}
	}
	p.stop(syscall.SIGTERM)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("RAFSD_REQUIRE_SHARED") == "1" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: this test needs root")
	}
}

func TestL43_TerminatedWithoutVMM(t *testing.T) {
	p := runsAsKataWants(t, options{}, kataGo)
	p.stop(syscall.SIGTERM)
	for _, socket := range []string{p.sock, p.api} {
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", socket, err)
		}
	}
}

// TestL44_TerminatedUnderLoad: requests in flight are answered or lost, and nobody
// waits for them.
func TestL44_TerminatedUnderLoad(t *testing.T) {
	p, dir := shareDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	_, c := p.guest()
	ctx, over := context.WithCancel(testContext(t))
	defer over()
	e, err := c.Resolve(ctx, "/containers/file")
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open(ctx, e.NodeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	var answered [4]atomic.Int64
	for i := range answered {
		readers.Go(func() {
			for {
				b, err := c.Read(ctx, e.NodeID, open.Fh, 0, 1<<20)
				if err != nil {
					return
				}
				if len(b) != 1<<20 {
					t.Errorf("a read of %d bytes", len(b))
				}
				answered[i].Add(1)
			}
		})
	}
	for i := range answered {
		waitUntil(t, "a read is answered", func() bool { return answered[i].Load() > 0 })
	}
	p.stop(syscall.SIGTERM)
	over() // what was not answered is lost
	readers.Wait()
}

// shareDir starts rafsd as Kata does and shares a new folder at /containers.
func shareDir(t *testing.T) (p *process, dir string) {
	t.Helper()
	dir = shortDir(t)
	p = runsAsKataWants(t, options{}, kataGo)
	p.share("/containers", dir)
	return p, dir
}

// share mounts a directory of the host, as Kata does.
func (p *process) share(at, dir string) {
	p.t.Helper()
	body, err := json.Marshal(map[string]string{"fs_type": "passthrough_fs", "source": dir, "config": ""})
	if err != nil {
		p.t.Fatal(err)
	}
	if status, text := p.call("POST", "/api/v1/mount?mountpoint="+at, string(body)); status != 204 || text != "" {
		p.t.Fatalf("POST mount %s: %d %s", at, status, text)
	}
}

// TestL45_KilledAtAnyTime: what a killed daemon left in the cache is right, or is
// not believed.
func TestL45_KilledAtAnyTime(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	for i := range 4 {
		p := launch(t, options{}, strings.Fields(kataRust)...)
		p.ready()
		p.mount("/image", v.bootstrap, localConfig(v.blobs, work))
		_, c := p.guest()
		go c.Walk(context.Background(), vmm.Walk{}) //nolint:errcheck // it is cut off
		time.Sleep(time.Duration(i*i) * 10 * time.Millisecond)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
	}
	p := launch(t, options{}, strings.Fields(kataRust)...)
	for { // the killed one left its sockets
		if _, err := os.Lstat(p.api); err == nil && strings.Contains(p.out.String(), "msg=ready") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	p.mount("/", v.bootstrap, localConfig(v.blobs, work))
	_, c := p.guest()
	checkTree(t, c, v)
	p.stop(syscall.SIGTERM)
}

func TestL46_VMMGoes(t *testing.T) {
	t.Run("nydus", func(t *testing.T) {
		p := runsAsKataWants(t, options{}, kataGo+" --linger 300ms")
		for range 2 { // a second one within the time
			vm, c := p.guest()
			if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
				t.Fatal(err)
			}
			vm.Close()
		}
		if code := p.exit(patience); code != 0 {
			t.Errorf("exit code %d after the VMM has gone, want 0", code)
		}
	})
	t.Run("virtiofsd", func(t *testing.T) {
		p := startVirtiofsd(t, options{}, kataRustVirtiofsd)
		vm, c := p.guest()
		if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
			t.Fatal(err)
		}
		vm.Close()
		start := time.Now()
		if code := p.exit(patience); code != 0 {
			t.Errorf("exit code %d after the VMM has gone, want 0", code)
		}
		t.Logf("gone %v after the VMM", time.Since(start))
		if _, err := os.Lstat(p.sock); err == nil {
			t.Error("the socket is still there")
		}
		if _, err := os.Lstat(p.sock + ".pid"); err != nil {
			t.Errorf("the lock file: %v, want it to stay", err)
		}
	})
}

func TestL47_NoVMMEver(t *testing.T) {
	p := launch(t, options{}, strings.Fields(kataGo+" --first-connect 100ms")...)
	if code := p.exit(patience); code != 1 || !strings.Contains(p.out.String(), "no VMM connected within 100ms") {
		t.Errorf("exit code %d, want 1 and the reason", code)
	}
}

// TestL49_LogLines: names and configurations that would make long or broken lines.
// Every line of every test's daemon is looked at when it ends.
func TestL49_LogLines(t *testing.T) {
	dir := shortDir(t)
	p := launch(t, options{}, strings.Fields(strings.Replace(kataGo, "info", "trace", 1))...)
	p.ready()
	p.share("/containers", dir)
	_, c := p.guest()
	ctx := testContext(t)
	parent, err := c.Resolve(ctx, "/containers")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{strings.Repeat("\xff", 255), "new\nline", "\x1b[31m", strings.Repeat("ü", 127), "%s%n"} {
		if _, err := c.Mkdir(ctx, parent.NodeID, name, 0o755); err != nil {
			t.Errorf("mkdir %.10q: %v", name, err)
		}
		if _, err := c.Symlink(ctx, parent.NodeID, name+"l"[:min(1, 255-len(name))], strings.Repeat("\xfe", 4000)); err != nil && len(name) < 255 {
			t.Errorf("symlink %.10q: %v", name, err)
		}
	}
	for _, body := range []string{
		`{"fs_type":"rafs","source":"` + strings.Repeat("x", 60000) + `","config":"{"}`,
		`{"fs_type":"` + strings.Repeat("y", 60000) + `","source":"/","config":""}`,
		`{"fs_type":"rafs","source":"/\u0000\n","config":"` + strings.Repeat("z", 60000) + `"}`,
	} {
		if status, _ := p.call("POST", "/api/v1/mount?mountpoint=/"+strings.Repeat("m", 3000), body); status < 400 {
			t.Errorf("a body of nonsense: %d", status)
		}
	}
	p.stop(syscall.SIGTERM)
}

// The command lines of Kata's runtimes for virtiofsd.
const (
	kataGoVirtiofsd   = "--syslog --cache=auto --shared-dir={dir} --fd=3 --thread-pool-size=1 --announce-submounts"
	kataRustVirtiofsd = "--socket-path {sock} --shared-dir {dir} --cache auto --thread-pool-size=1 -o announce_submounts"
)

// startVirtiofsd starts rafsd like virtiofsd and waits for the line that Kata's Rust
// runtime waits for.
func startVirtiofsd(t *testing.T, o options, argv string) *process {
	t.Helper()
	p := launch(t, o, strings.Fields(argv)...)
	p.out.waitFor(t, readinessLine)
	t.Logf("ready %v after exec", time.Since(p.started))
	return p
}

// TestL51_InheritedListener: the file is the runtime's, and so is its end.
func TestL51_InheritedListener(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "v.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil { // as exec hands it over
		t.Fatal(err)
	}
	argv := kataGoVirtiofsd
	if _, err := os.Stat("/dev/log"); err != nil {
		argv = strings.TrimPrefix(argv, "--syslog ") // there is no such log here
	}
	p := launch(t, options{dir: dir, files: []*os.File{f}}, strings.Fields(argv)...)
	f.Close()
	l.Close()
	vm, c := p.guest()
	if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
		t.Fatal(err)
	}
	vm.Close()
	if code := p.exit(patience); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the runtime's socket: %v, want it untouched", err)
	}
}

func TestL52_ReadinessLine(t *testing.T) {
	for _, extra := range []string{"", " --log-level=warn", " --log-level=off", " --xattr --sandbox=none", " --sandbox=chroot"} {
		p := startVirtiofsd(t, options{}, kataRustVirtiofsd+extra)
		_, c := p.guest() // it listens by now
		if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
			t.Error(err)
		}
		lines := 0
		for s := bufio.NewScanner(strings.NewReader(p.out.String())); s.Scan(); {
			if strings.Contains(s.Text(), readinessLine) {
				lines++
				if !strings.HasPrefix(s.Text(), "[") || !strings.HasSuffix(s.Text(), "Z INFO  virtiofsd] "+readinessLine+"...") {
					t.Errorf("the line is %q", s.Text())
				}
			}
		}
		if lines != 1 {
			t.Errorf("%q: the line came %d times, want once", extra, lines)
		}
		var st unix.Stat_t
		if err := unix.Lstat(p.sock, &st); err != nil || st.Mode&0o077 != 0 {
			t.Errorf("the socket has mode %#o, %v", st.Mode, err)
		}
		p.cmd.Process.Kill()
		<-p.ended
	}
}

func TestL53_OldOptions(t *testing.T) {
	p := startVirtiofsd(t, options{}, "--socket-path {sock} --cache auto -o announce_submounts,source={dir},xattr -o cache=never,no_posix_lock")
	p.cmd.Process.Kill()
	<-p.ended
	ends(t, kataRustVirtiofsd+" -o announce_submount", 2, "did you mean announce_submounts?")
	ends(t, kataRustVirtiofsd+" -o cache=sometimes", 2, "none of")
}

func TestL54_VirtiofsdExitCodes(t *testing.T) {
	for argv, want := range map[string]struct {
		code int
		text string
	}{
		"--socket-path {sock} --shared-dir {dir}/absent":                  {1, "absent"},
		"--socket-path {sock} --shared-dir {dir}/empty.toml":              {1, "not a directory"},
		"--socket-path {dir}/absent/s --shared-dir {dir}":                 {1, "absent"},
		"--socket-path {sock} --shared-dir {dir} --cache=sometimes":       {2, "--cache"},
		"--socket-path {sock}":                                            {2, "--shared-dir is required"},
		"--shared-dir {dir}":                                              {2, "--socket-path and --fd"},
		"--shared-dir {dir} --fd 1":                                       {2, "--fd"},
		"--shared-dir {dir} --fd 200":                                     {1, "200"},
		"--socket-path {sock} --shared-dir {dir} --uid-map :0:1:1:":       {2, "--translate-uid"},
		"--socket-path {sock} --shared-dir {dir} --modcaps=sys_admin":     {2, "+ or -"},
		"--socket-path {sock} --shared-dir {dir} --modcaps=+all":          {2, "no capability"},
		"--socket-path {sock} --shared-dir {dir} --xattrmap x":            {2, "--xattrmap"},
		"--socket-path {sock} --shared-dir {dir} --translate-uid x":       {2, "--translate-uid"},
		"--socket-path {sock} --shared-dir {dir} --posix-acl=sometimes":   {2, "none of"},
		"--socket-path {sock} --shared-dir {dir} --anounce-submounts":     {2, "did you mean --announce-submounts?"},
		"--socket-path {sock} --shared-dir {dir} --socket-group=nobodies": {1, "nobodies"},
		"--print-capabilities":                                            {0, `"type": "fs"`},
		"--shared-dir / --help":                                           {0, "--help"},
		"--shared-dir / --version":                                        {0, "Git Commit:"},
	} {
		t.Run(argv, func(t *testing.T) {
			t.Parallel()
			p := launch(t, options{}, strings.Fields(argv)...)
			if code := p.exit(patience); code != want.code || !strings.Contains(p.out.String(), want.text) {
				t.Errorf("exit code %d, want %d with %q", code, want.code, want.text)
			}
			if strings.Contains(p.out.String(), readinessLine) {
				t.Error("it said that it is ready")
			}
			if _, err := os.Lstat(p.sock); err == nil {
				t.Error("the socket was left behind")
			}
		})
	}
	t.Run("capabilities are JSON", func(t *testing.T) {
		p := launch(t, options{}, "--print-capabilities")
		p.exit(patience)
		var caps struct {
			Type     string   `json:"type"`
			Features []string `json:"features"`
		}
		if err := json.Unmarshal([]byte(p.out.String()), &caps); err != nil || caps.Type != "fs" || len(caps.Features) == 0 {
			t.Errorf("%+v, %v", caps, err)
		}
	})
	t.Run("SIGTERM before a VMM", func(t *testing.T) {
		p := startVirtiofsd(t, options{}, kataRustVirtiofsd)
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.exit(patience); code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		if _, err := os.Lstat(p.sock); err != nil {
			t.Errorf("the socket: %v, want it to stay", err)
		}
	})
	t.Run("two on one socket", func(t *testing.T) {
		p := startVirtiofsd(t, options{}, kataRustVirtiofsd)
		second := launch(t, options{dir: p.dir}, strings.Fields(kataRustVirtiofsd)...)
		if code := second.exit(patience); code != 1 || !strings.Contains(second.out.String(), "another process has it") {
			t.Errorf("exit code %d of the second, want 1", code)
		}
		p.guest()
	})
}

func TestL55_RepeatedOptions(t *testing.T) {
	p := startVirtiofsd(t, options{}, kataRustVirtiofsd+" --cache=never --cache always --thread-pool-size=4 --xattr --xattr")
	p.guest()
}

// TestAllCommandLines is every command line of the callers, as they write it.
func TestAllCommandLines(t *testing.T) {
	for name, tt := range map[string]struct {
		argv string
		code int // -1: it serves
		text string
	}{
		"kata go":                            {kataGo, -1, "msg=ready"},
		"kata go, debug":                     {strings.Replace(kataGo, "info", "debug", 1), -1, "msg=ready"},
		"kata rust":                          {kataRust, -1, "msg=ready"},
		"kata go, default extras":            {kataGo + " --thread-pool-size=1 --announce-submounts", -1, "without effect"},
		"kata rust, default extras":          {kataRust + " --thread-pool-size=1 -o announce_submounts", -1, "without effect"},
		"kata rust, virtiofsd":               {kataRustVirtiofsd, -1, readinessLine},
		"kata rust, virtiofsd with labels":   {kataRustVirtiofsd + " --xattr", -1, readinessLine},
		"kata rust, virtiofsd without extra": {"--socket-path {sock} --shared-dir {dir} --cache never", -1, readinessLine},
		"snapshotter, one image": {"fuse --thread-num 4 --id d1 --config {dir}/config.json --bootstrap {dir}/image.boot --mountpoint {dir}/mnt --apisock {api} " +
			"--log-level info --log-rotation-size 100 --supervisor {dir}/s.sock --log-file {dir}/log --prefetch-files /bin --failover-policy resend", 1, "nydusd"},
		"snapshotter, upgrade": {"fuse --upgrade --id d1 --mountpoint {dir}/mnt --apisock {api} --log-level info --supervisor {dir}/s.sock", 1, "nydusd"},
		"snapshotter, backend": {"fuse --id d1 --config {dir}/c --bootstrap {dir}/b --mountpoint {dir}/mnt --apisock {api} --log-level info --backend-source http://h/", 1, "nydusd"},
		"snapshotter, fscache": {"singleton --fscache {dir}/cache --fscache-threads 2 --id shared --apisock {api} --log-level info", 1, "nydusd"},
		"nydusd by option":     {"--config {dir}/c --mountpoint {dir}/mnt --bootstrap {dir}/b --apisock {api}", 1, "nydusd"},
		"nydusd, shared dir":   {"virtiofs --sock {sock} --shared-dir {dir} --apisock {api}", -1, "msg=ready"},
		"nydusd, elsewhere":    {"virtiofs --sock {sock} -s {dir} -m /shared -A {api} -l warn", -1, ""},
		"nydusd, both":         {"virtiofs --sock {sock} -s {dir} -B {dir}/b -C {dir}/c", 2, "exclude each other"},
		"nydusd, upgrade":      {"virtiofs --sock {sock} --upgrade", 1, "cannot take over"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := launch(t, options{}, strings.Fields(tt.argv)...)
			if tt.code >= 0 {
				if code := p.exit(patience); code != tt.code || !strings.Contains(p.out.String(), tt.text) {
					t.Errorf("exit code %d, want %d with %q", code, tt.code, tt.text)
				}
				return
			}
			p.out.waitFor(t, tt.text)
			p.guest()
		})
	}
}

// TestSandbox: started like virtiofsd, the process that works has the directory for
// its root, in namespaces of its own, and dies with the one that waits.
func TestSandbox(t *testing.T) {
	needRoot(t)
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := startVirtiofsd(t, options{binary: binary}, kataRustVirtiofsd+" --xattr")
	child := childOf(t, p.cmd.Process.Pid)
	root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", child))
	if err != nil {
		t.Fatal(err)
	}
	shared, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(root) != len(shared) {
		t.Errorf("the child's root has %d names, the shared directory %d", len(root), len(shared))
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", child))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] != "/" {
			t.Errorf("the child sees the mount %s", f[4])
		}
	}
	for _, ns := range []string{"mnt", "pid"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", child, ns)); err != nil || theirs == ours {
			t.Errorf("the child's %s namespace is %s, ours %s, %v", ns, theirs, ours, err)
		}
	}
	privileges(t, child, capsOfDirectory)
	_, c := p.guest()
	ctx := testContext(t)
	if _, err := c.Mkdir(ctx, vmm.RootID, "made", 0o750); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(p.dir, "made")); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("what the guest made: %v, %v", st, err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	waitUntil(t, "the child ends with its parent", func() bool { return unix.Kill(child, 0) == unix.ESRCH })
}

// childOf returns the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		id, rest, _ := strings.Cut(string(text), " (")
		_, rest, _ = strings.Cut(rest, ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(id)
			if err != nil {
				t.Fatal(err)
			}
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// capsOfDirectory are chown, dac_override, dac_read_search, fowner, fsetid, setgid,
// setuid, mknod and setfcap.
const capsOfDirectory = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<6 | 1<<7 | 1<<27 | 1<<31

// privileges wants every thread of a process to have these capabilities, as far as
// we had them to give, and no others.
func privileges(t *testing.T, pid int, caps uint64) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		got := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				got[key] = strings.TrimSpace(value)
			}
		}
		want := fmt.Sprintf("%016x", caps)
		if got["CapPrm"] != want || got["CapEff"] != want || got["CapBnd"] != want || got["CapInh"] != fmt.Sprintf("%016x", 0) || got["NoNewPrivs"] != "1" {
			t.Errorf("a thread has permitted %s, effective %s, bounding %s, inheritable %s, no_new_privs %s; want %s",
				got["CapPrm"], got["CapEff"], got["CapBnd"], got["CapInh"], got["NoNewPrivs"], want)
		}
	}
}

// TestPrivileges: each personality keeps what it needs.
func TestPrivileges(t *testing.T) {
	needRoot(t)
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	const directory, sysAdmin = capsOfDirectory, 1 << 21
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	for name, tt := range map[string]struct {
		argv string
		caps uint64
	}{
		"an image alone":               {"virtiofs --sock {sock} --bootstrap " + v.bootstrap + " --localfs-dir " + v.blobs, 1 << 2},
		"mounts by API":                {kataGo, directory | sysAdmin},
		"a directory":                  {"virtiofs --sock {sock} --shared-dir {dir}", directory | sysAdmin},
		"virtiofsd":                    {kataRustVirtiofsd + " --sandbox=none", directory},
		"virtiofsd for an upper layer": {kataRustVirtiofsd + " --sandbox=none --modcaps=+sys_admin", directory | sysAdmin},
		"virtiofsd with less":          {kataRustVirtiofsd + " --sandbox=chroot --modcaps=-mknod:-setfcap", directory &^ (1<<27 | 1<<31)},
	} {
		t.Run(name, func(t *testing.T) {
			p := launch(t, options{binary: binary}, strings.Fields(tt.argv)...)
			_, c := p.guest()
			if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
				t.Fatal(err)
			}
			for _, pid := range vmm.Processes(p.cmd.Process.Pid) {
				privileges(t, pid, tt.caps)
			}
		})
	}
}
