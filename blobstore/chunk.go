package blobstore

import (
	"encoding/binary"
	"fmt"

	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// Limits of a chunk.
const (
	MaxChunkSize = codec.MaxChunk // uncompressed
	// MaxStoredSize is the most bytes that a chunk may take in its blob. Chunks
	// are stored compressed only if that is smaller, but sizes of chunks in
	// archives that were not made by an image builder are upper bounds.
	MaxStoredSize = MaxChunkSize + 1<<20
	maxBlobSize   = 1 << 44
)

// knownFlags are those that say nothing which we could not honour.
const knownFlags = ChunkCompressed | ChunkEncrypted | ChunkShared | ChunkHasCRC | ChunkNoDigest

// check says what is wrong with the description of a chunk of this blob.
func (d *BlobDesc) check(c *Chunk) error {
	if err := d.checkBytes(c); err != nil {
		return err
	}
	return d.checkStored(c)
}

// checkStored checks where and how the chunk is stored.
func (d *BlobDesc) checkStored(c *Chunk) error {
	plain := c.UncompressedSize
	if c.Flags&ChunkEncrypted != 0 {
		plain = uint32(codec.StoredSize(int(plain)))
	}
	stored := uint64(maxBlobSize)
	if d.CompressedSize != 0 {
		stored = min(stored, d.CompressedSize)
	}
	switch {
	case c.Flags&^knownFlags != 0:
		return fmt.Errorf("chunk flags %#x are not supported", uint32(c.Flags&^knownFlags))
	case c.Flags&ChunkShared != 0 && d.Places == nil:
		return fmt.Errorf("chunk flags %#x, and nothing describes what it shares its bytes with", uint32(c.Flags))
	case c.Flags&ChunkEncrypted != 0 && d.Cipher == nil:
		return errNoKey
	case c.CompressedSize == 0 || c.CompressedSize > MaxStoredSize:
		return fmt.Errorf("chunk stored in %d bytes, the limit is %d", c.CompressedSize, MaxStoredSize)
	case c.Flags&(ChunkCompressed|ChunkShared) == 0 && c.CompressedSize != plain:
		return fmt.Errorf("chunk of %d bytes is stored plain in %d", c.UncompressedSize, c.CompressedSize)
	case uint64(c.CompressedSize) > stored || c.CompressedOffset > stored-uint64(c.CompressedSize):
		return fmt.Errorf("stored bytes %d+%d are outside the blob's %d", c.CompressedOffset, c.CompressedSize, stored)
	}
	return nil
}

// checkBytes checks what the chunk is, wherever it is stored.
func (d *BlobDesc) checkBytes(c *Chunk) error {
	if c.UncompressedSize == 0 || c.UncompressedSize > MaxChunkSize {
		return fmt.Errorf("chunk of %d bytes, the limit is %d", c.UncompressedSize, MaxChunkSize)
	}
	space := uint64(maxBlobSize)
	if d.UncompressedSize != 0 {
		space = min(space, (min(space, d.UncompressedSize)+4095)&^4095)
	}
	if uint64(c.UncompressedSize) > space || c.UncompressedOffset > space-uint64(c.UncompressedSize) {
		return fmt.Errorf("address %d+%d is outside the blob's %d", c.UncompressedOffset, c.UncompressedSize, space)
	}
	return nil
}

// desc is what the cache must know of c. Chunks with a digest are the same
// wherever they are stored; without one, the place is all that tells them apart.
func (d *BlobDesc) desc(c *Chunk, out *cache.Desc) {
	var b [32]byte
	le := binary.LittleEndian
	b[0] = byte(d.Digester)
	le.PutUint32(b[4:], uint32(c.Flags&(ChunkHasCRC|ChunkNoDigest)))
	if c.Flags&ChunkHasCRC != 0 {
		le.PutUint32(b[8:], c.CRC32C)
	}
	if c.Flags&ChunkNoDigest != 0 {
		b[1] = byte(d.Compressor)
		if d.Places == nil {
			le.PutUint64(b[16:], c.CompressedOffset)
			le.PutUint32(b[24:], c.CompressedSize)
			le.PutUint32(b[28:], uint32(c.Flags))
		}
	}
	*out = cache.Desc{Off: c.UncompressedOffset, Size: c.UncompressedSize, Extra: codec.CRC32C(b[:])}
	if c.Flags&ChunkNoDigest == 0 {
		out.Digest = c.Digest
	}
}

// tableForCache shows the cache what it must know of a blob's chunks.
type tableForCache struct {
	d     *BlobDesc
	place string // where the blob comes from
	weak  bool   // some chunk has no digest
	bare  bool   // some chunk has nothing at all that it could be compared with
}

func (t *tableForCache) Len() uint32 { return t.d.Table.Len() }

func (t *tableForCache) Desc(i uint32, out *cache.Desc) bool {
	var c Chunk
	if t.d.Table.Chunk(i, &c) != nil {
		return false
	}
	// Where places are loaded, they come later, and are not needed for bytes that
	// are there already.
	if t.d.Places != nil && t.d.checkBytes(&c) != nil || t.d.Places == nil && t.d.check(&c) != nil {
		return false
	}
	t.weak = t.weak || c.Flags&ChunkNoDigest != 0
	t.bare = t.bare || c.Flags&(ChunkNoDigest|ChunkHasCRC) == ChunkNoDigest
	t.d.desc(&c, out)
	return true
}

// check names the weakest comparison that is made before a chunk is served.
func (t *tableForCache) check() string {
	switch {
	case t.bare:
		return "none"
	case t.weak:
		return "CRC-32C"
	}
	return "digest"
}

func (t *tableForCache) Salt() string {
	if t.weak {
		return t.place
	}
	return ""
}
