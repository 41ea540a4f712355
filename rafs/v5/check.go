package v5

import (
	"bytes"
	"runtime/debug"
	"slices"

	"github.com/rafsd/rafsd/rafs"
)

// Check implements rafs.Image. Superblock and tables were checked when the image
// was opened; what remains are the prefetch table, every record of the inode
// table with its names, xattrs and chunks, that each record but the root's is
// the child of exactly one directory, and the overlaps of chunks. Time and
// memory are linear in the size of the bootstrap.
func (im *Image) Check(report func(rafs.Fault) bool) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	c := &checker{im: im, report: report, owned: make([]uint64, im.entries()/64+1)}
	c.prefetch()
	c.records()
	c.directories()
	c.orphans()
	c.chunks()
	c.digests()
	return nil
}

type checker struct {
	im      *Image
	report  func(rafs.Fault) bool
	stopped bool
	damaged uint64   // entries of the inode table that lead to no inode
	owned   []uint64 // a bit for each index that is some directory's child
}

func (c *checker) fault(off uint64, path string, err error) {
	if !c.stopped {
		c.stopped = !c.report(rafs.NewFault("inode", off, path, err))
	}
}

func (c *checker) prefetch() {
	im := c.im
	var n inode
	for off := im.prefetch.off; off < im.prefetch.end() && !c.stopped; off += tableEntrySize {
		ino := uint64(le.Uint32(im.data[off:]))
		if ino == 0 {
			return
		}
		if err := im.first(ino, &n); err != nil {
			c.fault(off, "", rafs.Damaged("prefetch table", off, "inode %d: %v", ino, err))
		}
	}
}

// records examines each record by itself.
func (c *checker) records() {
	im := c.im
	var n, first inode
	budget := uint64(len(im.data)) // records of a sound image do not overlap
	for index := uint64(1); index <= im.entries() && !c.stopped; index++ {
		if err := im.record(index, &n); err != nil {
			c.damaged++
			c.fault(im.inodes.off+(index-1)*tableEntrySize, "", err)
			continue
		}
		if n.end-n.off > budget {
			c.fault(n.off, "", rafs.Damaged("inode", n.off, "inodes take more bytes than the bootstrap has: they overlap"))
			c.stopped = true
			return
		}
		budget -= n.end - n.off
		if n.ino != index {
			if err := im.first(n.ino, &first); err != nil || (first.mode^n.mode)&rafs.ModeType != 0 {
				c.fault(n.off, c.path(index), rafs.Damaged("inode", n.off, "a hard link to %d, which is no such inode", n.ino))
			}
			continue
		}
		c.xattrs(&n)
		if n.mode&rafs.ModeType == rafs.ModeSymlink {
			if bytes.IndexByte(im.bytes(n.symlink), 0) >= 0 {
				c.fault(n.off, c.path(index), rafs.Damaged("symbolic link", n.symlink.off, "a NUL in the target"))
			} else if n.symlink.size >= 4096 {
				c.fault(n.off, c.path(index), rafs.Damaged("symbolic link", n.symlink.off,
					"a target of %d bytes, Linux follows at most 4095", n.symlink.size))
			}
		}
	}
	if c.damaged > 0 {
		c.fault(im.inodes.off, "", rafs.Damaged("inode table", im.inodes.off,
			"%d of %d entries do not lead to their inodes (older builders did that to images with hard links from a tar);"+
				" what they name cannot be read, build the image again", c.damaged, im.entries()))
	}
}

func (c *checker) xattrs(n *inode) {
	var name, value []byte
	seen := map[string]struct{}{}
	for off := n.xattrs.off; ; {
		next, more, err := c.im.nextXattr(n, off, &name, &value)
		if err != nil {
			c.fault(n.off, c.path(n.index), err)
			return
		}
		if !more {
			return
		}
		if _, twice := seen[string(name)]; twice {
			c.fault(n.off, c.path(n.index), rafs.Damaged("xattrs", off, "%q twice", name))
		}
		seen[string(name)] = struct{}{}
		off = next
	}
}

