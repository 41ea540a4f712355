package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Descriptor flags.
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4
)

// Desc is a descriptor as it stands in a table. Low-level tests write what they
// like into one.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

const descSize = 16

// Put writes the descriptor to the front of b.
func (d Desc) Put(b []byte) {
	binary.LittleEndian.PutUint64(b, d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// guardByte fills what a back-end may write to, so that what it did write shows.
const guardByte = 0xa5

// Chain is one request's buffers. The caller owns the buffers; between Add and
// the Reap that returns it the chain belongs to the queue.
type Chain struct {
	Readable []Buffer
	Writable []Buffer

	// Guard makes Add fill the writable buffers, so that CheckGuard can verify that
	// nothing was written behind used.len. It costs two passes over the buffers.
	Guard bool

	// Owner is what the chain is a part of, for whoever reaps.
	Owner any

	table   Buffer // indirect table, when there is more than one buffer
	entries int    // descriptors in the table that are laid out
	space   uint64 // room of the buffers laid out
	head    uint16
	used    uint32
}

// Used is the length in the used element: the bytes that the back-end says it wrote.
func (c *Chain) Used() uint32 { return c.used }

// Head is the chain's descriptor in the ring.
func (c *Chain) Head() uint16 { return c.head }

// room is how many bytes the back-end may write.
func (c *Chain) room() uint64 {
	var n uint64
	for _, b := range c.Writable {
		n += uint64(len(b.Bytes))
	}
	return n
}

// Errors of a queue.
var (
	ErrFull  = errors.New("the ring is full")
	ErrReset = errors.New("the ring was reset while the request was in it")
)

// Queue is the driver's end of one virtqueue: a split ring as Linux's
// vring_init lays it out for virtio-pci, descriptors handed out last in first
// out, more than one buffer in an indirect table if that was negotiated.
//
// Add, Reap and what they need may be called from several goroutines. Only one
// may wait for calls.
type Queue struct {
	vm    *VM
	index int
	size  uint16

	ring    Buffer
	availAt int // offset of the available ring in ring
	usedAt  int // of the used ring

	kick, call, masked, fault *signal
	forward                   sync.WaitGroup // from masked to call

	mu        sync.Mutex
	indirect  bool // negotiated; guarded by mu, as all below
	eventIdx  bool
	next      []uint16 // free list of descriptors
	freeHead  uint16
	numFree   int
	inflight  []*Chain // by head
	nInflight int
	availIdx  uint16 // what is published
	kicked    uint16 // availIdx at the last test whether to kick
	lastUsed  uint16 // used entries that were reaped
	callOff   bool   // the driver asked for no calls
	bad       error  // the first violation: the ring is not looked at any more
	base      uint16 // where the back-end stopped (GET_VRING_BASE)
	stale     bool   // the ring's memory is of an earlier life
	abused    bool   // a hostile driver wrote the indexes

	kicks, calls atomic.Uint64
}

// Ring is the memory of the queue's descriptor table and rings, for drivers that
// mean harm.
func (q *Queue) Ring() Buffer { return q.ring }

func newQueue(vm *VM, index int, size uint16) (*Queue, error) {
	q := &Queue{vm: vm, index: index, size: size}
	n := int(size)
	q.availAt = n * descSize
	q.usedAt = (q.availAt + 6 + 2*n + 63) &^ 63
	var err error
	// A whole page more than needed: what lies behind the ring is ours to watch.
	if q.ring, err = vm.Memory.Alloc(q.usedAt + 6 + 8*n + PageSize); err != nil {
		return nil, err
	}
	q.next = make([]uint16, n)
	q.inflight = make([]*Chain, n)
	q.forget()
	return q, nil
}

// forget drops the driver's view of the ring and returns the chains that were in
// it. The ring's memory stays as it is until the next start: after the sudden end
// of a VMM a back-end may still look at it.
func (q *Queue) forget() []*Chain {
	q.mu.Lock()
	defer q.mu.Unlock()
	var lost []*Chain
	for i, c := range q.inflight {
		if c != nil {
			lost = append(lost, c)
			q.inflight[i] = nil
		}
	}
	for i := range q.next {
		q.next[i] = uint16(i + 1)
	}
	q.freeHead, q.numFree, q.nInflight = 0, int(q.size), 0
	q.availIdx, q.kicked, q.lastUsed, q.base = 0, 0, 0, 0
	q.callOff, q.bad, q.abused = false, nil, false
	q.stale = true
	return lost
}

// wipe zeroes the ring of a driver that sets it up anew.
func (q *Queue) wipe() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wipeLocked()
}

func (q *Queue) wipeLocked() {
	if q.stale {
		clear(q.ring.Bytes)
		q.stale = false
	}
}

// StartAt sets both indexes of an unused ring, so that tests see them wrap soon.
// The next start tells the back-end.
func (q *Queue) StartAt(idx uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wipeLocked()
	q.availIdx, q.kicked, q.lastUsed, q.base = idx, idx, idx, idx
	q.storeWord(q.availAt, uint32(idx)<<16)
	q.storeWord(q.usedAt, uint32(idx)<<16)
}

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

// Index is the queue's number: 0 is the high-priority queue.
func (q *Queue) Index() int { return q.index }

// Kicks and Calls count notifications sent and received.
func (q *Queue) Kicks() uint64 { return q.kicks.Load() }

// Calls counts the signals received.
func (q *Queue) Calls() uint64 { return q.calls.Load() }

// Inflight is the number of chains that the back-end has not returned.
func (q *Queue) Inflight() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.nInflight
}

