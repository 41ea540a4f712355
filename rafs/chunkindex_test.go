package rafs_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/rafsd/rafsd/rafs"
)

type entry struct{ blob, index, ref uint32 }

func build(t testing.TB, blobs int, entries []entry) *rafs.ChunkIndex {
	t.Helper()
	x, err := rafs.BuildChunkIndex(blobs, func(yield func(blob, index, ref uint32)) error {
		for _, e := range entries {
			yield(e.blob, e.index, e.ref)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestChunkIndex compares the index with a map, for blobs whose chunks are all
// named, few of them, or far apart.
func TestChunkIndex(t *testing.T) {
	const blobs = 5
	rng := rand.New(rand.NewPCG(1, 2))
	var entries []entry
	naive := map[[2]uint32]uint32{}
	length := [blobs]uint32{}
	add := func(blob, index uint32) {
		ref := uint32(len(entries))
		entries = append(entries, entry{blob, index, ref})
		if _, known := naive[[2]uint32{blob, index}]; !known {
			naive[[2]uint32{blob, index}] = ref
		}
		length[blob] = max(length[blob], index+1)
	}
	for i := range uint32(3000) {
		add(0, i)                                           // dense
		add(1, rng.Uint32N(5000))                           // dense with gaps and repetitions
		add(2, rng.Uint32N(rafs.MaxChunks/1000)*1000)       // sparse
		add(3, rafs.MaxChunks-1-rng.Uint32N(100)*uint32(i)) // sparse, repeated, up to the last
	}
	rng.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	clear(naive)
	for _, e := range entries { // the first record of a chunk counts
		if _, known := naive[[2]uint32{e.blob, e.index}]; !known {
			naive[[2]uint32{e.blob, e.index}] = e.ref
		}
	}
	x := build(t, blobs, entries)
	for blob := range uint32(blobs) {
		if got := x.Len(int(blob)); got != length[blob] {
			t.Errorf("Len(%d) = %d, want %d", blob, got, length[blob])
		}
	}
	for _, e := range entries {
		for _, index := range []uint32{e.index, e.index + 1, e.index - 1} {
			want, known := naive[[2]uint32{e.blob, index}]
			if got, ok := x.Lookup(e.blob, index); ok != known || ok && got != want {
				t.Fatalf("Lookup(%d, %d) = %d, %v, want %d, %v", e.blob, index, got, ok, want, known)
			}
		}
	}
	for _, e := range []entry{{blobs, 0, 0}, {math.MaxUint32, 0, 0}, {4, 0, 0}, {0, math.MaxUint32, 0}, {2, math.MaxUint32, 0}} {
		if _, ok := x.Lookup(e.blob, e.index); ok {
			t.Errorf("Lookup(%d, %d) found a chunk", e.blob, e.index)
		}
	}
	if x.Len(-1) != 0 || x.Len(blobs) != 0 {
		t.Error("a blob that is not there has chunks")
	}
}

// TestChunkIndexIgnoresNonsense: records of other blobs and of impossible
// indexes cost nothing.
func TestChunkIndexIgnoresNonsense(t *testing.T) {
	x := build(t, 1, []entry{{1, 0, 1}, {math.MaxUint32, 1, 2}, {0, rafs.MaxChunks, 3}, {0, math.MaxUint32, 4}})
	if n := x.Len(0); n != 0 {
		t.Errorf("Len = %d, want 0", n)
	}
}

// TestChunkIndexIsBounded: a few records with far indexes do not become a big
// table, in any number of blobs.
func TestChunkIndexIsBounded(t *testing.T) {
	var entries []entry
	for blob := range uint32(254) {
		entries = append(entries, entry{blob, rafs.MaxChunks - 1, blob})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	x := build(t, 254, entries)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("254 records took %d bytes", grown)
	}
	if ref, ok := x.Lookup(7, rafs.MaxChunks-1); !ok || ref != 7 {
		t.Errorf("Lookup = %d, %v", ref, ok)
	}
}

// TestChunkIndexOfChangingRecords: what the second pass says more than the first
// is left out.
func TestChunkIndexOfChangingRecords(t *testing.T) {
	pass := 0
	x, err := rafs.BuildChunkIndex(2, func(yield func(blob, index, ref uint32)) error {
		if pass++; pass == 2 {
			for i := range uint32(5000) {
				yield(0, i, i)
				yield(1, 1<<20+i, i)
			}
			return nil
		}
		yield(0, 3, 3)
		yield(1, 1<<20, 0)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if x.Len(0) != 4 || x.Len(1) != 1<<20+1 {
		t.Errorf("Len = %d and %d, want 4 and %d", x.Len(0), x.Len(1), 1<<20+1)
	}
	wrong := errors.New("unreadable")
	for failing := 1; failing <= 2; failing++ {
		pass := 0
		if x, err := rafs.BuildChunkIndex(1, func(func(uint32, uint32, uint32)) error {
			if pass++; pass == failing {
				return wrong
			}
			return nil
		}); x != nil || err != wrong {
			t.Errorf("pass %d fails: %v, %v", failing, x, err)
		}
	}
}

func TestOverlapping(t *testing.T) {
	span := func(blob uint32, off uint64, size, index uint32) rafs.ChunkSpan {
		return rafs.ChunkSpan{Blob: blob, Off: off, Size: size, Index: index}
	}
	for name, tt := range map[string]struct {
		spans []rafs.ChunkSpan
		want  int
	}{
		"none":                       {nil, 0},
		"side by side, out of order": {[]rafs.ChunkSpan{span(0, 10, 5, 1), span(0, 0, 10, 0), span(0, 15, 1, 2)}, 0},
		"one byte":                   {[]rafs.ChunkSpan{span(0, 0, 11, 0), span(0, 10, 5, 1)}, 1},
		"other blobs":                {[]rafs.ChunkSpan{span(0, 0, 10, 0), span(1, 0, 10, 0), span(2, 5, 10, 0)}, 0},
		"one inside, one behind it":  {[]rafs.ChunkSpan{span(0, 0, 100, 0), span(0, 10, 5, 1), span(0, 50, 5, 2), span(0, 100, 1, 3)}, 2},
		"same place":                 {[]rafs.ChunkSpan{span(3, 7, 7, 0), span(3, 7, 7, 1), span(3, 7, 7, 2)}, 2},
	} {
		got := 0
		rafs.Overlapping(tt.spans, func(a, b rafs.ChunkSpan) bool { got++; return true })
		if got != tt.want {
			t.Errorf("%s: %d overlaps, want %d", name, got, tt.want)
		}
	}
	calls := 0
	rafs.Overlapping([]rafs.ChunkSpan{span(0, 0, 9, 0), span(0, 1, 9, 1), span(0, 2, 9, 2)}, func(a, b rafs.ChunkSpan) bool {
		calls++
		return false
	})
	if calls != 1 {
		t.Errorf("went on after it was told to stop: %d calls", calls)
	}
}
