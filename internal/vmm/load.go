package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// Load is a stream of equal requests, to be measured.
type Load struct {
	Op     Opcode // OpGetattr, OpLookup, OpReaddirplus, OpRead or OpWrite; with Files OpCreate, OpRename or OpUnlink
	NodeID uint64 // what to ask about; of LOOKUP and READDIRPLUS the directory
	// Nodes, if there are any, are asked about in turn, instead of NodeID.
	Nodes []uint64

	// Name is of LOOKUP. With Names it ends in eight digits, in place of which each
	// request has another number below Names. Absent says that no such name is there.
	Name   string
	Names  int
	Absent bool

	// Size is how much each READ or WRITE moves; they go through the file of FileSize
	// bytes again and again, whole pieces only, or jump about in it if Random is set.
	// Fh is the handle, 0 with zero-message open. Of READDIRPLUS Size is the room for
	// entries; each place in flight goes through the directory again and again, with
	// a handle of its own if there are Fhs.
	Size     int
	FileSize uint64
	Fh       uint64
	Fhs      []uint64
	Random   bool

	// Held are sent first of all, once, on the first queue, and are not waited for.
	// While one of them has not been answered the Loader must not be closed.
	Held []HeldRead

	// Files, if set, are what is made, renamed or removed: each unit of the load is all
	// that a guest sends for one file, and is counted as one request.
	Files *Files

	InFlight int // requests in each queue at a time (default 1)
	Queues   int // request queues in use (default 1)

	// PID is the back-end's process, for its processor time; 0 if that is not asked.
	PID int
}

// HeldRead is a READ that may take as long as it wants.
type HeldRead struct {
	NodeID, Fh, Offset uint64
	Size               int
}

// Result is what was measured in one run.
type Result struct {
	Requests uint64
	Entries  uint64 // that READDIRPLUS brought
	Returned int    // of Load.Held, those that were answered so far
	Elapsed  time.Duration
	Latency  Histogram     // from Add to the moment the reply was reaped
	Front    time.Duration // processor time of this process
	Back     time.Duration // processor time of the back-end
	Waited   time.Duration // that threads of both had no processor though they were ready
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
	held    []*loadSlot
	sent    bool // held
	vm      *VM
	workers []*loadWorker
}

// loadWorker drives one queue from one goroutine.
type loadWorker struct {
	load   *Load
	queue  *Queue
	call   *signal
	units  []*loadUnit
	idle   []*loadUnit
	batch  []*Chain
	unique uint64
	offset uint64
	random uint64
	file   int // the next of load.Files, or of load.Nodes
	// What was counted: entries in this run, answers to load.Held since the first.
	entries  uint64
	returned int
	epoch    time.Time
	hist     Histogram
	err      error
}

// loadUnit is what is counted as one: a request, or the requests for one file, each
// of which is sent when the one before it was answered.
type loadUnit struct {
	steps  []*loadSlot
	at     int // the step that is on its way
	file   int
	nodeID uint64 // of the file
	offset uint64 // where a listing goes on
	since  time.Duration
}

