package testimage_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/rafsd/rafsd/internal/testimage"
)

// TestContentIsTheSameInPieces reads generated content whole and in odd pieces.
func TestContentIsTheSameInPieces(t *testing.T) {
	const size = 50<<20 + 123 // more than a period of Pattern
	for name, c := range map[string]testimage.Content{
		"pattern": testimage.Pattern(size, 9),
		"random":  testimage.Random(3<<20+5, 9),
		"zeros":   testimage.Zeros(10_000),
		"bytes":   testimage.Bytes([]byte("0123456789")),
	} {
		t.Run(name, func(t *testing.T) {
			whole := make([]byte, c.Size())
			if n, err := c.ReadAt(whole, 0); n != len(whole) || err != nil {
				t.Fatalf("ReadAt(whole) = %d, %v", n, err)
			}
			for _, off := range []int64{0, 1, 4095, 4097, c.Size() - 10, c.Size() / 2} {
				piece := make([]byte, 7001)
				n, err := c.ReadAt(piece, off)
				if off >= 0 && off < c.Size() && !bytes.Equal(piece[:n], whole[off:][:n]) {
					t.Errorf("ReadAt(7001 at %d) gives other bytes", off)
				}
				if short := n < len(piece); short != errors.Is(err, io.EOF) {
					t.Errorf("ReadAt(7001 at %d) = %d, %v", off, n, err)
				}
			}
			if n, err := c.ReadAt(make([]byte, 1), c.Size()); n != 0 || err != io.EOF {
				t.Errorf("ReadAt(end) = %d, %v, want EOF", n, err)
			}
			if n, err := c.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
				t.Errorf("ReadAt(-1) = %d, %v, want an error", n, err)
			}
		})
	}
}

// TestPatternTellsOffsetsApart: what a reader finds 4 GiB (or one chunk) too
// low must be other bytes, except in the zeros.
func TestPatternTellsOffsetsApart(t *testing.T) {
	c := testimage.Pattern(6<<30, 1)
	read := func(off int64) []byte {
		b := make([]byte, 4096)
		if _, err := c.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, off := range []int64{4 << 30, 4<<30 + 1<<20, 5<<30 + 4096} {
		for _, wrong := range []int64{off - 4<<30, off - 2<<30, off - 1<<20, off - 4096} {
			if bytes.Equal(read(off), read(wrong)) {
				t.Errorf("the blocks at %d and %d are equal", off, wrong)
			}
		}
	}
}
