package open_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// tarHeader is the header that stands behind a section.
func tarHeader(name string, size int) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[124:], fmt.Sprintf("%011o", size))
	h[156] = '0'
	copy(h[257:], "ustar  \x00")
	sum := 8 * int(' ')
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// packed is a blob with sections, their names and contents by turns.
func packed(sections ...any) []byte {
	var b []byte
	for i := 0; i < len(sections); i += 2 {
		content := sections[i+1].([]byte)
		b = append(append(b, content...), tarHeader(sections[i].(string), len(content))...)
	}
	return b
}

// tocOf is a table of contents with one entry, of a bootstrap.
func tocOf(boot []byte, size int) []byte {
	e := make([]byte, 128)
	e[0] = 2
	copy(e[8:], "image.boot")
	sum := sha256.Sum256(boot)
	copy(e[24:], sum[:])
	binary.LittleEndian.PutUint64(e[72:], uint64(size))
	return e
}

func compress(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// TestBlobWithBootstrap opens blobs that hold their bootstrap, packed in every
// way.
func TestBlobWithBootstrap(t *testing.T) {
	data := bytes.Repeat([]byte("data"), 777)
	for _, version := range []int{5, 6} {
		boot := written(t, testimage.Version(version))
		for name, blob := range map[string][]byte{
			"bootstrap alone": packed("image.boot", boot),
			"behind data":     packed("image.blob", data, "image.boot", boot),
			"behind all":      packed("image.blob", data, "blob.meta", data[:99], "blob.digest", data[:64], "image.boot", boot),
			"with toc":        packed("image.blob", data, "image.boot", boot, "rafs.blob.toc", tocOf(boot, len(boot))),
			"compressed":      packed("image.blob", data, "image.boot", compress(boot), "rafs.blob.toc", tocOf(boot, len(boot))),
			"no mark, no toc": packed("image.boot", compress(boot)),
		} {
			t.Run(fmt.Sprintf("v%d/%s", version, name), func(t *testing.T) {
				path := put(t, filepath.Join(t.TempDir(), "blob"), blob)
				sum := sha256.Sum256(boot)
				img, err := open.Image(path, open.Options{Digest: &sum})
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				if img.Info().Version != version || img.Info().Size != int64(len(boot)) {
					t.Errorf("v%d of %d bytes, want v%d of %d", img.Info().Version, img.Info().Size, version, len(boot))
				}
				if err := img.Check(func(f rafs.Fault) bool { t.Error(f); return true }); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestBlobWithBadBootstrap: what does not fit together is refused by name.
func TestBlobWithBadBootstrap(t *testing.T) {
	boot := written(t, 6)
	frame := compress(boot)
	bomb := compress(make([]byte, 64<<20))
	cut := func(b []byte) []byte { return b[:len(b)-7] }
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }
	for name, tt := range map[string]struct {
		blob []byte
		is   error
		says string
	}{
		"other digest":     {packed("image.boot", boot, "rafs.blob.toc", tocOf(flip(boot), len(boot))), rafs.ErrDamaged, "the table of contents says"},
		"other size":       {packed("image.boot", boot, "rafs.blob.toc", tocOf(boot, len(boot)+1)), rafs.ErrDamaged, "the table of contents says"},
		"other frame size": {packed("image.boot", frame, "rafs.blob.toc", tocOf(boot, 8192)), rafs.ErrDamaged, "the table of contents says 8192"},
		"cut frame":        {packed("image.boot", cut(frame), "rafs.blob.toc", tocOf(boot, len(boot))), rafs.ErrDamaged, "does not decode"},
		"bomb":             {packed("image.boot", bomb), rafs.ErrDamaged, "67108864 bytes in"},
		"toc of odd size":  {packed("image.boot", boot, "rafs.blob.toc", make([]byte, 100)), rafs.ErrDamaged, "table of contents at offset"},
		"size too large":   {append(packed("image.blob", boot), tarHeader("image.boot", 1<<30)...), rafs.ErrDamaged, "a multiple of 4096"},
		"only a toc":       {packed("image.blob", boot, "rafs.blob.toc", tocOf(boot, 1)), rafs.ErrNotRAFS, "without a bootstrap in it"},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := open.Image(put(t, filepath.Join(t.TempDir(), "blob"), tt.blob), open.Options{})
			if err == nil {
				img.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("refused with %q, want %v saying %q", err, tt.is, tt.says)
			}
		})
	}
}

// TestBlobsOfTheCorpus: each blob that holds a bootstrap shows the same tree and
// the same blobs as the bootstrap that was cut out of it.
func TestBlobsOfTheCorpus(t *testing.T) {
	dir := corpus.Dir(t)
	cut, err := filepath.Glob(filepath.Join(dir, "images", "*-inline*", "bootstraps", "*"))
	if err != nil || len(cut) < 6 {
		t.Fatalf("%d bootstraps that were cut out of blobs, %v", len(cut), err)
	}
	for _, path := range cut {
		blob := filepath.Join(filepath.Dir(filepath.Dir(path)), "blobs", filepath.Base(path))
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(path))), func(t *testing.T) {
			if _, err := os.Stat(blob); err != nil {
				t.Fatal(err)
			}
			want, wantErr := open.Image(path, open.Options{})
			got, err := open.Image(blob, open.Options{})
			if wantErr != nil {
				if err == nil || !errors.Is(err, rafs.ErrUnsupported) {
					t.Errorf("the blob: %v, the bootstrap: %v", err, wantErr)
				}
				return
			}
			defer want.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if fmt.Sprint(got.Blobs()) != fmt.Sprint(want.Blobs()) {
				t.Errorf("blobs %v, want %v", got.Blobs(), want.Blobs())
			}
			a, _, err := rafstest.Manifest(got, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, _, err := rafstest.Manifest(want, nil)
			if err != nil {
				t.Fatal(err)
			}
			if d := manifest.Compare(a, b, manifest.Options{}); !d.Equal() || len(a) == 0 {
				t.Errorf("%d paths:\n%s", len(a), d)
			}
		})
	}
}

// FuzzBlob opens hostile files of any kind: blobs with sections, bootstraps, and
// what is neither.
func FuzzBlob(f *testing.F) {
	for _, version := range []testimage.Version{5, 6} {
		boot := written(f, version)
		f.Add(boot)
		f.Add(packed("image.blob", []byte("data"), "image.boot", boot))
		f.Add(packed("image.blob", []byte("data"), "image.boot", compress(boot), "rafs.blob.toc", tocOf(boot, len(boot))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		boot := rafs.NewBootstrap("fuzz", b)
		img, err := open.Bootstrap(boot)
		if err != nil {
			if !errors.Is(err, rafs.ErrDamaged) && !errors.Is(err, rafs.ErrUnsupported) && !errors.Is(err, rafs.ErrNotRAFS) {
				t.Fatalf("%v, want one of the three kinds of refusal", err)
			}
			if err := boot.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := errors.Join(rafstest.Visit(img), img.Close()); err != nil {
			t.Fatal(err)
		}
	})
}
