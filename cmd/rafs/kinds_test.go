package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// TestExternalBlob: the metadata of files in a foreign object are shown; their
// data are asked for under the name that the image has for them, and compared
// with the CRCs that it has.
func TestExternalBlob(t *testing.T) {
	image := filepath.Join(corpus.Dir(t), "images", "v6-dir-zstd-external-small", "bootstrap.external")
	if out := ok(t, "tree", image); !strings.Contains(out, "f05") {
		t.Errorf("tree: %s", out)
	}
	if out := ok(t, "check", image); !strings.Contains(out, "metadata is sound") {
		t.Errorf("check: %s", out)
	}
	blobs := t.TempDir()
	fails(t, 1, []string{"an EXTERNAL blob", "must be there under this name", "no such file"}, "cat", image, "-D", blobs, "/data/b65536")
	id := strings.Repeat("e", 64)
	if err := os.WriteFile(filepath.Join(blobs, id), make([]byte, 1_000_000), 0o644); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, []string{"verify", id}, "cat", image, "-D", blobs, "/data/b65536")
}

// TestOptimizedImage: what the reference's own optimize writes contradicts itself,
// and is refused by the name of the structure.
func TestOptimizedImage(t *testing.T) {
	image := filepath.Join(corpus.Dir(t), "images", "v6-optimize-zstd-small", "bootstrap")
	fails(t, 1, []string{"optimized image with inconsistent prefetch blob", "72 bytes of chunk information for 3 chunks"}, "check", image)
}

// TestLegacyStargz: builders that saw only a layer's index could not know how long
// a gzip member is, and recorded an estimate that reaches into the next one. Such
// images also have no block counts.
func TestLegacyStargz(t *testing.T) {
	le := binary.LittleEndian
	tree := testimage.NewTree()
	paths := []string{"/a", "/b/c", "/b/d", "/e"}
	for i, path := range paths {
		tree.FileOf(path, testimage.Random(int64(5000+i*20000), uint64(i)))
	}
	tree.SizedFile("/big", 9<<20, 7)
	img, err := tree.Write(t.TempDir(), testimage.Options{Version: 5, Compressor: testimage.Gzip, ChunkSize: 4 << 20, Digest: testimage.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(img.Blobs[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	longer := 0
	for _, path := range append(paths, "/big") {
		l, err := img.Inode(path)
		if err != nil {
			t.Fatal(err)
		}
		le.PutUint64(b[l.Record.Offset+72:], 0)
		for at := l.Chunks.Offset; at < l.Chunks.End(); at += 80 {
			if b[at+36]&1 == 0 {
				continue // stored as it is
			}
			n, off := le.Uint32(b[at+44:]), le.Uint64(b[at+48:])
			estimate := min(n+151+n/16384*5, uint32(uint64(st.Size())-off))
			if estimate > le.Uint32(b[at+40:]) {
				longer++
			}
			le.PutUint32(b[at+40:], max(estimate, le.Uint32(b[at+40:])))
		}
	}
	if longer == 0 {
		t.Fatal("no size became an estimate")
	}
	image := filepath.Join(t.TempDir(), "image.boot")
	if err := os.WriteFile(image, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := manifest.Parse([]byte(ok(t, "manifest", image, "-D", img.BlobDir)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if d := manifest.Compare(got, want, manifest.Options{}); !d.Equal() {
		t.Error(d)
	}
	if out := ok(t, "check", image, "-D", img.BlobDir, "--data"); !strings.Contains(out, "metadata and data are sound") {
		t.Errorf("check: %s", out)
	}
}
