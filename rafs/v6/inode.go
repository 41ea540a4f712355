package v6

import (
	"fmt"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

const (
	slotSize         = 32 // unit of nids
	compactSize      = 32
	extendedSize     = 64
	xattrHeaderSize  = 12
	chunkAddressSize = 8

	layoutPlain  = 0
	layoutInline = 2
	layoutChunk  = 4

	chunkFormatBits    = 0x1F // log2(span of an address in blocks)
	chunkFormatIndexes = 0x20 // 8-byte addresses

	// maxDirBlocks keeps positions in directories below 1<<30.
	maxDirBlocks = 1 << 21
	maxSymlink   = 4096
)

// inode is a decoded inode. What inode() lets through has a known type, a layout
// that fits it, and all of its parts inside the bootstrap.
type inode struct {
	nid       uint64
	off       uint64 // of the record
	size      uint64
	xattrs    uint64 // offset of the xattr area
	body      uint64 // offset behind the xattr area
	mtime     int64
	mtimeNsec uint32
	mode      uint32
	nlink     uint32
	uid, gid  uint32
	u         uint32 // block address, device number, or chunk format
	layout    uint8
}

func (n *inode) isDir() bool { return n.mode&rafs.ModeType == rafs.ModeDir }

// offset is where the record of a nid would be; nid is at most rafs.MaxInode.
func (im *Image) offset(nid uint64) uint64 { return im.meta + nid*slotSize }

// inode decodes the inode nid. It returns ErrStale for a number that no inode of
// this file can have, and a DamageError for a record that cannot be right.
//
// Compact record, 32 bytes: format 0:2, xattr count 2:2, mode 4:2, nlink 6:2,
// size 8:4, u 16:4, ino 20:4, uid 24:2, gid 26:2. Extended, 64 bytes: format
// 0:2, xattr count 2:2, mode 4:2, size 8:8, u 16:4, ino 20:4, uid 24:4, gid
// 28:4, mtime 32:8, mtime nsec 40:4, nlink 44:4.
func (im *Image) inode(nid uint64, n *inode) error {
	if nid == 0 || nid > rafs.MaxInode {
		return rafs.ErrStale
	}
	size := uint64(len(im.data))
	off := im.offset(nid)
	if off > size || size-off < compactSize {
		return rafs.ErrStale
	}
	rec := im.data[off:]
	format, icount := le.Uint16(rec), uint64(le.Uint16(rec[2:]))
	n.nid, n.off = nid, off
	n.mode = uint32(le.Uint16(rec[4:]))
	n.u = le.Uint32(rec[16:])
	n.layout = uint8(format >> 1 & 7)
	if format&1 == 0 {
		n.size = uint64(le.Uint32(rec[8:]))
		n.nlink = uint32(le.Uint16(rec[6:]))
		n.uid, n.gid = uint32(le.Uint16(rec[24:])), uint32(le.Uint16(rec[26:]))
		n.mtime, n.mtimeNsec = 0, 0
		n.xattrs = off + compactSize
	} else {
		if size-off < extendedSize {
			return rafs.Damaged("inode", off, "an extended inode %d bytes before the end", size-off)
		}
		n.size = le.Uint64(rec[8:])
		n.uid, n.gid = le.Uint32(rec[24:]), le.Uint32(rec[28:])
		n.mtime, n.mtimeNsec = int64(le.Uint64(rec[32:])), le.Uint32(rec[40:])
		n.nlink = le.Uint32(rec[44:])
		n.xattrs = off + extendedSize
	}
	n.body = n.xattrs
	if icount != 0 {
		n.body += xattrHeaderSize + 4*(icount-1)
	}
	switch {
	case format>>4 != 0:
		return rafs.Damaged("inode", off, "format %#x", format)
	case n.body > size:
		return rafs.Damaged("inode", off, "xattrs of %d bytes reach behind the end", n.body-n.xattrs)
	case n.nlink == 0:
		return rafs.Damaged("inode", off, "no links")
	case n.mtimeNsec >= 1e9:
		return rafs.Damaged("inode", off, "mtime has %d ns", n.mtimeNsec)
	case n.size > 1<<63-1:
		return rafs.Damaged("inode", off, "size %d", n.size)
	}
	switch n.mode & rafs.ModeType {
	case rafs.ModeRegular:
		return im.checkChunked(n)
	case rafs.ModeDir:
		if im.blocksOf(n.size) >= maxDirBlocks {
			return rafs.Damaged("inode", off, "a directory of %d bytes", n.size)
		}
		return im.checkFlat(n)
	case rafs.ModeSymlink:
		if n.size == 0 || n.size > maxSymlink {
			return rafs.Damaged("inode", off, "a symbolic link of %d bytes", n.size)
		}
		return im.checkFlat(n)
	case rafs.ModeChar, rafs.ModeBlock, rafs.ModeFIFO, rafs.ModeSocket:
		if n.layout != layoutPlain {
			return rafs.Damaged("inode", off, "data layout %d for mode %#o", n.layout, n.mode)
		}
		return nil
	}
	return rafs.Damaged("inode", off, "mode %#o", n.mode)
}

// checkFlat bounds the data of a directory or symbolic link: whole blocks at the
// block address u, and with the inline layout the last one behind the xattrs,
// inside one block.
func (im *Image) checkFlat(n *inode) error {
	size := uint64(len(im.data))
	if n.size == 0 {
		return nil
	}
	if n.size > size {
		return rafs.Damaged("inode", n.off, "%d bytes of data in a bootstrap of %d", n.size, size)
	}
	external := n.size // bytes at u
	switch n.layout {
	case layoutPlain:
	case layoutInline:
		external = (n.size - 1) &^ (im.blockSize() - 1)
		tail := n.size - external
		if n.body%im.blockSize()+tail > im.blockSize() || tail > size-n.body {
			return rafs.Damaged("inode", n.off, "inline data of %d bytes at %#x cross a block or the end", tail, n.body)
		}
	default:
		return rafs.Damaged("inode", n.off, "data layout %d for mode %#o", n.layout, n.mode)
	}
	if start := uint64(n.u) << im.blockBits; external != 0 && (start > size || external > size-start) {
		return rafs.Damaged("inode", n.off, "%d bytes of data at block %d reach behind the end", external, n.u)
	}
	return nil
}

// flatBlock returns block k of the data of a directory or symbolic link that
// checkFlat accepted; k is below im.blocksOf(n.size).
func (im *Image) flatBlock(n *inode, k uint64) []byte {
	length := min(n.size-k<<im.blockBits, im.blockSize())
	start := uint64(n.u)<<im.blockBits + k<<im.blockBits
	if n.layout == layoutInline && k == im.blocksOf(n.size)-1 {
		start = n.body
	}
	return im.data[start : start+length : start+length]
}

// blocksOf is the number of blocks that size bytes take.
func (im *Image) blocksOf(size uint64) uint64 { return (size + im.blockSize() - 1) >> im.blockBits }

func (im *Image) blockSize() uint64 { return 1 << im.blockBits }

// checkChunked bounds the array of chunk addresses of a regular file. It is read
// by the image's chunk size; the format field may name a larger span for the
// kernel's sake, when the whole file is contiguous.
func (im *Image) checkChunked(n *inode) error {
	if n.layout != layoutChunk {
		return rafs.Damaged("inode", n.off, "data layout %d for mode %#o", n.layout, n.mode)
	}
	format := n.u & 0xFFFF
	if format&^chunkFormatBits != chunkFormatIndexes || uint(format&chunkFormatBits)+im.blockBits < im.chunkBits {
		return rafs.Damaged("inode", n.off, "chunk format %#x, the chunk size is %d", format, im.info.ChunkSize)
	}
	size, array := uint64(len(im.data)), n.addresses()
	if count := im.chunks(n); count != 0 && (array > size || count > (size-array)/chunkAddressSize) {
		return rafs.Damaged("inode", n.off, "%d chunk addresses at %#x reach behind the end", count, array)
	}
	return nil
}

// addresses is where the chunk addresses of a regular file begin.
func (n *inode) addresses() uint64 { return (n.body + 7) &^ 7 }

// chunks is the number of chunk addresses of a regular file.
func (im *Image) chunks(n *inode) uint64 {
	return n.size>>im.chunkBits + (n.size&(1<<im.chunkBits-1)+1<<im.chunkBits-1)>>im.chunkBits
}

// Attr implements rafs.Image.
func (im *Image) Attr(ino uint64, a *rafs.Attr) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.inode(ino, &n); err != nil {
		return im.wrap(ino, err)
	}
	*a = rafs.Attr{
		Ino:       ino,
		Size:      n.size,
		Blocks:    n.size>>9 + (n.size&511+511)>>9,
		Mtime:     n.mtime,
		MtimeNsec: n.mtimeNsec,
		Mode:      n.mode,
		Nlink:     n.nlink,
		UID:       n.uid,
		GID:       n.gid,
	}
	switch n.mode & rafs.ModeType {
	case rafs.ModeChar, rafs.ModeBlock:
		a.Rdev = n.u
	}
	return nil
}

// Readlink implements rafs.Image.
func (im *Image) Readlink(ino uint64, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.inode(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	if n.mode&rafs.ModeType != rafs.ModeSymlink {
		return dst, rafs.ErrNotSymlink
	}
	for k := range im.blocksOf(n.size) {
		dst = append(dst, im.flatBlock(&n, k)...)
	}
	return dst, nil
}

// wrap names the inode in an error that is not one of the plain answers.
func (im *Image) wrap(nid uint64, err error) error {
	if err == rafs.ErrStale {
		return err
	}
	return fmt.Errorf("%s: inode %d: %w", im.b.Path(), nid, err)
}
