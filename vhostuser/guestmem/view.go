package guestmem

import (
	"fmt"
	"unsafe"
)

// View translates guest addresses of one Table and remembers the region of the
// last hit. It is for one goroutine, takes no reference of its own and is valid
// as long as its Table; the zero View knows no memory.
type View struct {
	table *Table
	last  *mapping
}

// NewView returns a View of t.
func NewView(t *Table) View {
	v := View{table: t}
	if len(t.regions) > 0 {
		v.last = t.regions[0]
	}
	return v
}

// Table returns the Table that v translates with.
func (v *View) Table() *Table { return v.table }

// Append appends the n bytes at addr to segs, as one segment or, where the range
// crosses from one region to the next, as several. A segment that continues the
// last one of segs in the same region is joined to it. A range of no bytes adds
// nothing and is never an error.
//
// It allocates only if segs has no room left.
func (v *View) Append(segs [][]byte, addr GPA, n uint64) ([][]byte, error) {
	for rest := n; rest > 0; {
		m := v.last
		if m == nil || uint64(addr)-uint64(m.GPA) >= m.Size {
			if m = v.lookup(addr); m == nil {
				return segs, fmt.Errorf("guest address %#x (%#x bytes left of %#x): %w", uint64(addr), rest, n, ErrAddress)
			}
		}
		off := uint64(addr) - uint64(m.GPA)
		piece := min(rest, m.Size-off)
		seg := m.mem[off : off+piece : off+piece]
		if joined, ok := join(segs, seg, off); ok {
			segs[len(segs)-1] = joined
		} else {
			segs = append(segs, seg)
		}
		// Cannot wrap: the end of a region is at most 2^64, and beyond that
		// the next look-up starts at 0 with rest > 0 only if a region is there;
		// so it is refused here.
		next := addr + GPA(piece)
		if rest -= piece; rest > 0 && next < addr {
			return segs, fmt.Errorf("guest address %#x +%#x wraps: %w", uint64(addr), rest, ErrAddress)
		}
		addr = next
	}
	return segs, nil
}

// join returns the last segment of segs made longer by seg, if seg starts where
// that one ends. off is seg's offset in its region: a segment at offset 0 is
// never joined, since what lies before it in our address space may belong to
// another region, with a life of its own.
func join(segs [][]byte, seg []byte, off uint64) ([]byte, bool) {
	if len(segs) == 0 || off == 0 {
		return nil, false
	}
	last := segs[len(segs)-1]
	start := unsafe.SliceData(last)
	if uintptr(unsafe.Pointer(start))+uintptr(len(last)) != uintptr(unsafe.Pointer(unsafe.SliceData(seg))) {
		return nil, false
	}
	return unsafe.Slice(start, len(last)+len(seg)), true
}

// lookup finds the region of addr and remembers it.
func (v *View) lookup(addr GPA) *mapping {
	if v.table == nil {
		return nil
	}
	for _, m := range v.table.regions {
		if uint64(addr)-uint64(m.GPA) < m.Size {
			v.last = m
			return m
		}
	}
	return nil
}

// CopyIn fills dst from the memory at addr, which may cross regions. Each byte is
// read once.
func (v *View) CopyIn(dst []byte, addr GPA) error {
	for len(dst) > 0 {
		m := v.last
		if m == nil || uint64(addr)-uint64(m.GPA) >= m.Size {
			if m = v.lookup(addr); m == nil {
				return fmt.Errorf("guest address %#x (%#x bytes): %w", uint64(addr), len(dst), ErrAddress)
			}
		}
		n := copy(dst, m.mem[uint64(addr)-uint64(m.GPA):])
		dst = dst[n:]
		next := addr + GPA(n)
		if len(dst) > 0 && next < addr {
			return fmt.Errorf("guest address %#x +%#x wraps: %w", uint64(addr), len(dst), ErrAddress)
		}
		addr = next
	}
	return nil
}
