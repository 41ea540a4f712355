package codec_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// bitWriter writes deflate by hand, so that blocks begin at every bit.
type bitWriter struct {
	b    []byte
	bits uint
}

func (w *bitWriter) put(v uint32, n uint) {
	for i := range n {
		if w.bits%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << (w.bits % 8)
		w.bits++
	}
}

// stored writes one stored block.
func (w *bitWriter) stored(p []byte, final bool) {
	w.put(b2u(final), 1)
	w.put(0, 2)
	for w.bits%8 != 0 {
		w.put(0, 1)
	}
	w.put(uint32(len(p)), 16)
	w.put(^uint32(len(p))&0xFFFF, 16)
	w.b = append(w.b, p...)
	w.bits += uint(8 * len(p))
}

// fixed writes one block of literals and of a match at distance back, with fixed codes.
func (w *bitWriter) fixed(p []byte, back bool, final bool) {
	w.put(b2u(final), 1)
	w.put(1, 2)
	code := func(v uint32, n uint) { // codes are stored highest bit first
		for i := int(n) - 1; i >= 0; i-- {
			w.put(v>>i&1, 1)
		}
	}
	for _, c := range p {
		if c < 144 {
			code(0x30+uint32(c), 8)
		} else {
			code(0x190+uint32(c)-144, 9)
		}
	}
	if back { // length 3, distance 32768
		code(1, 7)
		code(29, 5)
		w.put(32768-24577, 13)
	}
	code(0, 7)
}

// room puts stored bytes where InflateAt wants them.
func room(p []byte) []byte {
	return append(append(make([]byte, codec.Headroom), p...), make([]byte, codec.Tailroom)...)
}

func b2u(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// TestInflateAtEveryBit: a block that begins at any bit of a byte, is stored or
// coded, and looks back as far as deflate can.
func TestInflateAtEveryBit(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 3))
	dict := make([]byte, codec.WindowSize)
	for i := range dict {
		dict[i] = byte(rng.Uint32())
	}
	for shift := range uint(8) {
		for _, kind := range []string{"stored", "fixed"} {
			w := &bitWriter{}
			w.put(uint32(rng.Uint32()), 8) // what came before
			w.put(uint32(rng.Uint32()), shift)
			at := w.bits
			text := []byte("what the block holds\xff\x90")
			want := bytes.Clone(text)
			if kind == "stored" {
				w.stored(text, false)
			} else {
				// What was read last is the window's begin plus what the text pushed out.
				w.fixed(text, true, false)
				want = append(want, dict[len(text):len(text)+3]...)
			}
			w.stored([]byte("and the next"), true)
			want = append(want, "and the next"...)

			win := codec.Window{Dict: dict}
			from := at / 8
			if at%8 != 0 {
				win.Bits, win.Byte = uint8(8-at%8), w.b[from]
				from++
			}
			buf := room(w.b[from:])
			got := make([]byte, len(want))
			if err := codec.InflateAt(got, buf, win); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s block at bit %d: %q, %v; want %q", kind, shift, got, err, want)
			}
			if err := codec.InflateAt(make([]byte, len(want)+1), room(w.b[from:]), win); !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("%s block at bit %d: one byte more than there is: %v", kind, shift, err)
			}
		}
	}
}

// TestInflateAtGoesOnInTheNextMember: the member ends within the context.
func TestInflateAtGoesOnInTheNextMember(t *testing.T) {
	first, second := text(5000), text(7000)
	a, b := compress(t, codec.Gzip, first), compress(t, codec.Gzip, second)
	stream := append(bytes.Clone(a[10:]), b...)
	want := append(bytes.Clone(first), second[:6000]...)
	got := make([]byte, len(want))
	if err := codec.InflateAt(got, room(stream[:len(stream)-20]), codec.Window{}); err != nil || !bytes.Equal(got, want) {
		t.Errorf("over two members: %v", err)
	}
	for _, cut := range []int{len(a) - 10, len(a) - 10 - 8, len(a) - 4, len(a) + 3, len(a)} {
		if err := codec.InflateAt(got, room(stream[:cut]), codec.Window{}); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("cut at %d: %v, want ErrCorrupt", cut, err)
		}
	}
}

func FuzzInflateAt(f *testing.F) {
	a := compress(f, codec.Gzip, text(3000))
	f.Add(uint32(3000), a[10:], []byte{}, uint8(0), uint8(0))
	f.Add(uint32(4000), append(bytes.Clone(a[10:]), a...), []byte{}, uint8(0), uint8(0))
	for bits := range uint8(8) {
		f.Add(uint32(100), a[40:], text(32<<10), bits, uint8(0xa5))
	}
	f.Fuzz(func(t *testing.T, size uint32, src, dict []byte, bits, last uint8) {
		size %= 1 << 17
		const guard = 64
		dst := bytes.Repeat([]byte{0xa5}, int(size)+guard)
		err := codec.InflateAt(dst[:size], room(src), codec.Window{Dict: dict, Bits: bits, Byte: last})
		if err != nil && !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("%v, want ErrCorrupt", err)
		}
		if !bytes.Equal(dst[size:], bytes.Repeat([]byte{0xa5}, guard)) {
			t.Fatal("wrote behind the buffer")
		}
	})
}
