package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
)

// notStressed are stress-ng's stressors of file systems that say nothing of ours.
var notStressed = []string{
	"binderfs", "bind-mount", // of other file systems
	"dup", "eventfd", "fd-fork", "ioprio", "procfs", "umask", // of no file system at all
}

// TestMatrixStress runs stress-ng's stressors of file systems in a guest, each for
// some seconds and with its own checks, on a folder that the daemon shares.
func TestMatrixStress(t *testing.T) {
	if os.Getenv("RAFSD_MATRIX") != "1" {
		t.Skip("long: make test-matrix")
	}
	uml, qemu := testguest.Config{Kind: testguest.UML}, testguest.Config{Kind: testguest.QEMU}
	run := func(name string, c testguest.Config, dir func(t *testing.T) string, not ...string) {
		t.Run(c.String()+"/"+name, func(t *testing.T) {
			c := testguest.Need(t, c)
			d := start(t, "--tag", tag, "--shared-dir", dir(t))
			stressInGuest(t, c, d.Socket, append(not, notStressed...))
		})
	}
	run("disk", uml, sharedDir)
	run("tmpfs", uml, func(t *testing.T) string {
		dir, err := os.MkdirTemp("/dev/shm", "stress")
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}, "fpunch") // fails on the host's tmpfs itself: it may see half a write
	run("disk", qemu, sharedDir)
}

func stressInGuest(t *testing.T, c testguest.Config, socket string, not []string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stress, err := testguest.Program(ctx, "stress-ng", "")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/stress-ng"
	host := filepath.Dir(stress.Argv[len(stress.Argv)-1])
	words := append([]string(nil), stress.Argv...)
	for i, w := range words {
		words[i] = strings.Replace(w, host, dir, 1)
	}
	words = append(words, "--class", "filesystem", "--exclude", strings.Join(not, ","),
		"--cache-size", "1M", "--sequential", "1", "--timeout", "3", "--verify", "--temp-path", "/mnt")
	c.Timeout = 15 * time.Minute
	c.Files = map[string]string{dir: host}
	c.FS = []testguest.FS{{Socket: socket, Tag: tag, MountAt: "/mnt"}}
	c.Script = "ln -s /proc/self/fd /dev/fd; mkdir -p /dev/shm; " + strings.Join(words, " ") + " 2>&1\n"
	r := boot(t, c)
	for line := range strings.Lines(r.Output) {
		if _, said, ok := strings.Cut(line, "stress-ng: "); ok && !strings.HasPrefix(said, "info:  [") || strings.Contains(line, "ed: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
