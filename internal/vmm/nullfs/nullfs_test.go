package nullfs_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
	"github.com/rafsd/rafsd/vhostuser"
)

func TestMain(m *testing.M) {
	nullfs.RunIfAsked()
	goleak.VerifyTestMain(m)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start serves in this process.
func start(t testing.TB, queues int) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "n.sock")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nullfs.Serve(ctx, sock, nullfs.Options{Queues: queues}) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return sock
}

func dial(t testing.TB, sock string, opts vmm.Options) *vmm.VM {
	t.Helper()
	opts.Wait = 10 * time.Second
	vm, err := vmm.Dial(testContext(t), sock, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return vm
}

func TestRequests(t *testing.T) {
	sock := start(t, 1)
	for _, seq := range []vmm.Sequence{vmm.QEMU72, vmm.QEMU11, vmm.CloudHypervisor} {
		vm := dial(t, sock, vmm.Options{Sequence: seq})
		ctx := testContext(t)
		c, err := vm.Mount(ctx, vmm.Linux72)
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.Lookup(ctx, vmm.RootID, nullfs.Name)
		if err != nil || e.NodeID != nullfs.NodeID || e.Attr.Size != nullfs.FileSize {
			t.Errorf("Lookup = node %d size %d, %v", e.NodeID, e.Attr.Size, err)
		}
		if _, err := c.Lookup(ctx, vmm.RootID, "other"); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("Lookup of what is not there: %v, want ENOENT", err)
		}
		if a, err := c.Getattr(ctx, vmm.RootID); err != nil || a.Attr.Mode != 0o40755 {
			t.Errorf("Getattr = mode %#o, %v", a.Attr.Mode, err)
		}
		for _, r := range []struct {
			off  uint64
			size int
			want int
		}{{0, 1, 1}, {1<<20 - 100, 4096, 4096}, {12345, 1 << 20, 1 << 20}, {nullfs.FileSize - 1, 4096, 1}, {nullfs.FileSize, 4096, 0}} {
			b, err := c.Read(ctx, nullfs.NodeID, 0, r.off, r.size)
			if err != nil || len(b) != r.want {
				t.Fatalf("Read(%d, %d) = %d bytes, %v; want %d", r.off, r.size, len(b), err, r.want)
			}
			for i, got := range b {
				if want := nullfs.Content(r.off + uint64(i)); got != want {
					t.Fatalf("Read(%d, %d): byte %d is %d, want %d", r.off, r.size, i, got, want)
				}
			}
		}
		if _, err := c.Open(ctx, nullfs.NodeID, 0); err != nil {
			t.Errorf("Open: %v", err)
		}
		if err := c.Destroy(ctx); err != nil {
			t.Errorf("Destroy: %v", err)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestListing: all entries are there once, and each of them can be looked up.
func TestListing(t *testing.T) {
	vm := dial(t, start(t, 1), vmm.Options{})
	ctx := testContext(t)
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for off := uint64(0); ; {
		list, err := c.ReaddirPlus(ctx, vmm.RootID, 0, off, 32<<10)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			if want := fmt.Sprintf("%s-%08d", nullfs.Name, n); e.Name != want || e.Entry.NodeID != nullfs.NodeID {
				t.Fatalf("entry %d is %+v, want %s", n, e, want)
			}
			n++
		}
		off = list[len(list)-1].Off
	}
	if n != nullfs.Entries {
		t.Errorf("%d entries, want %d", n, nullfs.Entries)
	}
	if e, err := c.Lookup(ctx, vmm.RootID, nullfs.Name+"-00000007"); err != nil || e.NodeID != nullfs.NodeID {
		t.Errorf("Lookup = node %d, %v", e.NodeID, err)
	}
}

// TestProcess measures a null back-end in a process of its own.
func TestProcess(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "n.sock")
	p, err := nullfs.Start(sock, nullfs.Options{Queues: 2, Poll: vhostuser.PollOff, Hollow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	vm := dial(t, sock, vmm.Options{RequestQueues: 2})
	ctx := testContext(t)
	if _, err := vm.Mount(ctx, vmm.Linux72); err != nil {
		t.Fatal(err)
	}
	l, err := vm.NewLoader(vmm.Load{
		Op: vmm.OpRead, NodeID: nullfs.NodeID, Size: 64 << 10, FileSize: nullfs.FileSize, InFlight: 4, Queues: 2, PID: p.PID(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.Run(ctx, 0, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests == 0 || r.Back <= 0 || r.Front <= 0 {
		t.Errorf("%d requests, back-end CPU %v, front-end CPU %v: want more than 0 of each", r.Requests, r.Back, r.Front)
	}
}

// BenchmarkNull is the floor, front-end and back-end in one process.
func BenchmarkNull(b *testing.B) {
	loads := map[string]vmm.Load{
		"GETATTR":     {Op: vmm.OpGetattr, NodeID: nullfs.NodeID},
		"LOOKUP":      {Op: vmm.OpLookup, NodeID: vmm.RootID, Name: nullfs.Name},
		"READ/4KiB":   {Op: vmm.OpRead, NodeID: nullfs.NodeID, Size: 4 << 10, FileSize: nullfs.FileSize},
		"READ/128KiB": {Op: vmm.OpRead, NodeID: nullfs.NodeID, Size: 128 << 10, FileSize: nullfs.FileSize},
		"READ/1MiB":   {Op: vmm.OpRead, NodeID: nullfs.NodeID, Size: 1 << 20, FileSize: nullfs.FileSize},
	}
	for name, load := range loads {
		for _, n := range []int{1, 16} {
			load.InFlight = n
			b.Run(fmt.Sprintf("%s/inflight=%d", name, n), func(b *testing.B) { benchmark(b, load) })
		}
	}
}

func benchmark(b *testing.B, load vmm.Load) {
	vm := dial(b, start(b, 1), vmm.Options{})
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	if _, err := vm.Mount(ctx, vmm.Linux72); err != nil {
		b.Fatal(err)
	}
	l, err := vm.NewLoader(load)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.SetBytes(int64(load.Size))
	b.ReportAllocs()
	b.ResetTimer()
	r, err := l.Run(ctx, uint64(b.N), 0)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(r.Latency.Quantile(.5).Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(r.Latency.Quantile(.99).Nanoseconds()), "p99-ns")
}

// TestSteadyState: neither the load nor the back-end, which run in one process here,
// allocate per request.
func TestSteadyState(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	sock := start(t, 1)
	vm := dial(t, sock, vmm.Options{})
	ctx := testContext(t)
	if _, err := vm.Mount(ctx, vmm.Linux72); err != nil {
		t.Fatal(err)
	}
	l, err := vm.NewLoader(vmm.Load{Op: vmm.OpRead, NodeID: nullfs.NodeID, Size: 8192, FileSize: nullfs.FileSize, InFlight: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const count = 20_000
	run := func() {
		if _, err := l.Run(ctx, count, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(1, run); n > count/100 {
		t.Errorf("%d requests allocate %v times", count, n)
	}
}
