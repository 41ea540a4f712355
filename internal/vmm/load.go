package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Load is a stream of equal requests, to be measured.
type Load struct {
	Op     Opcode // OpGetattr, OpLookup or OpRead
	NodeID uint64 // what to ask about; of LOOKUP the directory
	Name   string // of LOOKUP

	// Size is how much each READ reads; they go through the file of FileSize bytes
	// again and again, whole pieces only. Fh is the handle, 0 with zero-message open.
	Size     int
	FileSize uint64
	Fh       uint64

	InFlight int // requests in each queue at a time (default 1)
	Queues   int // request queues in use (default 1)

	// PID is the back-end's process, for its processor time; 0 if that is not asked.
	PID int
}

// Result is what was measured in one run.
type Result struct {
	Requests uint64
	Elapsed  time.Duration
	Latency  Histogram     // from Add to the moment the reply was reaped
	Front    time.Duration // processor time of this process
	Back     time.Duration // processor time of the back-end
	Kicks    uint64
	Calls    uint64
}

// Rate is requests per second.
func (r *Result) Rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// Per is a total as a share of each request.
func (r *Result) Per(total time.Duration) time.Duration {
	if r.Requests == 0 {
		return 0
	}
	return total / time.Duration(r.Requests)
}

// Loader drives a Load. It owns the request queues that it uses while it lives.
// A run in its steady state allocates nothing, so that it can stand in one process
// with a back-end whose allocations are counted.
type Loader struct {
	load    Load
	vm      *VM
	workers []*loadWorker
}

// loadWorker drives one queue from one goroutine.
type loadWorker struct {
	load   *Load
	queue  *Queue
	call   *signal
	slots  []*loadSlot
	idle   []*loadSlot
	batch  []*Chain
	unique uint64
	offset uint64
	epoch  time.Time
	hist   Histogram
	err    error
}

// loadSlot is one request's buffers, laid out once.
type loadSlot struct {
	Chain
	head, args, reply []byte
	pages             []Buffer
	want              uint32
	unique            uint64
	since             time.Duration // from the worker's epoch
}

// NewLoader takes the VM's request queues from the client that uses them (its
// session with the back-end stays) and prepares the requests.
func (vm *VM) NewLoader(load Load) (*Loader, error) {
	load.InFlight = max(load.InFlight, 1)
	load.Queues = max(load.Queues, 1)
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case vm.state != running:
		return nil, errors.New("a load needs running rings")
	case load.Queues > vm.Configured:
		return nil, fmt.Errorf("a load on %d queues of %d", load.Queues, vm.Configured)
	case load.Op == OpRead && (load.Size <= 0 || load.FileSize < uint64(load.Size)):
		return nil, fmt.Errorf("a load of READs of %d bytes in a file of %d", load.Size, load.FileSize)
	}
	for _, detach := range vm.detachs {
		detach()
	}
	vm.detachs = nil
	l := &Loader{load: load, vm: vm}
	for i := range load.Queues {
		w := &loadWorker{load: &l.load, queue: vm.queues[1+i], call: vm.queues[1+i].call, epoch: time.Now()}
		l.workers = append(l.workers, w)
		for range load.InFlight {
			s, err := newLoadSlot(vm.Memory, &l.load)
			if err != nil {
				l.Close()
				return nil, err
			}
			w.slots = append(w.slots, s)
		}
		w.idle = make([]*loadSlot, 0, load.InFlight)
		w.batch = make([]*Chain, 0, load.InFlight)
	}
	return l, nil
}

func newLoadSlot(mem *Memory, load *Load) (*loadSlot, error) {
	var args []byte
	fixed, pages := 0, 0
	switch load.Op {
	case OpGetattr:
		args, fixed = make([]byte, 16), attrOutSize
	case OpLookup:
		args, fixed = pack(load.Name), entrySize
	case OpRead:
		args, pages = readIn(load.Fh, 0, load.Size), load.Size
	default:
		return nil, fmt.Errorf("a load of %v", load.Op)
	}
	s := &loadSlot{want: uint32(outHeaderSize + fixed + pages)}
	s.Owner = s
	var err error
	alloc := func(n int, list *[]Buffer) []byte {
		b, e := mem.Alloc(n)
		if e != nil {
			err = e
			return make([]byte, n)
		}
		*list = append(*list, b)
		return b.Bytes
	}
	s.head = alloc(inHeaderSize, &s.Readable)
	copy(s.head, pack(header{Len: uint32(inHeaderSize + len(args)), Opcode: load.Op, NodeID: load.NodeID}))
	s.args = alloc(len(args), &s.Readable)
	copy(s.args, args)
	s.reply = alloc(outHeaderSize, &s.Writable)
	if fixed > 0 {
		alloc(fixed, &s.Writable)
	}
	if err == nil {
		s.pages, err = mem.Pages(nil, (pages+PageSize-1)/PageSize)
	}
	for i, p := range s.pages {
		p.Bytes = p.Bytes[:min(PageSize, pages-i*PageSize)]
		s.Writable = append(s.Writable, p)
	}
	if err != nil {
		s.free(mem)
		return nil, err
	}
	return s, nil
}

