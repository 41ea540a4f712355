package vhostuser_test

import (
	"bytes"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

func TestWaitingRequestsFinishInAnyOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{start: 65530})
	q := f.q[1]
	for h := range uint16(8) {
		q.offer(h, opWait, uint32(h), 100+uint64(h))
	}
	q.offer(8, opEcho, 0, 108)
	q.show()
	if u := q.wait(); u.ID != 8 {
		t.Fatalf("head %d came back first, want 8, which need not wait", u.ID)
	}
	poll(t, "all requests wait", func() bool { return b.echo.inWait.Load() == 8 })
	for _, h := range []uint32{5, 0, 7, 3, 1, 2, 6, 4} {
		close(b.echo.gate(h))
		u := q.wait()
		if u.ID != h {
			t.Fatalf("head %d came back, want %d", u.ID, h)
		}
		q.reply(u, 100+uint64(h))
	}
	// The Requests and heads are good for another round.
	for h := range uint16(8) {
		q.offer(h, opWait, uint32(h), 200+uint64(h))
	}
	q.show()
	for range 8 {
		u := q.wait()
		q.reply(u, 200+uint64(u.ID))
	}
	if s := b.server.Stats()[1]; s.Requests != 17 || s.Waited != 16 {
		t.Errorf("%d requests, %d waited, want 17, 16", s.Requests, s.Waited)
	}
	b.leave(t, f)
	b.end()
}

// TestTransportL46: all request vrings wait, the high-priority one is served.
func TestTransportL46_HighPriorityIsServedWhileOthersWait(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{queues: 3, size: 16})
	for _, q := range f.q[1:] {
		for h := range uint16(16) {
			q.offer(h, opWait, 0, uint64(h))
		}
		q.show()
	}
	poll(t, "all requests wait", func() bool { return b.echo.inWait.Load() == 32 })
	q := f.q[0]
	q.offer(3, opSilent, 0, 0)
	q.show()
	// L36: no reply, no length.
	if u := q.wait(); u.ID != 3 || u.Len != 0 {
		t.Errorf("used %+v, want head 3 with length 0", u)
	}
	close(b.echo.gate(0))
	for _, q := range f.q[1:] {
		for range 16 {
			u := q.wait()
			q.reply(u, uint64(u.ID))
		}
	}
	b.leave(t, f)
	b.end()
}

// quickly fails if f takes longer than GET_VRING_BASE may. Other tests share the
// processors, so the bound is wider than the promise of 10 ms.
func quickly(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("%s took %v", what, d)
	}
}

func TestTransportL20_L21_L22_StopAndGoOnWhileARequestWaits(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{start: 65534})
	q := f.q[1]
	for h := range uint16(4) {
		q.offer(h, opWait, 1, 10+uint64(h))
	}
	q.show()
	poll(t, "all requests wait", func() bool { return b.echo.inWait.Load() == 4 })
	var base uint16
	quickly(t, "L20 stop", func() { base = q.stop() })
	if base != 2 { // 65534 + 4, wrapped
		t.Fatalf("base %d, want 2", base)
	}
	before := bytes.Clone(f.mem)
	close(b.echo.gate(1))
	// Their Handler calls now stand in Attach; nothing tells when, so look for a while.
	time.Sleep(20 * time.Millisecond)
	if !bytes.Equal(before, f.mem) {
		t.Error("L21: guest memory was written after the vring was stopped")
	}
	if n := b.echo.inWait.Load(); n != 4 {
		t.Errorf("%d requests wait for the vring, want 4", n)
	}
	q.setUp(base)
	q.enable(1)
	var heads []uint32
	for range 4 {
		u := q.wait()
		q.reply(u, 10+uint64(u.ID))
		heads = append(heads, u.ID)
	}
	slices.Sort(heads)
	if !slices.Equal(heads, []uint32{0, 1, 2, 3}) {
		t.Errorf("L22: heads %v came back, want each once", heads)
	}
	// And the vring works on.
	q.offer(9, opEcho, 0, 77)
	q.show()
	q.reply(q.wait(), 77)
	b.leave(t, f)
	b.end()
}

// Cloud Hypervisor pauses by ENABLE 0 alone and resumes by ENABLE 1.
func TestPauseAndResumeByEnable(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	q.offer(0, opWait, 1, 5)
	q.show()
	poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
	q.enable(0)
	close(b.echo.gate(1))
	q.offer(1, opEcho, 0, 6)
	q.Show()
	q.sendKick() // to a vring that is off
	if _, err := q.next(20 * time.Millisecond); err != errNothing {
		t.Fatalf("a vring that is off answered: %v", err)
	}
	q.enable(1)
	for range 2 {
		u := q.wait()
		q.reply(u, 5+uint64(u.ID))
	}
	b.leave(t, f)
	b.end()
}

