package open_test

import (
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// edge is what hot operations are tried on: a big directory, a name in it, and a
// file of several chunks.
type edge struct {
	img       rafs.Image
	big, file uint64
	name      []byte
	size      uint64
}

func openEdge(t testing.TB, variant string) *edge {
	t.Helper()
	dir := corpus.Dir(t)
	img, err := open.Image(rafstest.Bootstrap(t, dir, variant), open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	e := &edge{img: img}
	children := map[uint64]int{}
	var parents []uint64
	if err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
		if w.Err != nil {
			return w.Err
		}
		parents = append(parents[:w.Depth], w.Ino)
		if w.Depth > 0 {
			parent := parents[w.Depth-1]
			if children[parent]++; children[parent] > children[e.big] || parent == e.big {
				if e.big = parent; children[parent] == 1500 {
					e.name = []byte(string(w.Name))
				}
			}
		}
		if w.Attr.Mode&rafs.ModeType == rafs.ModeRegular && w.Attr.Size > e.size {
			e.file, e.size = w.Ino, w.Attr.Size
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if e.name == nil || e.size < 2<<20 {
		t.Fatalf("no big directory or no big file: %+v", e)
	}
	return e
}

// operations are what requests are made of.
func (e *edge) operations(t testing.TB) map[string]func() {
	var (
		attr    rafs.Attr
		cursor  rafs.Cursor
		dirent  rafs.Dirent
		chunk   rafs.Chunk
		extents = make([]rafs.Extent, 0, 16)
		buf     = make([]byte, 0, 4096)
		absent  = []byte("no such name")
	)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	return map[string]func(){
		"attr": func() { must(e.img.Attr(e.file, &attr)) },
		"lookup hit": func() {
			_, err := e.img.Lookup(e.big, e.name)
			must(err)
		},
		"lookup miss": func() {
			if _, err := e.img.Lookup(e.big, absent); err != rafs.ErrNotExist {
				t.Fatal(err)
			}
		},
		"parent": func() {
			_, err := e.img.Parent(e.big)
			must(err)
		},
		"readdir step": func() {
			must(e.img.ReadDir(e.big, 0, &cursor))
			_, err := cursor.Next(&dirent)
			must(err)
		},
		"extents": func() {
			x, err := e.img.Extents(e.file, 1<<20-100, 128<<10, extents[:0])
			if must(err); len(x) != 2 {
				t.Fatal(x)
			}
		},
		"chunk": func() { must(e.img.Chunk(0, 0, &chunk)) },
		"xattr names": func() {
			_, err := e.img.XattrNames(e.file, buf)
			must(err)
		},
	}
}

var edges = map[string]string{"v5": "v5-dir-zstd-sha256-edge", "v6": "v6-dir-zstd-blake3-edge"}

func TestAllocations(t *testing.T) {
	for version, variant := range edges {
		for name, op := range openEdge(t, variant).operations(t) {
			op() // the index of chunks is made
			if n := testing.AllocsPerRun(100, op); n != 0 {
				t.Errorf("%s %s: %v allocations, want 0", version, name, n)
			}
		}
	}
}

func BenchmarkImage(b *testing.B) {
	for version, variant := range edges {
		for name, op := range openEdge(b, variant).operations(b) {
			b.Run(version+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					op()
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := corpus.Dir(b)
	for version, variant := range edges {
		path := rafstest.Bootstrap(b, dir, variant)
		b.Run(version, func(b *testing.B) {
			for b.Loop() {
				img, err := open.Image(path, open.Options{})
				if err != nil {
					b.Fatal(err)
				}
				img.Close()
			}
		})
	}
}