// loadWord and storeWord access an aligned 32-bit word of the ring.
func (q *Queue) loadWord(off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.ring.Bytes[off])))
}

func (q *Queue) storeWord(off int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&q.ring.Bytes[off])), v)
}

// UsedIdx reads used.idx: an acquire, the elements are read after it.
func (q *Queue) UsedIdx() uint16 { return uint16(q.loadWord(q.usedAt) >> 16) }

// setAvailIdx publishes what the available ring holds up to idx. The flags in
// the word's other half are the driver's too. Ordering: see the package comment.
func (q *Queue) setAvailIdx(idx uint16) {
	var flags uint32
	if q.callOff && !q.eventIdx {
		flags = 1
	}
	q.storeWord(q.availAt, uint32(idx)<<16|flags)
}

func (q *Queue) setUsedEvent(v uint16) { q.storeWord(q.availAt+4+2*int(q.size), uint32(v)) }

func (q *Queue) availEvent() uint16 { return uint16(q.loadWord(q.usedAt + 4 + 8*int(q.size))) }

// Behind returns the guest memory behind the used ring, after avail_event. A
// back-end that stores avail_event as more than two bytes damages it.
func (q *Queue) Behind() []byte {
	return q.ring.Bytes[q.usedAt+6+8*int(q.size):]
}

// layout writes the chain's indirect table, once: buffers of a chain that is
// added again must be the same.
func (q *Queue) layout(c *Chain) error {
	n := len(c.Readable) + len(c.Writable)
	if c.entries == n {
		return nil
	}
	if cap(c.table.Bytes) < n*descSize {
		q.vm.Memory.Free(c.table)
		var err error
		if c.table, err = q.vm.Memory.Alloc(n * descSize); err != nil {
			c.table, c.entries = Buffer{}, 0
			return err
		}
	}
	c.table.Bytes = c.table.Bytes[:n*descSize]
	for i := range n {
		d := c.desc(i)
		if i+1 < n {
			d.Flags |= DescNext
			d.Next = uint16(i + 1)
		}
		d.Put(c.table.Bytes[i*descSize:])
	}
	c.entries, c.space = n, c.room()
	return nil
}

// desc is the i-th buffer as a descriptor without a link.
func (c *Chain) desc(i int) Desc {
	if i < len(c.Readable) {
		b := c.Readable[i]
		return Desc{Addr: b.GPA, Len: uint32(len(b.Bytes))}
	}
	b := c.Writable[i-len(c.Readable)]
	return Desc{Addr: b.GPA, Len: uint32(len(b.Bytes)), Flags: DescWrite}
}

// Release gives the chain's indirect table back; its buffers are the caller's.
func (q *Queue) Release(c *Chain) {
	q.vm.Memory.Free(c.table)
	c.table, c.entries = Buffer{}, 0
}

// Relayout tells that the chain's buffers are other ones than at the last Add.
func (c *Chain) Relayout() { c.entries = 0 }

