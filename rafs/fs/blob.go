package fs

import (
	"context"

	"github.com/rafsd/rafsd/blobstore"
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
