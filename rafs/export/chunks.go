package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/rafs"
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
	// opFetch is the step of a blobstore.ChunkError that is the source's.
	opFetch = "fetch"
)

// BlobChunks reads chunks from their blobs, decodes and verifies them. It needs
// no cache and no room on disk; it holds one compressed and one uncompressed
// chunk and reads each blob as a stream as long as chunks are asked for in
// stored order. It is for one goroutine.
type BlobChunks struct {
	img     rafs.Image
	open    func(blobID string) Source
	streams []*stream // by blob index
	stored  []byte
	data    []byte

	lastBlob  int
	lastIndex uint32
	retryWait time.Duration
}

// NewBlobChunks reads blobs of img through what open returns for their ids.
func NewBlobChunks(img rafs.Image, open func(blobID string) Source) *BlobChunks {
	return &BlobChunks{
		img: img, open: open, streams: make([]*stream, len(img.Blobs())),
		lastBlob: -1, retryWait: 200 * time.Millisecond,
	}
}

// Close ends all requests.
func (c *BlobChunks) Close() {
	for _, s := range c.streams {
		s.close()
	}
}

// Chunk implements Chunks.
func (c *BlobChunks) Chunk(ctx context.Context, blob int, index uint32) ([]byte, error) {
	if blob == c.lastBlob && index == c.lastIndex {
		return c.data, nil
	}
	var k rafs.Chunk
	if err := c.img.Chunk(blob, index, &k); err != nil {
		return nil, err
	}
	c.lastBlob = -1
	b := &c.img.Blobs()[blob]
	err := c.retry(ctx, func() error {
		err := c.read(ctx, blob, b, &k)
		if err != nil {
			c.streams[blob].close()
			c.streams[blob] = nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.lastBlob, c.lastIndex = blob, index
	return c.data, nil
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

func (c *BlobChunks) read(ctx context.Context, blob int, b *rafs.Blob, k *rafs.Chunk) error {
	fault := func(op string, err error) error {
		return &blobstore.ChunkError{Op: op, Blob: b.ID, Off: k.CompressedOffset, Len: k.CompressedSize, Err: err}
	}
	if c.streams[blob] == nil {
		c.streams[blob] = &stream{src: c.open(b.ID), size: int64(b.CompressedSize)}
	}
	c.stored = grow(c.stored, k.CompressedSize)
	if err := c.streams[blob].readAt(ctx, c.stored, int64(k.CompressedOffset)); err != nil {
		return fault(opFetch, err)
	}
	c.data = grow(c.data, k.UncompressedSize)
	if op, err := decodeChunk(b, k, c.data, c.stored); err != nil {
		return fault(op, err)
	}
	return nil
}

// decodeChunk fills dst with the chunk whose stored bytes are src and verifies
// it; it also says which step went wrong.
func decodeChunk(b *rafs.Blob, k *rafs.Chunk, dst, src []byte) (op string, err error) {
	alg := codec.Algorithm(b.Compressor)
	if k.Flags&rafs.ChunkCompressed == 0 {
		alg = codec.None
	}
	if err := codec.Decode(alg, dst, src); err != nil {
		return "decompress", err
	}
	if codec.Sum(codec.Digester(b.Digester), dst) != k.Digest {
		return "verify", blobstore.ErrDigestMismatch
	}
	return "", nil
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
	end := off + max(n, window)
	if s.size > 0 {
		end = min(end, s.size)
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
