package testimage_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
)

// TestManyInodes writes trees of many names, spread out and in one directory;
// RAFSD_LONG=1 makes it a million.
func TestManyInodes(t *testing.T) {
	names := 4_000
	if os.Getenv("RAFSD_LONG") == "1" {
		names = 1_000_000
	}
	for name, perDir := range map[string]int{"directories of 500": 500, "one directory": names} {
		for _, opt := range []testimage.Options{
			{Version: 5, Compressor: testimage.Zstd}, {Compressor: testimage.Zstd}, {Compact: true},
		} {
			t.Run(fmt.Sprintf("v%d compact %v %s", opt.Version, opt.Compact, name), func(t *testing.T) {
				start := time.Now()
				tree := testimage.Wide(names, perDir)
				built := time.Since(start)
				start = time.Now()
				img := write(t, tree, opt)
				written := time.Since(start)
				var mem runtime.MemStats
				runtime.ReadMemStats(&mem)
				t.Logf("%d names: tree %v, image %v, bootstrap %d MiB, heap %d MiB", names, built, written,
					img.Layout.Size>>20, mem.HeapAlloc>>20)
				m, err := checkBootstrap(img.Bootstrap)
				if err != nil {
					t.Fatal(err)
				}
				if want := names + (names+perDir-1)/perDir + 1; len(m.inodes) != want {
					t.Errorf("%d names, want %d", len(m.inodes), want)
				}
			})
		}
	}
}

// TestManyChunks has more chunks in a blob than 16 bits of an index count.
func TestManyChunks(t *testing.T) {
	t.Parallel()
	tree := testimage.NewTree()
	const files = 1<<16 + 10
	for i := range files {
		tree.File(fmt.Sprintf("/%d", i), []byte{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		img := write(t, tree, testimage.Options{Version: version})
		m, err := checkBootstrap(img.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		last := m.byPath["/9999"] // names are in byte order
		if got := last.chunks[0].index; got != files-1 {
			t.Errorf("v%d: index %d of the last chunk, want %d", version, got, files-1)
		}
	}
}

// TestManyLinks has an inode with more names than 16 bits of nlink count, which
// therefore cannot be compact.
func TestManyLinks(t *testing.T) {
	t.Parallel()
	const links = 1<<16 + 5
	tree := testimage.NewTree()
	tree.File("/0", []byte("many names"))
	for i := range links - 1 {
		tree.Link(fmt.Sprintf("/d/%d", i), "/0")
	}
	img := write(t, tree, testimage.Options{Compact: true})
	m, err := checkBootstrap(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.byPath["/d/77"]; got.nlink != links || got.ino != m.byPath["/0"].ino || got.format&1 == 0 {
		t.Errorf("nlink %d, nid %d, format %d, want %d, %d, extended", got.nlink, got.ino, got.format, links, m.byPath["/0"].ino)
	}
}
