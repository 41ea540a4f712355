package fuseproto

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"time"
)

// Waiting describes a request that has left its queue's goroutine.
type Waiting struct {
	Opcode Opcode
	Unique uint64
	NodeID uint64 // as on the wire
	PID    uint32
	Offset uint64 // of a READ or WRITE, and where a directory is read on
	Size   uint32 // bytes that it asks for or brings
	Name   string // of the entry that it looks up or removes
	Age    time.Duration
}

// waiting are the requests that wait, and how slow ones are told of.
type waiting struct {
	slow time.Duration // age from which on a request is slow; 0 = never
	tell func(w Waiting, over bool, suppressed uint64)
	rate limiter

	mu     sync.Mutex
	ops    map[*Op]struct{} // guarded by mu
	timer  *time.Timer      // runs tellSlow; nil until there is a need; guarded by mu
	armed  bool             // guarded by mu
	over   []Waiting        // slow ones that have ended, to be told of; guarded by mu
	closed bool             // guarded by mu

	telling sync.WaitGroup // runs of tellSlow; grows only under mu and before closed
}

// Waiting lists the requests that wait, the oldest first.
func (s *Server) Waiting() []Waiting {
	w := &s.waiting
	w.mu.Lock()
	list := make([]Waiting, 0, len(w.ops))
	for op := range w.ops {
		list = append(list, op.waits())
	}
	w.mu.Unlock()
	slices.SortFunc(list, func(a, b Waiting) int { return cmp.Compare(b.Age, a.Age) })
	return list
}

// waits describes op, which is among the waiting ones.
func (op *Op) waits() Waiting {
	w := op.wait
	w.Age = time.Since(op.since)
	return w
}

// maxWaitName is the longest name that is kept of a waiting request.
const maxWaitName = 255

// describe notes what op is, for others to see while it waits.
func (op *Op) describe() {
	op.wait = Waiting{Opcode: op.Opcode, Unique: op.Unique, NodeID: op.NodeID, PID: op.PID}
	w, b := &op.wait, op.body
	switch op.Opcode {
	case OpRead, OpWrite, OpReadDir, OpReadDirPlus: // fh, offset, size
		w.Offset, w.Size = le.Uint64(b[8:]), le.Uint32(b[16:])
	case OpLookup, OpUnlink, OpRmdir:
		if n := bytes.IndexByte(b, 0); n >= 0 {
			w.Name = string(b[:min(n, maxWaitName)])
		}
	}
}

func (s *Server) enterWaiting(op *Op) {
	op.describe()
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	op.since = time.Now()
	w.ops[op] = struct{}{}
	if w.slow > 0 {
		op.tellAt = op.since.Add(w.slow)
		w.arm(w.slow)
	}
}

func (s *Server) leaveWaiting(op *Op) {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.ops, op)
	if w.slow > 0 && time.Since(op.since) >= w.slow {
		// Not told from here: the request's reply is not out yet.
		if len(w.over) < limiterBurst {
			w.over = append(w.over, op.waits())
		}
		w.armed = false
		w.arm(0)
	}
}

// arm has tellSlow called after d, unless it is going to be anyway. The caller holds
// w.mu.
func (w *waiting) arm(d time.Duration) {
	switch {
	case w.armed || w.closed:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(d, w.tellSlow)
	default:
		w.timer.Reset(d)
	}
	w.armed = true
}

// tellSlow tells of requests that have become slow or have ended, and of those that
// are still there when their age has doubled. It is called while something waits only,
// at most once in w.slow and for the end of each slow one.
func (w *waiting) tellSlow() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.telling.Add(1)
	defer w.telling.Done()
	now := time.Now()
	over, slow := w.over, []Waiting(nil)
	w.over, w.armed = nil, false
	next := w.slow
	for op := range w.ops {
		if !now.Before(op.tellAt) {
			slow = append(slow, op.waits())
			op.tellAt = op.since.Add(2 * now.Sub(op.since))
		}
		next = min(next, op.tellAt.Sub(now))
	}
	if len(w.ops) > 0 {
		w.arm(next)
	}
	w.mu.Unlock()
	slices.SortFunc(slow, func(a, b Waiting) int { return cmp.Compare(b.Age, a.Age) })
	for _, one := range slow {
		w.tellOf(one, false)
	}
	for _, one := range over {
		w.tellOf(one, true)
	}
}

func (w *waiting) tellOf(one Waiting, over bool) {
	if suppressed, ok := w.rate.allow(time.Now()); ok {
		w.tell(one, over, suppressed)
	}
}

// Close ends telling of slow requests, and waits for Config.OnSlow to return.
func (s *Server) Close() {
	w := &s.waiting
	w.mu.Lock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.telling.Wait()
}
