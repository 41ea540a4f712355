package v6

import (
	"bytes"
	"errors"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

const (
	direntSize = 12

	// A position in a directory is block*posStride + entry + 1, the entry being
	// the last one that was passed: at most 341 entries fit in a block. The bit
	// posDamaged says that something before it was left out.
	posStride  = 512
	posDamaged = 1 << 30
)

// direntTypes are the DT_* values of the on-disk file types.
var direntTypes = [8]uint8{0, 8, 4, 2, 6, 1, 12, 10}

// block is one block of a directory: entries of 12 bytes (nid 0:8, name offset
// 8:2, type 10:1), then the names. The number of entries follows from where the
// first name begins, read once.
type block struct {
	b       []byte
	off     uint64 // in the bootstrap, for messages
	entries int
}

// dirBlock checks the shape of block k.
func (im *Image) dirBlock(n *inode, k uint64) (block, error) {
	b := im.flatBlock(n, k)
	blk := block{b: b, off: im.blockOffset(n, k)}
	if len(b) < direntSize {
		return blk, rafs.Damaged("directory", blk.off, "a block of %d bytes", len(b))
	}
	first := int(le.Uint16(b[8:]))
	if first < direntSize || first%direntSize != 0 || first >= len(b) {
		return blk, rafs.Damaged("directory", blk.off, "the first name is at %d of %d", first, len(b))
	}
	blk.entries = first / direntSize
	return blk, nil
}

// blockOffset is where block k of flat data is in the bootstrap.
func (im *Image) blockOffset(n *inode, k uint64) uint64 {
	if n.layout == layoutInline && k == im.blocksOf(n.size)-1 {
		return n.body
	}
	return (uint64(n.u) + k) << im.blockBits
}

// name returns the name of entry i, which has 1 to 255 bytes. The last name of a
// block ends with the block or at a NUL.
func (blk *block) name(i int) ([]byte, error) {
	start := int(le.Uint16(blk.b[i*direntSize+8:]))
	if start < blk.entries*direntSize || start >= len(blk.b) {
		return nil, rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: name at %d of %d", i, start, len(blk.b))
	}
	var name []byte
	if i == blk.entries-1 {
		name = blk.b[start:min(len(blk.b), start+rafs.MaxName+1)]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
	} else {
		end := int(le.Uint16(blk.b[(i+1)*direntSize+8:]))
		if end <= start || end > len(blk.b) {
			return nil, rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: name from %d to %d of %d",
				i, start, end, len(blk.b))
		}
		name = blk.b[start:end]
	}
	if len(name) == 0 || len(name) > rafs.MaxName {
		return nil, rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: a name of %d bytes", i, len(name))
	}
	return name, nil
}

func (blk *block) nid(i int) uint64 { return le.Uint64(blk.b[i*direntSize:]) }

// direntType returns the DT_* value of entry i, 0 for none.
func (blk *block) direntType(i int) uint8 {
	if t := blk.b[i*direntSize+10]; int(t) < len(direntTypes) {
		return direntTypes[t]
	}
	return 0
}

