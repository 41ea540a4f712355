package open_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/open"
)

// refused says which variants of the corpus this reader does not serve: a part
// of their name, and what the refusal must name.
var refused = []struct{ part, why string }{
	{"encrypt", "ENCRYPT"},
	{"batch", "BATCH"},
	{"-ref-", "ZRAN"},
	{"tarfs", "TARTFS_MODE"},
	{"optimize", "optimized image with inconsistent prefetch blob"},
}

const damagedVariant = "v5-tar-rafs-lz4-small"

// variants returns the names of the corpus's images with the manifest that holds
// for each, "" where there is none.
func variants(t testing.TB, dir string) map[string]string {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(dir, "served", "INDEX"))
	if err != nil {
		t.Fatal(err)
	}
	manifests := map[string]string{}
	for line := range strings.Lines(string(index)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] == "#" {
			continue
		}
		manifests[fields[0]] = filepath.Join(dir, "served", fields[1]+".manifest")
		if fields[1] == "-" {
			manifests[fields[0]] = ""
		}
	}
	// The reference cannot serve these, but other images of the same sources.
	manifests["v6-dir-blobcachedir-dict"] = manifests["v6-dir-zstd-16k-dict"]
	manifests[damagedVariant] = manifests["v6-tar-rafs-zstd-small"]
	return manifests
}

// bootstrapOf returns the bootstrap of a variant: the file of that name, or the
// one that was cut out of its blob and has the blob's id for a name.
func bootstrapOf(t testing.TB, dir, variant string) string {
	t.Helper()
	path := filepath.Join(dir, "images", variant, "bootstrap")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	found, err := filepath.Glob(filepath.Join(dir, "images", variant, "bootstraps", "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %d bootstraps, %v", variant, len(found), err)
	}
	return found[0]
}

// source yields the bytes of chunks.
type source interface {
	chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error)
}

// blobDir reads stored chunks from files named by blob id, and verifies them.
type blobDir struct {
	dir   string
	blobs map[string][]byte
	last  struct {
		blob  int
		index uint32
		data  []byte
	}
}

func (s *blobDir) chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error) {
	if s.last.data != nil && s.last.blob == blob && s.last.index == index {
		return s.last.data, nil
	}
	b := &img.Blobs()[blob]
	stored, ok := s.blobs[b.ID]
	if !ok {
		var err error
		if stored, err = os.ReadFile(filepath.Join(s.dir, b.ID)); err != nil {
			return nil, err
		}
		if s.blobs == nil {
			s.blobs = map[string][]byte{}
		}
		s.blobs[b.ID] = stored
	}
	if c.CompressedOffset+uint64(c.CompressedSize) > uint64(len(stored)) {
		return nil, fmt.Errorf("chunk %d at %d+%d of a blob of %d", index, c.CompressedOffset, c.CompressedSize, len(stored))
	}
	algorithm := codec.Algorithm(b.Compressor)
	if c.Flags&rafs.ChunkCompressed == 0 {
		algorithm = codec.Algorithm(rafs.CompressorNone)
	}
	data := make([]byte, c.UncompressedSize)
	if err := codec.Decode(algorithm, data, stored[c.CompressedOffset:][:c.CompressedSize]); err != nil {
		return nil, fmt.Errorf("chunk %d of blob %d: %w", index, blob, err)
	}
	if got := codec.Sum(codec.Digester(b.Digester), data); got != c.Digest {
		return nil, fmt.Errorf("chunk %d of blob %d: digest %x, want %x", index, blob, got, c.Digest)
	}
	if c.Flags&rafs.ChunkHasCRC != 0 {
		if got := codec.CRC32C(data); got != c.CRC32C {
			return nil, fmt.Errorf("chunk %d of blob %d: CRC %#x, want %#x", index, blob, got, c.CRC32C)
		}
	}
	s.last.blob, s.last.index, s.last.data = blob, index, data
	return data, nil
}

// cacheDir reads chunks from files of uncompressed data, at their place.
type cacheDir struct{ dir string }

func (s cacheDir) chunk(img rafs.Image, blob int, _ uint32, c *rafs.Chunk) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, img.Blobs()[blob].ID+".blob.data"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, c.UncompressedSize)
	_, err = f.ReadAt(data, int64(c.UncompressedOffset))
	return data, err
}

