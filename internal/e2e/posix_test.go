package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
)

// TestPosixInGuest runs the tests of package posix in a guest, on a directory of the
// host that the daemon shows it: what they hold the host's own file systems to.
func TestPosixInGuest(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	d := start(t, "--tag", tag, "--shared-dir", sharedDir(t))
	posixInGuest(t, c, d.Socket)
}

// sharedDir is a directory to share, on a file system that does what Linux's own do:
// that of temporary files, or the one of $RAFSD_SHARE_ON.
func sharedDir(t *testing.T) string {
	t.Helper()
	on := os.Getenv("RAFSD_SHARE_ON")
	if on == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(on, "shared")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func posixInGuest(t *testing.T, c testguest.Config, socket string, env ...string) {
	program := filepath.Join(t.TempDir(), "posix.test")
	build := exec.Command("go", "test", "-c", "-o", program, "../posix")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	c.Timeout = 5 * time.Minute
	c.Files = map[string]string{"/bin/posix.test": program}
	c.FS = []testguest.FS{{Socket: socket, Tag: tag, MountAt: "/mnt"}}
	c.Script = "export RAFSD_POSIX_DIR=/mnt"
	for _, e := range env {
		c.Script += " " + e
	}
	c.Script += "\nln -s /proc/self/fd /dev/fd; posix.test -test.v 2>&1\n"
	boot(t, c)
}
