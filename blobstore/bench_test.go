package blobstore_test

import (
	"fmt"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
)

// TestHitPathDoesNotAllocate: what a READ of cached data costs here.
func TestHitPathDoesNotAllocate(t *testing.T) {
	s := lz4Sample(t, 1, 4, 4096)
	b := openBlob(t, open(t, newFake(s), blobstore.Options{Amplification: 1 << 20}), s.desc())
	if err := b.Fetch(t.Context(), 0, 3); err != nil {
		t.Fatal(err)
	}
	n := testing.AllocsPerRun(1000, func() {
		if !b.Ready(2) {
			t.Fatal("not ready")
		}
		if p, ok := b.Data(2, 0, 4096); !ok || len(p) != 4096 {
			t.Fatal("not served")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations on the hit path", n)
	}
}

func BenchmarkHit(b *testing.B) {
	s := lz4Sample(b, 1, 4, 4096)
	blob := openBlob(b, open(b, newFake(s), blobstore.Options{Amplification: 1 << 20}), s.desc())
	if err := blob.Fetch(b.Context(), 0, 3); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := blob.Data(2, 0, 4096); !ok {
			b.Fatal("not ready")
		}
	}
}

// BenchmarkFetch fetches a cold blob from memory: what decoding, verifying and
// storing cost.
func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{16 << 10, 1 << 20} {
		s := lz4Sample(b, 1, 16<<20/size, size)
		b.Run(fmt.Sprintf("lz4/%dKiB", size>>10), func(b *testing.B) {
			st := open(b, newFake(s), blobstore.Options{Amplification: 1 << 20})
			blob := openBlob(b, st, s.desc())
			b.SetBytes(16 << 20)
			b.ReportAllocs()
			for b.Loop() {
				for i := range uint32(len(s.table)) {
					if err := blob.Drop(i); err != nil {
						b.Fatal(err)
					}
				}
				if err := blob.Fetch(b.Context(), 0, uint32(len(s.table)-1)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
