package meta

import (
	"fmt"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// contextSize is the size of a context, of ZRAN and of batch alike.
const contextSize = 40

// batch is a context of BATCH: small chunks that are compressed, and encrypted,
// together.
type batch struct {
	stored uint32 // bytes in the blob
	size   uint32 // uncompressed
}

// decodeBatch decodes: stored size 0:4, uncompressed size 4:4; the rest is
// reserved.
func decodeBatch(b []byte) batch { return batch{le.Uint32(b), le.Uint32(b[4:])} }

func (x *batch) check(encrypted bool) error {
	switch {
	case x.size == 0 || x.size > codec.MaxChunk:
		return fmt.Errorf("batch of %d bytes, the limit is %d", x.size, codec.MaxChunk)
	case x.stored == 0:
		return fmt.Errorf("batch of %d bytes is stored in none", x.size)
	case x.stored <= x.size:
	case !encrypted || x.size >= codec.MinUnit || x.stored != codec.PaddedUnit:
		return fmt.Errorf("batch of %d bytes is stored in %d", x.size, x.stored)
	}
	return nil
}

// zran is a context of ZRAN: where an inflater can start, and how far it goes.
type zran struct {
	in, out    uint64 // offset in the stored stream, and in what that yields
	dict       uint64 // offset in the dictionaries
	stored     uint32 // bytes of the stream
	size       uint32 // bytes that they yield
	dictSize   uint32
	last, bits uint8
}

// decodeZran decodes: offset in the stream 0:8, in the output 8:8, of the
// dictionary 16:8; stored size 24:4, uncompressed size 28:4, dictionary size
// 32:4, last byte before 36:1 and how many of its high bits belong to the
// context 37:1; the rest is reserved.
func decodeZran(b []byte) zran {
	return zran{
		in: le.Uint64(b), out: le.Uint64(b[8:]), dict: le.Uint64(b[16:]),
		stored: le.Uint32(b[24:]), size: le.Uint32(b[28:]), dictSize: le.Uint32(b[32:]),
		last: b[36], bits: b[37],
	}
}

func (x *zran) check(streamSize, dictsSize uint64) error {
	switch {
	case x.size == 0 || x.size > codec.MaxChunk:
		return fmt.Errorf("inflate context of %d bytes, the limit is %d", x.size, codec.MaxChunk)
	case x.stored == 0 || x.stored > blobstore.MaxStoredSize:
		return fmt.Errorf("inflate context stored in %d bytes, the limit is %d", x.stored, blobstore.MaxStoredSize)
	case x.in > streamSize || uint64(x.stored) > streamSize-x.in:
		return fmt.Errorf("inflate context stored at %d+%d, the stream has %d bytes", x.in, x.stored, streamSize)
	case x.dictSize > codec.WindowSize:
		return fmt.Errorf("dictionary of %d bytes, deflate looks back %d", x.dictSize, codec.WindowSize)
	case x.dict > dictsSize || uint64(x.dictSize) > dictsSize-x.dict:
		return fmt.Errorf("dictionary at %d+%d, there are %d bytes of them", x.dict, x.dictSize, dictsSize)
	case x.bits > 7:
		return fmt.Errorf("%d bits of a byte belong to the context", x.bits)
	case x.bits > 0 && x.in == 0:
		return fmt.Errorf("%d bits before the stream", x.bits)
	}
	return nil
}

// Context implements blobstore.Places.
func (t *Table) Context(i uint32, x *blobstore.Context) error {
	if uint64(i) >= uint64(len(t.contexts)/contextSize) {
		return blobstore.ErrNoChunk
	}
	c := t.contexts[uint64(i)*contextSize:][:contextSize]
	if t.features&featureZran == 0 {
		b := decodeBatch(c)
		if err := b.check(t.features&featureEncrypted != 0); err != nil {
			return t.badContext(i, err)
		}
		*x = blobstore.Context{Size: b.size}
		return nil
	}
	z := decodeZran(c)
	if err := z.check(t.stored, uint64(len(t.dicts))); err != nil {
		return t.badContext(i, err)
	}
	*x = blobstore.Context{
		Size: z.size, Inflate: true,
		Window: codec.Window{Dict: t.dicts[z.dict:][:z.dictSize:z.dictSize], Bits: z.bits, Byte: z.last},
	}
	return nil
}

func (t *Table) badContext(i uint32, err error) error {
	return &Error{
		Structure: structContext, Index: int(i),
		Offset: uint64(len(t.entries)) + uint64(i)*contextSize, Reason: err.Error(),
	}
}
