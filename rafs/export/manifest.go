package export

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
)

// ManifestOptions of Manifest; the zero value is useful.
type ManifestOptions struct {
	// Progress is told how many bytes of file content have been hashed.
	Progress func(n int64)
}

// Manifest reads the whole image, contents included, and returns one entry a
// path, sorted by path.
func Manifest(ctx context.Context, img rafs.Image, content Content, o ManifestOptions) ([]manifest.Entry, error) {
	var (
		all  manifest.Collector
		sums = map[uint64][sha256.Size]byte{} // of inodes with several names
		buf  []byte
		hash = sha256.New()
	)
	err := walk(ctx, img, func(path string, w *rafs.WalkEntry) error {
		ino, a := w.Ino, &w.Attr
		e, err := entryOf(img, path, ino, a, &buf)
		if err != nil {
			return err
		}
		if e.Type == manifest.Regular {
			sum, seen := sums[ino]
			if !seen {
				hash.Reset()
				n, err := io.Copy(progressWriter{hash, o.Progress}, content.Open(ctx, ino, a.Size))
				if err == nil && uint64(n) != a.Size {
					err = fmt.Errorf("content of %d bytes, the inode says %d", n, a.Size)
				}
				if err != nil {
					return err
				}
				hash.Sum(sum[:0])
				if a.Nlink > 1 {
					sums[ino] = sum
				}
			}
			e.SHA256 = sum
		}
		all.Add(e, manifest.InodeKey{Ino: ino})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all.Entries(), nil
}

// entryOf describes one inode, all but the digest of its content.
func entryOf(img rafs.Image, path string, ino uint64, a *rafs.Attr, buf *[]byte) (manifest.Entry, error) {
	e := manifest.Entry{
		Path: path, Mode: uint16(a.Mode & 0o7777), UID: a.UID, GID: a.GID,
		Size: a.Size, Nlink: uint64(a.Nlink),
		Mtime: manifest.Time{Sec: a.Mtime, Nsec: a.MtimeNsec},
	}
	var ok bool
	if e.Type, ok = manifest.TypeOfMode(a.Mode); !ok {
		return e, fmt.Errorf("mode %#o has no file type", a.Mode)
	}
	switch e.Type {
	case manifest.CharDevice, manifest.BlockDevice:
		e.Major, e.Minor = rafs.SplitRdev(a.Rdev)
	case manifest.Symlink:
		target, err := img.Readlink(ino, (*buf)[:0])
		if err != nil {
			return e, err
		}
		*buf = target
		e.Target, e.Size = string(target), uint64(len(target))
	}
	err := EachXattr(img, ino, func(name string, value []byte) {
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: string(value)})
	})
	e.SortXattrs()
	return e, err
}
