package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

const (
	// WindowSize is how far deflate looks back.
	WindowSize = 32 << 10
	// Headroom and Tailroom are the room that InflateAt wants in front of the
	// stored bytes and behind them.
	Headroom = 16
	Tailroom = 8
)

// Window is the state of an inflater in the middle of a gzip stream, at the
// begin of a deflate block.
type Window struct {
	Dict []byte // the last WindowSize bytes before, or none
	Bits uint8  // how many high bits of Byte belong to what follows, below 8
	Byte byte   // the stored byte before
}

// phases[b] are deflate blocks without content whose length in bits is 8 - b,
// modulo 8: so many bits of a last byte are left for those of Window.Byte.
// Shifting the whole input would not do, since a stored block goes on at the next
// border of a byte. An empty block of fixed codes has 10 bits; where an odd number
// is wanted, an empty block of dynamic codes with 93 bits is in front.
var phases = [8][]byte{
	1: {0x04, 0xe0, 0x81, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0xfc, 0x5f, 0x43, 0x00},
	2: {0x02, 0x08, 0x20, 0x00},
	3: {0x04, 0xe0, 0x81, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0xfc, 0x5f, 0x03},
	4: {0x02, 0x08, 0x00},
	5: {0x04, 0xe0, 0x81, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0xfc, 0x5f, 0x43, 0x00, 0x01, 0x04, 0x00},
	6: {0x02, 0x00},
	7: {0x04, 0xe0, 0x81, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0xfc, 0x5f, 0x43, 0x00, 0x01, 0x00},
}

// zranDecoder keeps the inflaters together with their source: all are reused.
type zranDecoder struct {
	src   bytes.Reader
	flate io.ReadCloser // a flate.Resetter
	gzip  gzip.Reader
}

var zranDecoders = sync.Pool{New: func() any { return &zranDecoder{flate: flate.NewReader(bytes.NewReader(nil))} }}

// InflateAt fills dst with what the gzip stream yields that goes on, from the
// state w, with the bytes of buf between Headroom and Tailroom, both of which it
// overwrites. Where a member of the stream ends, the next one is read. A stream
// that yields less than dst is an error, unless a few bits more made up for it:
// dst is to be verified. What follows is not looked at.
func InflateAt(dst, buf []byte, w Window) error {
	switch {
	case len(dst) > MaxChunk:
		return fmt.Errorf("zran: %d bytes are over the limit of %d: %w", len(dst), MaxChunk, ErrCorrupt)
	case w.Bits > 7 || len(w.Dict) > WindowSize || len(buf) < Headroom+Tailroom:
		return fmt.Errorf("zran: %d bits, window of %d bytes: %w", w.Bits, len(w.Dict), ErrCorrupt)
	}
	if err := inflateAt(dst, buf, w); err != nil {
		return fmt.Errorf("zran: %w: %w", ErrCorrupt, err)
	}
	return nil
}

func inflateAt(dst, buf []byte, w Window) error {
	prefix := phases[w.Bits]
	start := Headroom - len(prefix)
	copy(buf[start:], prefix)
	if w.Bits > 0 {
		buf[Headroom-1] |= w.Byte & (0xFF << (8 - w.Bits))
	}
	// The stored bytes may end amidst a block, and the inflater reads ahead by as
	// many bits as the code for a block's end has.
	clear(buf[len(buf)-Tailroom:])
	d := zranDecoders.Get().(*zranDecoder)
	defer func() {
		d.src.Reset(nil)
		zranDecoders.Put(d)
	}()
	d.src.Reset(buf[start:])
	if err := d.flate.(flate.Resetter).Reset(&d.src, w.Dict); err != nil {
		return err
	}
	n, err := io.ReadFull(d.flate, dst)
	if err == nil {
		return nil
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	// The source is read byte by byte, so it stands right behind the last block,
	// if that was the end of the member and not of what was stored.
	if d.src.Len() <= gzipTrailer+Tailroom {
		return errShortStream
	}
	if _, err := d.src.Seek(gzipTrailer, io.SeekCurrent); err != nil {
		return err
	}
	if err := d.gzip.Reset(&d.src); err != nil {
		return noEOF(err)
	}
	if _, err := io.ReadFull(&d.gzip, dst[n:]); err != nil {
		return noEOF(err)
	}
	return nil
}

const gzipTrailer = 8

var errShortStream = errors.New("the stream yields less than its description says")
