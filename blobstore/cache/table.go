package cache

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// Desc is what the cache must know of a chunk.
type Desc struct {
	Off    uint64 // in the data file
	Size   uint32 // uncompressed
	Extra  uint32 // checksum of whatever else makes two descriptions equal
	Digest [32]byte
}

// Limits of what the cache accepts.
const (
	MaxChunk   = 16 << 20 // bytes of a chunk
	MaxAddress = 1 << 44  // bytes of a data file
	MaxChunks  = 1 << 26  // slots of a map
	// maxUnordered is the most chunks of a table whose chunks are not in the order
	// of their addresses: finding overlaps in it takes memory.
	maxUnordered = 1 << 20
)

func (d *Desc) valid() bool {
	return d.Size > 0 && d.Size <= MaxChunk && d.Off <= MaxAddress-uint64(d.Size)
}

func (d *Desc) end() uint64 { return d.Off + uint64(d.Size) }

// Table is what an image says of the chunks of one blob. It is read within
// Attach only, several times.
type Table interface {
	// Len is one more than the highest index of a chunk.
	Len() uint32
	// Desc describes chunk i, or returns false if the image does not know it or
	// what it says of it is of no use.
	Desc(i uint32, d *Desc) bool
	// Salt is asked for after Desc was called for every index. If it is not
	// empty, the entry is shared with nobody but equal tables of equal salt: for
	// chunks that cannot be verified, and so are worth no more than the place
	// that they came from.
	Salt() string
}

// ErrTable reports a table that cannot be cached under any key.
var ErrTable = errors.New("chunk table refused")

// survey is what one walk over a table tells.
type survey struct {
	len     uint32
	known   uint32 // chunks that the table describes
	end     uint64 // of the last byte of any chunk
	ordered bool   // by index the chunks are in the order of their addresses, without overlap
}

func surveyTable(t Table) (s survey, err error) {
	s.len = t.Len()
	if s.len > MaxChunks {
		return s, fmt.Errorf("%w: %d chunks, at most %d", ErrTable, s.len, MaxChunks)
	}
	s.ordered = true
	var d Desc
	for i := range s.len {
		if !t.Desc(i, &d) || !d.valid() {
			continue
		}
		if d.Off < s.end {
			s.ordered = false
		}
		s.end = max(s.end, d.end())
		s.known++
	}
	if !s.ordered {
		return s, checkOverlap(t, &s)
	}
	return s, nil
}

// checkOverlap refuses a table in which two chunks have bytes in common: one's
// write would change the other after it was verified.
func checkOverlap(t Table, s *survey) error {
	if s.known > maxUnordered {
		return fmt.Errorf("%w: %d chunks in no order, at most %d", ErrTable, s.known, maxUnordered)
	}
	type span struct {
		off, end uint64
		i        uint32
	}
	spans := make([]span, 0, s.known)
	var d Desc
	for i := range s.len {
		if t.Desc(i, &d) && d.valid() && len(spans) < maxUnordered {
			spans = append(spans, span{d.Off, d.end(), i})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	for k := 1; k < len(spans); k++ {
		if a, b := spans[k-1], spans[k]; b.off < a.end {
			return fmt.Errorf("%w: chunk %d at %d..%d and chunk %d at %d..%d overlap",
				ErrTable, a.i, a.off, a.end, b.i, b.off, b.end)
		}
	}
	return nil
}

// tableDigest names a table: the key of an entry that is not shared with other
// tables. salt is part of it.
func tableDigest(t Table, n uint32, salt string) string {
	h := sha256.New()
	var rec [4 + slotSize]byte
	var d Desc
	for i := range n {
		if t.Desc(i, &d) && d.valid() {
			binary.LittleEndian.PutUint32(rec[:], i)
			encodeSlot(rec[4:], &d)
			h.Write(rec[:])
		}
	}
	h.Write([]byte(salt))
	return hex.EncodeToString(h.Sum(nil)[:20])
}
