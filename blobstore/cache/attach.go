package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/rafsd/rafsd/internal/hostfs"
)

// blockSlots is how many slots are read and written at a time.
const blockSlots = 1024

var (
	// errConflict: the entry describes chunks otherwise than the table does.
	errConflict = errors.New("the entry tells another story of the blob")
	// errDamaged: the entry contradicts itself.
	errDamaged = errors.New("damaged map")
)

// Attach opens the entry of a blob for an image whose table of the blob is t,
// and claims the chunks that t knows. id is the blob's id, checked by the
// caller. The caller releases the view.
//
// Attach reads the whole table and the map's slots beside it, and waits for
// other processes that do so, at most until ctx ends.
func (c *Cache) Attach(ctx context.Context, id string, t Table) (*View, error) {
	s, err := surveyTable(t)
	if err != nil {
		return nil, err
	}
	salt := t.Salt()
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.leave()
	if s.ordered && salt == "" {
		v, err := c.attach(id, t, &s, true)
		if !errors.Is(err, errConflict) {
			return v, err
		}
	}
	name := id + "+" + tableDigest(t, s.len, salt)
	v, err := c.attach(name, t, &s, false)
	if errors.Is(err, errConflict) {
		return nil, fmt.Errorf("%w: it changed while it was read", ErrTable)
	}
	return v, err
}

// attach opens the entry name and claims the chunks of t in it. An entry that
// is not shared, but tells another story than the table whose digest is its
// name, is damaged.
func (c *Cache) attach(name string, t Table, s *survey, shared bool) (*View, error) {
	f, err := c.open(name)
	if err != nil {
		return nil, err
	}
	w := walk{f: f, t: t, len: s.len, ordered: s.ordered}
	err = w.compare()
	if errors.Is(err, errDamaged) || errors.Is(err, errConflict) && !shared {
		if f, err = c.rebuild(f, err); err != nil {
			return nil, err
		}
		w = walk{f: f, t: t, len: s.len, ordered: s.ordered}
		err = w.compare()
	}
	if err == nil && w.mapLen < s.len {
		err = f.slots.Truncate(headerSize + int64(s.len)*slotSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.release())
	}
	v, err := newView(f, s) // which has f's reference from here on
	if err != nil {
		return nil, errors.Join(err, f.release())
	}
	if err := w.claim(v); err != nil {
		return nil, errors.Join(err, v.Release())
	}
	return v, nil
}

// walk compares a table with the slots of an entry, and claims what is free. It
// runs under the folder's lock: no slot is claimed by anybody else meanwhile,
// states may change.
type walk struct {
	f       *file
	t       Table
	len     uint32 // of the table
	ordered bool   // the entry's chunks are in the order of their addresses

	mapLen uint32   // slots that the file has room for
	blocks uint32   // that compare went through
	next   []uint64 // by block: offset of the first claimed chunk in it or behind it; none is MaxUint64
	buf    [blockSlots * slotSize]byte
	limit  [blockSlots]uint64
}

// read fills buf with the slots of block b; what is behind the end of the file
// is zero.
func (w *walk) read(b uint32) error {
	n, err := w.f.slots.ReadAt(w.buf[:], headerSize+int64(b)*int64(len(w.buf)))
	if err != nil && err != io.EOF {
		return err
	}
	clear(w.buf[n:])
	return nil
}

func (w *walk) slot(k uint32) []byte { return w.buf[k*slotSize : (k+1)*slotSize] }

// want returns what the table says of chunk i, if it says anything.
func (w *walk) want(i uint32, d *Desc) bool {
	return i < w.len && w.t.Desc(i, d) && d.valid()
}

