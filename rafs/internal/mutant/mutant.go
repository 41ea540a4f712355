// Package mutant breaks sound files in ways that are aimed at their structures:
// bits, sizes and counts beyond all bounds, offsets swapped, tables laid over each
// other, references in a circle, names that lead elsewhere. A variant is a
// function of its seed, so that a test names it by that.
package mutant

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/rafsd/rafsd/rafs"
)

// Spot is a field of a structure: what a mutation aims at.
type Spot struct {
	Off, Width int
	Name       string
}

// Mutator makes broken variants of a sound file. Variants are functions of their
// seed.
type Mutator struct {
	Data  []byte
	Spots []Spot
	Names []Spot   // names of directory entries, and their widths
	Refs  []uint64 // numbers of inodes, offsets of structures: what fields may hold
}

// Mutate returns the variant of a seed and what was done to it.
func (m *Mutator) Mutate(seed uint64) ([]byte, string) {
	r := rand.New(rand.NewPCG(seed, 1))
	b := bytes.Clone(m.Data)
	var done []string
	for range 1 + r.IntN(3) {
		var what string
		if b, what = m.step(r, b); what != "" {
			done = append(done, what)
		}
	}
	return b, strings.Join(done, ", ")
}

// step does one thing to b.
func (m *Mutator) step(r *rand.Rand, b []byte) ([]byte, string) {
	if len(b) == 0 {
		return b, ""
	}
	s, t := m.Spots[r.IntN(len(m.Spots))], m.Spots[r.IntN(len(m.Spots))]
	if s.Off+s.Width > len(b) || t.Off+t.Width > len(b) {
		return b, ""
	}
	say := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	at := s.Name + say("@%#x", s.Off)
	switch kind := r.IntN(12); kind {
	case 0:
		i := r.IntN(len(b))
		b[i] ^= 1 << r.IntN(8)
		return b, say("bit of %#x", i)
	case 1, 2:
		i := s.Off + r.IntN(s.Width)
		b[i] ^= 1 << r.IntN(8)
		return b, "bit of " + at
	case 3:
		n := r.IntN(len(b))
		if r.IntN(2) == 0 {
			n &^= 4095
		}
		return b[:n], say("cut to %d", n)
	case 4: // offsets swapped
		if s.Width == t.Width {
			x, y := get(b, s), get(b, t)
			put(b, s, y)
			put(b, t, x)
			return b, say("%s swapped with %s@%#x", at, t.Name, t.Off)
		}
		put(b, s, get(b, t))
		return b, say("%s of %s@%#x", at, t.Name, t.Off)
	case 5: // tables that overlap, fields that agree where they must not
		put(b, s, get(b, t))
		return b, say("%s of %s@%#x", at, t.Name, t.Off)
	case 6: // sizes and counts beyond all bounds
		values := []uint64{0, 1, 2, 0x7F, 0xFF, 0xFFFF, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1,
			uint64(len(b)), uint64(len(b)) - 1, uint64(len(b)) + 1, uint64(len(b)) / 8, -uint64(s.Off)}
		v := values[r.IntN(len(values))]
		put(b, s, v)
		return b, say("%s = %#x", at, v)
	case 7:
		v := get(b, s) + uint64(r.IntN(33)) - 16
		put(b, s, v)
		return b, say("%s = %#x", at, v)
	case 8: // cycles, and references to the wrong thing
		if len(m.Refs) == 0 {
			return b, ""
		}
		v := m.Refs[r.IntN(len(m.Refs))]
		put(b, s, v)
		return b, say("%s = %d", at, v)
	case 9: // names that lead elsewhere, or out of order
		if len(m.Names) == 0 {
			return b, ""
		}
		n := m.Names[r.IntN(len(m.Names))]
		if n.Off+n.Width > len(b) {
			return b, ""
		}
		name := b[n.Off : n.Off+n.Width]
		with := []string{"/", "\x00", ".", "..", "../", "a/b", "\xff", "!"}[r.IntN(8)]
		copy(name[r.IntN(n.Width):], with)
		if r.IntN(2) == 0 {
			copy(name, with)
		}
		return b, say("name@%#x = %q", n.Off, name)
	case 10: // structures laid over each other
		n := min(8<<r.IntN(6), len(b))
		from, to := r.IntN(len(b)-n+1), r.IntN(len(b)-n+1)
		if r.IntN(2) == 0 {
			from, to = min(s.Off, len(b)-n), min(t.Off, len(b)-n)
		}
		copy(b[to:to+n], bytes.Clone(b[from:from+n]))
		return b, say("%d bytes of %#x at %#x", n, from, to)
	default:
		n := min(1<<r.IntN(8), len(b)-s.Off)
		clear(b[s.Off : s.Off+n])
		return b, say("%d zeros at %s", n, at)
	}
}

