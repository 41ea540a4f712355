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
		tree.File(fmt.Sprintf("/%05d", i), []byte{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	img := write(t, tree, testimage.Options{})
	raw, err := os.ReadFile(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	for i := files - 20; i < files; i++ {
		in, err := img.Inode(fmt.Sprintf("/%05d", i))
		if err != nil {
			t.Fatal(err)
		}
		e := part(raw, in.Chunks)
		index, blob, block := uint32(le.Uint16(e))|uint32(e[3])<<16, e[2], le.Uint32(e[4:])
		if index != uint32(i) || blob != 1 || block != uint32(i) {
			t.Errorf("chunk address of file %d: index %d, device %d, block %d", i, index, blob, block)
		}
	}
	if got := img.Blobs[0].ChunkCount; got != files {
		t.Errorf("%d chunks, want %d", got, files)
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
	raw, err := os.ReadFile(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	in, err := img.Inode("/d/77")
	if err != nil {
		t.Fatal(err)
	}
	if first, err := img.Inode("/0"); err != nil || first != in {
		t.Errorf("two names, two inodes: %+v and %+v, %v", first, in, err)
	}
	if in.Record.Size != 64 || le.Uint32(part(raw, in.Record)[44:]) != links {
		t.Errorf("nlink %d in %d bytes, want %d in 64", le.Uint32(part(raw, in.Record)[44:]), in.Record.Size, links)
	}
}
