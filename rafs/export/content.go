package export

import (
	"context"
	"io"

	"github.com/rafsd/rafsd/rafs"
)

// Content gives the bytes of an image's regular files.
type Content interface {
	// Open returns a reader of the whole file ino, of size bytes. What it reads
	// has been compared with the image's digests; an error names blob and
	// offset. The reader is used by one goroutine and needs no closing.
	Open(ctx context.Context, ino, size uint64) io.Reader
}

// Chunks gives verified chunks of an image's blobs.
type Chunks interface {
	// Chunk returns the uncompressed bytes of a chunk, valid until the next
	// call.
	Chunk(ctx context.Context, blob int, index uint32) ([]byte, error)
}

// NewContent reads files of img chunk by chunk. It is for one goroutine.
func NewContent(img rafs.Image, chunks Chunks) Content {
	return &chunkContent{img: img, chunks: chunks}
}

type chunkContent struct {
	img    rafs.Image
	chunks Chunks
}

// step is how much of a file is asked of the image at a time: the extents of a
// whole file of many GiB need not be in memory at once.
const step = 64 << 20

func (c *chunkContent) Open(ctx context.Context, ino, size uint64) io.Reader {
	return &fileReader{c: c, ctx: ctx, ino: ino, size: size}
}

type fileReader struct {
	c         *chunkContent
	ctx       context.Context
	ino       uint64
	pos, size uint64
	extents   []rafs.Extent // of the bytes up to asked
	next      int           // index of the next extent
	asked     uint64
	piece     []byte // what is left of the current extent
	holeLeft  uint64 // or of the current hole
}

func (r *fileReader) Read(p []byte) (int, error) {
	for {
		switch {
		case len(p) == 0:
			return 0, nil
		case r.holeLeft > 0:
			n := min(uint64(len(p)), r.holeLeft)
			clear(p[:n])
			r.holeLeft -= n
			r.pos += n
			return int(n), nil
		case len(r.piece) > 0:
			n := copy(p, r.piece)
			r.piece = r.piece[n:]
			r.pos += uint64(n)
			return n, nil
		case r.pos >= r.size:
			return 0, io.EOF
		}
		if err := r.advance(); err != nil {
			return 0, err
		}
	}
}

// advance makes the next extent the current one.
func (r *fileReader) advance() (err error) {
	if r.pos >= r.asked {
		r.extents, err = r.c.img.Extents(r.ino, r.pos, min(step, r.size-r.pos), r.extents[:0])
		if err != nil {
			return err
		}
		r.next = 0
		r.asked = r.pos + min(step, r.size-r.pos)
	}
	if r.next >= len(r.extents) {
		return io.ErrUnexpectedEOF
	}
	x := r.extents[r.next]
	r.next++
	if x.Blob < 0 {
		r.holeLeft = uint64(x.Length)
		return nil
	}
	data, err := r.c.chunks.Chunk(r.ctx, int(x.Blob), x.Chunk)
	if err != nil {
		return err
	}
	if uint64(x.ChunkOffset)+uint64(x.Length) > uint64(len(data)) {
		return io.ErrUnexpectedEOF
	}
	r.piece = data[x.ChunkOffset:][:x.Length]
	return nil
}
