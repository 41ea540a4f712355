package fs

import (
	"fmt"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs"
)

// Read implements fuseproto.FileSystem. A read is short only at the end of the
// file.
func (f *FS) Read(op *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	if !f.img.ChunksIndexed() && !op.MayBlock() {
		return fuseproto.ErrWouldBlock // the first read of an image goes through all of its metadata
	}
	s := scratches.Get().(*scratch)
	err := f.read(s, op, node, in.Offset, uint64(min(in.Size, uint32(out.Room()))), out)
	s.release()
	return err
}

func (f *FS) read(s *scratch, op *fuseproto.Op, node, off, n uint64, out *fuseproto.Out) error {
	var err error
	if s.extents, err = f.img.Extents(node, off, n, s.extents[:0]); err != nil {
		return errno(err)
	}
	// Everything is made ready before the first byte is written: once the reply
	// has begun, nothing may be waited for.
	if err := f.ready(op, node, s.extents); err != nil {
		return err
	}
	for i := range s.extents {
		e := &s.extents[i]
		if e.Blob < 0 {
			if err := out.Zero(int(e.Length)); err != nil {
				return err
			}
			continue
		}
		data, ok := f.blobs[e.Blob].Bytes(e.UncompressedOffset, e.Length)
		if !ok {
			return fmt.Errorf("read inode %d at %d: blob %s: %d bytes at %d are not in the cache though chunk %d is ready",
				node, e.FileOffset, f.img.Blobs()[e.Blob].ID, e.Length, e.UncompressedOffset, e.Chunk)
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// ready makes sure that all chunks of a read are in the cache. Where it may not
// wait and would have to, it returns ErrWouldBlock. Missing chunks that follow
// each other in a blob are asked for together.
func (f *FS) ready(op *fuseproto.Op, node uint64, extents []rafs.Extent) error {
	for i := 0; i < len(extents); {
		e := &extents[i]
		i++
		if e.Blob < 0 || f.blobs[e.Blob].Ready(e.Chunk) {
			continue
		}
		if !op.MayBlock() {
			return fuseproto.ErrWouldBlock
		}
		last := e.Chunk
		for i < len(extents) && extents[i].Blob == e.Blob && extents[i].Chunk == last+1 {
			last++
			i++
		}
		if err := f.blobs[e.Blob].Fetch(op.Context(), e.Chunk, last); err != nil {
			return fmt.Errorf("read inode %d at %d: %w", node, e.FileOffset, err)
		}
	}
	return nil
}
