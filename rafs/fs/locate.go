package fs

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/chunktable"
)

// Missing is a chunk that a file needs and that is not in the cache.
type Missing struct {
	Blob   string // id
	Chunk  uint32
	Offset int64 // of its stored bytes in the blob; -1 if the image does not say
}

// Missing returns the first chunk that is missing of n bytes at off of a file; ok is
// false if there is none.
func (f *FS) Missing(node, off, n uint64) (m Missing, ok bool, err error) {
	extents, err := f.img.Extents(node, off, n, nil)
	if err != nil {
		return Missing{}, false, fmt.Errorf("chunks of inode %d: %w", node, err)
	}
	for i := range extents {
		e := &extents[i]
		if e.Blob < 0 {
			continue
		}
		if _, ready := f.blobs[e.Blob].Data(e.Chunk, e.ChunkOffset, e.Length); ready {
			continue
		}
		m = Missing{Blob: f.img.Blobs()[e.Blob].ID, Chunk: e.Chunk, Offset: -1}
		var c blobstore.Chunk
		if d, err := chunktable.Describe(f.img, int(e.Blob)); err == nil && d.Places == nil && d.Table.Chunk(e.Chunk, &c) == nil {
			m.Offset = int64(c.CompressedOffset)
		}
		return m, true, nil
	}
	return Missing{}, false, nil
}

// errFound ends a walk.
var errFound = errors.New("found")

// Paths returns the paths of nodes in the image, by node: those that it comes upon in
// the first limit entries. One path is given of a file that has several.
func (f *FS) Paths(nodes []uint64, limit int) (map[uint64]string, error) {
	want := make(map[uint64]bool, len(nodes))
	out := make(map[uint64]string, len(nodes))
	for _, n := range nodes {
		if n == f.img.Root() {
			out[n] = "/"
		} else {
			want[n] = true
		}
	}
	err := rafs.Walk(f.img, func(e *rafs.WalkEntry) error {
		if limit--; limit < 0 || len(want) == 0 {
			return errFound
		}
		if e.Err == nil && want[e.Ino] {
			delete(want, e.Ino)
			out[e.Ino] = string(e.Path)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return out, fmt.Errorf("paths in %s: %w", f.img.Info().Path, err)
	}
	return out, nil
}
