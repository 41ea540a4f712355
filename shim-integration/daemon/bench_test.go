package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/vhostuser"
)

// The file that is looked up and read. It stays in the page cache and is more
// than a core's own caches hold.
const (
	hotDir  = "dir"
	hotName = "file"
	hotSize = 16 << 20
)

// machine is a guest's front-end on the daemon as it is shipped, both in this
// process: an image mounted at "/" and all of its data in the cache.
type machine struct {
	vm     *vmm.VM
	server *vhostuser.Server
	parent uint64
	file   uint64
}

// newMachine starts a daemon with so many request queues and reads the file once.
func newMachine(tb testing.TB, version testimage.Version, queues int) *machine {
	tb.Helper()
	dir := tb.TempDir()
	tree := testimage.NewTree()
	for i := range 500 {
		tree.File(fmt.Sprintf("/%s/neighbour-%d", hotDir, i), nil)
	}
	tree.FileOf("/"+hotDir+"/"+hotName, testimage.Random(hotSize, 1))
	img, err := tree.Write(dir, testimage.Options{Version: version, Compressor: testimage.LZ4})
	if err != nil {
		tb.Fatal(err)
	}
	d, err := daemon.New(daemon.Options{Alone: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	c, err := config.Parse(fmt.Sprintf(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":%q}},
		"cache":{"type":"filecache","filecache":{"work_dir":%q}},"rafs":{}}`, img.BlobDir, filepath.Join(dir, "cache")))
	if err != nil {
		tb.Fatal(err)
	}
	if err := d.MountImage(tb.Context(), "/", img.Bootstrap, c, nil); err != nil {
		tb.Fatal(err)
	}
	m := &machine{}
	if m.server, err = vhostuser.NewServer(d.Device("", queues), vhostuser.Options{
		Queues: 1 + queues, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		tb.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	l, err := vhostuser.Listen(sock)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.server.Serve(ctx, l) }()
	tb.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	m.connect(tb, sock, queues)
	return m
}

// connect boots the guest far enough to have read the file.
func (m *machine) connect(tb testing.TB, sock string, queues int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	vm, err := vmm.Dial(ctx, sock, vmm.Options{Sequence: vmm.QEMU11, RequestQueues: queues, Wait: 10 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(vm.Kill)
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		tb.Fatal(err)
	}
	parent, err := c.Lookup(ctx, vmm.RootID, hotDir)
	if err != nil {
		tb.Fatal(err)
	}
	file, err := c.Lookup(ctx, parent.NodeID, hotName)
	if err != nil || file.Attr.Size != hotSize {
		tb.Fatalf("lookup of the file: size %d, %v", file.Attr.Size, err)
	}
	for off := uint64(0); off < hotSize; off += 1 << 20 {
		if b, err := c.Read(ctx, file.NodeID, 0, off, 1<<20); err != nil || len(b) != 1<<20 {
			tb.Fatalf("read at %d: %d bytes, %v", off, len(b), err)
		}
	}
	m.vm, m.parent, m.file = vm, parent.NodeID, file.NodeID
}

// inFlight is how many requests each queue has at a time.
const inFlight = 4

// hits are the kinds of load that need nothing from outside.
var hits = []struct {
	name string
	op   vmm.Opcode
	size int
}{
	{"GETATTR/0", vmm.OpGetattr, 0},
	{"LOOKUP/0", vmm.OpLookup, 0},
	{"READ/4KiB", vmm.OpRead, 4 << 10},
	{"READ/128KiB", vmm.OpRead, 128 << 10},
	{"READ/1MiB", vmm.OpRead, 1 << 20},
}

// loader prepares requests on all queues.
func (m *machine) loader(tb testing.TB, op vmm.Opcode, size, queues int) *vmm.Loader {
	tb.Helper()
	load := vmm.Load{Op: op, NodeID: m.file, Size: size, FileSize: hotSize, InFlight: inFlight, Queues: queues}
	if op == vmm.OpLookup {
		load.NodeID, load.Name = m.parent, hotName
	}
	l, err := m.vm.NewLoader(load)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// BenchmarkHit is OP/SIZE/QUEUES with 4 requests in flight in each queue. Front-end
// and daemon share the process, and the front-end allocates nothing: what is
// reported as allocated is the daemon's, and has to be 0.
func BenchmarkHit(b *testing.B) {
	for _, h := range hits {
		for _, queues := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/%d", h.name, queues), func(b *testing.B) {
				m := newMachine(b, testimage.V6, queues)
				l := m.loader(b, h.op, h.size, queues)
				defer l.Close()
				ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
				defer cancel()
				before := m.stats()
				b.SetBytes(int64(h.size))
				b.ReportAllocs()
				b.ResetTimer()
				r, err := l.Run(ctx, uint64(b.N), 0)
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				after := m.stats()
				b.ReportMetric(float64(r.Latency.Quantile(.5).Nanoseconds()), "p50-ns")
				b.ReportMetric(float64(after.Kicks-before.Kicks)/float64(b.N), "kicks/op")
				b.ReportMetric(float64(after.Signals-before.Signals)/float64(b.N), "calls/op")
			})
		}
	}
}

// stats adds up what the queues have done.
func (m *machine) stats() (sum vhostuser.VringStats) {
	for _, s := range m.server.Stats() {
		sum.Requests += s.Requests
		sum.Waited += s.Waited
		sum.Kicks += s.Kicks
		sum.Signals += s.Signals
	}
	return sum
}

// TestHitsDoNotAllocate counts what the whole daemon allocates, from the kick to
// the signal.
func TestHitsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool throws things away at random")
	}
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		for _, queues := range []int{1, 4} {
			m := newMachine(t, version, queues)
			for _, h := range hits {
				t.Run(fmt.Sprintf("v%d/%s/%d", version, h.name, queues), func(t *testing.T) {
					m.countAllocations(t, h.op, h.size, queues)
				})
			}
		}
	}
}

func (m *machine) countAllocations(t *testing.T, op vmm.Opcode, size, queues int) {
	l := m.loader(t, op, size, queues)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(n int) {
		if _, err := l.Run(ctx, uint64(n), 0); err != nil {
			t.Fatal(err)
		}
	}
	// 20,000 requests, but no more than 512 MiB of data.
	n := min(20_000, 512<<20/max(size, 1))
	run(100) // what is made once
	waited := m.stats().Waited
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(n)
	runtime.ReadMemStats(&after)
	// A run itself and the runtime behind it make a few objects, however long it is.
	const few = 100
	if got := after.Mallocs - before.Mallocs; got > few {
		t.Errorf("%d requests allocated %d times, at most %d are for the run", n, got, few)
	}
	if got := m.stats().Waited - waited; got != 0 {
		t.Errorf("%d of %d requests left their queue's goroutine", got, n)
	}
}