func get(b []byte, s Spot) uint64 {
	var f [8]byte
	copy(f[:], b[s.Off:s.Off+s.Width])
	return binary.LittleEndian.Uint64(f[:])
}

func put(b []byte, s Spot, v uint64) {
	var f [8]byte
	binary.LittleEndian.PutUint64(f[:], v)
	copy(b[s.Off:s.Off+s.Width], f[:s.Width])
}

// fields adds the fields of a structure at off, given as pairs of place and
// width.
func (m *Mutator) fields(name string, off int, places ...int) {
	for i := 0; i < len(places); i += 2 {
		m.Spots = append(m.Spots, Spot{off + places[i], places[i+1], fmt.Sprintf("%s+%d", name, places[i])})
	}
}

func (m *Mutator) records(off, n int) {
	for i := range n {
		m.fields("chunk record", off+i*80, 32, 4, 36, 4, 40, 4, 44, 4, 48, 8, 56, 8, 64, 8, 72, 4, 76, 4)
	}
}

// V5 aims at the structures of a sound v5 bootstrap.
func V5(b []byte) *Mutator {
	le := binary.LittleEndian
	m := &Mutator{Data: b}
	m.fields("superblock", 0, 0, 4, 4, 4, 8, 4, 12, 4, 16, 8, 24, 8, 32, 8, 40, 8, 48, 8, 56, 4, 60, 4, 64, 4, 68, 4, 72, 8)
	table, n := int(le.Uint64(b[32:])), int(le.Uint32(b[56:]))
	m.fields("prefetch table", int(le.Uint64(b[40:])), 0, 4)
	m.fields("blob table", int(le.Uint64(b[48:])), 0, 4, 4, 4, 8, 8)
	for i := range int(le.Uint32(b[68:])) {
		m.fields("extended blob table", int(le.Uint64(b[72:]))+64*i, 0, 4, 4, 4, 8, 8, 16, 8)
	}
	for i := range n {
		m.fields("inode table", table+4*i, 0, 4)
		m.Refs = append(m.Refs, uint64(i+1), uint64(le.Uint32(b[table+4*i:])))
		off := int(le.Uint32(b[table+4*i:])) * 8
		m.fields("inode", off, 0, 8, 32, 8, 40, 8, 60, 4, 64, 8, 72, 8, 80, 8, 88, 4, 92, 4, 96, 4, 100, 2, 102, 2, 104, 4, 108, 4, 112, 8)
		name, link := int(le.Uint16(b[off+100:])), int(le.Uint16(b[off+102:]))
		m.Names = append(m.Names, Spot{Off: off + 128, Width: name})
		end := off + 128 + (name+7)&^7 + (link+7)&^7
		if b[off+80]&4 != 0 {
			m.fields("xattrs", end, 0, 8, 8, 4, 12, 8)
			end += 8 + int(le.Uint64(b[end:])+7)&^7
		}
		if le.Uint32(b[off+60:])&rafs.ModeType == rafs.ModeRegular {
			m.records(end, int(le.Uint32(b[off+96:])))
		}
	}
	return m
}

