// Package vqtest is the driver side of a split virtqueue for tests of devices:
// it lays out rings in a piece of memory, offers chains, right or hostile ones,
// and reaps used elements under suspicion.
package vqtest

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// Flags of a Desc.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Desc is one descriptor as it stands in a table.
type Desc struct {
	Addr  uint64 // guest-physical
	Len   uint32
	Flags uint16
	Next  uint16
}

// Used is one used element.
type Used struct{ ID, Len uint32 }

// Driver is the driver side of one queue. It is for one goroutine.
type Driver struct {
	Size     uint16
	EventIdx bool

	// Offsets of the parts in the memory given to New.
	DescAt, AvailAt, UsedAt uint64

	mem     []byte
	avail   uint16 // next available position, private
	shown   uint16 // avail.idx as last published
	reaped  uint16 // next used position, private
	offered []bool // by head
}

// Bytes returns how much memory the rings of a queue of n entries take.
func Bytes(n uint16) uint64 { return usedAt(n) + 4 + 8*uint64(n) + 2 }

func usedAt(n uint16) uint64 { return (16*uint64(n) + 4 + 2*uint64(n) + 2 + 3) &^ 3 }

// New lays out a queue of n entries at offset at of mem, which is 16-aligned, and
// starts both indexes at start, as if the queue had been in use.
func New(mem []byte, at uint64, n, start uint16, eventIdx bool) *Driver {
	d := &Driver{
		Size: n, EventIdx: eventIdx,
		DescAt: at, AvailAt: at + 16*uint64(n), UsedAt: at + usedAt(n),
		mem: mem, avail: start, shown: start, reaped: start,
		offered: make([]bool, n),
	}
	clear(mem[at : at+Bytes(n)])
	ringmem.StoreRelease16(d.word(d.AvailAt+2), start)
	ringmem.StoreRelease16(d.word(d.UsedAt+2), start)
	if eventIdx {
		ringmem.StoreRelease16(d.usedEvent(), start)
	}
	return d
}

func (d *Driver) word(at uint64) *uint16 { return (*uint16)(unsafe.Pointer(&d.mem[at])) }

func (d *Driver) usedEvent() *uint16  { return d.word(d.AvailAt + 4 + 2*uint64(d.Size)) }
func (d *Driver) availEvent() *uint16 { return d.word(d.UsedAt + 4 + 8*uint64(d.Size)) }

// PutDesc encodes x into b.
func PutDesc(b []byte, x Desc) {
	binary.LittleEndian.PutUint64(b, x.Addr)
	binary.LittleEndian.PutUint32(b[8:], x.Len)
	binary.LittleEndian.PutUint16(b[12:], x.Flags)
	binary.LittleEndian.PutUint16(b[14:], x.Next)
}

// Desc writes entry i of the descriptor table.
func (d *Driver) Desc(i uint16, x Desc) { PutDesc(d.mem[d.DescAt+16*uint64(i):], x) }

// Chain writes descs as a chain into the entries from head on and links them.
func (d *Driver) Chain(head uint16, descs ...Desc) {
	for i, x := range descs {
		if i < len(descs)-1 {
			x.Flags |= Next
			x.Next = head + uint16(i) + 1
		}
		d.Desc(head+uint16(i), x)
	}
}

// Table writes descs as an indirect table at offset at of the memory, links
// them, and returns the descriptor for it, whose guest address is gpa.
func (d *Driver) Table(at, gpa uint64, descs ...Desc) Desc {
	for i, x := range descs {
		if i < len(descs)-1 {
			x.Flags |= Next
			x.Next = uint16(i) + 1
		}
		PutDesc(d.mem[at+16*uint64(i):], x)
	}
	return Desc{Addr: gpa, Len: uint32(16 * len(descs)), Flags: Indirect}
}

