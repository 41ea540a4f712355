package rafstest

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/rafs"
)

// Visit uses everything that an image names, however damaged it is. Errors are
// answers like others; what it returns is a promise of rafs.Image that was not
// kept.
func Visit(img rafs.Image) error {
	var (
		broken  error
		extents []rafs.Extent
		buf     []byte
	)
	fail := func(format string, args ...any) {
		if broken == nil {
			broken = fmt.Errorf(format, args...)
		}
	}
	err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
		if w.Err != nil {
			return nil
		}
		a := &w.Attr
		if a.Ino != w.Ino || a.Ino == 0 || a.Ino > rafs.MaxInode || a.Nlink == 0 || a.MtimeNsec >= 1e9 || int64(a.Size) < 0 ||
			rafs.DirentType(a.Mode) != w.Type || a.Mode>>16 != 0 {
			fail("%s: attributes %+v of inode %d, type %d", w.Path, a, w.Ino, w.Type)
		}
		buf, _ = img.Readlink(w.Ino, buf[:0])
		buf, _ = img.XattrNames(w.Ino, buf[:0])
		buf, _ = img.Xattr(w.Ino, []byte("user.none"), buf[:0])
		_, _ = img.Parent(w.Ino)
		_, _ = img.Lookup(w.Ino, []byte("name"))
		for _, off := range []uint64{0, a.Size / 2, a.Size - 1, a.Size} {
			const length = 1 << 20
			var err error
			if extents, err = img.Extents(w.Ino, off, length, extents[:0]); err == nil {
				if err := checkExtents(img, a, off, length, extents); err != nil {
					fail("%s: extents at %d: %w", w.Path, off, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return broken // the walk ended early: damage
	}
	for i := range img.Blobs() {
		n, _ := img.ChunkCount(i)
		var c rafs.Chunk
		for k := range min(n, 1000) {
			if err := img.Chunk(i, k, &c); err == nil && (c.UncompressedSize == 0 || c.UncompressedSize > img.Info().ChunkSize) {
				fail("chunk %d of blob %d: %+v", k, i, c)
			}
		}
	}
	return broken
}

// checkExtents: the pieces follow each other and cover what was asked for, and
// each lies inside its chunk.
func checkExtents(img rafs.Image, a *rafs.Attr, off, length uint64, extents []rafs.Extent) error {
	if a.Mode&rafs.ModeType != rafs.ModeRegular || off >= a.Size {
		if len(extents) != 0 {
			return fmt.Errorf("%d where there is no data", len(extents))
		}
		return nil
	}
	end := off + min(length, a.Size-off)
	for _, e := range extents {
		if e.FileOffset != off || e.Length == 0 {
			return fmt.Errorf("%d bytes at %d, want some at %d", e.Length, e.FileOffset, off)
		}
		off += uint64(e.Length)
		if e.Blob < 0 {
			continue
		}
		var c rafs.Chunk
		if err := img.Chunk(int(e.Blob), e.Chunk, &c); err != nil {
			continue // damaged: nothing of it can be fetched
		}
		if uint64(e.ChunkOffset)+uint64(e.Length) > uint64(c.UncompressedSize) ||
			e.UncompressedOffset != c.UncompressedOffset+uint64(e.ChunkOffset) {
			return fmt.Errorf("%+v is not inside its chunk %+v", e, c)
		}
	}
	if off != end {
		return fmt.Errorf("they end at %d, want %d", off, end)
	}
	return nil
}

// FirstDamage looks for something in an image that cannot be had: a path, a
// target, attributes, a part of a file. nil if all of it can.
func FirstDamage(img rafs.Image) error {
	var buf []byte
	var extents []rafs.Extent
	var c rafs.Chunk
	err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
		if w.Err != nil {
			return w.Err
		}
		var err error
		if buf, err = img.XattrNames(w.Ino, buf[:0]); err != nil && !errors.Is(err, rafs.ErrTooLong) {
			return err
		}
		switch w.Attr.Mode & rafs.ModeType {
		case rafs.ModeSymlink:
			_, err = img.Readlink(w.Ino, buf[:0])
		case rafs.ModeRegular:
			if extents, err = img.Extents(w.Ino, 0, w.Attr.Size, extents[:0]); err != nil {
				return err
			}
			for _, e := range extents {
				if e.Blob >= 0 {
					err = errors.Join(err, img.Chunk(int(e.Blob), e.Chunk, &c))
				}
			}
		}
		return err
	})
	return err
}
