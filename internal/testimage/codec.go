package testimage

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"
)

// Compressor is how chunks are stored. The values are those of v6 blob tables.
type Compressor uint32

const (
	None Compressor = iota // as they are
	LZ4                    // one lz4 block each
	Gzip                   // one gzip member each
	Zstd                   // one zstd frame each
)

func (c Compressor) String() string {
	if int(c) < len(compressorNames) {
		return compressorNames[c]
	}
	return fmt.Sprintf("compressor %d", uint32(c))
}

var compressorNames = [...]string{"none", "lz4", "gzip", "zstd"}

// Digest is the hash of chunks (and of v5 inodes). The values are those of v6
// blob tables.
type Digest uint32

const (
	Blake3 Digest = iota
	SHA256
)

func (d Digest) String() string {
	if d == SHA256 {
		return "sha256"
	}
	return "blake3"
}

func (d Digest) sum(b []byte) [32]byte {
	if d == SHA256 {
		return sha256.Sum256(b)
	}
	return blake3.Sum256(b)
}

// encoder compresses one buffer after the other. Not for concurrent use.
type encoder struct {
	algorithm Compressor
	lz4       lz4.Compressor
	zstd      *zstd.Encoder
	gzip      *gzip.Writer
	out       []byte
	stream    bytes.Buffer
}

func newEncoder(c Compressor) (*encoder, error) {
	e := &encoder{algorithm: c}
	switch c {
	case None, LZ4:
	case Gzip:
		e.gzip = gzip.NewWriter(&e.stream)
	case Zstd:
		// A single segment makes even small frames tell their content's size,
		// as the reference's do.
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
		if err != nil {
			return nil, err
		}
		e.zstd = z
	default:
		return nil, fmt.Errorf("unknown %v", c)
	}
	return e, nil
}

// encode returns src compressed, or src itself and false if that is not
// strictly smaller. The result is valid until the next call.
func (e *encoder) encode(src []byte) ([]byte, bool, error) {
	var dst []byte
	switch e.algorithm {
	case None:
		return src, false, nil
	case LZ4:
		if bound := lz4.CompressBlockBound(len(src)); len(e.out) < bound {
			e.out = make([]byte, bound)
		}
		n, err := e.lz4.CompressBlock(src, e.out)
		if err != nil {
			return nil, false, err
		}
		if n == 0 { // does not compress
			return src, false, nil
		}
		dst = e.out[:n]
	case Gzip:
		e.stream.Reset()
		e.gzip.Reset(&e.stream)
		if _, err := e.gzip.Write(src); err != nil {
			return nil, false, err
		}
		if err := e.gzip.Close(); err != nil {
			return nil, false, err
		}
		dst = e.stream.Bytes()
	case Zstd:
		e.out = e.zstd.EncodeAll(src, e.out[:0])
		dst = e.out
	}
	if len(dst) >= len(src) {
		return src, false, nil
	}
	return dst, true, nil
}

// decode returns the size bytes that src holds, compressed with c.
func decode(c Compressor, src []byte, size int) ([]byte, error) {
	var dst []byte
	var err error
	switch c {
	case None:
		dst = src
	case LZ4:
		dst = make([]byte, size)
		var n int
		n, err = lz4.UncompressBlock(src, dst)
		dst = dst[:max(n, 0)]
	case Gzip:
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(src)); err == nil {
			dst, err = io.ReadAll(r)
		}
	case Zstd:
		var r *zstd.Decoder
		if r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1)); err == nil {
			dst, err = r.DecodeAll(src, make([]byte, 0, size))
			r.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decode %v: %w", c, err)
	}
	if len(dst) != size {
		return nil, fmt.Errorf("decode %v: %d bytes, want %d", c, len(dst), size)
	}
	return dst, nil
}
