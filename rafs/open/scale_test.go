package open_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/open"
)

// TestScale opens images of many files: the first lookup costs no heap to speak
// of, and a walk over all files no more than their directories. RAFSD_LONG=1 takes
// a million files instead of a hundred thousand.
func TestScale(t *testing.T) {
	const perDir = 1000
	dirs := 100
	if os.Getenv("RAFSD_LONG") == "1" {
		dirs = 1000
	}
	tree := testimage.NewTree()
	for i := range dirs {
		for k := range perDir {
			tree.File(fmt.Sprintf("/d%03d/%04d", i, k), nil)
		}
	}
	for _, version := range []testimage.Version{5, 6} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			path := write(t, tree, testimage.Options{Version: version}).Bootstrap
			runtime.GC()
			base := heap()
			start := time.Now()
			img, err := open.Image(path, open.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			dir, err := img.Lookup(img.Root(), []byte("d042"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := img.Lookup(dir, []byte("0777")); err != nil {
				t.Fatal(err)
			}
			took, grown := time.Since(start), heap()-base
			if grown > 4<<20 {
				t.Errorf("open and two lookups: the heap grew by %d KiB", grown>>10)
			}
			var most int64
			names := 0
			start = time.Now()
			if err := rafs.Walk(img, func(e *rafs.WalkEntry) error {
				if names++; names%10_000 == 0 {
					most = max(most, heap()-base)
				}
				return e.Err
			}); err != nil {
				t.Fatal(err)
			}
			if want := 1 + dirs*(perDir+1); names != want {
				t.Errorf("%d names, want %d", names, want)
			}
			if most > 32<<20 {
				t.Errorf("a walk of %d names: the heap grew by %d KiB", names, most>>10)
			}
			t.Logf("%d bytes of metadata: open and two lookups took %v and %d KiB, a walk of %d names %v and %d KiB",
				img.Info().Size, took, grown>>10, names, time.Since(start), most>>10)
		})
	}
}

// heap is what is on the heap, garbage included.
func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
