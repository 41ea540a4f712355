package testimage

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// Content is the data of a regular file. It must stay the same while its tree
// lives, and serve concurrent calls.
type Content interface {
	io.ReaderAt
	Size() int64
}

// repeating is content whose ranges come back: two ranges with the same key
// hold the same bytes, so the chunker needs to make and hash only the first.
// Ranges start at multiples of a chunk size and are no longer than it.
type repeating interface {
	rangeKey(off, n int64) rangeKey
}

type rangeKey struct {
	kind byte
	seed uint64
	off  int64
	n    int64
}

// Bytes is content in memory, not copied.
func Bytes(b []byte) Content { return memory(b) }

type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return readAt(p, off, m.Size(), func(p []byte, off int64) { copy(p, m[off:]) })
}

const (
	patternBlock = 4096

	// patternPeriod is a multiple of every chunk size, so that chunks repeat,
	// and 4 GiB is not a multiple of it, so that an offset cut to 32 bits shows.
	patternPeriod = 3 << 24
)

// Pattern is generated content of which every 4 KiB block tells its place (seed
// and block number come first) and which repeats after 48 MiB. Every fourth MiB
// is zeros. It compresses about tenfold, and a file of any size needs at most
// 48 MiB of distinct chunks, with the chunk size a power of two up to 16 MiB.
func Pattern(size int64, seed uint64) Content { return pattern{size, seed} }

type pattern struct {
	size int64
	seed uint64
}

func (c pattern) Size() int64 { return c.size }

func (c pattern) rangeKey(off, n int64) rangeKey {
	return rangeKey{'p', c.seed, off % patternPeriod, n}
}

func (c pattern) ReadAt(p []byte, off int64) (int, error) {
	return readAt(p, off, c.size, func(p []byte, off int64) {
		var block [patternBlock]byte
		for len(p) > 0 {
			in := off % patternBlock
			c.block(&block, off%patternPeriod/patternBlock)
			n := copy(p, block[in:])
			p, off = p[n:], off+int64(n)
		}
	})
}

// block fills b with block number nr of the period.
func (c pattern) block(b *[patternBlock]byte, nr int64) {
	if nr>>8&3 == 3 {
		clear(b[:])
		return
	}
	binary.LittleEndian.PutUint64(b[:], c.seed)
	binary.LittleEndian.PutUint64(b[8:], uint64(nr))
	rng := rand.NewPCG(c.seed, uint64(nr))
	const fresh = 256 // bytes that do not repeat inside the block
	for i := 16; i < fresh; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	for n := fresh; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// Random is generated content that does not compress and does not repeat.
func Random(size int64, seed uint64) Content { return random{size, seed} }

type random struct {
	size int64
	seed uint64
}

func (c random) Size() int64 { return c.size }

func (c random) ReadAt(p []byte, off int64) (int, error) {
	return readAt(p, off, c.size, func(p []byte, off int64) {
		var block [patternBlock]byte
		for len(p) > 0 {
			in := off % patternBlock
			rng := rand.NewPCG(c.seed, uint64(off/patternBlock))
			for i := 0; i < len(block); i += 8 {
				binary.LittleEndian.PutUint64(block[i:], rng.Uint64())
			}
			n := copy(p, block[in:])
			p, off = p[n:], off+int64(n)
		}
	})
}

// Zeros is content of zero bytes, as of a sparse file.
func Zeros(size int64) Content { return zeros(size) }

type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (z zeros) rangeKey(_, n int64) rangeKey { return rangeKey{kind: 'z', n: n} }

func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	return readAt(p, off, int64(z), func(p []byte, _ int64) { clear(p) })
}

// hostFile is the content of a file of the host, opened for each read.
type hostFile struct {
	path string
	size int64
}

func (h hostFile) Size() int64 { return h.size }

func (h hostFile) ReadAt(p []byte, off int64) (int, error) {
	f, err := os.Open(h.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// readAt does the bounds of io.ReaderAt around fill, which gets a range inside
// [0, size).
func readAt(p []byte, off, size int64, fill func(p []byte, off int64)) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	fill(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
