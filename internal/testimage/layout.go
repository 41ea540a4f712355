package testimage

import (
	"fmt"
	"io/fs"
)

// Range is a piece of a file.
type Range struct{ Offset, Size int64 }

// End returns the offset behind the last byte.
func (r Range) End() int64 { return r.Offset + r.Size }

// Layout says where the structures of a bootstrap are, for tests that damage
// one of them. What a version does not have is zero.
type Layout struct {
	Size          int64 // of the bootstrap
	Superblock    Range
	ExtSuperblock Range // v6
	DeviceTable   Range // v6
	InodeTable    Range // v5
	PrefetchTable Range // without padding
	BlobTable     Range
	ExtBlobTable  Range // v5
	ChunkTable    Range // v6
	Inodes        Range // records of v5; v6: inodes, xattrs, inline data, chunk arrays
	Blocks        Range // v6: whole blocks of directories and long links
	MetaAddress   int64 // v6: where nid 0 would be
}

// InodeLayout says where the parts of one inode are. Parts that it does not
// have are zero.
type InodeLayout struct {
	Number uint32 // v5: index of this name in the inode table, from 1
	Ino    uint64 // v5: i_ino, the index of the inode's first name; v6: nid
	Record Range  // v5: fixed part, 128 bytes; v6: the inode, 64 or 32 bytes
	Name   Range  // v5
	Target Range  // v5: link target
	Xattrs Range  // with their header
	Inline Range  // v6: last part of a directory or link target behind the inode
	Blocks Range  // v6: the part of it in whole blocks
	Chunks Range  // chunk records (v5, 80 bytes each) or addresses (v6, 8 bytes)
}

// places holds where the writer put the inodes, by entry (index = number - 1).
type places struct {
	at     []int64 // of the inode
	blocks []int64 // v6: of the first whole block, 0 if there is none
}

// Inode returns where the inode at path is in the bootstrap.
func (img *Image) Inode(path string) (InodeLayout, error) {
	nr := img.plan.find(path)
	if nr == 0 {
		return InodeLayout{}, fmt.Errorf("inode of %q: %w", path, fs.ErrNotExist)
	}
	e := img.plan.at(nr)
	if img.Options.Version == V5 {
		at := img.places.at[nr-1]
		l := layoutV5(e)
		in := InodeLayout{
			Number: nr, Ino: uint64(e.first),
			Record: Range{at, inodeSizeV5},
			Name:   Range{at + inodeSizeV5, int64(len(e.name))},
		}
		if l.target > 0 {
			in.Target = Range{at + l.targetAt, int64(len(e.node.target))}
		}
		if l.xattrs > 0 {
			in.Xattrs = Range{at + l.xattrsAt, l.xattrs}
		}
		if l.chunks > 0 {
			in.Chunks = Range{at + l.chunksAt, l.chunks}
		}
		return in, nil
	}
	at, blocks := img.places.at[e.first-1], img.places.blocks[e.first-1]
	s := img.shapeV6(e.first)
	in := InodeLayout{
		Ino:    uint64(at-img.Layout.MetaAddress) / nidUnit,
		Record: Range{at, s.inode},
	}
	if s.xattrs > 0 {
		in.Xattrs = Range{at + s.inode, s.xattrs}
	}
	if s.inline > 0 {
		in.Inline = Range{at + s.inode + s.xattrs, s.inline}
	}
	if s.blocks > 0 {
		in.Blocks = Range{blocks, s.blocks * blockSize}
	}
	if s.chunks > 0 {
		in.Chunks = Range{at + roundUp(s.inode+s.xattrs, 8), s.chunks}
	}
	return in, nil
}

// ChunksOf returns the chunks of the regular file at path, in file order.
func (img *Image) ChunksOf(path string) ([]Chunk, error) {
	nr := img.plan.find(path)
	if nr == 0 {
		return nil, fmt.Errorf("chunks of %q: %w", path, fs.ErrNotExist)
	}
	refs := img.plan.chunks(img.plan.at(nr))
	chunks := make([]Chunk, len(refs))
	for i, ref := range refs {
		chunks[i] = img.Chunks[ref]
	}
	return chunks, nil
}
