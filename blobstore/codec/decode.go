package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Algorithm names how a chunk is compressed, numbered as a v6 blob table does.
type Algorithm uint8

// The algorithms of the format.
const (
	None Algorithm = 0
	LZ4  Algorithm = 1 // one raw LZ4 block: no frame, no length
	Gzip Algorithm = 2 // one gzip member, header and trailer included
	Zstd Algorithm = 3 // one zstd frame
)

func (a Algorithm) String() string {
	switch a {
	case None:
		return "none"
	case LZ4:
		return "lz4_block"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compressor %d", uint8(a))
}

// Known reports whether Decode knows the algorithm.
func (a Algorithm) Known() bool { return a <= Zstd }

// MaxChunk is the largest uncompressed chunk of the format.
const MaxChunk = 16 << 20

// maxWindow bounds what a zstd frame may ask a decoder to remember. A frame of
// one chunk never needs to look back further than the largest chunk.
const maxWindow = MaxChunk

// ErrCorrupt is in every error that the content of the stored bytes causes.
var ErrCorrupt = errors.New("corrupt data")

// Decode fills dst with what src holds. A stream that does not yield exactly
// len(dst) bytes is an error, and dst then holds nothing of use. src and dst
// must not overlap.
func Decode(a Algorithm, dst, src []byte) error {
	if len(dst) > MaxChunk {
		return fmt.Errorf("chunk of %d bytes is over the limit of %d: %w", len(dst), MaxChunk, ErrCorrupt)
	}
	n, err := decode(a, dst, src)
	if err != nil {
		return fmt.Errorf("%v: %w: %w", a, ErrCorrupt, err)
	}
	if n != len(dst) {
		return fmt.Errorf("%v: %d bytes instead of %d: %w", a, n, len(dst), ErrCorrupt)
	}
	return nil
}

func decode(a Algorithm, dst, src []byte) (int, error) {
	switch a {
	case None:
		if len(src) != len(dst) {
			return len(src), nil
		}
		return copy(dst, src), nil
	case LZ4:
		if len(src) == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		return lz4.UncompressBlock(src, dst)
	case Gzip:
		return decodeGzip(dst, src)
	case Zstd:
		return decodeZstd(dst, src)
	}
	return 0, errors.New("unknown algorithm")
}

var zstdDecoders sync.Pool // of *zstd.Decoder, which start no goroutine without a stream

func decodeZstd(dst, src []byte) (int, error) {
	d, _ := zstdDecoders.Get().(*zstd.Decoder)
	if d == nil {
		var err error
		d, err = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(MaxChunk),
			zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecodeAllCapLimit(true)) // without it the frame decides how much is allocated
		if err != nil {
			return 0, err
		}
	}
	defer zstdDecoders.Put(d)
	out, err := d.DecodeAll(src, dst[:0:len(dst)])
	return len(out), err
}

// gzipDecoder keeps a reader together with its source: both are reused.
type gzipDecoder struct {
	src bytes.Reader
	r   gzip.Reader
}

var gzipDecoders = sync.Pool{New: func() any { return new(gzipDecoder) }}

// decodeGzip decodes the first member of src. Bytes behind the member are let
// pass: the recorded size of a chunk in an image made from a stargz archive is
// an upper bound. The member's own check is made, since its end is read.
func decodeGzip(dst, src []byte) (int, error) {
	g := gzipDecoders.Get().(*gzipDecoder)
	defer func() {
		g.src.Reset(nil)
		gzipDecoders.Put(g)
	}()
	g.src.Reset(src)
	if err := g.r.Reset(&g.src); err != nil {
		return 0, noEOF(err)
	}
	g.r.Multistream(false)
	n, err := io.ReadFull(&g.r, dst)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		// A member that ends early and one that was cut off look alike here;
		// both are too short.
		return n, nil
	}
	if err != nil {
		return n, err
	}
	var more [1]byte
	switch m, err := io.ReadFull(&g.r, more[:]); {
	case m > 0:
		return n, errors.New("more data than the chunk has")
	case err != io.EOF:
		return n, noEOF(err)
	}
	return n, nil
}

// noEOF turns an end of file in the middle of something into an error that says
// so.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// DecodeLarge is Decode without a limit of len(dst): for what is not a chunk. It
// needs no more memory than Decode does, beside dst.
func DecodeLarge(a Algorithm, dst, src []byte) error {
	if len(dst) <= MaxChunk || a == None || a == LZ4 {
		n, err := decode(a, dst, src)
		if err == nil && n != len(dst) {
			err = fmt.Errorf("%d bytes instead of %d", n, len(dst))
		}
		if err != nil {
			return fmt.Errorf("%v: %w: %w", a, ErrCorrupt, err)
		}
		return nil
	}
	if err := decodeStream(a, dst, src); err != nil {
		return fmt.Errorf("%v: %w: %w", a, ErrCorrupt, err)
	}
	return nil
}

func decodeStream(a Algorithm, dst, src []byte) error {
	var r io.Reader
	switch a {
	case Gzip:
		g, err := gzip.NewReader(bytes.NewReader(src))
		if err != nil {
			return noEOF(err)
		}
		r = g
	case Zstd:
		// Of one goroutine, which is this one.
		d, err := zstd.NewReader(bytes.NewReader(src), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		defer d.Close()
		r = d
	default:
		return errors.New("unknown algorithm")
	}
	if _, err := io.ReadFull(r, dst); err != nil {
		return noEOF(err)
	}
	var more [1]byte
	switch n, err := io.ReadFull(r, more[:]); {
	case n > 0:
		return errors.New("more data than there is room for")
	case err != io.EOF:
		return err
	}
	return nil
}
