package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest"
	"github.com/rafsd/rafsd/internal/manifest"
)

// inHost runs f in a mount namespace of its own, in which base, an empty folder, is
// a shared mount: what f mounts below it spreads to the daemons that f starts and to
// nobody else, and is gone with f.
func inHost(t *testing.T, f func(base string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("RAFSD_REQUIRE_GUEST") == "1" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: this test needs root")
	}
	base := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(base, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Fatalf("%s is on overlayfs, which cannot hold an upper layer: set TMPDIR to a folder on ext4 or xfs", base)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and its namespace with both
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		mount(t, "", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		mount(t, base, base, "", unix.MS_BIND, "")
		mount(t, "", base, "", unix.MS_SHARED, "")
		f(base)
	}()
	<-done
}

func mount(t *testing.T, source, at, fs string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, at, fs, flags, data); err != nil {
		t.Fatalf("mount %s at %s: %v", source, at, err)
	}
}

// bind mounts a file or folder at another place, as runtimes do.
func bind(t *testing.T, source, at string, readOnly bool) {
	t.Helper()
	mount(t, source, at, "", unix.MS_BIND, "")
	if readOnly {
		mount(t, "", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
}

// unmount takes a mount away, not lazily: nobody may hold it.
func unmount(t *testing.T, at string) {
	t.Helper()
	if err := unix.Unmount(at, 0); err != nil {
		t.Errorf("umount %s: %v", at, err)
	}
}

func mkdir(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// loopFS makes an ext4 file system in a file and mounts it.
func loopFS(t *testing.T, file, at string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	mkdir(t, at)
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", file}, {"mount", "-o", "loop", file, at}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
}

// buildStatic builds a program of this module that runs anywhere.
func buildStatic(t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(pkg))
	build := exec.Command("go", "build", "-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return program
}

// upperLayer describes the upper layer of an overlay. What differs between two of
// them for no other reason than where they are, is left out: where a file was copied
// from, which file system it is, and caches of such.
func upperLayer(t *testing.T, dir string) []manifest.Entry {
	t.Helper()
	entries, err := guest.Manifest(dir, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if e := &entries[i]; e.Type == manifest.CharDevice && e.Major == 0 && e.Minor == 0 {
			e.Hardlink = "" // whiteouts are links of one, or are not
		}
		entries[i].Xattrs = slices.DeleteFunc(entries[i].Xattrs, func(x manifest.Xattr) bool {
			return slices.Contains([]string{"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid", "trusted.overlay.nlink"}, x.Name)
		})
	}
	return entries
}

// steps of a guest's script, and of the host's side of it. The guest prints the name
// of a step and waits until a file of that name is in the shared folder.
const stepScript = `
step() { echo "@@STEP $1"; echo; n=0; until [ -e "$acks/$1" ]; do n=$((n+1)); [ $n -lt 1200 ] || { echo "gave up: $1"; exit 1; }; sleep 0.05; done; }
`

// answer does what each step asks for, in a goroutine of the namespace's thread: it
// is called by the thread that boots the guest.
type answers struct {
	t     *testing.T
	acks  string // folder, as the host names it
	steps map[string]func()
	order []string
}

// serve answers steps until the guest has ended, on the calling goroutine.
func (a *answers) serve(lines <-chan string, ended <-chan struct{}) {
	for {
		select {
		case name := <-lines:
			do := a.steps[name]
			if do == nil {
				a.t.Errorf("the guest asks for %q", name)
				continue
			}
			a.order = append(a.order, name)
			do()
			write(a.t, filepath.Join(a.acks, name), "")
		case <-ended:
			return
		}
	}
}

// waitGone waits until a daemon has ended and returns its exit code.
func (d *rafsd) waitGone(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(within):
		t.Fatalf("rafsd is still there after %v", within)
	}
	return d.cmd.ProcessState.ExitCode()
}

// field returns the value of a line "name value" of a guest's output.
func field(t *testing.T, output, name string) string {
	t.Helper()
	for line := range strings.Lines(output) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return value
		}
	}
	t.Errorf("the guest printed no %s:\n%.3000s", name, output)
	return ""
}
