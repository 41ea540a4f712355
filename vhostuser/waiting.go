package vhostuser

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
)

// epoch is what the waiting requests of a vring have in common: they are answered
// in it or never. It begins when the driver sets the vring up and ends when that
// is known to be over.
type epoch struct {
	ctx     context.Context
	cancel  context.CancelFunc
	over    bool           // guarded by vring.mu
	waiting sync.WaitGroup // the goroutines of waiting requests
}

func newEpoch() *epoch {
	e := &epoch{}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// letWait moves r, which the vring's goroutine has just served in vain, to a
// goroutine of its own, and gets the vring another Request. There are never more
// such goroutines than the vring has entries: each stands for a head in flight.
func (v *vring) letWait(r *Request) {
	v.stats.requests.Add(1)
	v.stats.waited.Add(1)
	v.mu.Lock()
	e, table := v.epoch, v.table
	v.current = nil
	if n := len(v.free); n > 0 {
		v.current, v.free = v.free[n-1], v.free[:n-1]
	}
	v.mu.Unlock()
	if v.current == nil {
		v.current = &Request{vring: v}
	}
	v.current.rerun = false
	r.detach(table, e)
	v.stats.waiting.Add(1)
	e.waiting.Add(1) // while the vring runs its epoch is not over, so nobody waits yet
	go v.serveWaiting(e, r)
}

// serveWaiting is the goroutine of one waiting request. It ends when the Handler
// returns; the Handler does so soon after e.ctx has ended.
func (v *vring) serveWaiting(e *epoch, r *Request) {
	defer e.waiting.Done()
	debug.SetPanicOnFault(true)
	var written uint32
	err := v.guard(func() error {
		n, err := v.handler.ServeBlocking(e.ctx, r)
		if err == nil {
			written = n
		}
		// With an error no reply can be made. If the vring is still there the
		// driver gets the chain back, empty, rather than to wait for ever.
		return nil
	})
	v.stats.latency.Add(time.Since(r.taken), 1)
	v.stats.waiting.Add(-1)
	if !errors.Is(err, guestmem.ErrGone) {
		err = errors.Join(err, v.guard(func() error { v.finish(e, r, written); return nil }))
	}
	if r.attached {
		r.attached = false
		v.leave()
	}
	if err != nil {
		v.complain("request failed", "head", r.chain.Head, "err", err)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.free) < keptRequests {
		v.free = append(v.free, r)
	}
}

// finish publishes r, unless its epoch is over.
func (v *vring) finish(e *epoch, r *Request, written uint32) {
	if !r.attached {
		if written > 0 {
			v.complain("handler says it has written without guest memory", "head", r.chain.Head, "written", written)
			written = 0
		}
		if _, err := v.enter(e); err != nil {
			return
		}
		r.attached = true
	}
	done := [1]virtqueue.Used{{Head: r.chain.Head, Len: r.checked(written)}}
	v.mu.Lock()
	defer v.mu.Unlock() // Publish may fault
	v.publishLocked(done[:])
}

// enter waits until guest memory may be touched and keeps it so until leave; or
// says that e is over.
func (v *vring) enter(e *epoch) (*guestmem.Table, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for !v.open && !e.over {
		v.changed.Wait()
	}
	if e.over {
		return nil, ErrGone
	}
	v.touching++
	return v.table, nil
}

// leave ends what enter began.
func (v *vring) leave() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.touching--; v.touching == 0 {
		v.changed.Broadcast()
	}
}
