package virtqueue

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// The table of requests in flight lies in memory that outlives the process, so
// that another one finds out which requests were taken and not answered. Layout,
// in the machine's byte order, every field aligned to its size:
//
//	header, 4096 bytes
//	  0 u64 magic   8 u32 version  12 u32 queues  16 u32 size
//	  64, 2048: two slots for the state of the device's protocol, of which the
//	    one with the higher number is good: u64 number, u32 length, u32 CRC-32,
//	    bytes. A slot that was being written has another sum.
//	per queue, one behind the other
//	  0  u64 generation  the start that the rest belongs to; 0 = none
//	  8  u64 popped      chains taken, of which the low 16 bits are the position
//	  16 u64 used        elements published, likewise
//	  24 u64 used0       used before the publication under way
//	  32 u32 n           elements of the publication under way, 0 = none
//	  64 n entries: u64 seq, u32 head, u32 length
//	  1088 size entries of 256 bytes, by head
//	     0  u64 seq     position at which it was taken
//	     8  u32 state   1 = in flight
//	     12 u32 marks: 8 bits each of attempts, trial, phase, and which note is good
//	     16, 128: two notes: i32 errno, 104 bytes
//
// The order of the stores is the algorithm: Pop writes seq, then state, then
// popped; Publish writes what it is about to do, then n, then frees the heads, then
// the used ring, then used, then n = 0. Whatever prefix of that was done, recover
// finds every request that was taken and not shown to the driver, and none that
// was. A head that the driver has offered again meanwhile has another seq.
//
// A store that the algorithm rests on is an aligned release: it is there wholly or not
// at all, and what precedes it is there before it. Full barriers are not needed, since
// nobody reads the table while the process lives.
//
// Only we write to it, but whoever holds the memory between two processes may not
// be us: nothing in it is trusted to be in range.
const (
	inflightMagic   = 0x5441_4C46_4E49_4652 // "RFINFLAT"
	inflightVersion = 1

	inflightHeader = 4096
	stateSlot0     = 64
	stateSlot1     = 2048
	stateSlotHead  = 16
	maxState       = stateSlot1 - stateSlot0 - stateSlotHead

	walAt      = 64
	walSize    = 16
	walEntries = 64 // the most that are published at once
	headsAt    = walAt + walEntries*walSize
	headSize   = 256

	// NoteSize is the room for what a Handler notes about a request.
	NoteSize = 104
)

// MaxPublish is the most elements that one Publish takes of a queue with a table.
const MaxPublish = walEntries

// InflightSize returns how large the table of a device is in bytes.
func InflightSize(queues, size int) int64 {
	return inflightHeader + int64(queues)*queueBytes(size)
}

func queueBytes(size int) int64 { return headsAt + headSize*int64(size) }

// InflightTable is the table of a device.
type InflightTable struct {
	mem          []byte
	queues, size int
}

// NewInflightTable returns the table in mem, which it makes if there are zeros. mem
// is at least InflightSize, aligned to 8 bytes, and outlives the table.
func NewInflightTable(mem []byte, queues, size int) (*InflightTable, error) {
	if int64(len(mem)) < InflightSize(queues, size) {
		return nil, fmt.Errorf("in-flight table of %d bytes for %d queues of %d: %w", len(mem), queues, size, ErrSetup)
	}
	t := &InflightTable{mem: mem, queues: queues, size: size}
	magic, version := t.u64(0), t.u32(8)
	switch {
	case atomic.LoadUint64(magic) == 0:
		*t.u32(12), *t.u32(16) = uint32(queues), uint32(size)
		atomic.StoreUint32(version, inflightVersion)
		atomic.StoreUint64(magic, inflightMagic)
	case *magic != inflightMagic || *version != inflightVersion:
		return nil, fmt.Errorf("in-flight table with magic %#x, version %d, want %#x, %d: %w",
			*magic, *version, uint64(inflightMagic), inflightVersion, ErrSetup)
	case *t.u32(12) != uint32(queues) || *t.u32(16) != uint32(size):
		return nil, fmt.Errorf("in-flight table of %d queues of %d, want %d of %d: %w",
			*t.u32(12), *t.u32(16), queues, size, ErrSetup)
	}
	return t, nil
}