// Add makes c available and tells whether the back-end wants a kick for it.
func (q *Queue) Add(c *Chain) (kick bool, err error) {
	if c.Guard {
		for _, b := range c.Writable {
			fill(b.Bytes, guardByte)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bad != nil {
		return false, q.bad
	}
	q.wipeLocked()
	n := len(c.Readable) + len(c.Writable)
	switch {
	case n == 0:
		return false, errors.New("a chain without buffers")
	case q.numFree == 0:
		return false, ErrFull
	case q.indirect && n > 1:
		if err := q.layout(c); err != nil {
			return false, err
		}
		c.head = q.takeDesc(Desc{Addr: c.table.GPA, Len: uint32(n * descSize), Flags: DescIndirect})
	case n > q.numFree:
		return false, ErrFull
	default:
		// Link back to front, so that each descriptor knows its successor; the
		// free list gives them in table order all the same.
		i := q.freeHead
		c.head = i
		for k := range n {
			d := c.desc(k)
			d.Next = q.next[i]
			if k+1 < n {
				d.Flags |= DescNext
			}
			d.Put(q.ring.Bytes[int(i)*descSize:])
			i = q.next[i]
		}
		q.freeHead = i
		q.numFree -= n
	}
	q.inflight[c.head] = c
	q.nInflight++
	q.offerLocked(c.head)
	return q.kickWantedLocked(), nil
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

func (q *Queue) takeDesc(d Desc) uint16 {
	i := q.freeHead
	d.Put(q.ring.Bytes[int(i)*descSize:])
	q.freeHead = q.next[i]
	q.numFree--
	return i
}

// giveDescs returns the descriptors of the chain at head to the free list.
func (q *Queue) giveDescs(c *Chain) {
	n := len(c.Readable) + len(c.Writable)
	if q.indirect && n > 1 {
		n = 1
	}
	last := c.head
	for range n - 1 {
		last = q.next[last]
	}
	q.next[last] = q.freeHead
	q.freeHead = c.head
	q.numFree += n
}

func (q *Queue) offerLocked(head uint16) {
	slot := int(q.availIdx & (q.size - 1))
	binary.LittleEndian.PutUint16(q.ring.Bytes[q.availAt+4+2*slot:], head)
	q.availIdx++
	q.setAvailIdx(q.availIdx)
}

// kickWantedLocked is virtqueue_kick_prepare: does what was added since the last
// test have to be kicked?
func (q *Queue) kickWantedLocked() bool {
	from, to := q.kicked, q.availIdx
	q.kicked = to
	if q.eventIdx {
		return to-q.availEvent()-1 < to-from
	}
	return uint16(q.loadWord(q.usedAt))&1 == 0
}

// Kick notifies the back-end, wanted or not.
func (q *Queue) Kick() error {
	q.kicks.Add(1)
	return q.kick.notify()
}

// Submit is Add and, if the back-end wants it, Kick: virtqueue_add_sgs,
// virtqueue_kick_prepare and virtqueue_notify.
func (q *Queue) Submit(c *Chain) error {
	kick, err := q.Add(c)
	if err != nil || !kick {
		return err
	}
	return q.Kick()
}

// Reap appends the chains that the back-end has returned to dst, in the order of
// the used ring, and verifies each against the rules. A violation is final: the
// ring cannot be trusted after it.
func (q *Queue) Reap(dst []*Chain) ([]*Chain, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bad != nil {
		return dst, q.bad
	}
	idx := q.UsedIdx()
	if n := int(idx - q.lastUsed); n > q.nInflight {
		q.bad = violation("queue %d: used idx went from %d to %d with %d requests in flight", q.index, q.lastUsed, idx, q.nInflight)
		return dst, q.bad
	}
	for q.lastUsed != idx {
		slot := q.ring.Bytes[q.usedAt+4+8*int(q.lastUsed&(q.size-1)):]
		id, length := binary.LittleEndian.Uint32(slot), binary.LittleEndian.Uint32(slot[4:])
		if id >= uint32(q.size) || q.inflight[id] == nil {
			q.bad = violation("queue %d: used entry %d names head %d, which is not in flight", q.index, q.lastUsed, id)
			return dst, q.bad
		}
		c := q.inflight[id]
		c.used = length
		if q.bad = c.verify(q); q.bad != nil {
			return dst, q.bad
		}
		q.inflight[id] = nil
		q.nInflight--
		q.giveDescs(c)
		q.lastUsed++
		dst = append(dst, c)
	}
	if !q.callOff {
		q.armLocked()
	}
	return dst, nil
}

// verify checks the used length.
func (c *Chain) verify(q *Queue) error {
	room := c.space
	if c.entries == 0 {
		room = c.room()
	}
	if uint64(c.used) > room {
		return violation("queue %d head %d: used.len is %d, the chain has room for %d", q.index, c.head, c.used, room)
	}
	return nil
}

// CheckGuard verifies, for a guarded chain that came back, that nothing was written
// behind used.len. It is not for replies that tell of an error: data may have been
// written before the error was met.
func (c *Chain) CheckGuard() error {
	if !c.Guard {
		return nil
	}
	skip := int(c.used)
	at := 0
	for _, b := range c.Writable {
		for i := min(max(skip-at, 0), len(b.Bytes)); i < len(b.Bytes); i++ {
			if b.Bytes[i] != guardByte {
				return violation("byte %d of the room for a reply was written, used.len is %d", at+i, c.used)
			}
		}
		at += len(b.Bytes)
	}
	return nil
}

// armLocked asks for a call with the next used entry.
func (q *Queue) armLocked() {
	if q.eventIdx {
		q.setUsedEvent(q.lastUsed)
	} else {
		q.setAvailIdx(q.availIdx)
	}
}

// DisableCalls asks the back-end for no calls: a hint, they may still come.
func (q *Queue) DisableCalls() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.callOff = true
	if q.eventIdx {
		q.setUsedEvent(0) // as Linux: there is no "never" with EVENT_IDX
	} else {
		q.setAvailIdx(q.availIdx)
	}
}

// EnableCalls asks for a call with the next used entry and reports whether there
// is none yet. When it returns false the caller reaps again instead of waiting.
func (q *Queue) EnableCalls() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.callOff = false
	q.armLocked()
	return q.bad != nil || q.UsedIdx() == q.lastUsed
}

// WaitCall waits for a call signal.
func (q *Queue) WaitCall(ctx context.Context) error {
	n, err := q.call.waitContext(ctx)
	q.calls.Add(n)
	return err
}

// WaitUsed waits until the back-end has returned at least one chain, and reaps.
func (q *Queue) WaitUsed(ctx context.Context) ([]*Chain, error) {
	for {
		got, err := q.Reap(nil)
		if err != nil || len(got) > 0 {
			return got, err
		}
		if !q.EnableCalls() {
			continue
		}
		if err := q.WaitCall(ctx); err != nil {
			return nil, fmt.Errorf("queue %d: waiting for a used entry: %w", q.index, err)
		}
	}
}

// Faulted reports whether the back-end signalled an error of this queue on the
// err descriptor, and waits for that until ctx ends.
func (q *Queue) Faulted(ctx context.Context) bool {
	if q.fault == nil {
		return false
	}
	_, err := q.fault.waitContext(ctx)
	return err == nil
}

// The rest of this file is for hostile drivers: it writes what it is told into
// the ring, without a look at the driver's own state.

// PutDesc writes descriptor i of the ring's table.
func (q *Queue) PutDesc(i int, d Desc) {
	d.Put(q.ring.Bytes[i*descSize:])
}

// Offer puts head, whatever it is, into the next slot of the available ring.
func (q *Queue) Offer(head uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wipeLocked()
	q.offerLocked(head)
}

// PutAvailIdx publishes any index.
func (q *Queue) PutAvailIdx(idx uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abused = true
	q.availIdx = idx
	q.setAvailIdx(idx)
}

// AvailIdx is the published index.
func (q *Queue) AvailIdx() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.availIdx
}

// UsedElem reads the element of the used ring in slot i.
func (q *Queue) UsedElem(i uint16) (id, length uint32) {
	slot := q.ring.Bytes[q.usedAt+4+8*int(i&(q.size-1)):]
	return binary.LittleEndian.Uint32(slot), binary.LittleEndian.Uint32(slot[4:])
}

// PutUsedIdx overwrites the device's own index, as no driver may.
func (q *Queue) PutUsedIdx(idx uint16) { q.storeWord(q.usedAt, uint32(idx)<<16) }

// PutUsedEvent tells at which used entry the driver wants a call.
func (q *Queue) PutUsedEvent(idx uint16) { q.setUsedEvent(idx) }
