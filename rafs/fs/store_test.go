package fs_test

import (
	"context"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs/fs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openStore opens a store over a folder of blobs and a folder for its cache.
func openStore(t *testing.T, blobs, cache string) *blobstore.Store {
	t.Helper()
	b, err := localfs.New(localfs.Options{Dir: blobs, AltDirs: []string{filepath.Join(blobs, "../../../source-blobs")}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := blobstore.Open(blobstore.Options{Dir: cache, Backend: b, Amplification: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openThrough(t *testing.T, s *blobstore.Store, bootstrap string) *fs.FS {
	t.Helper()
	img, err := open.Image(bootstrap, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.New(img, func(d blobstore.BlobDesc) (fs.Blob, error) { return s.Blob(d) }, fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestThroughStore serves whole images through a real store: cold, warm, and
// after a restart, when nothing is fetched.
func TestThroughStore(t *testing.T) {
	dir := corpus.Dir(t)
	for _, variant := range []string{
		"v5-dir-lz4-blake3-small", "v5-dir-zstd-chunkdict-small", "v5-dir-zstd-aligned-small", "v5-dir-none-sha256-small",
		"v6-dir-lz4-blake3-small", "v6-dir-zstd-chunkdict-small", "v6-merge3-targz-rafs-toc-oci", "v6-dir-zstd-toc-small",
		"v6-dir-zstd-batch-small", "v6-dir-lz4-batch-small", "v6-dir-zstd-64k-batch16k-dict", "v6-dir-zstd-inline-toc-batch-small",
		"v6-dir-zstd-batch-encrypt-small", "v6-dir-lz4-encrypt-small", "v6-dir-none-4k-encrypt-dict", "v6-merge3-batch-encrypt-oci", "v6-dir-zstd-inline-toc-encrypt-small",
		"v6-targz-ref-edge", "v6-targz-ref-bgzip-small", "v6-targz-ref-2member-small", "v6-targz-ref-inline-toc-small",
		"v6-merge3-targz-ref-oci", "v6-estargz-ref-small",
	} {
		t.Run(variant, func(t *testing.T) {
			want, err := manifest.ReadFile(rafstest.Variants(t, dir)[variant])
			if err != nil {
				t.Fatal(err)
			}
			bootstrap := rafstest.Bootstrap(t, dir, variant)
			blobs, cache := filepath.Join(dir, "images", variant, "blobs"), t.TempDir()
			for _, start := range []string{"cold", "restarted"} {
				s := openStore(t, blobs, cache)
				f := openThrough(t, s, bootstrap)
				compare := func(when string) {
					if diff := manifest.Compare(tree(t, f, 32<<10), want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
						t.Errorf("%s:\n%s", when, diff)
					}
				}
				compare(start)
				requests := s.Stats().Requests
				if start == "restarted" && requests != 0 {
					t.Errorf("%d requests after a restart, want none", requests)
				}
				if start == "cold" && requests == 0 {
					t.Error("nothing was fetched")
				}
				compare("warm")
				if again := s.Stats().Requests; again != requests {
					t.Errorf("%d requests for what was there", again-requests)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestOneRequest: a small read of a cold image takes one request of the blob.
func TestOneRequest(t *testing.T) {
	dir := corpus.Dir(t)
	for _, variant := range []string{"v5-dir-zstd-4k-small", "v6-dir-zstd-4k-small"} {
		t.Run(variant, func(t *testing.T) {
			s := openStore(t, filepath.Join(dir, "images", variant, "blobs"), t.TempDir())
			f := openThrough(t, s, rafstest.Bootstrap(t, dir, variant))
			_, attr := bySize(t, f, 1)
			if attr.Size > 4096 {
				t.Fatalf("the smallest file has %d bytes", attr.Size)
			}
			in := &fuseproto.ReadIn{Size: 4096}
			buf := make([]byte, 4096)
			op := fuseproto.NewOp(context.Background())
			if err := f.Read(new(fuseproto.Op), attr.Ino, in, fuseproto.NewOut(buf)); err != fuseproto.ErrWouldBlock {
				t.Errorf("without leave to block: %v", err)
			}
			if err := f.Read(op, attr.Ino, in, fuseproto.NewOut(buf)); err != nil {
				t.Fatal(err)
			}
			if st := s.Stats(); st.Requests != 1 {
				t.Errorf("%d requests, want 1", st.Requests)
			}
			if err := f.Read(new(fuseproto.Op), attr.Ino, in, fuseproto.NewOut(buf)); err != nil {
				t.Errorf("warm, without leave to block: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