func (t *InflightTable) u64(at int64) *uint64 { return (*uint64)(unsafe.Pointer(&t.mem[at])) }
func (t *InflightTable) u32(at int64) *uint32 { return (*uint32)(unsafe.Pointer(&t.mem[at])) }

// State returns what SetState has kept; nil if nothing.
func (t *InflightTable) State() []byte {
	_, b := t.newest()
	return b
}

// newest returns the number and the content of the good slot.
func (t *InflightTable) newest() (number uint64, state []byte) {
	for _, at := range []int64{stateSlot0, stateSlot1} {
		n, size := *t.u64(at), *t.u32(at + 8)
		if n <= number || size > maxState {
			continue
		}
		b := slices.Clone(t.mem[at+stateSlotHead:][:size])
		if crc32.ChecksumIEEE(b) == *t.u32(at + 12) {
			number, state = n, b
		}
	}
	return number, state
}

// SetState keeps the state of the device's protocol. One goroutine at a time.
func (t *InflightTable) SetState(b []byte) error {
	if len(b) > maxState {
		return fmt.Errorf("state of %d bytes in the in-flight table, at most %d: %w", len(b), maxState, ErrSetup)
	}
	number, _ := t.newest()
	number++
	at := int64(stateSlot0)
	if number%2 == 0 {
		at = stateSlot1
	}
	atomic.StoreUint64(t.u64(at), 0) // nothing there is good until it is whole
	copy(t.mem[at+stateSlotHead:], b)
	*t.u32(at + 8), *t.u32(at + 12) = uint32(len(b)), crc32.ChecksumIEEE(b)
	atomic.StoreUint64(t.u64(at), number)
	return nil
}

// Queue returns the part of queue i.
func (t *InflightTable) Queue(i int) *Inflight {
	at := inflightHeader + int64(i)*queueBytes(t.size)
	mem := t.mem[at : at+queueBytes(t.size)]
	return &Inflight{head: (*inflightQueue)(unsafe.Pointer(&mem[0])),
		heads: unsafe.Slice((*inflightHead)(unsafe.Pointer(&mem[headsAt])), t.size)}
}

// inflightQueue is the head of a queue's part.
type inflightQueue struct {
	generation uint64
	popped     uint64
	used       uint64
	used0      uint64
	n          uint32
	_          [7]uint32
	wal        [walEntries]inflightElement
}

type inflightElement struct {
	seq  uint64
	head uint32
	len  uint32
}

type inflightHead struct {
	seq   uint64
	state uint32
	marks uint32
	notes [2]inflightNote
	_     [headSize - 16 - 2*unsafe.Sizeof(inflightNote{})]byte
}

type inflightNote struct {
	errno int32
	text  [NoteSize + 4]byte // so that the size is a multiple of 8
}

// Shifts of the parts of inflightHead.marks.
const (
	shiftAttempts = 0
	shiftTrial    = 8
	shiftPhase    = 16
	shiftNote     = 24
)

// Values of the trial mark: how a request stands that may have ended processes.
const (
	trialNone = iota // it runs beside others, or it is on trial
	trialHeld        // it has not been run in this process: what ends that is not its fault
	trialOver        // it was on trial for some time, and waits beside others now
)

// maxOverDeaths is how many ends of a process a request may be in flight in whose
// trials have shown nothing.
const maxOverDeaths = 10

// Inflight is a queue's part of a table. While a Queue uses it, it is written by
// the same goroutines as the Queue.
type Inflight struct {
	head  *inflightQueue
	heads []inflightHead

	// crash, in tests, is called between any two stores.
	crash func()
}

func (f *Inflight) step() {
	if f.crash != nil {
		f.crash()
	}
}

// Generation returns the start that the part belongs to, 0 if to none.
func (f *Inflight) Generation() uint64 { return atomic.LoadUint64(&f.head.generation) }

