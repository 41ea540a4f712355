package export

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/meta"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/chunktable"
)

// maxChunkInfoFaults is how many faults of one blob's chunk information are
// told: a hostile image has as many as it likes.
const maxChunkInfoFaults = 100

// chunkInfoFaults compares what the image says of a blob's chunks with the chunk
// information in the blob itself, or in the one beside it, if there is such. known
// are the chunks of which the image has a record.
func (c *BlobChunks) chunkInfoFaults(ctx context.Context, blob int, known []storedChunk) []error {
	b := &c.img.Blobs()[blob]
	if b.ChunkInfo == (rafs.ChunkInfo{}) {
		return nil
	}
	var faults []error
	// The error is the first of the last try's faults.
	_ = c.retry(ctx, func() error {
		var table *meta.Table
		if table, faults = c.readChunkInfo(ctx, b); table != nil {
			faults = compareChunks(c.img, blob, known, table)
		}
		if len(faults) > 0 {
			return faults[0]
		}
		return nil
	})
	return faults
}

// readChunkInfo returns the chunk information of a blob, or all that is wrong
// with it. An information whose header contradicts the blob table is not read.
func (c *BlobChunks) readChunkInfo(ctx context.Context, b *rafs.Blob) (*meta.Table, []error) {
	ci := &b.ChunkInfo
	fault := func(err error) error {
		at := ci.Offset
		var e *meta.Error
		if errors.As(err, &e) && e.Structure == meta.StructHeader {
			at += ci.StoredSize
		}
		return fmt.Errorf("chunk information of blob %s at %d: %w", ci.BlobID, at, err)
	}
	place, err := chunktable.MetaPlace(b)
	if err != nil {
		return nil, []error{fault(err)}
	}
	table, faults := place.Load(ctx, c.open(ci.BlobID), allocate)
	for i := range faults {
		faults[i] = fault(faults[i])
	}
	return table, faults
}

// compareChunks compares the records that the image has of a blob's chunks with
// the blob's own table of them.
func compareChunks(img rafs.Image, blob int, known []storedChunk, table *meta.Table) (faults []error) {
	b := &img.Blobs()[blob]
	id := b.ID
	for _, x := range known {
		var (
			image rafs.Chunk
			own   blobstore.Chunk
		)
		err := img.Chunk(blob, x.index, &image)
		if err == nil {
			err = table.Chunk(x.index, &own)
			if errors.Is(err, blobstore.ErrNoChunk) {
				err = fmt.Errorf("the blob has %d chunks", table.Len())
			}
		}
		if err == nil {
			err = differ(&image, &own, !b.StoredByMeta())
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("chunk information of blob %s, chunk %d at offset %d: %w", id, x.index, x.offset, err))
		}
		if len(faults) == maxChunkInfoFaults {
			return faults
		}
	}
	return faults
}

// differ says in what the two descriptions of a chunk contradict each other.
// Where an image's records do not say where chunks are stored, only the places of
// their uncompressed bytes are compared.
func differ(image *rafs.Chunk, own *blobstore.Chunk, places bool) error {
	switch {
	case places && (image.CompressedOffset != own.CompressedOffset || image.CompressedSize != own.CompressedSize):
		return fmt.Errorf("the blob has it stored at %d+%d, the bootstrap at %d+%d",
			own.CompressedOffset, own.CompressedSize, image.CompressedOffset, image.CompressedSize)
	case image.UncompressedOffset != own.UncompressedOffset || image.UncompressedSize != own.UncompressedSize:
		return fmt.Errorf("the blob has the uncompressed place %d+%d for it, the bootstrap %d+%d",
			own.UncompressedOffset, own.UncompressedSize, image.UncompressedOffset, image.UncompressedSize)
	case places && (image.Flags&rafs.ChunkCompressed != 0) != (own.Flags&blobstore.ChunkCompressed != 0):
		return fmt.Errorf("the bootstrap calls it compressed: %v, its %d and %d bytes in the blob say otherwise",
			image.Flags&rafs.ChunkCompressed != 0, own.CompressedSize, own.UncompressedSize)
	case places && (image.Flags&rafs.ChunkEncrypted != 0) != (own.Flags&blobstore.ChunkEncrypted != 0):
		return fmt.Errorf("the blob calls it encrypted: %v, the bootstrap says otherwise", own.Flags&blobstore.ChunkEncrypted != 0)
	case image.Flags&rafs.ChunkHasCRC != 0 && own.Flags&blobstore.ChunkHasCRC != 0 && image.CRC32C != own.CRC32C:
		return fmt.Errorf("the blob has the CRC-32C %#08x for it, the bootstrap %#08x", own.CRC32C, image.CRC32C)
	}
	return nil
}
