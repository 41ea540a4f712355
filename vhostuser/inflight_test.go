package vhostuser_test

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// life is one process's part in serving a front-end: what it ends with is the table.
type life struct {
	*echo
	eager  bool   // nothing has to wait
	poison uint64 // the request that ends the process, if not 0
	died   chan struct{}
	once   sync.Once

	mu      sync.Mutex
	reruns  map[uint64]bool // by id, of requests served at last
	refused []uint64
	noted   map[uint64][]byte
}

func newLife() *life {
	return &life{echo: newEcho(), died: make(chan struct{}), reruns: make(map[uint64]bool), noted: make(map[uint64][]byte)}
}

func id(r *vhostuser.Request) uint64 {
	var b [reqSize]byte
	n := 0
	for _, seg := range r.Readable() {
		n += copy(b[n:], seg)
	}
	return binary.LittleEndian.Uint64(b[8:])
}

func (l *life) Serve(r *vhostuser.Request) (uint32, bool) {
	id := id(r)
	l.mu.Lock()
	l.reruns[id] = r.Rerun()
	if phase, _, note := r.Note(); phase != 0 {
		l.noted[id] = append([]byte(nil), note...)
	}
	l.mu.Unlock()
	if id == l.poison && id != 0 {
		r.State = &echoState{id: id}
		l.once.Do(func() { close(l.died) })
		return 0, false
	}
	n, done := l.echo.Serve(r)
	if !done {
		r.SetNote(1, 0, []byte{byte(id), byte(id >> 8), 'n'})
		if l.eager {
			return answer(r, id), true
		}
	}
	return n, done
}

func (l *life) ServeBlocking(ctx context.Context, r *vhostuser.Request) (uint32, error) {
	if l.poison == 0 || r.State.(*echoState).id != l.poison {
		return l.echo.ServeBlocking(ctx, r)
	}
	<-ctx.Done()
	return 0, ctx.Err()
}

func (l *life) Refuse(r *vhostuser.Request) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, id(r))
	return answer(r, ^uint64(refusal))
}

// refusal is the reply of a request that was refused.
const refusal = 0x1111

// reconnect goes on with a front-end's rings in another server, as Cloud Hypervisor
// does: the base is what the driver has made available.
func (b *bed) reconnect(f *front) {
	f.t.Helper()
	f.dial(b.path)
	f.negotiate()
	for _, q := range f.q {
		q.setUp(q.Available())
		q.enable(1)
	}
}

// TestStopsAndStartsWithATable: L20 to L24 hold for a vring with a table.
func TestStopsAndStartsWithATable(t *testing.T) {
	withTable = true
	defer func() { withTable = false }()
	t.Run("L20 L21 L22", TestTransportL20_L21_L22_StopAndGoOnWhileARequestWaits)
	t.Run("L23", TestTransportL23_RestartForgetsOldHeads)
	t.Run("L24", TestHandlerLearnsOfADriverThatRestarted)
	t.Run("pause", TestPauseAndResumeByEnable)
	t.Run("base", TestFrontEndMovesTheBaseBack)
	t.Run("costs", TestRequestsDoNotAllocate)
	t.Run("growth", TestTransportL54_NoGrowthOverManyStarts)
}

