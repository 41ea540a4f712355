package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/meta"
	"github.com/rafsd/rafsd/rafs"
)

// maxChunkInfoFaults is how many faults of one blob's chunk information are
// told: a hostile image has as many as it likes.
const maxChunkInfoFaults = 100

// chunkInfoFaults compares what the image says of a blob's chunks with the chunk
// information in the blob itself, if it has one of version 1. known are the
// chunks of which the image has a record.
func (c *BlobChunks) chunkInfoFaults(ctx context.Context, blob int, known []storedChunk) []error {
	b := &c.img.Blobs()[blob]
	if b.ChunkInfo == (rafs.ChunkInfo{}) || b.Features&rafs.BlobChunkInfoV2 != 0 {
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
	fault := func(off uint64, err error) error {
		return fmt.Errorf("chunk information of blob %s at %d: %w", b.ID, off, err)
	}
	if ci.Size > meta.MaxSize || ci.StoredSize > ci.Size || ci.Offset > rafs.MaxUncompressedSize {
		return nil, []error{fault(ci.Offset, fmt.Errorf("%d bytes stored in %d, the limit is %d", ci.Size, ci.StoredSize, meta.MaxSize))}
	}
	src := c.open(b.ID)
	at := ci.Offset + ci.StoredSize
	head, err := readRange(ctx, src, at, meta.HeaderSize)
	if err != nil {
		return nil, []error{fault(at, err)}
	}
	h, err := meta.ParseHeader(head)
	if err != nil {
		return nil, []error{fault(at, err)}
	}
	if faults := h.Contradictions(meta.Header{
		Features: b.Features, Compressor: codec.Algorithm(ci.Compressor), Entries: b.ChunkCount,
		Offset: ci.Offset, StoredSize: ci.StoredSize, Size: ci.Size,
	}); len(faults) > 0 {
		for i := range faults {
			faults[i] = fault(at, faults[i])
		}
		return nil, faults
	}
	stored, err := readRange(ctx, src, ci.Offset, ci.StoredSize)
	if err != nil {
		return nil, []error{fault(ci.Offset, err)}
	}
	table, err := meta.Decode(h, meta.Bounds{Stored: b.CompressedSize, Uncompressed: b.UncompressedSize}, stored)
	if err != nil {
		return nil, []error{fault(ci.Offset, err)}
	}
	return table, nil
}

// readRange reads n bytes at off. Memory grows with what arrives, not with what
// was asked for.
func readRange(ctx context.Context, src Source, off, n uint64) ([]byte, error) {
	body, err := src.ReadRange(ctx, int64(off), int64(n))
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = io.CopyN(&buf, body, int64(n))
	// Nothing was written: a failure to close changes nothing.
	_ = body.Close()
	if err != nil {
		return nil, noEOF(err)
	}
	return buf.Bytes(), nil
}

// compareChunks compares the records that the image has of a blob's chunks with
// the blob's own table of them.
func compareChunks(img rafs.Image, blob int, known []storedChunk, table *meta.Table) (faults []error) {
	id := img.Blobs()[blob].ID
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
			err = differ(&image, &own)
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
func differ(image *rafs.Chunk, own *blobstore.Chunk) error {
	switch {
	case image.CompressedOffset != own.CompressedOffset || image.CompressedSize != own.CompressedSize:
		return fmt.Errorf("the blob has it stored at %d+%d, the bootstrap at %d+%d",
			own.CompressedOffset, own.CompressedSize, image.CompressedOffset, image.CompressedSize)
	case image.UncompressedOffset != own.UncompressedOffset || image.UncompressedSize != own.UncompressedSize:
		return fmt.Errorf("the blob has the uncompressed place %d+%d for it, the bootstrap %d+%d",
			own.UncompressedOffset, own.UncompressedSize, image.UncompressedOffset, image.UncompressedSize)
	case (image.Flags&rafs.ChunkCompressed != 0) != (own.Flags&blobstore.ChunkCompressed != 0):
		return fmt.Errorf("the bootstrap calls it compressed: %v, its %d and %d bytes in the blob say otherwise",
			image.Flags&rafs.ChunkCompressed != 0, own.CompressedSize, own.UncompressedSize)
	}
	return nil
}
