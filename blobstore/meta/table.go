package meta

import (
	"fmt"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// Sizes of an entry of the two versions.
const (
	entryV1 = 16
	entryV2 = 24
)

// maxAddress is the end of the uncompressed address space of the format.
const maxAddress = 1 << 44

// Flags of an entry of version 2. They are not those of a chunk record.
const (
	entryCompressed = 1 << 0
	entryZran       = 1 << 1
	entryBatch      = 1 << 2
	entryEncrypted  = 1 << 3
	entryHasCRC     = 1 << 4
	entryFlags      = entryCompressed | entryZran | entryBatch | entryEncrypted | entryHasCRC
)

// Bounds are the ends of a blob's two address spaces, as the image has them. 0
// stands for an end that is not known: then the header and the format set it.
type Bounds struct {
	Stored       uint64 // bytes of chunk data in the blob
	Uncompressed uint64 // of the address space; chunks may fill up the last 4 KiB
}

// Table is the chunk information of one blob: where its chunks are stored and
// how. It implements blobstore.Places, and blobstore.Table with chunks that have
// no digest.
type Table struct {
	features uint32
	size     uint64 // of an entry
	entries  []byte // sound as a whole
	contexts []byte
	dicts    []byte
	stored   uint64 // end of the stored address space
}

var (
	_ blobstore.Table  = (*Table)(nil)
	_ blobstore.Places = (*Table)(nil)
)

// Decode returns the chunk information whose stored bytes, decrypted, were found
// at the place that h, an accepted header, names. dst, if it is not nil, has
// h.Size bytes and holds the table from then on; without it stored does, or
// memory that is allocated. Every entry and the context it belongs to are
// checked: its ranges end within bounds, and each begins where the one before it
// ends, or later, in the uncompressed address space.
func Decode(h Header, bounds Bounds, dst, stored []byte) (*Table, error) {
	size := uint64(h.Entries) * h.entrySize()
	switch {
	case uint64(len(stored)) != h.StoredSize:
		return nil, badTable(nil, "%d stored bytes, the header says %d", len(stored), h.StoredSize)
	case h.Entries > MaxChunks || h.Size > MaxSize || size > h.Size || h.ContextsSize > h.Size-size:
		return nil, badTable(nil, "%d bytes for %d chunks and %d bytes of contexts", h.Size, h.Entries, h.ContextsSize)
	case uint64(h.Contexts)*contextSize > h.ContextsSize:
		return nil, badTable(nil, "%d bytes for %d contexts", h.ContextsSize, h.Contexts)
	case dst != nil && uint64(len(dst)) != h.Size:
		return nil, badTable(nil, "room for %d bytes, the header says %d", len(dst), h.Size)
	}
	if h.Compressor == codec.None {
		if uint64(len(stored)) != h.Size {
			return nil, badTable(nil, "%d bytes are stored as they are, in %d", h.Size, h.StoredSize)
		}
		if dst == nil {
			dst = stored
		} else {
			copy(dst, stored)
		}
	} else {
		if dst == nil {
			if h.Size > codec.MaxChunk {
				return nil, unsupported("%d bytes of it are compressed, at most %d are decoded in memory", h.Size, codec.MaxChunk)
			}
			dst = make([]byte, h.Size)
		}
		if err := codec.DecodeLarge(h.Compressor, dst, stored); err != nil {
			return nil, badTable(err, "%d stored bytes of %d", h.StoredSize, h.Size)
		}
	}
	b := bounds.within(h)
	more := dst[size:][:h.ContextsSize:h.ContextsSize]
	list := uint64(h.Contexts) * contextSize
	t := &Table{
		features: h.Features, size: h.entrySize(), entries: dst[:size:size],
		contexts: more[:list:list], dicts: more[list:], stored: b.Stored,
	}
	if err := t.check(b); err != nil {
		return nil, err
	}
	return t, nil
}

// within completes the bounds by those of header and format.
func (b Bounds) within(h Header) Bounds {
	if h.Features&featureSeparate == 0 {
		if end := h.dataEnd(); b.Stored == 0 || b.Stored > end {
			b.Stored = end
		}
	} else if b.Stored == 0 || b.Stored > maxOffset {
		b.Stored = maxOffset // of another blob: its end is not where the information is
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
	for i := range t.Len() {
		if err := t.entry(i, &c); err != nil {
			return err
		}
		switch {
		case c.UncompressedOffset+uint64(c.UncompressedSize) > b.Uncompressed:
			return t.badEntry(i, 0, "place %d+%d of the uncompressed address space, which has %d",
				c.UncompressedOffset, c.UncompressedSize, b.Uncompressed)
		case c.UncompressedOffset < end:
			return t.badEntry(i, 0, "place %d+%d of the uncompressed address space, the entry before it ends at %d",
				c.UncompressedOffset, c.UncompressedSize, end)
		}
		end = c.UncompressedOffset + uint64(c.UncompressedSize)
	}
	return nil
}

// Len implements blobstore.Table: the number of chunks.
func (t *Table) Len() uint32 { return uint32(uint64(len(t.entries)) / t.size) }

// Chunk implements blobstore.Table and blobstore.Places. It does not allocate,
// unless the memory under the table changed.
func (t *Table) Chunk(i uint32, c *blobstore.Chunk) error {
	if i >= t.Len() {
		return blobstore.ErrNoChunk
	}
	return t.entry(i, c)
}

func (t *Table) entry(i uint32, c *blobstore.Chunk) error {
	e := t.entries[uint64(i)*t.size:][:t.size]
	if t.size == entryV1 {
		decodeV1(e, c)
		return t.checkStored(i, c)
	}
	return t.entryV2(i, e, c)
}

// decodeV1 decodes an entry of version 1, two words. The first: uncompressed size
// less one, low 20 bits at 44 and high 4 bits at 8, and in place bits 12 to 43
// of the uncompressed offset. The second: compressed size less one, low 20 bits
// at 44 and high 4 bits at 40, and 40 bits of the compressed offset. A chunk is
// stored compressed exactly if its sizes differ.
func decodeV1(e []byte, c *blobstore.Chunk) {
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

// entryV2 decodes and checks an entry of version 2, three words. The first:
// uncompressed offset in units of 4 KiB, 32 bits; uncompressed size less one, 24
// bits; flags, 8 bits. The second: compressed offset, 40 bits; compressed size,
// 24 bits. The third, of ZRAN and batch: offset in the context's output, 32 bits;
// index of the context, 32 bits. Of others: CRC-32C, 32 bits.
//
// What a chunk that shares its stored bytes says of them is the context's.
func (t *Table) entryV2(i uint32, e []byte, c *blobstore.Chunk) error {
	u, z, d := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:])
	flags := uint32(u >> 56)
	*c = blobstore.Chunk{
		UncompressedOffset: u & (1<<32 - 1) << 12,
		UncompressedSize:   uint32(u>>32&(1<<24-1)) + 1,
		CompressedOffset:   z & (1<<40 - 1),
		CompressedSize:     uint32(z >> 40),
		Flags:              blobstore.ChunkNoDigest,
	}
	has := func(feature uint32) bool { return t.features&feature != 0 }
	switch {
	case flags&^entryFlags != 0:
		return t.badEntry(i, 7, "flags %#x", flags)
	case flags&entryZran != 0 && !has(featureZran):
		return t.badEntry(i, 7, "flag ZRAN, the blob has it not")
	case flags&entryBatch != 0 && !has(featureBatch):
		return t.badEntry(i, 7, "flag BATCH, the blob has it not")
	case flags&entryEncrypted != 0 && !has(featureEncrypted):
		return t.badEntry(i, 7, "flag ENCRYPTED, the blob has it not")
	case flags&(entryZran|entryBatch) == entryZran|entryBatch:
		return t.badEntry(i, 7, "flags %#x: both ZRAN and BATCH", flags)
	}
	if flags&entryEncrypted != 0 {
		c.Flags |= blobstore.ChunkEncrypted
	}
	if flags&entryCompressed != 0 {
		c.Flags |= blobstore.ChunkCompressed
	}
	if flags&(entryZran|entryBatch) == 0 {
		if flags&entryHasCRC != 0 {
			c.Flags |= blobstore.ChunkHasCRC
			c.CRC32C = uint32(d)
		}
		return t.checkStored(i, c)
	}

	c.Context, c.ContextOffset = uint32(d>>32), uint32(d)
	if uint64(c.Context) >= uint64(len(t.contexts)/contextSize) {
		return t.badEntry(i, 20, "context %d, there are %d", c.Context, len(t.contexts)/contextSize)
	}
	x := t.contexts[uint64(c.Context)*contextSize:][:contextSize]
	var size uint32
	if flags&entryBatch != 0 {
		b := decodeBatch(x)
		if err := b.check(has(featureEncrypted)); err != nil {
			return t.badContext(c.Context, err)
		}
		c.Flags |= blobstore.ChunkBatch
		c.CompressedSize, size = b.stored, b.size
		if c.CompressedOffset+uint64(b.stored) > t.stored {
			return t.badEntry(i, 8, "its batch is stored at %d+%d, the blob has %d of chunks", c.CompressedOffset, b.stored, t.stored)
		}
	} else {
		b := decodeZran(x)
		if err := b.check(t.stored, uint64(len(t.dicts))); err != nil {
			return t.badContext(c.Context, err)
		}
		c.Flags |= blobstore.ChunkZran
		c.CompressedOffset, c.CompressedSize, size = b.in, b.stored, b.size
	}
	if uint64(c.ContextOffset)+uint64(c.UncompressedSize) > uint64(size) {
		return t.badEntry(i, 16, "bytes %d+%d of its context, which has %d", c.ContextOffset, c.UncompressedSize, size)
	}
	return nil
}

// checkStored checks the stored bytes of a chunk that has them for itself.
func (t *Table) checkStored(i uint32, c *blobstore.Chunk) error {
	plain := c.UncompressedSize
	if c.Flags&blobstore.ChunkEncrypted != 0 {
		plain = uint32(codec.StoredSize(int(plain)))
	}
	switch {
	case c.CompressedSize == 0:
		return t.badEntry(i, 8, "no stored bytes")
	case c.Flags&blobstore.ChunkCompressed == 0 && c.CompressedSize != plain:
		return t.badEntry(i, 8, "%d bytes are stored as they are, in %d", c.UncompressedSize, c.CompressedSize)
	case c.CompressedOffset+uint64(c.CompressedSize) > t.stored:
		return t.badEntry(i, 8, "stored bytes %d+%d, the blob has %d of chunks", c.CompressedOffset, c.CompressedSize, t.stored)
	}
	return nil
}

func (t *Table) badEntry(i uint32, field uint64, format string, args ...any) error {
	return &Error{
		Structure: structEntry, Index: int(i), Offset: uint64(i)*t.size + field,
		Reason: fmt.Sprintf(format, args...),
	}
}

func badTable(err error, format string, args ...any) error {
	return &Error{Structure: structTable, Index: NoIndex, Reason: fmt.Sprintf(format, args...), Err: err}
}
