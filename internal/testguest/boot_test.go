package testguest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// boot is Boot in a temporary folder of its own, which must be empty afterwards,
// and with no process left in it.
func boot(t *testing.T, ctx context.Context, c testguest.Config) (testguest.Result, error) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	r, err := testguest.Boot(ctx, c)
	left, rerr := os.ReadDir(tmp)
	if rerr != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, rerr)
	}
	processes, gerr := filepath.Glob("/proc/[0-9]*/cwd")
	if gerr != nil || len(processes) == 0 {
		t.Errorf("no processes seen: %v", gerr)
	}
	for _, p := range processes {
		if dir, err := os.Readlink(p); err == nil && strings.HasPrefix(dir, tmp) {
			t.Errorf("process %s is left in %s", p, dir)
		}
	}
	return r, err
}

// kinds runs f with each kind of guest.
func kinds(t *testing.T, f func(t *testing.T, c testguest.Config)) {
	for _, c := range []testguest.Config{{Kind: testguest.UML}, {Kind: testguest.QEMU}} {
		t.Run(string(c.Kind), func(t *testing.T) { f(t, testguest.Need(t, c)) })
	}
}

func long() bool { return os.Getenv("RAFSD_LONG") == "1" }

// A guest sees through Debian's virtiofsd what the host sees.
func TestManifestThroughVirtiofsd(t *testing.T) {
	share := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(share, "dir/deeper"), 0o750))
	for i := range 100 {
		name := filepath.Join(share, "dir", fmt.Sprintf("file %d\n", i))
		must(os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, i*i*100), 0o644))
	}
	must(os.Link(filepath.Join(share, "dir/file 7\n"), filepath.Join(share, "hard")))
	must(os.Symlink("../elsewhere", filepath.Join(share, "dir/link")))
	must(unix.Mkfifo(filepath.Join(share, "fifo"), 0o600))
	want, err := guest.Manifest(share, nil)
	must(err)

	kinds(t, func(t *testing.T, c testguest.Config) {
		socket := filepath.Join(t.TempDir(), "socket, with a comma")
		stop, err := testguest.StartVirtiofsd(t.Context(), socket, share, "shared,fs")
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		c.FS = []testguest.FS{{Socket: socket, Tag: "shared,fs", MountAt: "/mnt/it's", Options: "ro"}}
		c.Script = `rafs-guest manifest "/mnt/it's"; grep -c "/mnt/it's virtiofs ro" /proc/mounts >&2; exit 42`
		start := time.Now()
		r, err := boot(t, t.Context(), c)
		if err != nil {
			t.Fatalf("%v\n%s", err, r.Console)
		}
		t.Logf("%v, kernel %s: first process after %v, end after %v, Boot took %v", c, r.Kernel, r.BootTime, r.Time, time.Since(start))
		if r.ExitCode != 42 || r.Kernel == "" || r.BootTime <= 0 || r.BootTime > r.Time {
			t.Errorf("exit code %d, kernel %q, boot time %v of %v", r.ExitCode, r.Kernel, r.BootTime, r.Time)
		}
		text, ok := strings.CutSuffix(r.Output, "1\n")
		if !ok {
			t.Errorf("the mount's options were not there: output ends with %q", r.Output[max(0, len(r.Output)-100):])
		}
		got, err := manifest.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if d := manifest.Compare(got, want, manifest.Options{}); !d.Equal() {
			t.Errorf("the guest sees %d paths, the host %d:\n%s", len(got), len(want), d)
		}
	})
}

