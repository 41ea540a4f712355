package cache_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/blobstore/cache"
)

// FuzzMap puts arbitrary bytes where an entry's map should be, beside a data
// file of 8 chunks: Attach must succeed, know every chunk, believe no mark whose
// description differs or whose bytes are not there, and leave an entry that works.
func FuzzMap(f *testing.F) {
	tab := makeTable(16, 4096)
	dir := f.TempDir()
	c := open(f, dir, nil)
	v := attach(f, c, "blob", tab)
	store(f, v, tab, 1, 2, 11)
	done(f, c, v)
	good, err := os.ReadFile(filepath.Join(dir, "rafsd-v1", "blob.map"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint8(0))
	f.Add(good, uint8(3))
	f.Add(good, uint8(1))
	f.Add(good[:4096], uint8(3))
	f.Add(good[:4096+100], uint8(3))
	f.Add([]byte{}, uint8(3))
	f.Add(append(bytes.Clone(good), bytes.Repeat([]byte{1, 0, 0, 0}, 4096)...), uint8(3))
	kind := bytes.Clone(good)
	kind[4096+4] = 2
	f.Add(kind, uint8(3))
	f.Fuzz(func(t *testing.T, m []byte, mend uint8) {
		dir := t.TempDir()
		sub := filepath.Join(dir, "rafsd-v1")
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(sub, "blob")
		header := mend&1 != 0 && len(m) >= 4096
		m = bytes.Clone(m)
		if header {
			copy(m, good[:4096]) // so that the slots are looked at
		}
		if mend&2 != 0 {
			cache.Seal(m) // so that they are believed
		}
		if err := os.WriteFile(base+".map", m, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(base+".data", make([]byte, 8*4096), 0o600); err != nil {
			t.Fatal(err)
		}
		if header {
			cache.Repair(t, base)
		}
		c := open(t, dir, nil)
		v := attach(t, c, "blob", tab)
		for i := range tab.Len() {
			ok, err := v.Matches(i, &tab[i])
			if err != nil || !ok {
				t.Fatalf("chunk %d: Matches = %v, %v", i, ok, err)
			}
			if v.Ready(i) && i >= 8 {
				t.Fatalf("chunk %d is ready, and its bytes are behind the end of the data file", i)
			}
			if err := v.Store(i, content(i, 4096)); err != nil {
				t.Fatal(err)
			}
			if !v.Ready(i) {
				t.Fatalf("chunk %d is not ready after it was stored", i)
			}
		}
		done(t, c, v)
	})
}

func BenchmarkHit(b *testing.B) {
	tab := makeTable(64, 4096)
	c := open(b, b.TempDir(), nil)
	v := attach(b, c, "blob", tab)
	store(b, v, tab, 7)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := v.Data(7, 0, 4096); !ok {
			b.Fatal("not ready")
		}
	}
	done(b, c, v)
}

func BenchmarkAttach(b *testing.B) {
	tab := makeTable(100_000, 4096)
	c := open(b, b.TempDir(), nil)
	first := attach(b, c, "blob", tab)
	b.ReportAllocs()
	for b.Loop() {
		v := attach(b, c, "blob", tab)
		if err := v.Release(); err != nil {
			b.Fatal(err)
		}
	}
	done(b, c, first)
}
