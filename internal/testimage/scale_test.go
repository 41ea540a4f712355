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
