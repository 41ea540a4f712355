package v6_test

import (
	"testing"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/v6"
)

// TestPrefetchBlob: a blob with copies of chunks to prefetch is like any other, if
// what the image says of it holds together.
func TestPrefetchBlob(t *testing.T) {
	f := newFixture(t)
	f.feature(1, rafs.BlobPrefetchCopies, 0)
	img, err := v6.Open(rafs.NewBootstrap("boot", f.b))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if err := img.Check(func(x rafs.Fault) bool { t.Error(x); return true }); err != nil {
		t.Fatal(err)
	}
	if n, err := img.ChunkCount(1); err != nil || n == 0 {
		t.Errorf("%d chunks of the second blob, %v", n, err)
	}
}