// loadSlot is one request's buffers, laid out once.
type loadSlot struct {
	Chain
	unit              *loadUnit
	op                Opcode
	head, args, reply []byte
	body              []byte // what follows the reply's header
	pages             []Buffer
	want              uint32
	unique            uint64
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
	case (load.Op == OpRead || load.Op == OpWrite) && (load.Size <= 0 || load.FileSize < uint64(load.Size)):
		return nil, fmt.Errorf("a load of %vs of %d bytes in a file of %d", load.Op, load.Size, load.FileSize)
	case load.Op == OpReaddirplus && (load.Size < entrySize+direntSize || len(load.Fhs) > 0 && len(load.Fhs) < load.InFlight*load.Queues):
		return nil, fmt.Errorf("a load of listings with %d bytes of room and %d handles", load.Size, len(load.Fhs))
	case load.Names > 0 && len(load.Name) < 8:
		return nil, fmt.Errorf("a load of names like %q has no place for a number", load.Name)
	case load.Files != nil && load.Queues > 1:
		return nil, errors.New("a load of files uses one queue")
	case load.Files != nil && load.Op != OpCreate && load.Op != OpRename && load.Op != OpUnlink:
		return nil, fmt.Errorf("a load of %v of files", load.Op)
	case load.Files != nil && (load.Files.Count <= 0 || load.Files.Size <= 0):
		return nil, fmt.Errorf("a load of %d files of %d bytes", load.Files.Count, load.Files.Size)
	}
	for _, detach := range vm.detachs {
		detach()
	}
	vm.detachs = nil
	l := &Loader{load: load, vm: vm}
	for i := range load.Queues {
		w := &loadWorker{load: &l.load, queue: vm.queues[1+i], call: vm.queues[1+i].call, random: uint64(i) + 1, epoch: time.Now()}
		l.workers = append(l.workers, w)
		for range load.InFlight {
			u := &loadUnit{}
			w.units = append(w.units, u)
			for _, op := range load.steps() {
				s, err := newLoadSlot(vm.Memory, &l.load, op)
				if err != nil {
					l.Close()
					return nil, err
				}
				if len(load.Fhs) > 0 {
					binary.LittleEndian.PutUint64(s.args, load.Fhs[i*load.InFlight+len(w.units)-1])
				}
				s.unit = u
				u.steps = append(u.steps, s)
			}
		}
		w.idle = make([]*loadUnit, 0, load.InFlight)
		w.batch = make([]*Chain, 0, load.InFlight+len(load.Held))
	}
	for _, h := range load.Held {
		one := Load{Op: OpRead, NodeID: h.NodeID, Fh: h.Fh, Size: h.Size}
		s, err := newLoadSlot(vm.Memory, &one, OpRead)
		if err != nil {
			l.Close()
			return nil, err
		}
		binary.LittleEndian.PutUint64(s.args[8:], h.Offset)
		l.held = append(l.held, s)
	}
	return l, nil
}

// steps are the requests of a unit.
func (l *Load) steps() []Opcode {
	if l.Files == nil {
		return []Opcode{l.Op}
	}
	return l.Files.steps(l.Op)
}

func newLoadSlot(mem *Memory, load *Load, op Opcode) (*loadSlot, error) {
	var args []byte
	fixed, pages, data := 0, 0, 0
	switch {
	case load.Files != nil:
		args, fixed, data = load.Files.layout(op)
	case op == OpGetattr:
		args, fixed = make([]byte, 16), attrOutSize
	case op == OpLookup:
		args, fixed = pack(load.Name), entrySize
	case op == OpRead || op == OpReaddirplus:
		args, pages = readIn(load.Fh, 0, load.Size), load.Size
	case op == OpWrite:
		args, fixed, data = writeIn(load.Fh, 0, load.Size, 0), 8, load.Size
	default:
		return nil, fmt.Errorf("a load of %v", op)
	}
	s := &loadSlot{op: op, want: uint32(outHeaderSize + fixed + pages)}
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
	copy(s.head, pack(header{Len: uint32(inHeaderSize + len(args) + data), Opcode: op, NodeID: load.NodeID}))
	s.args = alloc(len(args), &s.Readable)
	copy(s.args, args)
	if op == OpForget {
		s.want = 0 // it has no reply
	} else {
		s.reply = alloc(outHeaderSize, &s.Writable)
	}
	if fixed > 0 {
		s.body = alloc(fixed, &s.Writable)
	}
	if err == nil { // a request has pages on one side only
		s.pages, err = mem.Pages(nil, (pages+data+PageSize-1)/PageSize)
	}
	for i, p := range s.pages {
		p.Bytes = p.Bytes[:min(PageSize, pages+data-i*PageSize)]
		if data > 0 {
			pattern(p.Bytes, byte(i))
			s.Readable = append(s.Readable, p)
		} else {
			s.Writable = append(s.Writable, p)
		}
	}
	if err != nil {
		s.free(mem)
		return nil, err
	}
	return s, nil
}

// pattern writes something that is no hole and differs by page.
func pattern(b []byte, seed byte) {
	for i := range b {
		b[i] = seed + byte(i)
	}
}

