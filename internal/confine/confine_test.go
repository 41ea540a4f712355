package confine_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/confine"
)

var probe string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "rafsd-confine-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		probe = filepath.Join(dir, "probe")
		build := exec.Command("go", "build", "-o", probe, "./internal/probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
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

// TestLimit: every thread has what was kept, of what there was, and nothing else.
func TestLimit(t *testing.T) {
	needRoot(t)
	have, err := confine.Permitted()
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []confine.Set{0, confine.Images, confine.HostDirectory, confine.OverlayUpper} {
		out, err := exec.Command(probe, "limit", strconv.FormatUint(uint64(keep), 16)).CombinedOutput()
		if err != nil {
			t.Fatalf("keep %#x: %v\n%s", keep, err, out)
		}
		left := uint64(keep & have)
		want := fmt.Sprintf("CapInh:%016x CapPrm:%016x CapEff:%016x CapBnd:%016x CapAmb:%016x NoNewPrivs:1", 0, left, left, left, 0)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(lines) < 5 {
			t.Errorf("keep %#x: only %d threads, the test shows little:\n%s", keep, len(lines), out)
		}
		for _, line := range lines {
			if line != want {
				t.Errorf("keep %#x: a thread has\n%s, want\n%s", keep, line, want)
			}
		}
	}
}

// TestLimitTwice: what is gone stays gone.
func TestLimitTwice(t *testing.T) {
	needRoot(t)
	// As a user who has nothing: there is less to drop, and that is no error.
	cmd := exec.Command(probe, "limit", "ffffffffffffffff")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := os.Chmod(filepath.Dir(probe), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "CapPrm:0000000000000000 CapEff:0000000000000000") || !strings.Contains(line, "NoNewPrivs:1") {
			t.Errorf("a thread of nobody has %s", line)
		}
	}
}

func TestCgoIsRefused(t *testing.T) {
	if err := confine.NoNewPrivs(); err != nil && !errors.Is(err, confine.ErrThreads) {
		t.Errorf("NoNewPrivs: %v, want nil or ErrThreads", err)
	}
}

// inside is a probe in its sandbox.
type inside struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	pid int // of the child, as the host counts
}

// enter starts a probe in dir. The test's own mount namespace is private: what it
// mounts is seen by nobody else.
func enter(t *testing.T, dir string, mode confine.Mode) *inside {
	t.Helper()
	p := &inside{cmd: exec.Command(probe, "parent", dir, string(mode))}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewScanner(out)
	p.out.Buffer(nil, 1<<20)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	if line := p.line(t); line != "ready 1" {
		t.Fatalf("the child says %q, want to be process 1", line)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.cmd.Process.Pid, p.cmd.Process.Pid))
	if err == nil {
		p.pid, _ = strconv.Atoi(strings.TrimSpace(string(children)))
	}
	if p.pid == 0 {
		p.pid = childOf(t, p.cmd.Process.Pid)
	}
	return p
}

// childOf finds the process whose parent is pid.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			id, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return id
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

func (p *inside) line(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("the child has ended: %v", p.out.Err())
	}
	return p.out.Text()
}

func (p *inside) ask(t *testing.T, question string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, question); err != nil {
		t.Fatal(err)
	}
	return p.line(t)
}

// host makes a mount namespace for the test with a shared mount in it and runs f
// there. It needs a thread of its own, which is thrown away.
func host(t *testing.T, f func(base string)) {
	t.Helper()
	needRoot(t)
	base := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Not unlocked: the thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		for _, m := range []struct {
			source, fs string
			flags      uintptr
		}{{"", "", unix.MS_PRIVATE | unix.MS_REC}, {"tmpfs", "tmpfs", 0}, {"", "", unix.MS_SHARED}} {
			at := base
			if m.flags&unix.MS_PRIVATE != 0 {
				at = "/"
			}
			if err := unix.Mount(m.source, at, m.fs, m.flags, ""); err != nil {
				t.Errorf("mount %+v: %v", m, err)
				return
			}
		}
		f(base)
	}()
	<-done
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}

