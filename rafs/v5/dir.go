package v5

import (
	"bytes"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

// A position in a directory is the number of children before it. The bit
// posDamaged says that one of them was left out.
const posDamaged = 1 << 30

// child decodes child k of a directory; k is below dir.childCount.
func (im *Image) child(dir *inode, k uint64, n *inode) error {
	if err := im.record(dir.childIndex+k, n); err != nil {
		return err
	}
	if n.parent != dir.ino {
		return im.misplaced(n, "its parent is %d, not %d", n.parent, dir.ino)
	}
	switch name := im.bytes(n.name); {
	case bytes.IndexByte(name, 0) >= 0, bytes.IndexByte(name, '/') >= 0, string(name) == ".", string(name) == "..":
		return rafs.Damaged("inode", n.off, "the name %q", name)
	}
	return nil
}

// soundChild finds the first child in [k, end) that is not damaged. It returns
// end if there is none, and the first damage that it passed.
func (im *Image) soundChild(dir *inode, k, end uint64, n *inode) (_ uint64, damage error) {
	for ; k < end; k++ {
		err := im.child(dir, k, n)
		if err == nil {
			break
		}
		if damage == nil {
			damage = err
		}
	}
	return k, damage
}

// find looks name up among the children of a directory by binary search. A
// damaged child has no name to compare with: the search steps over it, and
// remembers it as long as it could be the one that is looked for.
func (im *Image) find(dir *inode, name []byte, n *inode) error {
	lo, hi := uint64(0), dir.childCount
	var suspect error // damage among the children from hi on, up to the next sound one
	for lo < hi {
		mid := lo + (hi-lo)/2
		k, damage := im.soundChild(dir, mid, hi, n)
		if k == hi {
			hi = mid
			if suspect == nil {
				suspect = damage
			}
			continue
		}
		switch c := bytes.Compare(im.bytes(n.name), name); {
		case c == 0:
			return nil
		case c < 0:
			lo = k + 1
		default:
			hi, suspect = mid, damage
		}
	}
	if suspect != nil {
		return suspect
	}
	return rafs.ErrNotExist
}

// dir decodes an inode that must be a directory.
func (im *Image) dir(ino uint64, n *inode) error {
	if err := im.first(ino, n); err != nil {
		return im.wrap(ino, err)
	}
	if !n.isDir() {
		return rafs.ErrNotDir
	}
	return nil
}

// Lookup implements rafs.Image.
func (im *Image) Lookup(dir uint64, name []byte) (_ uint64, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var d, n inode
	if err := im.dir(dir, &d); err != nil {
		return 0, err
	}
	if err := im.find(&d, name, &n); err != nil {
		if err == rafs.ErrNotExist {
			return 0, err
		}
		return 0, im.wrap(dir, err)
	}
	if n.ino == n.index {
		return n.ino, nil
	}
	mode, ino := n.mode, n.ino
	if err := im.first(ino, &n); err != nil || (n.mode^mode)&rafs.ModeType != 0 {
		return 0, im.wrap(dir, rafs.Damaged("inode", n.off, "%q is a hard link to %d, which is no such inode", name, ino))
	}
	return ino, nil
}

// Parent implements rafs.Image.
func (im *Image) Parent(dir uint64) (_ uint64, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.dir(dir, &n); err != nil {
		return 0, err
	}
	if dir == rootIndex {
		return dir, nil
	}
	parent := n.parent
	if err := im.first(parent, &n); err != nil || !n.isDir() {
		return 0, im.wrap(dir, rafs.Damaged("inode", n.off, "its parent %d is not a directory", parent))
	}
	return parent, nil
}

// ReadDir implements rafs.Image.
func (im *Image) ReadDir(dir, pos uint64, c *rafs.Cursor) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.dir(dir, &n); err != nil {
		return err
	}
	c.Reset(im, dir, pos)
	return nil
}

// Entry implements rafs.EntryReader.
func (im *Image) Entry(dir, pos uint64, name *[rafs.MaxName]byte, d *rafs.Dirent) (_ bool, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var p, n inode
	if err := im.dir(dir, &p); err != nil {
		return false, err
	}
	damaged := pos & posDamaged
	k, damage := im.soundChild(&p, pos&(posDamaged-1), p.childCount, &n)
	if damage != nil {
		damaged = posDamaged
	}
	if k < p.childCount {
		d.Name = name[:copy(name[:], im.bytes(n.name))]
		d.Ino, d.Type = n.ino, rafs.DirentType(n.mode)
		d.Next = (k + 1) | damaged
		return true, nil
	}
	if damaged == 0 {
		return false, nil
	}
	for k, damage = 0, nil; damage == nil && k < p.childCount; k++ {
		damage = im.child(&p, k, &n)
	}
	if damage == nil {
		return false, nil // the bit was a guest's invention
	}
	return false, im.wrap(dir, damage)
}