func (s *loadSlot) free(mem *Memory) {
	pages := map[uint64]bool{}
	for _, p := range s.pages {
		pages[p.GPA] = true
	}
	for _, list := range [][]Buffer{s.Readable, s.Writable} {
		for _, b := range list {
			if !pages[b.GPA] {
				mem.Free(b)
			}
		}
	}
	mem.FreePages(s.pages)
	mem.Free(s.table)
	s.Readable, s.Writable, s.pages = nil, nil, nil
}

// Close gives the buffers back. Nothing may be in flight: after an error of Run
// the machine has to be stopped first.
func (l *Loader) Close() {
	for _, w := range l.workers {
		for _, u := range w.units {
			for _, s := range u.steps {
				s.free(l.vm.Memory)
			}
		}
		w.units = nil
	}
	for _, s := range l.held {
		s.free(l.vm.Memory)
	}
	l.held = nil
}

// Run sends count requests or, if count is 0, as many as fit into duration; with
// Files it goes once through all of them. When ctx ends, Run ends with what is then in flight unanswered.
func (l *Loader) Run(ctx context.Context, count uint64, duration time.Duration) (*Result, error) {
	r := &Result{}
	var back, waited time.Duration
	if l.load.Files != nil {
		count = uint64(l.load.Files.Count)
		if err := l.load.Files.begin(l.load.Op); err != nil {
			return nil, err
		}
	}
	if l.load.PID != 0 {
		var err error
		if back, waited, err = processTimes(l.load.PID); err != nil {
			return nil, err
		}
		waited += ownWait()
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
	if !l.sent {
		l.sent = true
		for _, s := range l.held {
			if err := l.workers[0].queue.Submit(&s.Chain); err != nil {
				return nil, err
			}
		}
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
		used, now, err := processTimes(l.load.PID)
		if err != nil {
			return nil, err
		}
		r.Back, r.Waited = used-back, now+ownWait()-waited
	}
	for _, w := range l.workers {
		if w.err != nil {
			return nil, w.err
		}
		r.Latency.Merge(&w.hist)
		r.Entries += w.entries
		r.Returned += w.returned
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
	w.hist, w.entries = Histogram{}, 0
	w.idle = append(w.idle[:0], w.units...)
	w.file = 0
	now := time.Since(w.epoch)
	end := now + duration
	var sent, done uint64
	w.queue.DisableCalls()
	for {
		for len(w.idle) > 0 && (timed && now < end || !timed && sent < count) {
			u := w.idle[len(w.idle)-1]
			w.idle = w.idle[:len(w.idle)-1]
			u.at, u.file = 0, w.file
			w.file++
			u.since = time.Since(w.epoch)
			if err := w.send(u); err != nil {
				return err
			}
			sent++
			now = u.since
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
			u := s.unit
			if u == nil {
				w.returned++
				continue
			}
			if err := w.check(s); err != nil {
				return err
			}
			if w.load.Files != nil {
				w.load.Files.took(s)
			}
			if u.at++; u.at < len(u.steps) {
				if err := w.send(u); err != nil {
					return err
				}
				continue
			}
			w.hist.Add(now - u.since)
			w.idle = append(w.idle, u)
			done++
		}
	}
}

// send sends the unit's next request.
func (w *loadWorker) send(u *loadUnit) error {
	s := u.steps[u.at]
	w.unique += 2
	s.unique = w.unique
	binary.LittleEndian.PutUint64(s.head[8:], s.unique)
	if n := len(w.load.Nodes); n > 0 {
		binary.LittleEndian.PutUint64(s.head[16:], w.load.Nodes[u.file%n])
	}
	switch {
	case w.load.Files != nil:
		w.load.Files.prepare(s)
	case s.op == OpRead || s.op == OpWrite:
		binary.LittleEndian.PutUint64(s.args[8:], w.place())
	case s.op == OpReaddirplus:
		binary.LittleEndian.PutUint64(s.args[8:], u.offset)
	case w.load.Names > 0:
		digits(s.args, len(s.args)-1, int(w.next()%uint64(w.load.Names)))
	}
	return w.queue.Submit(&s.Chain)
}

// place is where the next READ or WRITE goes.
func (w *loadWorker) place() uint64 {
	size := uint64(w.load.Size)
	if w.load.Random {
		return w.next() % (w.load.FileSize / size) * size
	}
	if w.offset+size > w.load.FileSize {
		w.offset = 0
	}
	at := w.offset
	w.offset += size
	return at
}

// next is a random number, by xorshift: the same ones in every run.
func (w *loadWorker) next() uint64 {
	w.random ^= w.random << 13
	w.random ^= w.random >> 7
	w.random ^= w.random << 17
	return w.random
}

// check holds the reply's header against what a good reply is.
func (w *loadWorker) check(s *loadSlot) error {
	le := binary.LittleEndian
	if s.op == OpForget {
		if s.Used() != 0 {
			return violation("load: a FORGET was answered with %d bytes", s.Used())
		}
		return nil
	}
	length, errno, unique := le.Uint32(s.reply), int32(le.Uint32(s.reply[4:])), le.Uint64(s.reply[8:])
	switch {
	case unique != s.unique:
		return violation("load: unique %d was answered with %d", s.unique, unique)
	case w.load.Absent && errno == -int32(syscall.ENOENT) && length == outHeaderSize && s.Used() == length:
	case w.load.Absent && (errno != 0 || length != s.want || le.Uint64(s.body) != 0):
		return fmt.Errorf("load: %v of an absent name was answered with errno %d and %d bytes", s.op, -errno, length)
	case errno != 0:
		return fmt.Errorf("load: %v was answered with errno %d", s.op, -errno)
	case s.op == OpReaddirplus && length <= s.want && s.Used() == length:
		return w.listed(s, int(length)-outHeaderSize)
	case length != s.want || s.Used() != s.want:
		return violation("load: a reply of %d bytes (used.len %d), not %d", length, s.Used(), s.want)
	case s.op == OpWrite && int(le.Uint32(s.body)) != int(le.Uint32(s.args[16:])):
		return violation("load: a WRITE of %d bytes took %d", le.Uint32(s.args[16:]), le.Uint32(s.body))
	}
	return nil
}

// listed goes through n bytes of entries to find where the listing goes on. What the
// records hold is aligned to 8 bytes, so that none of it lies across two pages.
func (w *loadWorker) listed(s *loadSlot, n int) error {
	s.unit.offset = 0 // after the last entries from the start again
	for at := 0; at < n; w.entries++ {
		if at+entrySize+direntSize > n {
			return violation("load: a listing ends in %d bytes of a record", n-at)
		}
		off := at + entrySize + 8
		name := off + 8
		s.unit.offset = binary.LittleEndian.Uint64(s.pages[off/PageSize].Bytes[off%PageSize:])
		length := binary.LittleEndian.Uint32(s.pages[name/PageSize].Bytes[name%PageSize:])
		at += (entrySize + direntSize + int(min(length, 1024)) + 7) &^ 7
	}
	return nil
}

// Copy moves what Run's READs move, from src to the same pages in the same order,
// with nothing but a copy loop: what no back-end can do without. It takes one
// processor for that long.
func (l *Loader) Copy(src []byte, duration time.Duration) (*Result, error) {
	if l.load.Op != OpRead || uint64(len(src)) < l.load.FileSize {
		return nil, fmt.Errorf("a copy of %v from %d bytes", l.load.Op, len(src))
	}
	w, r := l.workers[0], &Result{}
	used, start := OwnCPU(), time.Now()
	for last := time.Duration(0); last < duration; {
		for _, u := range w.units {
			at := w.place()
			for _, p := range u.steps[0].pages {
				at += uint64(copy(p.Bytes, src[at:]))
			}
			r.Elapsed = time.Since(start)
			r.Latency.Add(r.Elapsed - last)
			last = r.Elapsed
		}
	}
	r.Back = OwnCPU() - used
	r.Requests = r.Latency.Count()
	return r, nil
}
