package meta

import (
	"fmt"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// entrySize is the size of an entry of version 1.
const entrySize = 16

// maxAddress is the end of the uncompressed address space of the format.
const maxAddress = 1 << 44

// Bounds are the ends of a blob's two address spaces, as the image has them. 0
// stands for an end that is not known: then the header and the format set it.
type Bounds struct {
	Stored       uint64 // bytes of chunk data in the blob
	Uncompressed uint64 // of the address space; chunks may fill up the last 4 KiB
}

// Table is the chunk information of one blob. It implements blobstore.Table,
// with chunks that have no digest: version 1 holds places alone.
type Table struct {
	entries []byte // sound as a whole
}

var _ blobstore.Table = (*Table)(nil)

// Decode returns the chunk information whose stored bytes were found at the
// place that h, an accepted header, names. stored belongs to the table from then
// on. Every entry is checked: its ranges end within bounds, and each begins
// where the one before it ends, or later, in the uncompressed address space.
func Decode(h Header, bounds Bounds, stored []byte) (*Table, error) {
	damaged := func(err error, format string, args ...any) error {
		return &Error{Structure: structTable, Index: NoIndex, Reason: fmt.Sprintf(format, args...), Err: err}
	}
	size := uint64(h.Entries) * entrySize
	switch {
	case uint64(len(stored)) != h.StoredSize:
		return nil, damaged(nil, "%d stored bytes, the header says %d", len(stored), h.StoredSize)
	case h.Entries > MaxChunks || h.Size > MaxSize || size > h.Size:
		return nil, damaged(nil, "%d bytes for %d chunks", h.Size, h.Entries)
	}
	plain := stored
	if h.Compressor != codec.None {
		if h.Size > codec.MaxChunk {
			return nil, unsupported("%d bytes of it are compressed, at most %d can be read", h.Size, codec.MaxChunk)
		}
		plain = make([]byte, h.Size)
		if err := codec.Decode(h.Compressor, plain, stored); err != nil {
			return nil, damaged(err, "%d stored bytes of %d", h.StoredSize, h.Size)
		}
	} else if h.StoredSize != h.Size {
		return nil, damaged(nil, "%d bytes are stored as they are, in %d", h.Size, h.StoredSize)
	}
	t := &Table{plain[:size:size]}
	if err := t.check(bounds.within(h)); err != nil {
		return nil, err
	}
	return t, nil
}

// within completes the bounds by those of header and format.
func (b Bounds) within(h Header) Bounds {
	if end := h.dataEnd(); b.Stored == 0 || b.Stored > end {
		b.Stored = end
	}
	if b.Uncompressed == 0 || b.Uncompressed > maxAddress {
		b.Uncompressed = maxAddress
	}
	b.Uncompressed = (b.Uncompressed + 4095) &^ 4095
	return b
}

// check looks at every entry once. Offsets have 44 bits and sizes 25 at most, so
// that no sum wraps.
func (t *Table) check(b Bounds) error {
	var (
		c   blobstore.Chunk
		end uint64 // of the chunk before
	)
	for i := range int(t.Len()) {
		t.entry(i, &c)
		switch {
		case c.CompressedOffset+uint64(c.CompressedSize) > b.Stored:
			return badEntry(i, 8, "stored bytes %d+%d, the blob has %d of chunks", c.CompressedOffset, c.CompressedSize, b.Stored)
		case c.UncompressedOffset+uint64(c.UncompressedSize) > b.Uncompressed:
			return badEntry(i, 0, "place %d+%d of the uncompressed address space, which has %d",
				c.UncompressedOffset, c.UncompressedSize, b.Uncompressed)
		case c.UncompressedOffset < end:
			return badEntry(i, 0, "place %d+%d of the uncompressed address space, the entry before it ends at %d",
				c.UncompressedOffset, c.UncompressedSize, end)
		}
		end = c.UncompressedOffset + uint64(c.UncompressedSize)
	}
	return nil
}

// Len implements blobstore.Table: the number of chunks.
func (t *Table) Len() uint32 { return uint32(len(t.entries) / entrySize) }

// Chunk implements blobstore.Table. It does not allocate.
func (t *Table) Chunk(i uint32, c *blobstore.Chunk) error {
	if i >= t.Len() {
		return blobstore.ErrNoChunk
	}
	t.entry(int(i), c)
	return nil
}

// entry decodes an entry of version 1, two words. The first: uncompressed size
// less one, low 20 bits at 44 and high 4 bits at 8, and in place bits 12 to 43
// of the uncompressed offset. The second: compressed size less one, low 20 bits
// at 44 and high 4 bits at 40, and 40 bits of the compressed offset. A chunk is
// stored compressed exactly if its sizes differ.
func (t *Table) entry(i int, c *blobstore.Chunk) {
	e := t.entries[i*entrySize:][:entrySize]
	u, z := le.Uint64(e), le.Uint64(e[8:])
	*c = blobstore.Chunk{
		UncompressedOffset: u & (maxAddress - 4096),
		UncompressedSize:   uint32(u>>44|u>>8&0xF<<20) + 1,
		CompressedOffset:   z & (1<<40 - 1),
		CompressedSize:     uint32(z>>44|z>>40&0xF<<20) + 1,
		Flags:              blobstore.ChunkNoDigest,
	}
	if c.CompressedSize != c.UncompressedSize {
		c.Flags |= blobstore.ChunkCompressed
	}
}
