package codec_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// text is data that compresses, the same in every run.
func text(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	p := make([]byte, n)
	for i := range p {
		p[i] = "abcdefgh"[rng.IntN(8)]
	}
	return p
}

func compress(t testing.TB, a codec.Algorithm, p []byte) []byte {
	t.Helper()
	switch a {
	case codec.None:
		return bytes.Clone(p)
	case codec.LZ4:
		out := make([]byte, lz4.CompressBlockBound(len(p)))
		n, err := lz4.CompressBlock(p, out, nil)
		if err != nil || n == 0 {
			t.Fatalf("lz4: %d bytes, %v", n, err)
		}
		return out[:n]
	case codec.Gzip:
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(p)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	case codec.Zstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(p, nil)
	}
	t.Fatalf("no compressor for %v", a)
	return nil
}

var algorithms = []codec.Algorithm{codec.None, codec.LZ4, codec.Gzip, codec.Zstd}

func TestDecodeGivesBackWhatWasStored(t *testing.T) {
	for _, a := range algorithms {
		for _, n := range []int{64, 4096, 4097, 1 << 20} {
			t.Run(fmt.Sprintf("%v/%d", a, n), func(t *testing.T) {
				want := text(n)
				got := make([]byte, n)
				if err := codec.Decode(a, got, compress(t, a, want)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Error("decoded bytes differ from what was stored")
				}
			})
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const n = 10000
	for _, a := range algorithms {
		stored := compress(t, a, text(n))
		tests := map[string]struct {
			src  []byte
			size int
		}{
			"stream yields more than the chunk":  {stored, n - 1},
			"stream yields less than the chunk":  {stored, n + 1},
			"stream yields far more (a bomb)":    {compress(t, a, make([]byte, 4<<20)), n},
			"stream cut in the middle":           {stored[:len(stored)/2], n},
			"nothing stored":                     {nil, n},
			"chunk larger than the format knows": {stored, codec.MaxChunk + 1},
		}
		for name, tt := range tests {
			t.Run(fmt.Sprintf("%v/%s", a, name), func(t *testing.T) {
				err := codec.Decode(a, make([]byte, tt.size), tt.src)
				if !errors.Is(err, codec.ErrCorrupt) {
					t.Errorf("Decode of %d bytes to %d = %v, want ErrCorrupt", len(tt.src), tt.size, err)
				}
			})
		}
	}
	if err := codec.Decode(codec.Zstd+1, make([]byte, 1), []byte{0}); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("unknown algorithm: %v, want ErrCorrupt", err)
	}
}

func TestGzipChecksItsTrailerAndIgnoresWhatFollows(t *testing.T) {
	want := text(5000)
	stored := compress(t, codec.Gzip, want)
	got := make([]byte, len(want))
	if err := codec.Decode(codec.Gzip, got, append(bytes.Clone(stored), "next member's bytes"...)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("bytes behind the member: %v", err)
	}
	bad := bytes.Clone(stored)
	bad[len(bad)-8] ^= 1 // the CRC in the trailer
	if err := codec.Decode(codec.Gzip, got, bad); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("wrong CRC in the trailer: %v, want ErrCorrupt", err)
	}
	if err := codec.Decode(codec.Gzip, got, stored[:len(stored)-4]); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("trailer cut off: %v, want ErrCorrupt", err)
	}
}

func TestZstdWindowIsBounded(t *testing.T) {
	// A frame that declares a window of 1 GiB and no content size, with one raw
	// block of one byte: harmless, but its declaration must not be believed.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x09, 0x00, 0x00, 'x'}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := codec.Decode(codec.Zstd, make([]byte, 1), frame)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("window of 1 GiB: %v, want ErrCorrupt", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("decoding 10 bytes allocated %d bytes", got)
	}
}

func TestSumVectors(t *testing.T) {
	tests := map[string]struct {
		d    codec.Digester
		in   string
		want string
	}{
		"blake3 of nothing": {codec.Blake3, "", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
		"sha256 of abc":     {codec.SHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
	}
	for name, tt := range tests {
		sum := codec.Sum(tt.d, []byte(tt.in))
		if got := hex.EncodeToString(sum[:]); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if got := codec.CRC32C([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("CRC32C check value = %#x, want 0xe3069283", got)
	}
}

func TestGateLetsInOnlyAsManyAsThereAreProcessors(t *testing.T) {
	n := runtime.GOMAXPROCS(0)
	for range n {
		if err := codec.Enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := codec.Enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one too many: %v, want it to wait until its context ends", err)
	}
	for range n {
		codec.Leave()
	}
	if err := codec.Enter(ctx); err != nil {
		t.Errorf("room again: %v", err)
	}
	codec.Leave()
}

// FuzzDecode feeds hostile streams to every decoder: it must end, keep to the
// buffer that it was given, and report every refusal as ErrCorrupt.
func FuzzDecode(f *testing.F) {
	for _, a := range algorithms {
		for _, n := range []int{64, 5000} {
			stored := compress(f, a, text(n))
			f.Add(uint8(a), uint32(n), stored)
			f.Add(uint8(a), uint32(n-1), stored)
			f.Add(uint8(a), uint32(n), stored[:len(stored)-1])
		}
		f.Add(uint8(a), uint32(0), []byte{})
		f.Add(uint8(a), uint32(100), []byte{0})
	}
	f.Add(uint8(codec.LZ4), uint32(32), []byte{0x1f, 'a', 1, 0, 0xff, 0xff, 0xff}) // match length runs off
	f.Add(uint8(codec.LZ4), uint32(32), []byte{0x10, 'a', 0, 0})                   // match offset of 0
	f.Fuzz(func(t *testing.T, algorithm uint8, size uint32, src []byte) {
		size %= 1 << 17
		const guard = 64
		buf := bytes.Repeat([]byte{0xa5}, int(size)+guard)
		err := codec.Decode(codec.Algorithm(algorithm%5), buf[:size], src)
		if err != nil && !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("%v, want ErrCorrupt", err)
		}
		if !bytes.Equal(buf[size:], bytes.Repeat([]byte{0xa5}, guard)) {
			t.Fatal("wrote behind the buffer")
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	const n = 1 << 20
	for _, a := range algorithms {
		b.Run(a.String(), func(b *testing.B) {
			stored, dst := compress(b, a, text(n)), make([]byte, n)
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				if err := codec.Decode(a, dst, stored); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
