package v5

import (
	"fmt"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

const (
	recordSize = 128

	flagXattr   = 1 << 2
	flagHasHole = 1 << 3

	// The inode table's values: records begin behind the superblock and below
	// 4 GiB.
	minRecord = superSize / recordUnit
	maxRecord = 1 << 29

	// maxXattrs bounds the extended attributes of one inode, which are searched
	// one by one. v6 has room for a sixty-fourth of it.
	maxXattrs = 16 << 20
)

// inode is a decoded record. What record() lets through fits where it was found
// and has all of its parts inside the bootstrap.
type inode struct {
	index      uint64 // where the table has it
	off        uint64 // of the record
	parent     uint64
	ino        uint64 // index of the first name
	size       uint64
	blocks     uint64
	flags      uint64
	mtime      int64
	mtimeNsec  uint32
	mode       uint32
	nlink      uint32
	uid, gid   uint32
	rdev       uint32
	childIndex uint64
	childCount uint64 // children, or chunks of a regular file

	name    table // the name, without padding
	symlink table // the target, without padding
	xattrs  table // the pairs, without their size field and padding
	chunks  uint64
	end     uint64 // offset behind all of it
}

func (n *inode) isDir() bool { return n.mode&rafs.ModeType == rafs.ModeDir }

// record decodes the record of an index. It returns ErrStale for an index that
// the table has not, and a DamageError for a record that cannot belong there.
//
// Record, 128 bytes: digest 0:32, parent 32:8, ino 40:8, uid 48:4, gid 52:4,
// mode 60:4, size 64:8, blocks 72:8, flags 80:8, nlink 88:4, child index 92:4,
// child count 96:4, name size 100:2, symlink size 102:2, rdev 104:4, mtime nsec
// 108:4, mtime 112:8. Then, each padded to 8 bytes: name, symlink target if its
// size is not 0, xattrs (size 8 bytes, pairs) if the flag says so, and the chunk
// records of a regular file.
func (im *Image) record(index uint64, n *inode) error {
	if index == 0 || index > im.entries() {
		return rafs.ErrStale
	}
	size := uint64(len(im.data))
	slot := im.inodes.off + (index-1)*tableEntrySize
	v := uint64(le.Uint32(im.data[slot:]))
	off := v * recordUnit
	if v <= minRecord || v >= maxRecord || off > size || size-off < recordSize {
		return rafs.Damaged("inode table", slot, "entry %d leads to %#x, the bootstrap has %d bytes", index, off, size)
	}
	rec := im.data[off : off+recordSize]
	n.index, n.off = index, off
	n.parent, n.ino = le.Uint64(rec[32:]), le.Uint64(rec[40:])
	n.uid, n.gid = le.Uint32(rec[48:]), le.Uint32(rec[52:])
	n.mode = le.Uint32(rec[60:])
	n.size, n.blocks, n.flags = le.Uint64(rec[64:]), le.Uint64(rec[72:]), le.Uint64(rec[80:])
	n.nlink = le.Uint32(rec[88:])
	n.childIndex, n.childCount = uint64(le.Uint32(rec[92:])), uint64(le.Uint32(rec[96:]))
	n.rdev = le.Uint32(rec[104:])
	n.mtimeNsec, n.mtime = le.Uint32(rec[108:]), int64(le.Uint64(rec[112:]))
	n.name = table{off + recordSize, uint64(le.Uint16(rec[100:]))}
	n.symlink = table{n.name.off + roundUp8(n.name.size), uint64(le.Uint16(rec[102:]))}

	kind := n.mode & rafs.ModeType
	switch {
	case rafs.DirentType(n.mode) == 0:
		return im.misplaced(n, "mode %#o", n.mode)
	case n.ino == 0 || n.ino > index:
		return im.misplaced(n, "it has the number %d", n.ino)
	case n.ino != index && (n.isDir() || n.nlink < 2):
		return im.misplaced(n, "it has the number %d and %d links", n.ino, n.nlink)
	case index == rootIndex && n.parent != 0, index != rootIndex && (n.parent == 0 || n.parent >= index):
		return im.misplaced(n, "its parent is %d", n.parent)
	case n.nlink == 0:
		return im.misplaced(n, "no links")
	case n.name.size == 0 || n.name.size > rafs.MaxName:
		return im.misplaced(n, "a name of %d bytes", n.name.size)
	case n.mtimeNsec >= 1e9:
		return im.misplaced(n, "mtime has %d ns", n.mtimeNsec)
	case n.size > 1<<63-1:
		return im.misplaced(n, "size %d", n.size)
	case kind == rafs.ModeSymlink && n.symlink.size == 0:
		return im.misplaced(n, "a symbolic link without a target")
	}
	if err := im.placeTail(n, kind); err != nil {
		return err
	}
	if kind == rafs.ModeDir && n.childCount > 0 &&
		(n.childIndex <= index || n.childIndex+n.childCount-1 > im.entries()) {
		return im.misplaced(n, "children %d+%d in a table of %d", n.childIndex, n.childCount, im.entries())
	}
	return nil
}

// placeTail bounds what follows the fixed part of a record.
func (im *Image) placeTail(n *inode, kind uint32) error {
	size := uint64(len(im.data))
	end := n.symlink.off + roundUp8(n.symlink.size)
	n.xattrs = table{}
	if n.flags&flagXattr != 0 {
		if end > size || size-end < 8 {
			return im.misplaced(n, "xattrs at %#x reach behind the end", end)
		}
		n.xattrs = table{end + 8, le.Uint64(im.data[end:])}
		if n.xattrs.size > min(size-n.xattrs.off, maxXattrs) {
			return im.misplaced(n, "xattrs of %d bytes at %#x reach behind the end", n.xattrs.size, end)
		}
		end = n.xattrs.off + roundUp8(n.xattrs.size)
	}
	n.chunks = end
	if kind == rafs.ModeRegular {
		if want := chunksOf(n.size, im.chunkBits); n.flags&flagHasHole == 0 && n.childCount != want {
			return im.misplaced(n, "%d chunks for %d bytes, want %d", n.childCount, n.size, want)
		}
		end += n.childCount * rafs.ChunkRecordSize
	}
	n.end = end
	if end > size {
		return im.misplaced(n, "it ends at %#x, the bootstrap has %d bytes", end, size)
	}
	return nil
}

// misplaced reports a record that does not fit the index that leads to it.
func (im *Image) misplaced(n *inode, format string, args ...any) error {
	return rafs.Damaged("inode", n.off, "what entry %d of the inode table leads to is not its inode: %s",
		n.index, fmt.Sprintf(format, args...))
}

// first decodes the inode of that number: the record of its first name.
func (im *Image) first(ino uint64, n *inode) error {
	if err := im.record(ino, n); err != nil {
		return err
	}
	if n.ino != ino {
		return rafs.ErrStale // the index of a further name is no inode's number
	}
	return nil
}

func roundUp8(n uint64) uint64 { return (n + 7) &^ 7 }

// chunksOf is the number of chunks of a file; size is below 1<<63.
func chunksOf(size uint64, bits uint) uint64 { return (size + 1<<bits - 1) >> bits }

// Attr implements rafs.Image. Sizes of directories are as the builder recorded
// them.
func (im *Image) Attr(ino uint64, a *rafs.Attr) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.first(ino, &n); err != nil {
		return im.wrap(ino, err)
	}
	*a = rafs.Attr{
		Ino:       ino,
		Size:      n.size,
		Blocks:    n.blocks,
		Mtime:     n.mtime,
		MtimeNsec: n.mtimeNsec,
		Mode:      n.mode & 0o177777,
		Nlink:     n.nlink,
		UID:       n.uid,
		GID:       n.gid,
	}
	switch n.mode & rafs.ModeType {
	case rafs.ModeChar, rafs.ModeBlock:
		a.Rdev = n.rdev
	case rafs.ModeSymlink:
		if a.Size == 0 { // old builders
			a.Size = n.symlink.size
		}
	}
	return nil
}

// Readlink implements rafs.Image.
func (im *Image) Readlink(ino uint64, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.first(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	if n.mode&rafs.ModeType != rafs.ModeSymlink {
		return dst, rafs.ErrNotSymlink
	}
	return append(dst, im.bytes(n.symlink)...), nil
}

// bytes returns a range that record placed inside the bootstrap.
func (im *Image) bytes(t table) []byte { return im.data[t.off:t.end():t.end()] }

// wrap names the inode in an error that is not one of the plain answers.
func (im *Image) wrap(ino uint64, err error) error {
	if err == rafs.ErrStale {
		return err
	}
	return fmt.Errorf("%s: inode %d: %w", im.b.Path(), ino, err)
}