// What a script gets, and what comes back byte for byte.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	bytes256 := make([]byte, 256)
	for i := range bytes256 {
		bytes256[i] = byte(i)
	}
	for name, mode := range map[string]os.FileMode{"bytes": 0o600, "sub/run": 0o755} {
		content := bytes256
		if mode == 0o755 {
			content = []byte("#!/bin/sh\necho ran $1\n")
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/run", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	kinds(t, func(t *testing.T, c testguest.Config) {
		if c.Kind == testguest.QEMU && !long() {
			t.Skip("long: set RAFSD_LONG=1")
		}
		var live bytes.Buffer
		c.Output = &live
		c.Files = map[string]string{"/opt/tool": dir, "/etc/bytes": filepath.Join(dir, "bytes")}
		c.Modules = []string{"overlay"}
		c.Script = `
cat /etc/bytes
id -u
/opt/tool/link it
mkdir /tmp/a /tmp/b /tmp/c /tmp/m
mount -t overlay -o lowerdir=/tmp/a,upperdir=/tmp/b,workdir=/tmp/c overlay /tmp/m 2>/dev/null || grep -w overlay /proc/filesystems
i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo "line $i of many, which is not short and makes the output large in the end"; done
printf 'no newline at the end'`
		r, err := boot(t, t.Context(), c)
		if err != nil {
			t.Fatalf("%v\n%s", err, r.Console)
		}
		want := string(bytes256) + "0\nran it\n"
		if !strings.HasPrefix(r.Output, want) || !strings.HasSuffix(r.Output, "end\nno newline at the end") {
			t.Errorf("output starts with %.300q and ends with %q", r.Output, r.Output[max(0, len(r.Output)-50):])
		}
		if n := strings.Count(r.Output, "\nline "); n != 2000 || r.ExitCode != 0 {
			t.Errorf("%d lines, exit code %d", n, r.ExitCode)
		}
		if live.String() != r.Output {
			t.Errorf("read along: %d bytes, not the %d of the result", live.Len(), len(r.Output))
		}
	})
}

// A file system that cannot be mounted is named, with the guest's reason.
func TestMountFailure(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	dir := t.TempDir()
	stop, err := testguest.StartVirtiofsd(t.Context(), filepath.Join(dir, "s"), dir, "right")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c.FS = []testguest.FS{{Socket: filepath.Join(dir, "s"), Tag: "wrong", MountAt: "/mnt"}}
	c.Script = "echo the script ran"
	r, err := boot(t, t.Context(), c)
	if !errors.Is(err, testguest.ErrMount) || !strings.Contains(err.Error(), "wrong at /mnt") || !strings.Contains(err.Error(), "Invalid argument") {
		t.Errorf("error %v", err)
	}
	if strings.Contains(r.Output, "the script ran") {
		t.Error("the script ran")
	}
}

func TestTimeout(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = time.Second
	c.Script = "sleep 1000"
	r, err := boot(t, t.Context(), c)
	if !errors.Is(err, testguest.ErrTimeout) {
		t.Errorf("error %v", err)
	}
	if r.Time < c.Timeout || r.Time > c.Timeout+10*time.Second {
		t.Errorf("ended after %v", r.Time)
	}
}

// cancelWriter cancels when the guest's script prints.
type cancelWriter struct{ cancel context.CancelCauseFunc }

var errEnough = errors.New("enough")

func (w cancelWriter) Write(p []byte) (int, error) {
	if len(p) > 0 {
		w.cancel(errEnough)
	}
	return len(p), nil
}

func TestCancel(t *testing.T) {
	t.Run("in the script", func(t *testing.T) {
		c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		c.Output = cancelWriter{cancel}
		c.Script = "echo one; echo two; sleep 1000"
		r, err := boot(t, ctx, c)
		if !errors.Is(err, errEnough) || !strings.HasPrefix(r.Output, "one\n") || r.Kernel == "" {
			t.Errorf("error %v, output %q, kernel %q", err, r.Output, r.Kernel)
		}
	})
	t.Run("while an emulated machine boots", func(t *testing.T) {
		c := testguest.Need(t, testguest.Config{Kind: testguest.QEMU})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errEnough)
		defer cancel()
		if _, err := boot(t, ctx, c); !errors.Is(err, errEnough) {
			t.Errorf("error %v", err)
		}
	})
}

