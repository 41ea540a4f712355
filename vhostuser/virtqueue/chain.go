package virtqueue

import (
	"fmt"
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// Flags of a descriptor.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

const (
	// privateDescs is how many entries of an indirect table are copied in one go.
	// A read of 1 MiB in scattered 4 KiB pages needs 259.
	privateDescs = 512
	// maxIndirect is the longest indirect table. Its entries are counted in 16
	// bits by the next field.
	maxIndirect = 65535
	// maxChain bounds the descriptors of one chain. Linux needs 4 and up to two
	// for each page of a request.
	maxChain = 8192
	// keptSegments is how large the segment lists of a Chain may stay between
	// two uses; larger ones are left to the garbage collector.
	keptSegments = 1024
)

// Chain is one request of the driver as segments of guest memory, which are
// valid as long as the Table that they come from.
type Chain struct {
	Head     uint16
	Readable [][]byte
	Writable [][]byte
	ReadLen  uint64 // bytes in Readable
	WriteLen uint64 // bytes in Writable
}

func (c *Chain) reset(head uint16) {
	if cap(c.Readable) > keptSegments {
		c.Readable = nil
	}
	if cap(c.Writable) > keptSegments {
		c.Writable = nil
	}
	c.Head, c.Readable, c.Writable = head, c.Readable[:0], c.Writable[:0]
	c.ReadLen, c.WriteLen = 0, 0
}

// descriptor is a private copy of one.
type descriptor struct {
	addr  guestmem.GPA
	len   uint32
	flags uint16
	next  uint16
}

func makeDescriptor(lo, hi uint64) descriptor {
	return descriptor{addr: guestmem.GPA(lo), len: uint32(hi), flags: uint16(hi >> 32), next: uint16(hi >> 48)}
}

// Pop takes the next chain from the available ring into c and reports whether
// there was one. An error wraps ErrBroken, and nothing was taken.
func (q *Queue) Pop(c *Chain) (bool, error) {
	next := uint16(q.popped)
	if next == q.availed {
		// Acquire, partner of the driver's release of avail.idx: ring slots and
		// descriptors are read after it.
		idx := ringmem.LoadAcquire16(q.availIdx)
		n := idx - next
		if n == 0 {
			return false, nil
		}
		if n > q.cfg.Size {
			return false, fmt.Errorf("available index %d is %d ahead of %d, size %d: %w", idx, n, next, q.cfg.Size, ErrBroken)
		}
		q.availed = idx
	}
	h := q.availRing[next&q.mask]
	if h >= q.cfg.Size {
		return false, fmt.Errorf("head %d at position %d, size %d: %w", h, next, q.cfg.Size, ErrBroken)
	}
	if q.heads[h].inFlight.Load() != 0 {
		return false, fmt.Errorf("head %d at position %d is in flight already: %w", h, next, ErrBroken)
	}
	if err := q.walk(h, c); err != nil {
		return false, err
	}
	q.heads[h].position = q.popped
	q.heads[h].inFlight.Store(1)
	if q.table != nil {
		q.table.pop(h, q.popped)
	}
	q.popped++
	return true, nil
}

// Replay takes the chain of a head that is in flight, once more.
func (q *Queue) Replay(h uint16, c *Chain) error {
	if h >= q.cfg.Size || q.heads[h].inFlight.Load() == 0 {
		return fmt.Errorf("replay of head %d, which is not in flight: %w", h, ErrSetup)
	}
	return q.walk(h, c)
}

// walk follows the chain that starts at descriptor h, which lies in the table.
func (q *Queue) walk(h uint16, c *Chain) error {
	c.reset(h)
	i := h
	for range q.cfg.Size {
		// Two aligned loads, each done once: the guest may change the
		// descriptor meanwhile, and the copy is what gets checked.
		d := makeDescriptor(atomic.LoadUint64(&q.desc[2*uint(i)]), atomic.LoadUint64(&q.desc[2*uint(i)+1]))
		if d.flags&descIndirect != 0 {
			return q.walkIndirect(d, c)
		}
		if err := q.add(d, c); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if d.next >= q.cfg.Size {
			return fmt.Errorf("head %d: descriptor %d names %d as next, size %d: %w", h, i, d.next, q.cfg.Size, ErrBroken)
		}
		i = d.next
	}
	return fmt.Errorf("head %d: chain of more than %d descriptors: %w", h, q.cfg.Size, ErrBroken)
}

// walkIndirect follows the chain in the table that d names, from its entry 0.
// The table may be longer than the queue.
func (q *Queue) walkIndirect(d descriptor, c *Chain) error {
	switch {
	case !q.cfg.Indirect:
		return fmt.Errorf("head %d: indirect descriptor without the feature: %w", c.Head, ErrBroken)
	case d.flags&descNext != 0:
		return fmt.Errorf("head %d: indirect descriptor with a next one: %w", c.Head, ErrBroken)
	case d.len == 0 || d.len%descSize != 0:
		return fmt.Errorf("head %d: indirect table of %d bytes: %w", c.Head, d.len, ErrBroken)
	case d.len/descSize > maxIndirect:
		return fmt.Errorf("head %d: indirect table of %d entries: %w", c.Head, d.len/descSize, ErrBroken)
	case uint64(d.addr) > math.MaxUint64-uint64(d.len):
		return fmt.Errorf("head %d: indirect table at %#x +%#x wraps: %w", c.Head, uint64(d.addr), d.len, ErrBroken)
	}
	n := d.len / descSize
	whole := n <= privateDescs
	if whole {
		if err := q.copyIn(d.addr, n); err != nil {
			return fmt.Errorf("head %d: indirect table: %w: %w", c.Head, err, ErrBroken)
		}
	}
	i := uint32(0)
	for range min(n, maxChain) {
		at := i
		if !whole {
			// One entry at a time: a table that large is copied no faster than
			// it is walked.
			if err := q.copyIn(d.addr+guestmem.GPA(i*descSize), 1); err != nil {
				return fmt.Errorf("head %d: indirect entry %d: %w: %w", c.Head, i, err, ErrBroken)
			}
			at = 0
		}
		e := makeDescriptor(q.private[2*at], q.private[2*at+1])
		if e.flags&descIndirect != 0 {
			return fmt.Errorf("head %d: indirect entry %d is indirect: %w", c.Head, i, ErrBroken)
		}
		if err := q.add(e, c); err != nil {
			return err
		}
		if e.flags&descNext == 0 {
			return nil
		}
		if i = uint32(e.next); i >= n {
			return fmt.Errorf("head %d: indirect entry names %d as next, table of %d: %w", c.Head, i, n, ErrBroken)
		}
	}
	return fmt.Errorf("head %d: indirect chain of more than %d descriptors: %w", c.Head, min(n, maxChain), ErrBroken)
}

// copyIn copies n descriptors at addr into q.private. An indirect table needs no
// alignment and may cross from one region to the next.
func (q *Queue) copyIn(addr guestmem.GPA, n uint32) error {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&q.private[0])), n*descSize)
	return q.view.CopyIn(b, addr)
}

// add translates the buffer of d and adds it to c.
func (q *Queue) add(d descriptor, c *Chain) (err error) {
	if d.len == 0 {
		return nil
	}
	if d.flags&descWrite != 0 {
		c.WriteLen += uint64(d.len)
		if c.WriteLen <= q.cfg.MaxBytes {
			c.Writable, err = q.view.Append(c.Writable, d.addr, uint64(d.len))
		}
	} else {
		if c.WriteLen > 0 {
			return fmt.Errorf("head %d: readable descriptor behind a writable one: %w", c.Head, ErrBroken)
		}
		c.ReadLen += uint64(d.len)
		if c.ReadLen <= q.cfg.MaxBytes {
			c.Readable, err = q.view.Append(c.Readable, d.addr, uint64(d.len))
		}
	}
	if err != nil {
		return fmt.Errorf("head %d: %w: %w", c.Head, err, ErrBroken)
	}
	if c.ReadLen > q.cfg.MaxBytes || c.WriteLen > q.cfg.MaxBytes {
		return fmt.Errorf("head %d: more than %d bytes: %w", c.Head, q.cfg.MaxBytes, ErrBroken)
	}
	return nil
}