// TestAnotherProcessGoesOn: whatever was in flight, even all of a ring, is answered
// once by the next process, which knows of it and of what was noted. What comes after
// is not taken for it.
func TestAnotherProcessGoesOn(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, eager := range []bool{true, false} {
		h := newLife()
		b := newBed(t, h, vhostuser.Options{Queues: 2})
		f := b.connect(t, frontOptions{size: 256, start: 65400, table: true})
		q := f.q[1]
		for head := range uint16(200) {
			q.offer(head, opWait, 1, 1000+uint64(head))
		}
		q.show()
		poll(t, "all wait", func() bool { return h.inWait.Load() == 200 })
		b.leave(t, f)
		b.end()

		h = newLife()
		h.eager = eager
		close(h.gate(1))
		b = newBed(t, h, vhostuser.Options{Queues: 2})
		b.reconnect(f)
		for range 200 {
			u := q.wait()
			q.reply(u, 1000+uint64(u.ID))
		}
		for head := range uint16(200) {
			q.offer(head, opWait, 1, 2000+uint64(head))
		}
		q.show()
		for range 200 {
			u := q.wait()
			q.reply(u, 2000+uint64(u.ID))
		}
		b.leave(t, f)
		b.end()
		for n, again := range h.reruns {
			if again != (n < 2000) {
				t.Errorf("eager=%v: request %d: another process had taken it: %v", eager, n, again)
			}
		}
		for n := uint64(1000); n < 1200; n++ {
			if got := h.noted[n]; len(got) < 3 || got[0] != byte(n) || got[1] != byte(n>>8) || got[2] != 'n' {
				t.Errorf("eager=%v: request %d: noted %q", eager, n, got)
			}
		}
		if len(h.noted) != 200 {
			t.Errorf("eager=%v: %d requests had notes, want 200", eager, len(h.noted))
		}
	}
}

// TestRingsOfAnotherDriver: a table that fits no more, because the driver has begun
// anew while nobody was there, is not gone on from.
func TestRingsOfAnotherDriver(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newEcho()
	b := newBed(t, h, vhostuser.Options{Queues: 2})
	f := b.connect(t, frontOptions{start: 9, table: true})
	q := f.q[1]
	q.offer(3, opWait, 1, 1)
	q.show()
	poll(t, "it waits", func() bool { return h.inWait.Load() == 1 })
	b.leave(t, f)
	b.end()

	b = newBed(t, newEcho(), vhostuser.Options{Queues: 2})
	q.reset(0)
	b.reconnect(f)
	q.offer(5, opEcho, 0, 2)
	q.show()
	u := q.wait()
	if u.ID != 5 {
		t.Errorf("head %d came back, want 5", u.ID)
	}
	q.reply(u, 2)
	b.leave(t, f)
	b.end()
}

// TestHandlerLearnsOfARebootWithATable: Cloud Hypervisor asks for another table when
// the guest's driver starts anew.
func TestHandlerLearnsOfARebootWithATable(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newEcho()
	b := newBed(t, h, vhostuser.Options{Queues: 2})
	f := b.connect(t, frontOptions{table: true})
	for _, q := range f.q {
		q.offer(0, opEcho, 0, 1)
		q.show()
		q.reply(q.wait(), 1)
	}
	for _, q := range f.q {
		q.stop()
		q.reset(0)
	}
	check(t, unix.Close(f.inflight))
	f.inflight = 0
	f.exchangeInflight()
	f.start()
	if n := h.resets.Load(); n != 1 {
		t.Errorf("handler reset %d times by a reboot, want once", n)
	}
	for _, q := range f.q {
		q.offer(0, opEcho, 0, 1)
		q.show()
		q.reply(q.wait(), 1)
	}
	b.leave(t, f)
	b.end()
}

