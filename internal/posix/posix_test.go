package posix

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// dir returns an empty directory to test, of mode 0777.
func dir(t *testing.T) string {
	t.Helper()
	parent := os.Getenv("RAFSD_POSIX_DIR")
	if parent == "" {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: wants to be root")
		}
		parent = hostDir(t)
	}
	d, err := os.MkdirTemp(parent, "posix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := os.Chmod(d, 0o777); err != nil {
		t.Fatal(err)
	}
	return d
}

// hostDir is a temporary directory of the host that every user may enter.
func hostDir(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(d, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Fatalf("%s is on overlayfs, whose ways are its own: set TMPDIR to a folder on ext4, xfs or tmpfs", d)
	}
	for up := d; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// cannot names tests of others that no file system of Linux passes by itself, as
// the host's own show, and why.
var cannot = map[string]string{
	"FcntlFlockLocksFile": "wants locks of flock and of fcntl to exclude each other, which on Linux know nothing of each other",
	"OpenSymlinkRace":     "is about the process that serves the file system; here the kernel follows the link that the test puts in, rightly",
}

// TestPosixtest runs the suite of go-fuse.
func TestPosixtest(t *testing.T) {
	all := map[string]func(*testing.T, string){
		"FallocateKeepSize": posixtest.FallocateKeepSize,
		"Tmpfile":           posixtest.Tmpfile,
	}
	for name, f := range posixtest.All {
		all[name] = f
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if why, ok := cannot[name]; ok {
				t.Logf("left out: %s", why)
				return
			}
			all[name](t, dir(t))
		})
	}
}

// want holds err to an errno, or to none.
func want(t *testing.T, what string, err error, errno syscall.Errno) {
	t.Helper()
	if errno == 0 {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	if !errors.Is(err, errno) {
		t.Errorf("%s: %v, want %v (%d)", what, err, errno, int(errno))
	}
}

// must ends the test with an error that should not be.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lstat(t *testing.T, name string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatalf("lstat %s: %v", name, err)
	}
	return st
}

func exists(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil
}

// file makes a file with a text.
func file(t *testing.T, name, text string) string {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o644))
	return name
}

// text wants a file to hold a text.
func text(t *testing.T, name, wanted string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil || string(b) != wanted {
		t.Errorf("%s holds %.80q (%v), want %.80q", filepath.Base(name), b, err, wanted)
	}
}

// as runs f on a thread that belongs to another user, who has no capabilities. The
// thread ends with it.
func as(t *testing.T, uid, gid int, groups []int, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		var err error
		defer func() { done <- err }()
		runtime.LockOSThread() // for good: nobody else may get this thread
		list := make([]uint32, len(groups)+1)
		for i, g := range groups {
			list[i] = uint32(g)
		}
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, uintptr(len(groups)), pointer(list)},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				err = errno
				return
			}
		}
		runtime.KeepAlive(list)
		f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("become user %d: %v", uid, err)
	}
}

// umask runs f with that umask.
func umask(mask int, f func()) {
	defer unix.Umask(unix.Umask(mask))
	f()
}