// content writes the content of a regular file to h, asking for step bytes of
// extents at a time.
func content(img rafs.Image, src source, a *rafs.Attr, step uint64, h interface{ Write([]byte) (int, error) }) error {
	var extents []rafs.Extent
	for off := uint64(0); off < a.Size; {
		var err error
		if extents, err = img.Extents(a.Ino, off, step, extents[:0]); err != nil {
			return err
		}
		start := off
		for _, e := range extents {
			if e.FileOffset != off || e.Length == 0 {
				return fmt.Errorf("extent at %d of %d bytes, want one at %d", e.FileOffset, e.Length, off)
			}
			off += uint64(e.Length)
			if e.Blob < 0 {
				h.Write(make([]byte, e.Length))
				continue
			}
			var c rafs.Chunk
			if err := img.Chunk(int(e.Blob), e.Chunk, &c); err != nil {
				return err
			}
			if c.UncompressedOffset+uint64(e.ChunkOffset) != e.UncompressedOffset {
				return fmt.Errorf("extent at %d of the blob, chunk at %d and %d in it", e.UncompressedOffset, c.UncompressedOffset, e.ChunkOffset)
			}
			data, err := src.chunk(img, int(e.Blob), e.Chunk, &c)
			if err != nil {
				return err
			}
			h.Write(data[e.ChunkOffset:][:e.Length])
		}
		if want := min(start+step, a.Size); off != want {
			return fmt.Errorf("extents of [%d,+%d) end at %d, want %d", start, step, off, want)
		}
	}
	return nil
}

// manifestOf lists an image as a manifest. src may be nil: contents are then
// left out.
func manifestOf(img rafs.Image, src source) ([]manifest.Entry, []rafs.WalkEntry, error) {
	var (
		all     manifest.Collector
		damaged []rafs.WalkEntry
	)
	err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
		if w.Err != nil {
			d := *w
			d.Path = []byte(string(w.Path))
			damaged = append(damaged, d)
			return nil
		}
		e, err := entryOf(img, src, string(w.Path), &w.Attr)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Path, err)
		}
		all.Add(e, manifest.InodeKey{Ino: w.Ino})
		return nil
	})
	return all.Entries(), damaged, err
}

func entryOf(img rafs.Image, src source, path string, a *rafs.Attr) (e manifest.Entry, err error) {
	typ, ok := manifest.TypeOfMode(a.Mode)
	if !ok {
		return e, fmt.Errorf("mode %#o", a.Mode)
	}
	e = manifest.Entry{
		Path: path, Type: typ, Mode: uint16(a.Mode & 0o7777), UID: a.UID, GID: a.GID, Size: a.Size,
		Major: a.Rdev >> 8 & 0xFFF, Minor: a.Rdev&0xFF | a.Rdev>>12&0xFFF00,
		Nlink: uint64(a.Nlink), Mtime: manifest.Time{Sec: a.Mtime, Nsec: a.MtimeNsec},
	}
	names, err := img.XattrNames(a.Ino, nil)
	if err != nil {
		return e, err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if len(names) == 0 {
			break
		}
		value, err := img.Xattr(a.Ino, []byte(name), nil)
		if err != nil {
			return e, fmt.Errorf("xattr %q: %w", name, err)
		}
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: string(value)})
	}
	e.SortXattrs()
	switch typ {
	case manifest.Symlink:
		target, err := img.Readlink(a.Ino, nil)
		if err != nil {
			return e, err
		}
		e.Target = string(target)
	case manifest.Regular:
		if src == nil {
			break
		}
		h := sha256.New()
		if err := content(img, src, a, 3<<20+4097, h); err != nil {
			return e, err
		}
		e.SHA256 = [32]byte(h.Sum(nil))
	}
	return e, nil
}

// TestCorpus opens every image of the corpus: those of this reader's kinds are
// equal to what the reference served, contents included, and Check finds
// nothing; all others are refused by name.
func TestCorpus(t *testing.T) {
	dir := corpus.Dir(t)
	all := variants(t, dir)
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
			path := bootstrapOf(t, dir, variant)
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
			if variant == damagedVariant {
				checkDamaged(t, img, filepath.Join(dir, "images", variant, "blobs"), want)
				return
			}
			var src source = &blobDir{dir: filepath.Join(dir, "images", variant, "blobs")}
			if strings.Contains(variant, "blobcachedir") {
				src = cacheDir{filepath.Join(dir, "images", variant, "cache")}
			}
			got, damaged, err := manifestOf(img, src)
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
	got, damaged, err := manifestOf(img, &blobDir{dir: blobs})
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
