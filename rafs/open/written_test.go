package open_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

func write(t testing.TB, tree *testimage.Tree, o testimage.Options) *testimage.Image {
	t.Helper()
	written, err := tree.Write(filepath.Join(t.TempDir(), "image"), o)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

func mustOpen(t testing.TB, path string) rafs.Image {
	t.Helper()
	img, err := open.Image(path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

// TestWrittenImages reads what the corpus has not: gzip, compact inodes, many
// blobs, images of before the chunk index, names of algorithms left out.
func TestWrittenImages(t *testing.T) {
	for name, o := range map[string]testimage.Options{
		"v5 gzip":               {Version: 5, Compressor: testimage.Gzip},
		"v5 none, 4 KiB":        {Version: 5, ChunkSize: 4096},
		"v5 aligned":            {Version: 5, Compressor: testimage.Zstd, Aligned: true},
		"v5 before the index":   {Version: 5, Compressor: testimage.LZ4, NoExtBlobTable: true, ChunkSize: 4096},
		"v5 old, several blobs": {Version: 5, Compressor: testimage.Gzip, NoExtBlobTable: true, Blobs: 5, ChunkSize: 8192},
		"v5 old flags":          {Version: 5, Compressor: testimage.LZ4, OldFlags: true},
		"v5 several blobs":      {Version: 5, Blobs: 7, ChunkSize: 16 << 10},
		"v6 gzip":               {Compressor: testimage.Gzip},
		"v6 gzip sha256":        {Compressor: testimage.Gzip, Digest: testimage.SHA256, ChunkSize: 4096},
		"v6 compact":            {Compressor: testimage.Zstd, Compact: true},
		"v6 several blobs":      {Compressor: testimage.LZ4, Blobs: 30, ChunkSize: 8192},
		"v6 largest chunks":     {Compressor: testimage.Zstd, ChunkSize: 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			written := write(t, testimage.Sample(), o)
			want, err := written.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			img := mustOpen(t, written.Bootstrap)
			got, damaged, err := rafstest.Manifest(img, &rafstest.BlobDir{Dir: written.BlobDir})
			if err != nil || len(damaged) != 0 {
				t.Fatalf("%v, %d damaged paths", err, len(damaged))
			}
			if diff := manifest.Compare(got, want, manifest.Options{}); !diff.Equal() {
				t.Errorf("differs:\n%s", diff)
			}
			if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return true }); err != nil {
				t.Error(err)
			}
			// What is at uncompressed addresses is what the chunks say.
			dir := t.TempDir()
			if _, err := written.WriteUncompressed(dir); err != nil {
				t.Fatal(err)
			}
			if got, _, err = rafstest.Manifest(img, rafstest.CacheDir{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			if diff := manifest.Compare(got, want, manifest.Options{}); !diff.Equal() {
				t.Errorf("by uncompressed addresses:\n%s", diff)
			}
		})
	}
}

// TestTreesWithoutData has images without a blob.
func TestTreesWithoutData(t *testing.T) {
	tree := testimage.NewTree()
	tree.File("/empty", nil)
	tree.Symlink("/link", "empty")
	for _, o := range []testimage.Options{{Version: 5}, {Version: 6}, {Version: 6, Compact: true}} {
		img := mustOpen(t, write(t, tree, o).Bootstrap)
		if n := len(img.Blobs()); n != 0 {
			t.Errorf("v%d: %d blobs, want none", o.Version, n)
		}
		got, _, err := rafstest.Manifest(img, nil)
		if err != nil || len(got) != 3 {
			t.Errorf("v%d: %d paths, %v, want 3", o.Version, len(got), err)
		}
	}
}

// TestFilesOver4GiB reads around every place where 32 bits end.
func TestFilesOver4GiB(t *testing.T) {
	const size = 4<<30 + 12345
	content := testimage.Pattern(size, 7)
	for _, o := range []testimage.Options{
		{Version: 5, Compressor: testimage.LZ4},
		{Version: 6, Compressor: testimage.LZ4},
	} {
		t.Run(fmt.Sprint("v", o.Version), func(t *testing.T) {
			t.Parallel()
			tree := testimage.NewTree()
			tree.FileOf("/huge", content)
			written := write(t, tree, o)
			img, src := mustOpen(t, written.Bootstrap), &rafstest.BlobDir{Dir: written.BlobDir}
			ino, err := img.Lookup(img.Root(), []byte("huge"))
			if err != nil {
				t.Fatal(err)
			}
			var a rafs.Attr
			if err := img.Attr(ino, &a); err != nil || a.Size != size {
				t.Fatalf("size %d, %v, want %d", a.Size, err, size)
			}
			for _, off := range []uint64{0, 1<<31 - 50, 1<<32 - 50, 1<<32 + 5000, size - 70} {
				n := min(uint64(100), size-off)
				want := make([]byte, n)
				if _, err := content.ReadAt(want, int64(off)); err != nil {
					t.Fatal(err)
				}
				var got bytes.Buffer
				extents, err := img.Extents(ino, off, 100, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range extents {
					var c rafs.Chunk
					if err := img.Chunk(int(e.Blob), e.Chunk, &c); err != nil {
						t.Fatal(err)
					}
					data, err := src.Chunk(img, int(e.Blob), e.Chunk, &c)
					if err != nil {
						t.Fatal(err)
					}
					got.Write(data[e.ChunkOffset:][:e.Length])
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("at %d: %d bytes, not those of the file", off, got.Len())
				}
			}
		})
	}
}

// TestManyInodes: opening does not go through the inodes, and a big directory is
// searched and listed whole. RAFSD_LONG=1 makes it a million.
func TestManyInodes(t *testing.T) {
	names := 20_000
	if os.Getenv("RAFSD_LONG") == "1" {
		names = 1_000_000
	}
	for _, o := range []testimage.Options{{Version: 5}, {Version: 6}} {
		t.Run(fmt.Sprint("v", o.Version), func(t *testing.T) {
			written := write(t, testimage.Wide(names, names), o)
			start := time.Now()
			img := mustOpen(t, written.Bootstrap)
			opened := time.Since(start)
			if allowed := 100 * time.Millisecond; opened > allowed {
				t.Errorf("opening %d inodes took %v, want less than %v", names, opened, allowed)
			}
			start = time.Now()
			var found int
			if err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
				found++
				return w.Err
			}); err != nil {
				t.Fatal(err)
			}
			walked := time.Since(start)
			if want := names + 2; found != want {
				t.Errorf("%d paths, want %d", found, want)
			}
			start = time.Now()
			if _, err := img.ChunkCount(0); err != nil {
				t.Fatal(err)
			}
			indexed := time.Since(start)
			start = time.Now()
			if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return false }); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d inodes, %d MiB: open %v, walk %v, chunk index %v, check %v",
				names, written.Layout.Size>>20, opened, walked, indexed, time.Since(start))
		})
	}
}
