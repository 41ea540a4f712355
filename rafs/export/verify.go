package export

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/rafs"
)

// VerifyData reads every chunk that the image names, of every blob in stored
// order, and compares it with its digest; then it compares what the image says
// of the blob's chunks with what the blob itself says, if it does. Each fault is
// handed to report, which may end the work by returning false. progress is told
// of compressed bytes of chunks that were read.
//
// A blob of which a chunk could not be fetched is not asked for more.
func VerifyData(ctx context.Context, img rafs.Image, chunks *BlobChunks, report func(error) bool, progress func(n int64)) error {
	for blob := range img.Blobs() {
		order, err := storedOrder(img, blob)
		if err != nil {
			return err
		}
		if img.Blobs()[blob].StoredByMeta() {
			// The records do not say how chunks are stored; chunks that share bytes
			// are neighbours by index.
			slices.SortFunc(order, func(a, b storedChunk) int { return cmp.Compare(a.index, b.index) })
		}
		fetched := true
		for _, x := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := chunks.Chunk(ctx, blob, x.index); err != nil {
				fetched = fetched && !isFetch(err)
				if !report(err) {
					return nil
				}
			}
			if progress != nil {
				progress(int64(x.size))
			}
		}
		if !fetched {
			continue
		}
		for _, err := range chunks.chunkInfoFaults(ctx, blob, order) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !report(err) {
				return nil
			}
		}
	}
	return ctx.Err()
}

// isFetch tells whether an error of Chunk is that of the source.
func isFetch(err error) bool {
	var e *blobstore.ChunkError
	return errors.As(err, &e) && e.Op == opFetch
}

type storedChunk struct {
	offset uint64
	index  uint32
	size   uint32
}

// storedOrder lists the chunks of a blob that the image knows, as they lie in
// the blob.
func storedOrder(img rafs.Image, blob int) ([]storedChunk, error) {
	n, err := img.ChunkCount(blob)
	if err != nil {
		return nil, err
	}
	var order []storedChunk
	for i := range n {
		var k rafs.Chunk
		switch err := img.Chunk(blob, i, &k); {
		case errors.Is(err, rafs.ErrNoChunk):
			continue
		case err != nil:
			return nil, err
		}
		order = append(order, storedChunk{k.CompressedOffset, i, k.CompressedSize})
	}
	slices.SortFunc(order, func(a, b storedChunk) int { return cmp.Compare(a.offset, b.offset) })
	return order, nil
}

// DataSize is the number of compressed bytes of chunks that VerifyData will read.
func DataSize(img rafs.Image) (total int64, err error) {
	for blob := range img.Blobs() {
		order, err := storedOrder(img, blob)
		if err != nil {
			return 0, err
		}
		for _, x := range order {
			total += int64(x.size)
		}
	}
	return total, nil
}

// ContentSize is the number of bytes in the image's regular files, each inode
// counted once.
func ContentSize(img rafs.Image) (total int64, err error) {
	seen := map[uint64]struct{}{}
	err = rafs.Walk(img, func(e *rafs.WalkEntry) error {
		if e.Err != nil || e.Attr.Mode&rafs.ModeType != rafs.ModeRegular {
			return nil // what is damaged shows when it is read
		}
		if e.Attr.Nlink > 1 {
			if _, twice := seen[e.Ino]; twice {
				return nil
			}
			seen[e.Ino] = struct{}{}
		}
		total += int64(e.Attr.Size)
		return nil
	})
	return total, err
}