// TestSandbox: the directory is all there is, and mounts that the host makes later
// come in.
func TestSandbox(t *testing.T) {
	host(t, func(base string) {
		dir := filepath.Join(base, "shared")
		write(t, dir+"/file", "in")
		write(t, dir+"/sub/x", "covered")
		write(t, base+"/secret", "out")
		write(t, base+"/other/x", "mounted later")
		p := enter(t, dir, confine.Namespace)
		if got := p.ask(t, "read /file"); got != `"in" <nil>` {
			t.Errorf("/file: %s", got)
		}
		for _, name := range []string{base + "/secret", "/../secret", "/sub/../../secret", "/proc/1/root" + base + "/secret"} {
			if got := p.ask(t, "read "+name); !strings.Contains(got, "no such file") {
				t.Errorf("%s: %s, want it to be out of sight", name, got)
			}
		}
		if got := p.ask(t, "mounts"); strings.Contains(got, "/proc") || strings.Contains(got, " / / ") {
			t.Errorf("mounts of the host are in sight: %s", got)
		}
		if err := unix.Mount(base+"/other", dir+"/sub", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if got := p.ask(t, "read /sub/x"); got != `"mounted later" <nil>` {
			t.Errorf("what the host mounts is not seen: %s", got)
		}
		if err := unix.Unmount(dir+"/sub", 0); err != nil {
			t.Errorf("the sandbox holds the host's mount: %v", err)
		}
		if got := p.ask(t, "read /sub/x"); got != `"covered" <nil>` {
			t.Errorf("what the host unmounts stays: %s", got)
		}
	})
}

func TestChroot(t *testing.T) {
	host(t, func(base string) {
		write(t, base+"/shared/file", "in")
		write(t, base+"/secret", "out")
		p := enter(t, base+"/shared", confine.Chroot)
		if got := p.ask(t, "read /file"); got != `"in" <nil>` {
			t.Errorf("/file: %s", got)
		}
		if got := p.ask(t, "read "+base+"/secret"); !strings.Contains(got, "no such file") {
			t.Errorf("the host's file: %s", got)
		}
	})
}

// TestRun: the exit code and signals pass through, and no death of the parent
// leaves the child behind.
func TestRun(t *testing.T) {
	host(t, func(base string) {
		p := enter(t, base, confine.None)
		if _, err := fmt.Fprintln(p.in, "exit 5"); err != nil {
			t.Fatal(err)
		}
		_ = p.cmd.Wait()
		if code := p.cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("exit code %d, want the child's 5", code)
		}

		p = enter(t, base, confine.None)
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = p.cmd.Wait()
		if code := p.cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("exit code %d after SIGTERM, want the child's 7", code)
		}

		p = enter(t, base, confine.Namespace)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.cmd.Wait()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			err := unix.Kill(p.pid, 0)
			if err == unix.ESRCH {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the child %d lives on after its parent was killed: %v", p.pid, err)
			}
		}
	})
}

func TestEnterDirErrors(t *testing.T) {
	if err := confine.EnterDir("/nowhere", "jail"); err == nil || !strings.Contains(err.Error(), `"jail"`) {
		t.Errorf("unknown mode: %v", err)
	}
	if err := confine.EnterDir("/nowhere/at/all", confine.Chroot); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Errorf("missing directory: %v", err)
	}
}

func TestByName(t *testing.T) {
	for name, want := range map[string]confine.Set{
		"chown": confine.Chown, "CAP_SYS_ADMIN": confine.SysAdmin, "setfcap": confine.Setfcap, "Mknod": confine.Mknod,
		"checkpoint_restore": 1 << unix.CAP_CHECKPOINT_RESTORE, "dac_read_search": confine.DACReadSearch,
	} {
		if got, ok := confine.ByName(name); !ok || got != want {
			t.Errorf("ByName(%q) = %#x, %v, want %#x", name, got, ok, want)
		}
	}
	if _, ok := confine.ByName("root"); ok {
		t.Error("ByName(root) is something")
	}
}
