package corpus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/manifest"
)

// Variant is one image of the corpus that the reference daemon could serve.
type Variant struct {
	Name      string
	Bootstrap string
	// Plain: every chunk stands for itself in a blob of the backend, so that
	// the bootstrap alone describes it (no batch, zran, tarfs, encryption).
	Plain bool

	dir, truth string
}

// Variants lists the images with a bootstrap of their own and a known truth, in
// order of name.
func Variants(t testing.TB) []Variant {
	t.Helper()
	dir := Dir(t)
	index, err := os.ReadFile(filepath.Join(dir, "served", "INDEX"))
	if err != nil {
		t.Fatal(err)
	}
	var all []Variant
	for line := range strings.Lines(string(index)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[1] == "-" {
			continue
		}
		v := Variant{
			Name:      fields[0],
			Bootstrap: filepath.Join(dir, "images", fields[0], "bootstrap"),
			Plain:     isPlain(fields[0]),
			dir:       dir,
			truth:     filepath.Join(dir, "served", fields[1]+".manifest"),
		}
		if _, err := os.Stat(v.Bootstrap); err == nil {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s names no image", filepath.Join(dir, "served", "INDEX"))
	}
	return all
}

// PlainVariants lists the plain ones.
func PlainVariants(t testing.TB) []Variant {
	t.Helper()
	var plain []Variant
	for _, v := range Variants(t) {
		if v.Plain {
			plain = append(plain, v)
		}
	}
	return plain
}

func isPlain(name string) bool {
	for _, part := range strings.Split(name, "-") {
		switch part {
		case "batch", "encrypt", "ref", "tarfs", "batch16k", "batch64k":
			return false
		}
	}
	return true
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