// A panic is told apart from a script that fails; before the first process it is
// met with a second try.
func TestPanic(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 30 * time.Second
	t.Run("in the script", func(t *testing.T) {
		c.Script = "echo before; echo c > /proc/sysrq-trigger; sleep 1000"
		r, err := boot(t, t.Context(), c)
		if !errors.Is(err, testguest.ErrDied) || strings.Contains(err.Error(), "second try") {
			t.Errorf("error %v", err)
		}
		if !strings.Contains(r.Console, "sysrq triggered crash") {
			t.Errorf("console:\n%s", r.Console)
		}
	})
	t.Run("before the first process", func(t *testing.T) {
		c.KernelArgs = []string{"rdinit=/no/such", "init=/no/such"}
		_, err := boot(t, t.Context(), c)
		if !errors.Is(err, testguest.ErrDied) || !strings.Contains(err.Error(), "second try") || !strings.Contains(err.Error(), "anic") {
			t.Errorf("error %v", err)
		}
	})
}

// Guests beside each other do not disturb each other.
func TestParallelGuests(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			mine := c
			mine.Script = fmt.Sprintf("sleep 0.2; echo %d; exit %d", i, i)
			r, err := testguest.Boot(t.Context(), mine)
			if err != nil || r.ExitCode != i || r.Output != fmt.Sprintf("%d\n", i) {
				t.Errorf("output %q, exit code %d, %v", r.Output, r.ExitCode, err)
			}
		})
	}
}

func TestConfigIsChecked(t *testing.T) {
	tests := map[string]struct {
		c    testguest.Config
		want string
	}{
		"no kind":             {testguest.Config{}, "no kind"},
		"no such suite":       {testguest.Config{Kind: testguest.UML, UMLSuite: "woody"}, "woody"},
		"no such QEMU":        {testguest.Config{Kind: testguest.QEMU, QEMUSuite: "woody"}, "woody"},
		"no such kernel":      {testguest.Config{Kind: testguest.QEMU, KernelSuite: "woody"}, "woody"},
		"two CPUs of UML":     {testguest.Config{Kind: testguest.UML, CPUs: 2}, "one CPU"},
		"no such module":      {testguest.Config{Kind: testguest.UML, Modules: []string{"floppy"}}, "floppy"},
		"too little memory":   {testguest.Config{Kind: testguest.UML, Memory: 5}, "64 MiB"},
		"FS without a tag":    {testguest.Config{Kind: testguest.UML, FS: []testguest.FS{{Socket: "s"}}}, "file system 0"},
		"relative mount path": {testguest.Config{Kind: testguest.UML, FS: []testguest.FS{{Socket: "s", Tag: "t", MountAt: "mnt"}}}, "file system 0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := testguest.Boot(t.Context(), tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// RAFSD_LONG=1 boots everything that we know, one after another. The old user-mode
// Linuxes cannot be shown with virtiofsd, which refuses their memory table.
func TestAllHypervisors(t *testing.T) {
	if !long() {
		t.Skip("long: set RAFSD_LONG=1")
	}
	for _, c := range testguest.Hypervisors() {
		t.Run(c.String(), func(t *testing.T) {
			c = testguest.Need(t, c)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("seen\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			c.Script = "echo seen"
			if c.Kind == testguest.QEMU || c.UMLSuite == "sid" {
				stop, err := testguest.StartVirtiofsd(t.Context(), filepath.Join(dir, "s"), dir, "fs")
				if err != nil {
					t.Fatal(err)
				}
				defer stop()
				c.FS = []testguest.FS{{Socket: filepath.Join(dir, "s"), Tag: "fs", MountAt: "/mnt"}}
				c.Script = "cat /mnt/file"
			}
			r, err := boot(t, t.Context(), c)
			if err != nil || r.Output != "seen\n" {
				t.Fatalf("output %q, %v\n%s", r.Output, err, r.Console)
			}
			t.Logf("kernel %s: first process after %v, end after %v", r.Kernel, r.BootTime, r.Time)
		})
	}
}
