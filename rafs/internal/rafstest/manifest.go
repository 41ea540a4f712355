package rafstest

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
)

// content writes the content of a regular file to h, asking for step bytes of
// extents at a time.
func content(img rafs.Image, src Source, a *rafs.Attr, step uint64, h interface{ Write([]byte) (int, error) }) error {
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
			data, err := src.Chunk(img, int(e.Blob), e.Chunk, &c)
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

// Manifest lists an image as a manifest. src may be nil: contents are then
// left out.
func Manifest(img rafs.Image, src Source) ([]manifest.Entry, []rafs.WalkEntry, error) {
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

func entryOf(img rafs.Image, src Source, path string, a *rafs.Attr) (e manifest.Entry, err error) {
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
