package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/chunktable"
)

// Source gives ranges of one blob.
type Source interface {
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

const (
	// window is how far ahead of a chunk a blob is read in one request: exports
	// walk files in the order in which builders store them.
	window = 8 << 20
	// maxSkip is the gap that is cheaper to read over than to ask anew for.
	maxSkip = 256 << 10
	// maxTries of one chunk, or of one blob's chunk information: a source may hand over bad bytes once.
	maxTries = 3
	// maxPlaces bounds the chunk information that is held in memory.
	maxPlaces = 256 << 20
	// opFetch is the step of a blobstore.ChunkError that is the source's.
	opFetch = "fetch"
)

// BlobChunks reads chunks from their blobs, decodes and verifies them. It needs
// no cache and no room on disk; it holds one compressed and one uncompressed
// chunk and reads each blob as a stream as long as chunks are asked for in
// stored order. It is for one goroutine.
type BlobChunks struct {
	img    rafs.Image
	open   func(blobID string) Source
	blobs  []*blobData // by blob index; nil until a chunk of it was asked for
	stored []byte
	data   []byte // of the last chunk, or of all that shares its stored bytes

	lastBlob  int
	lastIndex uint32
	lastChunk blobstore.Chunk
	lastData  []byte // the chunk, in data
	retryWait time.Duration
}

// blobData is what is known of a blob whose chunks are read.
type blobData struct {
	desc   blobstore.BlobDesc
	places blobstore.Places // nil if the image says where chunks are
	stream *stream
}

// NewBlobChunks reads blobs of img through what open returns for their ids.
func NewBlobChunks(img rafs.Image, open func(blobID string) Source) *BlobChunks {
	return &BlobChunks{
		img: img, open: open, blobs: make([]*blobData, len(img.Blobs())),
		lastBlob: -1, retryWait: 200 * time.Millisecond,
	}
}

// Close ends all requests.
func (c *BlobChunks) Close() {
	for _, b := range c.blobs {
		if b != nil {
			b.stream.close()
		}
	}
}

// Chunk implements Chunks.
func (c *BlobChunks) Chunk(ctx context.Context, blob int, index uint32) ([]byte, error) {
	if blob == c.lastBlob && index == c.lastIndex {
		return c.lastData, nil
	}
	b, err := c.blob(ctx, blob)
	if err != nil {
		return nil, err
	}
	var k blobstore.Chunk
	if err := b.describe(index, &k); err != nil {
		return nil, err
	}
	err = c.retry(ctx, func() error {
		err := c.read(ctx, blob, b, &k)
		if err != nil {
			b.stream.close()
			b.stream = nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.lastIndex = index
	return c.lastData, nil
}

// blob returns what is known of a blob, and reads where its chunks are stored if
// the image does not say that.
func (c *BlobChunks) blob(ctx context.Context, blob int) (*blobData, error) {
	if b := c.blobs[blob]; b != nil {
		return b, nil
	}
	b := &blobData{}
	var err error
	if b.desc, err = chunktable.Describe(c.img, blob); err != nil {
		return nil, err
	}
	if b.desc.Places != nil {
		err := c.retry(ctx, func() (err error) {
			b.places, err = b.desc.Places(ctx, c.source, allocate)
			return err
		})
		if err != nil {
			return nil, &blobstore.ChunkError{Op: opFetch, Blob: b.desc.ID, Err: err}
		}
	}
	c.blobs[blob] = b
	return b, nil
}

// source makes what is read from a backend.Source again.
func (c *BlobChunks) source(id string) (backend.Source, error) { return rangesOnly{c.open(id)}, nil }

// rangesOnly is a source of which nobody asks the size.
type rangesOnly struct{ Source }

func (rangesOnly) Size(context.Context) (int64, error) { return 0, errors.ErrUnsupported }

// allocate returns memory for what an image says of a blob's chunks.
func allocate(n uint64) ([]byte, error) {
	if n > maxPlaces {
		return nil, fmt.Errorf("%d bytes of chunk information, at most %d are read in memory", n, maxPlaces)
	}
	return make([]byte, n), nil
}

// describe fills in all about a chunk.
func (b *blobData) describe(index uint32, k *blobstore.Chunk) error {
	if err := b.desc.Table.Chunk(index, k); err != nil {
		return err
	}
	if b.places == nil {
		return nil
	}
	if err := b.desc.Merge(b.places, index, k); err != nil {
		return fmt.Errorf("chunk %d of blob %s: %w", index, b.desc.ID, err)
	}
	return nil
}

// retry calls f until it succeeds, at most maxTries times, and returns its last
// error.
func (c *BlobChunks) retry(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == maxTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(c.retryWait << try):
		case <-ctx.Done():
		}
	}
}

// read brings a chunk to c.lastData. What shares the stored bytes of the chunk
// before is there already.
func (c *BlobChunks) read(ctx context.Context, blob int, b *blobData, k *blobstore.Chunk) error {
	fault := func(op string, err error) error {
		return &blobstore.ChunkError{Op: op, Blob: b.desc.ID, Off: k.CompressedOffset, Len: k.CompressedSize, Err: err}
	}
	shared := k.Flags&blobstore.ChunkShared != 0
	if !shared || blob != c.lastBlob || !sameContext(k, &c.lastChunk) {
		c.lastBlob = -1
		if b.stream == nil {
			b.stream = &stream{src: c.open(b.desc.ID), size: int64(b.desc.CompressedSize)}
		}
		c.stored = grow(c.stored, uint32(blobstore.SharedBuffer(k.CompressedSize)))
		stored := blobstore.SharedBytes(c.stored)
		if err := b.stream.readAt(ctx, stored, int64(k.CompressedOffset)); err != nil {
			if c.img.Blobs()[blob].Features&rafs.BlobExternal != 0 {
				err = fmt.Errorf("an EXTERNAL blob: its data are a foreign object, which must be there under this name: %w", err)
			}
			return fault(opFetch, err)
		}
		var op string
		var err error
		if shared {
			var x blobstore.Context
			if err := b.places.Context(k.Context, &x); err != nil {
				return err
			}
			c.data = grow(c.data, x.Size)
			op, err = b.desc.DecodeShared(k, &x, c.data, c.stored)
		} else {
			c.data = grow(c.data, k.UncompressedSize)
			op, err = b.desc.Decode(k, c.data, stored)
		}
		if err != nil {
			return fault(op, err)
		}
	}
	c.lastBlob, c.lastChunk = blob, *k
	c.lastData = c.data[k.ContextOffset:][:k.UncompressedSize]
	if err := b.desc.Verify(k, c.lastData); err != nil {
		c.lastBlob = -1
		return fault("verify", err)
	}
	return nil
}

// sameContext reports whether chunks of one blob, the first of which shares its
// stored bytes, share them with each other.
func sameContext(k, last *blobstore.Chunk) bool {
	return k.Flags&blobstore.ChunkShared == last.Flags&blobstore.ChunkShared &&
		k.Context == last.Context && k.CompressedOffset == last.CompressedOffset
}

func grow(b []byte, n uint32) []byte {
	if uint64(cap(b)) < uint64(n) {
		return make([]byte, n)
	}
	return b[:n]
}

// stream reads a blob in order, with one request open at a time.
type stream struct {
	src  Source
	size int64 // of the chunk data in the blob, 0 = unknown
	body io.ReadCloser
	pos  int64 // of the next byte of body
	end  int64 // where body ends
}

// readAt fills p with the bytes at off, from the open request if they are near
// its place, else by a new one.
func (s *stream) readAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		skip := off - s.pos
		if s.body == nil || skip < 0 || skip > maxSkip || off >= s.end {
			if err := s.restart(ctx, off, int64(len(p))); err != nil {
				return err
			}
			skip = 0
		}
		if skip > 0 {
			if _, err := io.CopyN(io.Discard, s.body, skip); err != nil {
				return noEOF(err)
			}
			s.pos += skip
		}
		n, err := io.ReadFull(s.body, p[:min(int64(len(p)), s.end-s.pos)])
		s.pos += int64(n)
		off += int64(n)
		p = p[n:]
		if err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// restart asks for the window that begins at off and has at least n bytes.
func (s *stream) restart(ctx context.Context, off, n int64) error {
	s.close()
	end := off + n // of a blob whose size is not known, nothing is asked for that may not be there
	if s.size > 0 {
		end = min(off+max(n, window), s.size)
	}
	if end < off+n {
		return fmt.Errorf("the blob has %d bytes of chunks", s.size)
	}
	body, err := s.src.ReadRange(ctx, off, end-off)
	if err != nil {
		return err
	}
	s.body, s.pos, s.end = body, off, end
	return nil
}

func (s *stream) close() {
	if s != nil && s.body != nil {
		// Nothing was written: a failure to close changes nothing.
		_ = s.body.Close()
		s.body = nil
	}
}

// noEOF: a body that ends early is never the regular end of anything here.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
