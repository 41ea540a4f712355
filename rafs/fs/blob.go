package fs

import (
	"context"
	"errors"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/rafs"
)

// Blob is what the file system needs of a blob's data; *blobstore.Blob is one.
// Chunks are named by their index; methods are safe for concurrent use.
type Blob interface {
	// Data returns n bytes at off of a chunk, as they lie in the mapped cache,
	// or false if the chunk is not there. It takes no lock and does not
	// allocate. Reading the slice may fault.
	Data(chunk, off, n uint32) ([]byte, bool)
	// Fetch returns when the chunks first to last are there, or the error of
	// one that cannot be had.
	Fetch(ctx context.Context, first, last uint32) error
	// ReadAt copies len(p) bytes at off of a chunk that is there but not mapped.
	ReadAt(chunk uint32, p []byte, off uint32) error
	// Drop makes a chunk absent, since its bytes could not be read.
	Drop(chunk uint32) error
	Close() error
}

var _ Blob = (*blobstore.Blob)(nil)

// Describe returns what an image says of its blob i. The table in it reads the
// image and is valid as long as that is open.
func Describe(img rafs.Image, i int) blobstore.BlobDesc {
	b := &img.Blobs()[i]
	return blobstore.BlobDesc{
		ID:               b.ID,
		Compressor:       blobstore.Compressor(b.Compressor),
		Digester:         blobstore.Digester(b.Digester),
		CompressedSize:   b.CompressedSize,
		UncompressedSize: b.UncompressedSize,
		Table:            chunkTable{img, i},
	}
}

// chunkTable is the chunk table of one blob, as the bootstrap has it.
type chunkTable struct {
	img  rafs.Image
	blob int
}

// Len is one more than the highest chunk index. If the metadata cannot be read,
// the table is empty; reading a chunk then says why.
func (t chunkTable) Len() uint32 {
	n, err := t.img.ChunkCount(t.blob)
	if err != nil {
		return 0
	}
	return n
}

// Chunk describes chunk i.
func (t chunkTable) Chunk(i uint32, c *blobstore.Chunk) error {
	var r rafs.Chunk
	if err := t.img.Chunk(t.blob, i, &r); err != nil {
		if errors.Is(err, rafs.ErrNoChunk) {
			return blobstore.ErrNoChunk
		}
		return err
	}
	*c = blobstore.Chunk{
		CompressedOffset:   r.CompressedOffset,
		UncompressedOffset: r.UncompressedOffset,
		CompressedSize:     r.CompressedSize,
		UncompressedSize:   r.UncompressedSize,
		Flags:              blobstore.ChunkFlags(r.Flags) & (blobstore.ChunkCompressed | blobstore.ChunkHasCRC),
		CRC32C:             r.CRC32C,
		Digest:             blobstore.Digest(r.Digest),
	}
	if r.Digest == [32]byte{} {
		c.Flags |= blobstore.ChunkNoDigest
	}
	return nil
}
