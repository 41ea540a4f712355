package corpus

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/manifest"
)

// Variant is one image of the corpus that can be read, and what is true of it.
type Variant struct {
	Name string
	// Bootstrap is the file to open: the bootstrap, or the blob that holds it.
	Bootstrap string

	dir, truth string
}

// sameTree names variants that the reference daemon cannot serve, and others of
// the same tree that it can.
var sameTree = map[string]string{"v6-merge3-batch-encrypt-oci": "v6-merge3-batch-oci"}

// Variants lists the images with a known truth, in order of name.
func Variants(t testing.TB) []Variant {
	t.Helper()
	dir := Dir(t)
	index, err := os.ReadFile(filepath.Join(dir, "served", "INDEX"))
	if err != nil {
		t.Fatal(err)
	}
	truth := map[string]string{}
	for line := range strings.Lines(string(index)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[1] != "-" {
			truth[fields[0]] = fields[1]
		}
	}
	for name, as := range sameTree {
		truth[name] = truth[as]
	}
	var all []Variant
	for _, name := range slices.Sorted(maps.Keys(truth)) {
		images := filepath.Join(dir, "images", name)
		v := Variant{
			Name:      name,
			Bootstrap: filepath.Join(images, "bootstrap"),
			dir:       dir,
			truth:     filepath.Join(dir, "served", truth[name]+".manifest"),
		}
		if _, err := os.Stat(v.Bootstrap); err != nil {
			cut, err := os.ReadDir(filepath.Join(images, "bootstraps"))
			if err != nil || len(cut) != 1 {
				continue
			}
			v.Bootstrap = filepath.Join(images, "blobs", cut[0].Name())
		}
		all = append(all, v)
	}
	if len(all) < 70 {
		t.Fatalf("%s names %d images", filepath.Join(dir, "served", "INDEX"), len(all))
	}
	return all
}

// Truth is what a reader of the image must show. An mtime that the reference
// showed as its time of mounting is to be compared with manifest.MountTimesEpoch.
func (v Variant) Truth(t testing.TB) []manifest.Entry {
	t.Helper()
	entries, err := manifest.ReadFile(v.truth)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// LinkBlobs puts links to the variant's blobs, named by blob id, into dir.
func (v Variant) LinkBlobs(t testing.TB, dir string) {
	t.Helper()
	for _, from := range []string{filepath.Join(v.dir, "images", v.Name, "blobs"), filepath.Join(v.dir, "source-blobs")} {
		blobs, err := os.ReadDir(from)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, b := range blobs {
			err := os.Symlink(filepath.Join(from, b.Name()), filepath.Join(dir, b.Name()))
			if err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
}

// Blobs returns a new folder with the variant's blobs, named by blob id.
func (v Variant) Blobs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	v.LinkBlobs(t, dir)
	return dir
}
