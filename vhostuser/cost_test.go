package vhostuser_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/rafsd/rafsd/vhostuser"
)

// null answers every request with as many bytes as there is room for, without
// touching them: what is left is the cost of this package.
type null struct{}

func (null) Serve(r *vhostuser.Request) (uint32, bool) {
	n := 0
	for _, seg := range r.Writable() {
		n += len(seg)
	}
	return uint32(n), true
}

func (null) ServeBlocking(context.Context, *vhostuser.Request) (uint32, error) { return 0, nil }
func (null) Reset()                                                            {}
func (null) Snapshot() ([]byte, error)                                         { return nil, nil }
func (null) Restore([]byte) error                                              { return nil }

// roundTrips makes n requests, as many at a time as told, and sleeps on the call
// descriptor whenever nothing is back.
func roundTrips(tb testing.TB, q *frontQueue, n, inFlight int) {
	for sent, back := 0, 0; back < n; {
		for sent < n && sent-back < inFlight {
			q.Offer(uint16(sent % inFlight))
			sent++
		}
		q.show()
		u, err := q.next(frontWait)
		for err == nil {
			back++
			if u.Len != replySize {
				tb.Fatalf("used length %d", u.Len)
			}
			var ok bool
			if u, ok, err = q.Reap(); !ok {
				break
			}
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// inOrder prepares the heads of roundTrips, which needs replies in order.
func inOrder(q *frontQueue, inFlight int) {
	for h := range uint16(inFlight) {
		q.offer(h, opEcho, 0, 0)
	}
	q.show()
	for range inFlight {
		q.wait()
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	b := newBed(t, null{}, vhostuser.Options{})
	f := b.connect(t, frontOptions{queues: 2})
	q := f.q[1]
	inOrder(q, 16)
	roundTrips(t, q, 100, 16)
	for _, inFlight := range []int{1, 16} {
		const n = 2000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		roundTrips(t, q, n, inFlight)
		runtime.ReadMemStats(&after)
		// The driver of the test allocates nothing either; a few allocations are
		// the runtime's own.
		if got := after.Mallocs - before.Mallocs; got > n/20 {
			t.Errorf("%d in flight: %d allocations for %d requests", inFlight, got, n)
		}
	}
	b.leave(t, f)
}

// BenchmarkNull is a round trip through both sides in one process, each sleeping
// in its own way.
func BenchmarkNull(b *testing.B) {
	for _, o := range []frontOptions{{queues: 2}, {queues: 2, blocking: true}} {
		for _, inFlight := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("blocking=%v/inflight=%d", o.blocking, inFlight), func(b *testing.B) {
				bed := newBed(b, null{}, vhostuser.Options{})
				f := bed.connect(b, o)
				q := f.q[1]
				inOrder(q, inFlight)
				s := bed.server.Stats()[1]
				b.ReportAllocs()
				b.ResetTimer()
				roundTrips(b, q, b.N, inFlight)
				b.StopTimer()
				e := bed.server.Stats()[1]
				b.ReportMetric(float64(e.Kicks-s.Kicks)/float64(b.N), "kicks/op")
				b.ReportMetric(float64(e.Signals-s.Signals)/float64(b.N), "signals/op")
				bed.leave(b, f)
			})
		}
	}
}