// compare finds out whether all chunks of the table can be in this entry,
// without changing it.
func (w *walk) compare() error {
	st, err := hostfs.Stat(w.f.slots)
	if err != nil {
		return err
	}
	w.mapLen = uint32(min(max(0, st.Size-headerSize)/slotSize, MaxChunks))
	total := max(w.mapLen, w.len)
	w.blocks = (total + blockSlots - 1) / blockSlots
	w.next = make([]uint64, w.blocks+1)
	for b := range w.next {
		w.next[b] = math.MaxUint64
	}
	var have, want Desc    // of the slot at hand: what the map says, what the table says
	var mapEnd, end uint64 // of the chunks so far: those of the map, those of both
	for b := range w.blocks {
		if err := w.read(b); err != nil {
			return err
		}
		for k := range uint32(blockSlots) {
			i := b*blockSlots + k
			kind, _ := decodeSlot(w.slot(k), &have)
			known := w.want(i, &want)
			if kind > kindHere {
				return fmt.Errorf("%w: chunk %d is of kind %d", errConflict, i, kind)
			}
			if kind == kindHere {
				if !have.valid() || w.ordered && have.Off < mapEnd {
					return fmt.Errorf("%w: chunk %d at %d..%d behind %d", errDamaged, i, have.Off, have.end(), mapEnd)
				}
				mapEnd = have.end()
				if w.next[b] == math.MaxUint64 {
					w.next[b] = have.Off
				}
				if known && have != want {
					return fmt.Errorf("%w: chunk %d", errConflict, i)
				}
			} else if known {
				have = want
			} else {
				continue
			}
			if w.ordered && have.Off < end {
				return fmt.Errorf("%w: chunk %d begins before the end of another", errConflict, i)
			}
			end = have.end()
		}
	}
	for b := int(w.blocks) - 1; b >= 0; b-- {
		if w.next[b] == math.MaxUint64 {
			w.next[b] = w.next[b+1]
		}
	}
	return nil
}

// claim claims all chunks of the table that are free, tells v which chunks the
// table knows, and mends states that cannot be true. The table may be a file
// that somebody rewrites between compare and claim: what it says is checked
// again, so that a claim never overlaps another.
func (w *walk) claim(v *View) error {
	var have, want Desc
	var end uint64
	for b := uint32(0); b < w.blocks && b*blockSlots < w.len; b++ {
		if err := w.read(b); err != nil {
			return err
		}
		w.limits(b)
		first := -1 // of a run of slots to be written
		for k := range uint32(blockSlots) {
			i := b*blockSlots + k
			kind, state := decodeSlot(w.slot(k), &have)
			known := w.want(i, &want)
			fresh := kind == kindNone && known
			switch {
			case fresh:
				if w.ordered && (want.Off < end || want.end() > w.limit[k]) {
					return fmt.Errorf("%w: chunk %d overlaps another", errConflict, i)
				}
				encodeSlot(w.slot(k), &want)
				have = want
			case known && have != want:
				return fmt.Errorf("%w: chunk %d", errConflict, i)
			}
			if known {
				v.learn(i)
				if !fresh {
					if err := v.settle(i, &have, state); err != nil {
						return err
					}
				}
			}
			if kind != kindNone || fresh {
				end = have.end()
			}
			if fresh && first < 0 {
				first = int(k)
			}
			if first >= 0 && (!fresh || k == blockSlots-1) {
				last := int(k) // exclusive
				if fresh {
					last++
				}
				if err := w.write(b, first, last); err != nil {
					return err
				}
				first = -1
			}
		}
	}
	return nil
}

// limits fills limit: where the next claimed chunk behind each slot of block b
// begins.
func (w *walk) limits(b uint32) {
	next := w.next[b+1]
	for k := blockSlots - 1; k >= 0; k-- {
		w.limit[k] = next
		var d Desc
		if kind, _ := decodeSlot(w.slot(uint32(k)), &d); kind != kindNone {
			next = d.Off
		}
	}
}

// write writes slots [first, last) of block b, all of them newly claimed. It is
// a write, not a store to the map, so that a full disk is an error and every page
// of the map in which a state may change is allocated.
func (w *walk) write(b uint32, first, last int) error {
	at := headerSize + int64(b)*int64(len(w.buf)) + int64(first)*slotSize
	_, err := w.f.slots.WriteAt(w.buf[first*slotSize:last*slotSize], at)
	return err
}
