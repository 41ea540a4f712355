package vmm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

func TestVirtiofsdLoad(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, dir), vmm.Options{Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	file, err := c.Resolve(ctx, "file")
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open(ctx, file.NodeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	loads := []vmm.Load{
		{Op: vmm.OpGetattr, NodeID: file.NodeID},
		{Op: vmm.OpGetattr, NodeID: file.NodeID, InFlight: 16},
		{Op: vmm.OpLookup, NodeID: vmm.RootID, Name: "file", InFlight: 4},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 4096, FileSize: 4 << 20, InFlight: 16},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 128 << 10, FileSize: 4 << 20, InFlight: 4},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 1 << 20, FileSize: 4 << 20},
	}
	for _, load := range loads {
		t.Run(fmt.Sprintf("%v %d in flight %d", load.Op, load.Size, load.InFlight), func(t *testing.T) {
			l, err := vm.NewLoader(load)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			const count = 2000
			r, err := l.Run(ctx, count, 0)
			if err != nil {
				t.Fatal(err)
			}
			if r.Requests != count {
				t.Errorf("%d requests were counted, want %d", r.Requests, count)
			}
			p50, p99 := r.Latency.Quantile(.5), r.Latency.Quantile(.99)
			if p50 <= 0 || p99 < p50 {
				t.Errorf("p50 %v, p99 %v", p50, p99)
			}
			t.Logf("%.0f/s p50 %v p99 %v front %v kicks %d calls %d", r.Rate(), p50, p99, r.Per(r.Front), r.Kicks, r.Calls)
		})
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}