// find looks name up in a directory: binary search over the first names of the
// blocks, then inside one block. All entries of a directory are in one order.
func (im *Image) find(n *inode, name []byte) (blk block, i int, err error) {
	lo, hi := uint64(0), im.blocksOf(n.size) // the last block whose first name is not behind name is in [lo-1, hi)
	for lo < hi {
		mid := lo + (hi-lo)/2
		if blk, err = im.dirBlock(n, mid); err != nil {
			return blk, 0, err
		}
		first, err := blk.name(0)
		if err != nil {
			return blk, 0, err
		}
		switch c := bytes.Compare(first, name); {
		case c == 0:
			return blk, 0, nil
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	if lo == 0 {
		return blk, 0, rafs.ErrNotExist
	}
	if blk, err = im.dirBlock(n, lo-1); err != nil {
		return blk, 0, err
	}
	for lo, hi := 1, blk.entries; lo < hi; {
		mid := (lo + hi) / 2
		entry, err := blk.name(mid)
		if err != nil {
			return blk, 0, err
		}
		switch c := bytes.Compare(entry, name); {
		case c == 0:
			return blk, mid, nil
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return blk, 0, rafs.ErrNotExist
}

// dir decodes an inode that must be a directory.
func (im *Image) dir(ino uint64, n *inode) error {
	if err := im.inode(ino, n); err != nil {
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
	var n inode
	if err := im.dir(dir, &n); err != nil {
		return 0, err
	}
	if string(name) == "." || string(name) == ".." {
		return 0, rafs.ErrNotExist
	}
	blk, i, err := im.find(&n, name)
	if err != nil {
		if err == rafs.ErrNotExist {
			return 0, err
		}
		return 0, im.wrap(dir, err)
	}
	nid := blk.nid(i)
	if err := im.checkTarget(&blk, i, nid); err != nil {
		return 0, im.wrap(dir, err)
	}
	return nid, nil
}

// checkTarget checks that entry i of a directory leads to an inode of the type
// that it says.
func (im *Image) checkTarget(blk *block, i int, nid uint64) error {
	var n inode
	if err := im.inode(nid, &n); err != nil {
		if errors.Is(err, rafs.ErrStale) {
			return rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: nid %d is outside of the bootstrap", i, nid)
		}
		return err
	}
	if t := blk.direntType(i); t != rafs.DirentType(n.mode) {
		return rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: file type %d, but inode %d has mode %#o",
			i, t, nid, n.mode)
	}
	return nil
}

// Parent implements rafs.Image: the entry ".." of the directory itself.
func (im *Image) Parent(dir uint64) (_ uint64, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.dir(dir, &n); err != nil {
		return 0, err
	}
	if dir == im.root {
		return dir, nil
	}
	blk, i, err := im.find(&n, dotDot)
	if err == rafs.ErrNotExist {
		err = rafs.Damaged("directory", n.off, "no entry for its parent")
	}
	if err != nil {
		return 0, im.wrap(dir, err)
	}
	parent := blk.nid(i)
	if err := im.inode(parent, &n); err != nil || !n.isDir() {
		return 0, im.wrap(dir, rafs.Damaged("directory", blk.off+uint64(i*direntSize), "its parent %d is not a directory", parent))
	}
	return parent, nil
}

var dotDot = []byte("..")

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

// Entry implements rafs.EntryReader. It reads everything again on each call: the
// few nanoseconds buy that a cursor is three words and always in step with the
// bytes.
func (im *Image) Entry(dir, pos uint64, name *[rafs.MaxName]byte, d *rafs.Dirent) (_ bool, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.dir(dir, &n); err != nil {
		return false, err
	}
	damaged := pos & posDamaged
	pos &= posDamaged - 1
	k, i := pos/posStride, int(pos%posStride)
	for ; k < im.blocksOf(n.size); k, i = k+1, 0 {
		blk, err := im.dirBlock(&n, k)
		if err != nil {
			damaged = posDamaged
			continue
		}
		for ; i < blk.entries; i++ {
			entry, err := blk.name(i)
			if err != nil {
				damaged = posDamaged
				continue
			}
			if string(entry) == "." || string(entry) == ".." {
				continue
			}
			nid, t := blk.nid(i), blk.direntType(i)
			d.Name = name[:copy(name[:], entry)]
			if !sound(d.Name, nid, t) {
				damaged = posDamaged
				continue
			}
			d.Ino, d.Type = nid, t
			d.Next = (k*posStride + uint64(i) + 1) | damaged
			return true, nil
		}
	}
	if damaged != 0 {
		// The bit may be a guest's invention: then there is nothing to tell.
		if err := im.firstDamage(&n); err != nil {
			return false, im.wrap(dir, err)
		}
	}
	return false, nil
}

// sound tells whether an entry may be shown at all. What it says of its inode
// is checked when the inode is used.
func sound(name []byte, nid uint64, t uint8) bool {
	return nid != 0 && nid <= rafs.MaxInode && t != 0 &&
		bytes.IndexByte(name, 0) < 0 && bytes.IndexByte(name, '/') < 0
}

// firstDamage finds out again why entries of a directory were left out; nil if
// none has to be.
func (im *Image) firstDamage(n *inode) error {
	for k := range im.blocksOf(n.size) {
		blk, err := im.dirBlock(n, k)
		if err != nil {
			return err
		}
		for i := range blk.entries {
			name, err := blk.name(i)
			if err != nil {
				return err
			}
			if nid := blk.nid(i); !sound(name, nid, blk.direntType(i)) {
				return rafs.Damaged("directory", blk.off+uint64(i*direntSize), "entry %d: name %q, nid %d, file type %d",
					i, name, nid, blk.b[i*direntSize+10])
			}
		}
	}
	return nil
}