// TestTransportL23: whatever a restarted driver does with its rings, it never gets heads
// of its former life.
func TestTransportL23_RestartForgetsOldHeads(t *testing.T) {
	defer goleak.VerifyNone(t)
	tests := map[string]struct {
		start uint16
		again func(q *frontQueue, base uint16)
	}{
		"base 0": {5, func(q *frontQueue, _ uint16) {
			q.reset(0)
			q.setUp(0)
		}},
		// The base says go on, but the used ring is that of a fresh driver.
		"our base was 0 by wrap-around": {65535, func(q *frontQueue, base uint16) {
			if base != 0 {
				q.f.t.Fatalf("base %d, want 0", base)
			}
			q.reset(0)
			q.setUp(0)
		}},
		"other addresses": {5, func(q *frontQueue, base uint16) {
			q.move(base)
			q.setUp(base)
		}},
		"RESET_DEVICE": {5, func(q *frontQueue, base uint16) {
			q.f.ok(wire.ResetDevice, nil)
			q.f.ok(wire.ResetDevice, nil)
			q.reset(base)
			q.setUp(base)
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newEcho(), vhostuser.Options{})
			f := b.connect(t, frontOptions{start: tt.start})
			q := f.q[1]
			q.offer(7, opWait, 1, 1)
			q.show()
			poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
			base := q.stop()
			tt.again(q, base)
			q.enable(1)
			if n := b.echo.inWait.Load(); n != 0 {
				t.Errorf("%d requests of the former life still wait", n)
			}
			close(b.echo.gate(1))
			q.offer(2, opEcho, 0, 3)
			q.show()
			u := q.wait()
			if u.ID != 2 {
				t.Fatalf("head %d came back, want 2", u.ID)
			}
			q.reply(u, 3)
			if _, err := q.next(10 * time.Millisecond); err != errNothing {
				t.Errorf("more came back: %v", err)
			}
			b.leave(t, f)
			b.end()
		})
	}
}

// TestFrontEndMovesTheBaseBack: a front-end that lost track starts the vring at
// the used index. What was in flight is then available again, and served again.
func TestFrontEndMovesTheBaseBack(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{start: 30})
	q := f.q[1]
	q.offer(3, opWait, 1, 8)
	q.show()
	poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
	if base := q.stop(); base != 31 {
		t.Fatalf("base %d, want 31", base)
	}
	close(b.echo.gate(1))
	q.setUp(30)
	q.enable(1)
	q.reply(q.wait(), 8)
	q.offer(4, opEcho, 0, 9)
	q.show()
	q.reply(q.wait(), 9)
	if n := b.server.Stats()[1].Requests; n != 3 {
		t.Errorf("%d requests taken, want the first twice and the second once", n)
	}
	b.leave(t, f)
	b.end()
}

func TestHandlerLearnsOfADriverThatRestarted(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	for _, q := range f.q {
		q.offer(0, opEcho, 0, 1)
		q.show()
		q.wait()
	}
	for _, q := range f.q {
		q.stop()
		q.reset(0)
	}
	f.start() // as QEMU 7.2 after a reboot: no RESET_DEVICE
	if n := b.echo.resets.Load(); n != 1 {
		t.Errorf("handler reset %d times by a reboot of two vrings, want once", n)
	}
	for _, q := range f.q {
		q.offer(0, opEcho, 0, 1)
		q.show()
		q.reply(q.wait(), 1)
	}
	// L24: QMP stop and cont, no memory message, same places: nothing is reset.
	for _, q := range f.q {
		base := q.stop()
		q.setUp(base)
		q.enable(1)
		q.offer(0, opEcho, 0, 2)
		q.show()
		q.reply(q.wait(), 2)
	}
	if n := b.echo.resets.Load(); n != 1 {
		t.Errorf("handler reset %d times, stop and cont must not", n)
	}
	b.leave(t, f)
	if n := b.echo.resets.Load(); n != 2 {
		t.Errorf("handler reset %d times after the front-end left, want 2", n)
	}
	b.end()
}

func TestFrontEndLeavesWhileRequestsWait(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	before := openFDs(t)
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	for h := range uint16(5) {
		q.offer(h, opWait, 1, 1)
	}
	q.show()
	poll(t, "all requests wait", func() bool { return b.echo.inWait.Load() == 5 })
	quickly(t, "leaving", func() { b.leave(t, f) })
	if n := b.echo.inWait.Load(); n != 0 {
		t.Errorf("%d requests of a front-end that left still wait", n)
	}
	// L06: of the server's descriptors none is left; those of the front-end are
	// open until the test ends.
	if after, own := openFDs(t), 1+3*len(f.q); after != before+own {
		t.Errorf("%d descriptors open, want %d and %d of the front-end", after, before, own)
	}
	b.end()
}

func TestServerEndsWhileRequestsWait(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	q.offer(0, opWait, 1, 1)
	q.show()
	poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
	quickly(t, "L55 end", b.end)
	checkGone(t, b.path)
}

// TestTransportL54_NoGrowthOverManyStarts: of descriptors and goroutines. RAFSD_LONG=1 does
// all of the 10,000.
func TestTransportL54_NoGrowthOverManyStarts(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	cycle := func() {
		for _, q := range f.q {
			q.offer(0, opEcho, 0, 1)
			q.show()
			q.wait()
			base := q.stop()
			q.setUp(base)
			q.enable(1)
		}
	}
	cycle()
	before, goroutines := openFDs(t), runtime.NumGoroutine()
	cycles := 500
	if os.Getenv("RAFSD_LONG") != "" {
		cycles = 10_000
	}
	for range cycles {
		cycle()
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open after %d stops and starts, %d before", after, cycles, before)
	}
	poll(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= goroutines })
	b.leave(t, f)
	b.end()
}
