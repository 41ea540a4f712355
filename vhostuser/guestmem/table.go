package guestmem

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Limits of one Table.
const (
	// MaxRegions is the number of regions that GET_MAX_MEM_SLOTS reports.
	MaxRegions = 509
	// MaxBytes is the most memory of one guest. It bounds our address space.
	MaxBytes = 1 << 44
)

// Table is an immutable set of mapped regions. Its methods are safe for
// concurrent use by everyone who holds a reference.
type Table struct {
	regions []*mapping // in the order given; few, so a linear search is best
	refs    atomic.Int64
}

// NewTable maps sources. What old (nil for none) has mapped already, with equal
// addresses, size, offset and file, is shared with it and not mapped again. The
// caller holds the one reference to the result, and keeps its reference to old.
func NewTable(old *Table, sources []Source) (t *Table, err error) {
	if len(sources) > MaxRegions {
		return nil, fmt.Errorf("%d regions, at most %d: %w", len(sources), MaxRegions, ErrRegion)
	}
	t = &Table{regions: make([]*mapping, 0, len(sources))}
	t.refs.Store(1)
	defer func() {
		if err != nil {
			t.Release()
			t = nil
		}
	}()
	var total uint64
	for _, s := range sources {
		if err := s.check(); err != nil {
			return t, err
		}
		if total += s.Size; total > MaxBytes || s.Size > MaxBytes {
			return t, fmt.Errorf("%v: memory of more than %#x bytes: %w", s.Region, uint64(MaxBytes), ErrRegion)
		}
		for _, m := range t.regions {
			if s.overlaps(m.Region) {
				return t, fmt.Errorf("%v overlaps %v: %w", s.Region, m.Region, ErrRegion)
			}
		}
		file, err := identify(s)
		if err != nil {
			return t, err
		}
		m := old.find(s.Region, file)
		if m != nil {
			m.refs.Add(1)
		} else if m, err = newMapping(s, file); err != nil {
			return t, err
		}
		t.regions = append(t.regions, m)
	}
	return t, nil
}

// find returns the mapping of r, or nil. The caller's reference to t keeps it.
func (t *Table) find(r Region, file fileID) *mapping {
	if t == nil {
		return nil
	}
	for _, m := range t.regions {
		if m.Region == r && m.file == file {
			return m
		}
	}
	return nil
}

// Retain takes one more reference.
func (t *Table) Retain() { t.refs.Add(1) }

// Release gives up one reference. With the last one, all regions that no other
// Table has are unmapped before Release returns.
func (t *Table) Release() {
	if t.refs.Add(-1) != 0 {
		return
	}
	for _, m := range t.regions {
		m.release()
	}
}

// Regions returns the regions in the order given to NewTable.
func (t *Table) Regions() []Region {
	r := make([]Region, len(t.regions))
	for i, m := range t.regions {
		r[i] = m.Region
	}
	return r
}

// User returns the n bytes at the front-end's address addr. They must lie in one
// region wholly, as rings do.
func (t *Table) User(addr UVA, n uint64) ([]byte, error) {
	for _, m := range t.regions {
		off := uint64(addr) - uint64(m.UVA)
		if off < m.Size {
			if n > m.Size-off {
				return nil, fmt.Errorf("user address %#x +%#x leaves %v: %w", uint64(addr), n, m.Region, ErrAddress)
			}
			return m.mem[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("user address %#x +%#x: %w", uint64(addr), n, ErrAddress)
}

// Locate is the way back: the guest address of seg, which must be a non-empty
// slice of this Table's memory within one region.
func (t *Table) Locate(seg []byte) (GPA, bool) {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(seg)))
	for _, m := range t.regions {
		off := uint64(p - uintptr(unsafe.Pointer(unsafe.SliceData(m.mem))))
		if off < m.Size && uint64(len(seg)) <= m.Size-off {
			return m.GPA + GPA(off), true
		}
	}
	return 0, false
}

// Fault returns an error that wraps ErrGone if recovered, the value of a
// recover(), is a memory fault at an address of this Table, and nil otherwise.
func (t *Table) Fault(recovered any) error {
	fault, ok := recovered.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok || t == nil {
		return nil
	}
	for _, m := range t.regions {
		off := uint64(fault.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(m.mem))))
		if off < m.Size {
			return fmt.Errorf("guest address %#x of %v: %w", uint64(m.GPA)+off, m.Region, ErrGone)
		}
	}
	return nil
}