func (s *loadSlot) free(mem *Memory) {
	plain := s.Writable[:len(s.Writable)-len(s.pages)]
	for _, b := range append(plain, s.Readable...) {
		mem.Free(b)
	}
	mem.FreePages(s.pages)
	mem.Free(s.table)
	s.Readable, s.Writable, s.pages = nil, nil, nil
}

// Close gives the buffers back. Nothing may be in flight: after an error of Run
// the machine has to be stopped first.
func (l *Loader) Close() {
	for _, w := range l.workers {
		for _, s := range w.slots {
			s.free(l.vm.Memory)
		}
		w.slots = nil
	}
}

// Run sends count requests or, if count is 0, as many as fit into duration. When
// ctx ends, Run ends with what is then in flight unanswered.
func (l *Loader) Run(ctx context.Context, count uint64, duration time.Duration) (*Result, error) {
	r := &Result{}
	var back time.Duration
	var err error
	if l.load.PID != 0 {
		if back, err = ProcessCPU(l.load.PID); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, w := range l.workers {
			w.call.ours.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	var kicks, calls uint64
	for _, w := range l.workers {
		kicks += w.queue.Kicks()
		calls += w.queue.Calls()
	}
	front, start := OwnCPU(), time.Now()
	var group sync.WaitGroup
	for i, w := range l.workers {
		share := count / uint64(len(l.workers))
		if uint64(i) < count%uint64(len(l.workers)) {
			share++
		}
		group.Go(func() { w.err = w.run(share, count == 0, duration) })
	}
	group.Wait()
	r.Elapsed = time.Since(start)
	r.Front = OwnCPU() - front
	if l.load.PID != 0 {
		now, err := ProcessCPU(l.load.PID)
		if err != nil {
			return nil, err
		}
		r.Back = now - back
	}
	for _, w := range l.workers {
		if w.err != nil {
			return nil, w.err
		}
		r.Latency.Merge(&w.hist)
		r.Kicks += w.queue.Kicks()
		r.Calls += w.queue.Calls()
	}
	r.Kicks -= kicks
	r.Calls -= calls
	r.Requests = r.Latency.Count()
	return r, nil
}

// run is the worker's loop: fill, reap, and sleep on the call descriptor when
// there is nothing to do.
func (w *loadWorker) run(count uint64, timed bool, duration time.Duration) error {
	w.hist = Histogram{}
	w.idle = append(w.idle[:0], w.slots...)
	now := time.Since(w.epoch)
	end := now + duration
	var sent, done uint64
	w.queue.DisableCalls()
	for {
		for len(w.idle) > 0 && (timed && now < end || !timed && sent < count) {
			s := w.idle[len(w.idle)-1]
			w.idle = w.idle[:len(w.idle)-1]
			w.prepare(s)
			if err := w.queue.Submit(&s.Chain); err != nil {
				return err
			}
			sent++
			now = s.since
		}
		if sent == done {
			return nil
		}
		var err error
		if w.batch, err = w.queue.Reap(w.batch[:0]); err != nil {
			return err
		}
		if len(w.batch) == 0 {
			if w.queue.EnableCalls() {
				n, err := w.call.wait()
				w.queue.calls.Add(n)
				if err != nil {
					return fmt.Errorf("load: waiting for a call: %w", err)
				}
			}
			w.queue.DisableCalls()
			continue
		}
		now = time.Since(w.epoch)
		for _, c := range w.batch {
			s := c.Owner.(*loadSlot)
			if err := w.check(s); err != nil {
				return err
			}
			w.hist.Add(now - s.since)
			w.idle = append(w.idle, s)
			done++
		}
	}
}

// prepare makes the slot's request the next one.
func (w *loadWorker) prepare(s *loadSlot) {
	w.unique += 2
	s.unique = w.unique
	binary.LittleEndian.PutUint64(s.head[8:], s.unique)
	if w.load.Op == OpRead {
		if w.offset+uint64(w.load.Size) > w.load.FileSize {
			w.offset = 0
		}
		binary.LittleEndian.PutUint64(s.args[8:], w.offset)
		w.offset += uint64(w.load.Size)
	}
	s.since = time.Since(w.epoch)
}

// check holds the reply's header against what a good reply is.
func (w *loadWorker) check(s *loadSlot) error {
	le := binary.LittleEndian
	length, errno, unique := le.Uint32(s.reply), int32(le.Uint32(s.reply[4:])), le.Uint64(s.reply[8:])
	switch {
	case unique != s.unique:
		return violation("load: unique %d was answered with %d", s.unique, unique)
	case errno != 0:
		return fmt.Errorf("load: %v was answered with errno %d", w.load.Op, -errno)
	case length != s.want || s.Used() != s.want:
		return violation("load: a reply of %d bytes (used.len %d), not %d", length, s.Used(), s.want)
	}
	return nil
}