// V6 aims at the structures of a sound v6 bootstrap, which img shows.
func V6(b []byte, img rafs.Image) (*Mutator, error) {
	le := binary.LittleEndian
	m := &Mutator{Data: b}
	bits := b[1024+12]
	m.fields("superblock", 1024, 0, 4, 4, 4, 8, 4, 12, 1, 13, 1, 14, 2, 16, 8, 36, 4, 40, 4, 44, 4, 80, 4, 86, 2, 88, 2)
	m.fields("extended superblock", 1152, 0, 8, 8, 8, 16, 4, 20, 4, 24, 8, 32, 8, 40, 8, 48, 4)
	for _, t := range img.Tables() {
		for off := int(t.Offset); off < int(t.Offset+t.Size); {
			switch t.Name {
			case "device table":
				m.fields(t.Name, off, 0, 8, 64, 4, 68, 4)
				off += 128
			case "blob table":
				m.fields(t.Name, off, 0, 8, 64, 4, 68, 4, 72, 4, 76, 4, 80, 4, 84, 4, 88, 8, 96, 8, 104, 4, 108, 4, 112, 8, 120, 8, 128, 8, 168, 8, 200, 8, 216, 4)
				off += 256
			case "chunk table":
				m.records(off, 1)
				off += 80
			default:
				m.fields(t.Name, off, 0, 4)
				off += 4
			}
		}
	}
	meta := int(le.Uint32(b[1024+40:])) << bits
	err := rafs.Walk(img, func(e *rafs.WalkEntry) error {
		m.Refs = append(m.Refs, e.Ino)
		off := meta + int(e.Ino)*32
		m.inode(off, 1<<bits, img.Info().ChunkSize)
		return e.Err
	})
	return m, err
}

// inode aims at an extended or compact inode and at what belongs to it.
func (m *Mutator) inode(off, block int, chunkSize uint32) {
	le := binary.LittleEndian
	b := m.Data
	size, body := int(le.Uint32(b[off+8:])), off+32
	if b[off]&1 != 0 {
		size, body = int(le.Uint64(b[off+8:])), off+64
		m.fields("inode", off, 0, 2, 2, 2, 4, 2, 8, 8, 16, 4, 24, 4, 28, 4, 32, 8, 40, 4, 44, 4)
	} else {
		m.fields("inode", off, 0, 2, 2, 2, 4, 2, 6, 2, 8, 4, 16, 4, 24, 2, 26, 2)
	}
	if n := int(le.Uint16(b[off+2:])); n > 0 {
		m.fields("xattrs", body, 0, 4, 4, 1, 12, 1, 13, 1, 14, 2)
		body += 12 + 4*(n-1)
	}
	u := int(le.Uint32(b[off+16:]))
	switch uint32(le.Uint16(b[off+4:])) & rafs.ModeType {
	case rafs.ModeRegular:
		for i := range (size + int(chunkSize) - 1) / int(chunkSize) {
			m.fields("chunk address", (body+7)&^7+8*i, 0, 2, 2, 1, 3, 1, 4, 4)
		}
	case rafs.ModeDir:
		inline := b[off]>>1&7 == 2
		for at := 0; at < size; at += block {
			start, n := u*block+at, min(size-at, block)
			if inline && size-at <= block {
				start = body
			}
			m.dirBlock(start, n)
		}
	}
}

func (m *Mutator) dirBlock(off, n int) {
	le := binary.LittleEndian
	entries := int(le.Uint16(m.Data[off+8:])) / 12
	for i := range entries {
		m.fields("directory entry", off+12*i, 0, 8, 8, 2, 10, 1)
		from, to := int(le.Uint16(m.Data[off+12*i+8:])), n
		if i+1 < entries {
			to = int(le.Uint16(m.Data[off+12*i+20:]))
		}
		m.Names = append(m.Names, Spot{Off: off + from, Width: to - from})
	}
}