// Offer puts head into the available ring; Show makes it visible. Any head is
// taken, also one that does not exist.
func (d *Driver) Offer(head uint16) {
	binary.LittleEndian.PutUint16(d.mem[d.AvailAt+4+2*uint64(d.avail&(d.Size-1)):], head)
	d.avail++
	if head < d.Size {
		d.offered[head] = true
	}
}

// Show publishes what was offered and reports whether the device wants a kick.
func (d *Driver) Show() (kick bool) {
	old := d.shown
	d.shown = d.avail
	ringmem.StoreRelease16(d.word(d.AvailAt+2), d.avail)
	ringmem.Fence()
	if !d.EventIdx {
		return ringmem.LoadAcquire16(d.word(d.UsedAt))&1 == 0
	}
	event := ringmem.LoadAcquire16(d.availEvent())
	return d.avail-event-1 < d.avail-old
}

// Jump sets avail.idx to what no driver would.
func (d *Driver) Jump(idx uint16) {
	d.avail, d.shown = idx, idx
	ringmem.StoreRelease16(d.word(d.AvailAt+2), idx)
}

// Reap takes the next used element, if there is one. It is an error if the
// element names a head that is not on offer, or used.idx is further ahead than
// the queue is long.
func (d *Driver) Reap() (Used, bool, error) {
	idx := ringmem.LoadAcquire16(d.word(d.UsedAt + 2))
	n := idx - d.reaped
	if n == 0 {
		return Used{}, false, nil
	}
	if n > d.Size {
		return Used{}, false, fmt.Errorf("used index %d is %d ahead of %d", idx, n, d.reaped)
	}
	e := d.mem[d.UsedAt+4+8*uint64(d.reaped&(d.Size-1)):]
	u := Used{ID: binary.LittleEndian.Uint32(e), Len: binary.LittleEndian.Uint32(e[4:])}
	if u.ID >= uint32(d.Size) || !d.offered[u.ID] {
		return u, false, fmt.Errorf("used position %d: head %d is not on offer", d.reaped, u.ID)
	}
	d.offered[u.ID] = false
	d.reaped++
	return u, true, nil
}

// Arm asks for a signal at the next used element and reports whether there is
// one already, for which no signal may come.
func (d *Driver) Arm() (ready bool) {
	if d.EventIdx {
		ringmem.StoreFence16(d.usedEvent(), d.reaped)
	} else {
		ringmem.StoreFence16(d.word(d.AvailAt), 0)
	}
	return ringmem.LoadAcquire16(d.word(d.UsedAt+2)) != d.reaped
}

// ArmAt asks for a signal when used.idx passes event. EVENT_IDX only.
func (d *Driver) ArmAt(event uint16) { ringmem.StoreFence16(d.usedEvent(), event) }

// Silence asks for no signals; with EVENT_IDX leaving the event behind does that.
func (d *Driver) Silence() {
	if !d.EventIdx {
		ringmem.StoreFence16(d.word(d.AvailAt), 1)
	}
}

// Available returns avail.idx as it stands in memory.
func (d *Driver) Available() uint16 { return ringmem.LoadAcquire16(d.word(d.AvailAt + 2)) }

// UsedIndex returns used.idx as it stands in memory.
func (d *Driver) UsedIndex() uint16 { return ringmem.LoadAcquire16(d.word(d.UsedAt + 2)) }

// Outstanding returns how many heads are on offer.
func (d *Driver) Outstanding() int {
	n := 0
	for _, o := range d.offered {
		if o {
			n++
		}
	}
	return n
}

// Reattach returns a Driver for a queue that is in use, with the positions of d,
// in mem, another mapping of the same memory.
func (d *Driver) Reattach(mem []byte) *Driver {
	c := *d
	c.mem = mem
	return &c
}

// Clone returns a Driver at the same positions, independent of d from now on, whose
// rings are in mem.
func (d *Driver) Clone(mem []byte) *Driver {
	c := *d
	c.mem, c.offered = mem, append([]bool(nil), d.offered...)
	return &c
}