// directories examines the children of each directory: that they are its own,
// nobody else's, and in order. As no index may be owned twice, the number of
// children that are examined never exceeds the table.
func (c *checker) directories() {
	im := c.im
	var dir, n inode
	for index := uint64(1); index <= im.entries() && !c.stopped; index++ {
		if im.first(index, &dir) != nil || !dir.isDir() {
			continue
		}
		var prev []byte
		for k := range dir.childCount {
			child := dir.childIndex + k
			if c.owned[child/64]>>(child%64)&1 != 0 {
				c.fault(dir.off, c.path(index), rafs.Damaged("inode", dir.off, "child %d belongs to another directory too", child))
				break
			}
			c.owned[child/64] |= 1 << (child % 64)
			if c.stopped || im.record(child, &n) != nil {
				continue // reported by records
			}
			if err := im.child(&dir, k, &n); err != nil {
				c.fault(n.off, c.path(index), err)
				continue
			}
			name := im.bytes(n.name)
			if prev != nil && bytes.Compare(prev, name) >= 0 {
				c.fault(n.off, c.path(child), rafs.Damaged("directory", n.off, "%q is not behind %q", name, prev))
			}
			prev = append(prev[:0], name...)
		}
	}
}

func (c *checker) orphans() {
	var n inode
	for index := uint64(rootIndex + 1); index <= c.im.entries() && !c.stopped; index++ {
		if c.owned[index/64]>>(index%64)&1 == 0 && c.im.record(index, &n) == nil {
			c.fault(n.off, "", rafs.Damaged("inode", n.off, "entry %d of the inode table is in no directory", index))
		}
	}
}

// chunks examines the chunk lists of all files, and that no two chunks of a blob
// share a place.
func (c *checker) chunks() {
	im := c.im
	if c.stopped {
		return
	}
	x, err := im.chunkIndex()
	if err != nil {
		c.fault(im.inodes.off, "", err)
		return
	}
	var spans []rafs.ChunkSpan
	var n inode
	for index := uint64(1); index <= im.entries() && !c.stopped; index++ {
		if im.first(index, &n) != nil || n.mode&rafs.ModeType != rafs.ModeRegular {
			continue
		}
		var end uint64
		for i := range n.childCount {
			at := n.chunks + i*rafs.ChunkRecordSize
			var r rafs.ChunkRecord
			var e rafs.Extent
			err := im.chunkRecord(x, at, &r)
			if err == nil && r.FileOffset < end {
				err = rafs.Damaged("chunk record", at, "chunk %d at %d of the file is out of order", i, r.FileOffset)
			}
			if err == nil {
				err = im.extent(x, &n, i, r.FileOffset, &e)
			}
			if err != nil {
				if c.fault(at, c.path(index), err); c.stopped {
					return
				}
				continue
			}
			end = r.FileOffset + uint64(r.UncompressedSize)
			if ref, _ := x.lookup(r.Blob, r.Index); uint64(ref)*recordUnit == at {
				spans = append(spans, rafs.ChunkSpan{
					Off: r.UncompressedOffset, Size: r.UncompressedSize, Blob: r.Blob, Index: r.Index, Ref: ref,
				})
			}
		}
	}
	rafs.Overlapping(spans, func(a, b rafs.ChunkSpan) bool {
		off := uint64(b.Ref) * recordUnit
		c.fault(off, "", rafs.Damaged("chunk record", off,
			"chunks %d and %d of blob %d overlap in the uncompressed address space at %d", a.Index, b.Index, a.Blob, b.Off))
		return !c.stopped
	})
}

// digests recomputes what each inode's digest covers, up to the root.
func (c *checker) digests() {
	if c.stopped {
		return
	}
	c.im.eachDigest(func(n *inode, err error) bool {
		if n != nil { // what cannot be read was reported by records
			c.fault(n.off, c.path(n.index), err)
		}
		return !c.stopped
	})
}

// path finds the path of a sound record by its parents, "" if they do not lead
// to the root.
func (c *checker) path(index uint64) string {
	var parts [][]byte
	var n inode
	for depth := 0; ; depth++ {
		if depth > rafs.MaxDepth || c.im.record(index, &n) != nil {
			return ""
		}
		if index == rootIndex {
			break
		}
		parts = append(parts, c.im.bytes(n.name))
		index = n.parent // smaller than index: record saw to that
	}
	if len(parts) == 0 {
		return "/"
	}
	slices.Reverse(parts)
	return "/" + string(bytes.Join(parts, []byte("/")))
}