// TestTransportL50_InnocentNeighbours: a request ends one process after the other
// until it is refused. Another one, on another vring, waits all the time; it is
// answered, however often processes ended while it was in flight.
func TestTransportL50_InnocentNeighbours(t *testing.T) {
	defer goleak.VerifyNone(t)
	const poison, patient = 66, 77
	f := newFront(t, frontOptions{table: true})
	a, b, err := wire.Pair()
	check(t, err)
	f.attach(a)
	opts := vhostuser.Options{Queues: 2, Log: quiet()}
	h := newLife()
	h.poison = poison
	dev, err := vhostuser.NewDevice(h, opts)
	check(t, err)
	cfg := session.Config{Queues: 2, Log: opts.Log, NewInflight: func() (int, int64, error) { return vhostuser.NewInflight(2) }}
	ses := session.New(cfg, dev)
	served := make(chan error, 1)
	c := wire.NewConn(b)
	go func() { served <- ses.Serve(c) }()
	f.negotiate()
	f.start()
	f.q[0].offer(1, opWait, 1, patient)
	f.q[0].show()
	poll(t, "it waits", func() bool { return h.inWait.Load() == 1 })
	f.q[1].offer(2, opEcho, 0, poison)
	f.q[1].show()
	<-h.died
	// The keeper's state: all runs.
	check(t, b.SetReadDeadline(time.Unix(1, 0)))
	<-served
	st, err := ses.Snapshot()
	check(t, err)
	st.Crashed = true
	dev.Abandon()

	deaths := 1
	for ; ; deaths++ {
		if deaths > 5 {
			t.Fatalf("%d processes ended", deaths)
		}
		h = newLife()
		h.poison = poison
		dev, err = vhostuser.NewDeviceFromSnapshot(h, opts, st)
		check(t, err)
		var refused atomic.Bool
		poll(t, "the next end, or a refusal", func() bool {
			select {
			case <-h.died:
				return true
			default:
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			refused.Store(len(h.refused) > 0)
			return refused.Load()
		})
		if refused.Load() {
			break
		}
		dev.Abandon()
	}
	if deaths != 3 || len(h.refused) != 1 || h.refused[0] != poison {
		t.Errorf("%d processes ended, refused %v; want 3, only %d", deaths, h.refused, poison)
	}
	f.q[1].reply(f.q[1].wait(), ^uint64(refusal))
	close(h.gate(1))
	u := f.q[0].wait()
	f.q[0].reply(u, patient)
	dev.Close()
	ses.Close()
	c.Close()
}

// TestInflightRefusals: what is no table for us is refused, and the connection lives.
func TestInflightRefusals(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{Queues: 2})
	f := newFront(t, frontOptions{table: true})
	f.dial(b.path)
	f.negotiate()
	size := vhostuser.InflightSize(2)
	memfd := func(size int64, seals int) int {
		fd, err := unix.MemfdCreate("table", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		check(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		check(t, unix.Ftruncate(fd, size))
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		check(t, err)
		return fd
	}
	area := wire.Inflight{MmapSize: uint64(size), Queues: 2, QueueSize: 64}
	set := func(change func(*wire.Inflight)) []byte {
		a := area
		change(&a)
		return a.Append(nil)
	}
	as := func(*wire.Inflight) {}
	f.refused(wire.SetInflightFD, set(as))
	f.refused(wire.SetInflightFD, set(as), memfd(size-1, unix.F_SEAL_SHRINK))
	f.refused(wire.SetInflightFD, set(as), memfd(size, unix.F_SEAL_GROW))
	f.refused(wire.SetInflightFD, set(func(a *wire.Inflight) { a.MmapSize-- }), memfd(size, unix.F_SEAL_SHRINK))
	f.refused(wire.SetInflightFD, set(func(a *wire.Inflight) { a.MmapSize = 1 << 63 }), memfd(size, unix.F_SEAL_SHRINK))
	f.refused(wire.SetInflightFD, set(func(a *wire.Inflight) { a.MmapOffset = 4096 }), memfd(size, unix.F_SEAL_SHRINK))
	foreign := memfd(size, unix.F_SEAL_SHRINK)
	_, err := unix.Pwrite(foreign, []byte("another's table!"), 0)
	check(t, err)
	f.refused(wire.SetInflightFD, set(as), foreign)
	f.refused(wire.SetInflightFD, set(as)[:20], memfd(size, unix.F_SEAL_SHRINK))
	// One of the front-end's own making is as good as ours.
	f.ok(wire.SetInflightFD, set(as), memfd(size+4096, unix.F_SEAL_SHRINK))
	f.start()
	f.refused(wire.SetInflightFD, set(as), memfd(size, unix.F_SEAL_SHRINK))
	q := f.q[1]
	q.offer(3, opEcho, 0, 2)
	q.show()
	q.reply(q.wait(), 2)
	b.leave(t, f)
	b.end()
}
