package open_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
)

// TestV6OfNydus22 reads an image that an older builder wrote, contents included.
func TestV6OfNydus22(t *testing.T) {
	dir := filepath.Join(corpus.Dir(t), "textures")
	img := mustOpen(t, filepath.Join(dir, "bootstrap", "rafs-v6-2.2.boot"))
	got, damaged, err := rafstest.Manifest(img, &rafstest.BlobDir{Dir: filepath.Join(dir, "blobs")})
	if err != nil || len(damaged) != 0 {
		t.Fatalf("%v, %d damaged", err, len(damaged))
	}
	sizes := map[string]uint64{}
	for _, e := range got {
		if e.Type == manifest.Regular {
			sizes[e.Path] = e.Size
		}
	}
	if len(got) != 3 || sizes["/lib.rs"] != 16931 || sizes["/sync_io.rs"] != 13400 {
		t.Errorf("%d paths, sizes %v", len(got), sizes)
	}
	if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return true }); err != nil {
		t.Error(err)
	}
}

// TestV5OfOldBuilders compares names with what tree(1) printed of them.
func TestV5OfOldBuilders(t *testing.T) {
	dir := filepath.Join(corpus.Dir(t), "textures", "repeatable")
	for _, name := range []string{"sha256-nocompress-repeatable", "blake3-lz4_block-non_repeatable"} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Open(filepath.Join(dir, name+".result"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			type node struct {
				Name     string
				Contents []node
			}
			var top []node
			if err := json.NewDecoder(f).Decode(&top); err != nil {
				t.Fatal(err)
			}
			var want []string
			var collect func(path string, n []node)
			collect = func(path string, n []node) {
				for _, n := range n {
					want = append(want, path+"/"+n.Name)
					collect(path+"/"+n.Name, n.Contents)
				}
			}
			collect("", top[0].Contents)
			var got []string
			img := mustOpen(t, filepath.Join(dir, name))
			if err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
				if w.Depth > 0 {
					got = append(got, string(w.Path))
				}
				return w.Err
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%d names, want %d:\n%q\n%q", len(got), len(want), got, want)
			}
			if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return true }); err != nil {
				t.Error(err)
			}
		})
	}
}
