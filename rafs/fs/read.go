package fs

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"unsafe"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/fuseproto"
)

// rounds is how often a read fetches what is missing before it gives up: a chunk
// may leave the cache between its fetch and the copy.
const rounds = 3

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
	// Everything is at hand before the first byte is written: once the reply has
	// begun, nothing may be waited for.
	if err := f.gather(s, op, node); err != nil {
		return err
	}
	return f.copyOut(s, node, out)
}

// gather fills s.pieces with the bytes of s.extents, nil for holes. Where it may
// not wait and would have to, it returns ErrWouldBlock.
func (f *FS) gather(s *scratch, op *fuseproto.Op, node uint64) error {
	s.pieces = s.pieces[:0]
	for range s.extents {
		s.pieces = append(s.pieces, nil)
	}
	for round := 0; ; round++ {
		missing := false
		for i := range s.extents {
			e := &s.extents[i]
			if e.Blob < 0 || s.pieces[i] != nil {
				continue
			}
			var ok bool
			if s.pieces[i], ok = f.blobs[e.Blob].Data(e.Chunk, e.ChunkOffset, e.Length); ok {
				continue
			}
			if !op.MayBlock() {
				return fuseproto.ErrWouldBlock
			}
			missing = true
		}
		if !missing {
			return nil
		}
		if round == rounds {
			return f.gatherUnmapped(s, node)
		}
		if err := f.fetch(s, op, node); err != nil {
			return err
		}
	}
}

// fetch brings the chunks of missing pieces. Those that follow each other in a
// blob are asked for together.
func (f *FS) fetch(s *scratch, op *fuseproto.Op, node uint64) error {
	for i := 0; i < len(s.extents); {
		e := &s.extents[i]
		first := i
		i++
		if e.Blob < 0 || s.pieces[first] != nil {
			continue
		}
		last := e.Chunk
		for i < len(s.extents) && i-first < blobstore.MaxFetch &&
			s.pieces[i] == nil && s.extents[i].Blob == e.Blob && s.extents[i].Chunk == last+1 {
			last++
			i++
		}
		if err := f.blobs[e.Blob].Fetch(op.Context(), e.Chunk, last); err != nil {
			return fmt.Errorf("read inode %d at %d: %w", node, e.FileOffset, err)
		}
	}
	return nil
}

// gatherUnmapped reads what is still missing from the cache file: chunks that
// are ready and cannot be mapped.
func (f *FS) gatherUnmapped(s *scratch, node uint64) error {
	for i := range s.extents {
		e := &s.extents[i]
		if e.Blob < 0 || s.pieces[i] != nil {
			continue
		}
		p := make([]byte, e.Length)
		if err := f.blobs[e.Blob].ReadAt(e.Chunk, p, e.ChunkOffset); err != nil {
			return fmt.Errorf("read inode %d at %d: chunk %d of blob %s, fetched %d times: %w",
				node, e.FileOffset, e.Chunk, f.img.Blobs()[e.Blob].ID, rounds, err)
		}
		s.pieces[i] = p
	}
	return nil
}

// copyOut writes the pieces to the reply.
func (f *FS) copyOut(s *scratch, node uint64, out *fuseproto.Out) (err error) {
	defer f.guard(s, node, debug.SetPanicOnFault(true), &err)
	for s.at = range s.extents {
		if p := s.pieces[s.at]; p != nil {
			_, err = out.Write(p)
		} else {
			err = out.Zero(int(s.extents[s.at].Length))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// guard makes a fault of the piece that is being copied an error of this read,
// and drops its chunk, so that the next read fetches it anew. Other panics go
// on: a fault of the reply's memory is the transport's.
func (f *FS) guard(s *scratch, node uint64, panicOnFault bool, err *error) {
	debug.SetPanicOnFault(panicOnFault)
	r := recover()
	if r == nil {
		return
	}
	fault, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok || s.at >= len(s.pieces) || !contains(s.pieces[s.at], fault.Addr()) {
		panic(r)
	}
	e := &s.extents[s.at]
	*err = fmt.Errorf("read inode %d at %d: chunk %d of blob %s: the cache file shrank under its mapping",
		node, e.FileOffset, e.Chunk, f.img.Blobs()[e.Blob].ID)
	if dropErr := f.blobs[e.Blob].Drop(e.Chunk); dropErr != nil {
		*err = fmt.Errorf("%w; dropping it: %w", *err, dropErr)
	}
}

func contains(p []byte, addr uintptr) bool {
	base := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return addr >= base && addr-base < uintptr(len(p))
}
