package v6_test

import (
	"errors"
	"os"
	"testing"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/v6"
)

// FuzzImage opens hostile bootstraps, uses everything in them and checks them:
// this must end, stay in bounds, and keep the promises of rafs.Image. A bootstrap
// is one of the written images with edits (see rafstest.Edit), or the edits
// themselves.
func FuzzImage(f *testing.F) {
	tree := testimage.NewTree()
	tree.File("/a", []byte("content"), testimage.Xattr("user.x", "value"), testimage.Xattr("security.y", ""))
	tree.SizedFile("/d/b", 9000, 1)
	tree.Link("/d/link", "/a")
	tree.Symlink("/d/s", "../a")
	tree.Dir("/d/e")
	tree.Device("/d/null", false, 1, 3)
	tree.Fifo("/p")
	var images [][]byte
	for _, o := range []testimage.Options{
		{Compressor: testimage.LZ4, Prefetch: []string{"/d/b"}},
		{ChunkSize: 4096, Blobs: 2},
		{Compact: true, Compressor: testimage.Gzip},
	} {
		img, err := tree.Write(f.TempDir(), o)
		if err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(img.Bootstrap)
		if err != nil {
			f.Fatal(err)
		}
		images = append(images, b)
		f.Add(uint8(len(images)-1), []byte{})
	}
	f.Add(uint8(len(images)), images[0])
	f.Add(uint8(0), []byte{0x08, 0x20, 0, 2, 1, 0, 0, 0, 0, 0x30, 0, 3, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, image uint8, edits []byte) {
		b := edits
		if int(image) < len(images) {
			b = rafstest.Edit(images[image], edits)
		}
		img, err := v6.Open(rafs.NewBootstrap("fuzz", b))
		if err != nil {
			if !errors.Is(err, rafs.ErrDamaged) && !errors.Is(err, rafs.ErrUnsupported) && !errors.Is(err, rafs.ErrNotRAFS) {
				t.Fatalf("Open: %v, want one of the three kinds of refusal", err)
			}
			return
		}
		if err := rafstest.Visit(img); err != nil {
			t.Fatal(err)
		}
		if n := len(img.Prefetch()); n > len(b)/4 {
			t.Fatalf("%d prefetch entries from %d bytes", n, len(b))
		}
		faults := 0
		if err := img.Check(func(rafs.Fault) bool { faults++; return faults < 100 }); err != nil {
			t.Fatalf("Check: %v", err)
		}
		if faults > 100 {
			t.Fatal("Check went on after it was told to stop")
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
