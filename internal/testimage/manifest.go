package testimage

import (
	"crypto/sha256"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
)

// Manifest returns what a reader of the image must show. It reads the content
// of every file to hash it: many GiB take seconds.
func (img *Image) Manifest() ([]manifest.Entry, error) {
	p := img.plan
	var all manifest.Collector
	sums := map[uint32][sha256.Size]byte{}
	for i := range p.entries {
		nr := uint32(i + 1)
		e, n := p.at(nr), p.at(nr).node
		kind, ok := manifest.TypeOfMode(n.mode)
		if !ok {
			return nil, fmt.Errorf("%s: mode %#o has no type", p.path(nr), n.mode)
		}
		m := manifest.Entry{
			Path: p.path(nr), Type: kind, Mode: uint16(n.mode & 0o7777),
			UID: n.uid, GID: n.gid, Nlink: uint64(e.nlink),
			Major: n.rdev >> 8 & 0xFFF, Minor: n.rdev&0xFF | n.rdev>>12&^0xFF,
			Target: n.target, Size: uint64(len(n.target)),
		}
		if img.hasMtime(nr) {
			m.Mtime = manifest.Time{Sec: n.mtime, Nsec: n.mtimeNsec}
		}
		for _, x := range n.xattrs {
			m.Xattrs = append(m.Xattrs, manifest.Xattr{Name: x.name, Value: x.value})
		}
		if n.kind() == unix.S_IFREG {
			m.Size = uint64(n.content.Size())
			sum, known := sums[e.first]
			if !known {
				var err error
				if sum, err = contentSum(n.content); err != nil {
					return nil, fmt.Errorf("%s: %w", p.path(nr), err)
				}
				if e.nlink > 1 {
					sums[e.first] = sum
				}
			}
			m.SHA256 = sum
		}
		all.Add(m, manifest.InodeKey{Ino: uint64(e.first)})
	}
	return all.Entries(), nil
}

// hasMtime says whether the format that was chosen keeps the mtime of entry nr.
func (img *Image) hasMtime(nr uint32) bool {
	if img.Options.Version == V5 {
		return !img.Options.NoExtBlobTable
	}
	return !img.Options.Compact || img.shapeV6(nr).inode == extendedV6
}

func contentSum(c Content) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if m, ok := c.(memory); ok {
		return sha256.Sum256(m), nil
	}
	_, err = io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(c, 0, c.Size())}, make([]byte, 1<<18))
	return [sha256.Size]byte(h.Sum(nil)), err
}
