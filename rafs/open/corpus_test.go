package open_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// refused says which variants of the corpus this reader does not serve: a part
// of their name, and what the refusal must name.
var refused = []struct{ part, why string }{
	{"v5-dir-zstd-encrypt", "ENCRYPTED"}, // the reference's own daemon cannot read it
	{"optimize", "optimized image with inconsistent prefetch blob"},
}

// TestCorpus opens every image of the corpus: those of this reader's kinds are
// equal to what the reference served, contents included, and Check finds
// nothing; all others are refused by name.
func TestCorpus(t *testing.T) {
	dir := corpus.Dir(t)
	all := rafstest.Variants(t, dir)
	images, err := os.ReadDir(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if len(images) == 0 {
		t.Fatal("the corpus has no images")
	}
	for _, image := range images {
		variant := image.Name()
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			path := rafstest.Bootstrap(t, dir, variant)
			for _, r := range refused {
				if strings.Contains(variant+"-", r.part) {
					mustRefuse(t, path, r.why)
					return
				}
			}
			img, err := open.Image(path, open.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			want, err := manifest.ReadFile(all[variant])
			if err != nil {
				t.Fatal(err)
			}
			if variant == rafstest.DamagedVariant {
				checkDamaged(t, img, filepath.Join(dir, "images", variant, "blobs"), want)
				return
			}
			var src rafstest.Source = &rafstest.BlobDir{
				Dir:  filepath.Join(dir, "images", variant, "blobs"),
				More: []string{filepath.Join(dir, "source-blobs")},
			}
			if strings.Contains(variant, "blobcachedir") {
				src = rafstest.CacheDir{Dir: filepath.Join(dir, "images", variant, "cache"), Suffix: ".blob.data"}
			}
			got, damaged, err := rafstest.Manifest(img, src)
			if err != nil {
				t.Fatal(err)
			}
			if len(damaged) != 0 {
				t.Errorf("%d damaged paths, the first: %s: %v", len(damaged), damaged[0].Path, damaged[0].Err)
			}
			if diff := manifest.Compare(got, want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
				t.Errorf("differs from %s:\n%s", all[variant], diff)
			}
			if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return true }); err != nil {
				t.Error(err)
			}
		})
	}
}

func mustRefuse(t *testing.T, path, why string) {
	t.Helper()
	img, err := open.Image(path, open.Options{})
	if err == nil {
		img.Close()
		t.Fatalf("opened, want a refusal that names %s", why)
	}
	if !errors.Is(err, rafs.ErrUnsupported) || !strings.Contains(err.Error(), why) {
		t.Errorf("refused with %q, want ErrUnsupported naming %s", err, why)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("refused with several lines: %q", err)
	}
}

// checkDamaged: the sound entries of the damaged image are right, the others
// answer ErrDamaged, and Check says what to do.
func checkDamaged(t *testing.T, img rafs.Image, blobs string, want []manifest.Entry) {
	got, damaged, err := rafstest.Manifest(img, &rafstest.BlobDir{Dir: blobs})
	if err != nil {
		t.Fatal(err)
	}
	if len(damaged) == 0 || len(got) == 0 {
		t.Fatalf("%d paths, %d damaged: want some of both", len(got), len(damaged))
	}
	for _, d := range damaged {
		if !errors.Is(d.Err, rafs.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", d.Path, d.Err)
		}
	}
	truth := map[string]manifest.Entry{}
	for _, e := range want {
		truth[e.Path] = e
	}
	var right []manifest.Entry
	for _, e := range got {
		if w, ok := truth[e.Path]; ok {
			right = append(right, w)
		}
	}
	o := manifest.Options{MountTimes: manifest.MountTimesEpoch, Ignore: []string{"hardlink"}} // some names are lost
	if diff := manifest.Compare(got, right, o); !diff.Equal() {
		t.Errorf("sound entries differ:\n%s", diff)
	}
	var faults, advice int
	if err := img.Check(func(f rafs.Fault) bool {
		faults++
		if strings.Contains(f.String(), "build the image again") {
			advice++
			if !strings.Contains(f.String(), "56 of 258") {
				t.Errorf("Check: %s, want 56 of 258 entries", f)
			}
		}
		return true
	}); err != nil {
		t.Error(err)
	}
	if advice != 1 || faults < 56 {
		t.Errorf("Check found %d faults and gave advice %d times", faults, advice)
	}
	t.Logf("%d of %d paths are served, %d directories are incomplete", len(got), len(want), len(damaged))
}

// TestEveryFileOfTheCorpus opens whatever is there: layers, dictionaries, blobs,
// manifests. Each is an image that can be used, or is refused as what it is.
func TestEveryFileOfTheCorpus(t *testing.T) {
	dir := corpus.Dir(t)
	opened, refusedAs := 0, map[error]int{}
	for _, part := range []string{"images", "textures", "source-blobs"} {
		if err := filepath.WalkDir(filepath.Join(dir, part), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			img, err := open.Image(path, open.Options{})
			if err == nil {
				opened++
				if err := rafstest.Visit(img); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				return img.Close()
			}
			for _, kind := range []error{rafs.ErrNotRAFS, rafs.ErrUnsupported, rafs.ErrDamaged} {
				if errors.Is(err, kind) {
					refusedAs[kind]++
					t.Log(err)
					return nil
				}
			}
			t.Errorf("%v: none of the three kinds of refusal", err)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if opened < 60 || refusedAs[rafs.ErrNotRAFS] == 0 || refusedAs[rafs.ErrUnsupported] == 0 {
		t.Errorf("%d opened, refused: %v", opened, refusedAs)
	}
}

// TestExternal: metadata that an image keeps apart for files in a foreign object
// are read like any other; nothing is needed of the object.
func TestExternal(t *testing.T) {
	path := filepath.Join(corpus.Dir(t), "images", "v6-dir-zstd-external-small", "bootstrap.external")
	img, err := open.Image(path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if err := img.Check(func(f rafs.Fault) bool { t.Errorf("Check: %s", f); return true }); err != nil {
		t.Error(err)
	}
	b := img.Blobs()
	if len(b) != 1 || b[0].Features&rafs.BlobExternal == 0 {
		t.Fatalf("blobs %+v, want one that is EXTERNAL", b)
	}
	want := [4]struct{ off, size uint64 }{{131072, 65536}, {196608, 36864}, {0, 65536}, {65536, 686}}
	for i, w := range want {
		var c rafs.Chunk
		if err := img.Chunk(0, uint32(i), &c); err != nil {
			t.Fatal(err)
		}
		if c.CompressedOffset != w.off || uint64(c.CompressedSize) != w.size || c.Flags != rafs.ChunkHasCRC {
			t.Errorf("chunk %d: %+v, want %+v with a CRC", i, c, w)
		}
	}
}
