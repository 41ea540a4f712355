package e2e

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/hostile"
)

// growth is how much anonymous memory a hostile guest may cost over idle.
const growth = 64 << 20

// TestHostileGuest points every attack at the real daemon, which serves an image
// meanwhile: it must neither die, hang, leak nor grow.
func TestHostileGuest(t *testing.T) {
	count := 50_000
	if os.Getenv("RAFSD_LONG") == "1" {
		count = 1_000_000
	}
	img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Version: 6, Compressor: testimage.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, "--queues", "2", "--linger", "0", "--bootstrap", img.Bootstrap, "--localfs-dir", img.BlobDir)
	dial := func(ctx context.Context, opts vmm.Options) (*vmm.VM, error) {
		return vmm.Dial(ctx, d.Socket, opts)
	}
	// What an image opens at its first read is no leak: read all of it first.
	warmUp(t, dial)
	idle, fds := d.rssAnon(t), d.settledFiles(t)
	for _, a := range append(hostile.All(), hostile.Random(1, count)) {
		t.Run(a.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(count)*time.Millisecond)
			defer cancel()
			if err := a.Run(ctx, dial); err != nil {
				t.Error(err)
			}
			select {
			case <-d.exited:
				t.Fatalf("the daemon ended: %v", d.err)
			default:
			}
			if now := d.rssAnon(t); now > idle+growth {
				t.Errorf("RssAnon grew from %d to %d KiB", idle>>10, now>>10)
			}
		})
	}
	if err := hostile.Survives(t.Context(), dial); err != nil {
		t.Error(err)
	}
	d.waitFor(t, "the descriptors of before", func() bool { return d.openFiles(t) <= fds })
	t.Logf("RssAnon %d KiB before, %d KiB after", idle>>10, d.rssAnon(t)>>10)
}

// warmUp mounts as an honest guest does and reads everything.
func warmUp(t *testing.T, dial hostile.Dial) {
	t.Helper()
	vm, err := dial(t.Context(), vmm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(t.Context(), vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Walk(t.Context(), vmm.Walk{}); err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
}

// settledFiles is the number of the daemon's descriptors once those of the last
// front-end are closed: when it has not changed for a while.
func (d *rafsd) settledFiles(t *testing.T) int {
	t.Helper()
	const polls = 40
	last, same := d.openFiles(t), 0
	d.waitFor(t, "steady number of descriptors", func() bool {
		if now := d.openFiles(t); now == last {
			same++
		} else {
			last, same = now, 0
		}
		return same == polls
	})
	return last
}

// rssAnon is the daemon's anonymous memory in bytes.
func (d *rafsd) rssAnon(t *testing.T) uint64 {
	t.Helper()
	sum := uint64(0)
	for _, pid := range vmm.Processes(d.cmd.Process.Pid) {
		n, err := hostile.RssAnon(pid)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