// SetGeneration makes the part belong to another start, as it is.
func (f *Inflight) SetGeneration(g uint64) { atomic.StoreUint64(&f.head.generation, g) }

// Clear forgets everything.
func (f *Inflight) Clear() {
	f.SetGeneration(0)
	f.step()
	atomic.StoreUint32(&f.head.n, 0)
	for i := range f.heads {
		if f.heads[i].state != 0 {
			f.step()
			atomic.StoreUint32(&f.heads[i].state, 0)
		}
	}
}

// begin makes the part that of a queue which starts at these positions.
func (f *Inflight) begin(generation, popped, used uint64) {
	f.Clear()
	f.step()
	ringmem.StoreRelease64(&f.head.popped, popped)
	f.step()
	ringmem.StoreRelease64(&f.head.used, used)
	f.step()
	f.SetGeneration(generation)
}

// pop notes that head h was taken at position seq. Afterwards it is ours.
func (f *Inflight) pop(h uint16, seq uint64) {
	e := &f.heads[h]
	f.step()
	e.seq = seq
	f.step()
	e.marks = 0
	f.step()
	ringmem.StoreRelease32(&e.state, 1)
	f.step()
	ringmem.StoreRelease64(&f.head.popped, seq+1)
	f.step()
}

// publishing notes what is about to be shown to the driver, and frees the heads.
func (f *Inflight) publishing(done []Used) {
	q := f.head
	f.step()
	for i, u := range done {
		q.wal[i] = inflightElement{seq: f.heads[u.Head].seq, head: uint32(u.Head), len: u.Len}
		f.step()
	}
	q.used0 = q.used
	f.step()
	ringmem.StoreRelease32(&q.n, uint32(len(done)))
	for _, u := range done {
		f.step()
		ringmem.StoreRelease32(&f.heads[u.Head].state, 0)
	}
	f.step()
}

// published notes that the driver can see what publishing noted.
func (f *Inflight) published(used uint64) {
	f.step()
	ringmem.StoreRelease64(&f.head.used, used)
	f.step()
	ringmem.StoreRelease32(&f.head.n, 0)
	f.step()
}

// Note returns what was noted about head h since it was taken; phase 0 is nothing.
// note is valid until the next SetNote.
func (f *Inflight) Note(h uint16) (phase uint8, errno int32, note []byte) {
	marks := atomic.LoadUint32(&f.heads[h].marks)
	n := &f.heads[h].notes[marks>>shiftNote&1]
	return uint8(marks >> shiftPhase), n.errno, n.text[:NoteSize]
}

// SetNote replaces the note about head h, which is in flight, by one of at most
// NoteSize bytes: it is written beside the old one, and becomes good with the phase.
func (f *Inflight) SetNote(h uint16, phase uint8, errno int32, note []byte) {
	e := &f.heads[h]
	other := atomic.LoadUint32(&e.marks)>>shiftNote&1 ^ 1
	n := &e.notes[other]
	f.step()
	had := copy(n.text[:NoteSize], note)
	f.step()
	clear(n.text[had:])
	f.step()
	n.errno = errno
	f.step()
	f.change(h, 0xff<<shiftPhase|0xff<<shiftNote, uint32(phase)<<shiftPhase|other<<shiftNote)
}

// change replaces the marks of head h under mask. The one who serves the request and
// the queue's goroutine may do so at the same time.
func (f *Inflight) change(h uint16, mask, v uint32) {
	p := &f.heads[h].marks
	for {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^mask|v) {
			return
		}
	}
}

// Replay is a request that was in flight when a process ended.
type Replay struct {
	Head uint16
	// Refuse says that it has ended too many processes already.
	Refuse bool
}

// Recovered is what a queue has to do before it goes on.
type Recovered struct {
	Replays []Replay // in the order in which they were taken
	// OneByOne says that one of them may be what ends processes: each is put on
	// trial (Try), alone in its device, until it is published or EndTrial.
	OneByOne bool
}

