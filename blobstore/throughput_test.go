package blobstore_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// BenchmarkDecodeVerify holds what it costs to decode and verify a chunk against
// what the libraries alone take for the same bytes, turn by turn and by the
// thread's own clock, so that a busy machine is unfair to neither. "%ofceiling" is
// the ratio of the two throughputs (of the medians), MB/s is ours, per core.
func BenchmarkDecodeVerify(b *testing.B) {
	const size = 1 << 20
	plain := sampleText(size)
	for _, compressor := range []blobstore.Compressor{blobstore.CompressZstd, blobstore.CompressLZ4, blobstore.CompressNone} {
		stored, ceiling := libraries(b, compressor, plain)
		for _, digester := range []blobstore.Digester{blobstore.DigestBlake3, blobstore.DigestSHA256} {
			hash := func(p []byte) [32]byte { return blake3.Sum256(p) }
			if digester == blobstore.DigestSHA256 {
				hash = sha256.Sum256
			}
			b.Run(fmt.Sprintf("%v/%s", codec.Algorithm(compressor), [...]string{"blake3", "sha256"}[digester]), func(b *testing.B) {
				d := blobstore.BlobDesc{Compressor: compressor, Digester: digester}
				c := blobstore.Chunk{CompressedSize: uint32(len(stored)), UncompressedSize: size, Digest: hash(plain)}
				if compressor != blobstore.CompressNone {
					c.Flags = blobstore.ChunkCompressed
				}
				out, theirs := make([]byte, size), make([]byte, size)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				var ours, library []time.Duration
				for b.Loop() {
					began := threadTime(b)
					if got := ceiling(theirs); hash(got) != c.Digest {
						b.Fatal("the library is wrong")
					}
					between := threadTime(b)
					if err := codec.Enter(b.Context()); err != nil {
						b.Fatal(err)
					}
					// As a flight does: what is not compressed is read to its place.
					dst := out
					if compressor == blobstore.CompressNone {
						dst = stored
					}
					_, err := d.Decode(&c, dst, stored)
					if err == nil {
						err = d.Verify(&c, dst)
					}
					codec.Leave()
					if err != nil {
						b.Fatal(err)
					}
					ours = append(ours, threadTime(b)-between)
					library = append(library, between-began)
				}
				slices.Sort(ours)
				slices.Sort(library)
				median := ours[len(ours)/2].Seconds()
				b.ReportMetric(size/median/1e6, "MB/s")
				b.ReportMetric(100*library[len(library)/2].Seconds()/median, "%ofceiling")
			})
		}
	}
}

// threadTime is the processor time of this thread.
func threadTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// libraries returns plain as it is stored, and how the library turns that back
// into bytes with the least work: into a buffer that is there.
func libraries(b *testing.B, compressor blobstore.Compressor, plain []byte) (stored []byte, decode func(dst []byte) []byte) {
	switch compressor {
	case blobstore.CompressZstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			b.Fatal(err)
		}
		stored = w.EncodeAll(plain, nil)
		r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(r.Close)
		return stored, func(dst []byte) []byte {
			out, err := r.DecodeAll(stored, dst[:0])
			if err != nil {
				b.Fatal(err)
			}
			return out
		}
	case blobstore.CompressLZ4:
		stored = make([]byte, lz4.CompressBlockBound(len(plain)))
		n, err := lz4.CompressBlock(plain, stored, nil)
		if err != nil || n == 0 {
			b.Fatal(n, err)
		}
		stored = stored[:n]
		return stored, func(dst []byte) []byte {
			n, err := lz4.UncompressBlock(stored, dst)
			if err != nil {
				b.Fatal(err)
			}
			return dst[:n]
		}
	}
	stored = bytes.Clone(plain)
	return stored, func([]byte) []byte { return stored }
}

// sampleText compresses about as programs do.
func sampleText(size int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	vocabulary := make([][]byte, 3000)
	for i := range vocabulary {
		vocabulary[i] = make([]byte, 2+rng.IntN(9))
		for k := range vocabulary[i] {
			vocabulary[i][k] = byte(rng.IntN(40) + 'A')
		}
	}
	b := make([]byte, 0, size+16)
	for len(b) < size {
		b = append(b, vocabulary[rng.IntN(len(vocabulary))]...)
	}
	return b[:size]
}