// Fits reports whether the used ring stands where f says that it was left. A driver
// that has begun anew meanwhile has another one, even if its place is the same.
func (f *Inflight) Fits(t *guestmem.Table, cfg Config) (bool, error) {
	q, err := setUp(t, cfg)
	if err != nil {
		return false, err
	}
	used, h := q.RingUsed(), f.head
	if n := h.n; n > 0 && n <= walEntries {
		return used == uint16(h.used0) || used == uint16(h.used0)+uint16(n), nil
	}
	return used == uint16(h.used), nil
}

// recover brings the part and the used ring of q to where nothing is under way, and
// returns what is in flight. limit is how many ends of a process a request may have
// been in; 0 says that this end was nobody's fault.
func (f *Inflight) recover(q *Queue, limit int) (r Recovered) {
	h := f.head
	if n := atomic.LoadUint32(&h.n); n > 0 && n <= walEntries {
		f.redo(q, int(n))
	} else {
		atomic.StoreUint32(&h.n, 0)
		q.used = h.used
	}
	popped := h.popped
	for i := range f.heads {
		e := &f.heads[i]
		if e.state != 1 {
			continue
		}
		if int64(e.seq+1-popped) > 0 {
			popped = e.seq + 1
		}
		q.heads[i].inFlight.Store(1)
		q.heads[i].position = e.seq
		r.Replays = append(r.Replays, Replay{Head: uint16(i)})
	}
	atomic.StoreUint64(&h.popped, popped)
	q.popped, q.availed = popped, uint16(popped)
	slices.SortFunc(r.Replays, func(a, b Replay) int {
		return int(int64(f.heads[a.Head].seq - f.heads[b.Head].seq))
	})
	f.suspect(&r, limit)
	return r
}

// redo shows again what was being shown: the same bytes in the same places, so that
// a driver that has seen them sees nothing new.
func (f *Inflight) redo(q *Queue, n int) {
	h := f.head
	done := make([]Used, 0, n)
	for _, w := range h.wal[:n] {
		if w.head >= uint32(len(f.heads)) {
			continue // not ours
		}
		// A head that was offered and taken again since has another position.
		if e := &f.heads[w.head]; e.state == 1 && e.seq == w.seq {
			f.step()
			atomic.StoreUint32(&e.state, 0)
		}
		done = append(done, Used{Head: uint16(w.head), Len: w.len})
	}
	q.used = h.used0
	f.step()
	q.show(done)
	f.published(q.used)
}

// suspect finds out who may have ended the last process.
func (f *Inflight) suspect(r *Recovered, limit int) {
	if limit <= 0 {
		// What was held waits on; whoever did not crash us now may still be it.
		for _, p := range r.Replays {
			r.OneByOne = r.OneByOne || f.mark(p.Head, shiftTrial) != trialNone
		}
	}
	for i := range r.Replays {
		if limit <= 0 {
			break
		}
		p := &r.Replays[i]
		trial := f.mark(p.Head, shiftTrial)
		if trial != trialHeld {
			f.setMark(p.Head, shiftAttempts, min(f.mark(p.Head, shiftAttempts)+1, 0xff))
		}
		n := int(f.mark(p.Head, shiftAttempts))
		p.Refuse = n >= limit
		if trial == trialOver {
			p.Refuse = n >= max(limit, maxOverDeaths)
		}
		r.OneByOne = r.OneByOne || n >= limit-1
	}
	if !r.OneByOne {
		return
	}
	for _, p := range r.Replays {
		f.setMark(p.Head, shiftTrial, trialHeld)
	}
}

func (f *Inflight) mark(h uint16, shift int) uint32 {
	return atomic.LoadUint32(&f.heads[h].marks) >> shift & 0xff
}

func (f *Inflight) setMark(h uint16, shift int, v uint32) {
	f.step()
	f.change(h, 0xff<<shift, v<<shift)
}

// Try says that head h is run now, alone.
func (f *Inflight) Try(h uint16) { f.setMark(h, shiftTrial, trialNone) }

// EndTrial says that head h, which was run alone for some time, waits beside others
// from now on.
func (f *Inflight) EndTrial(h uint16) { f.setMark(h, shiftTrial, trialOver) }
