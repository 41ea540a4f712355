package v6

import (
	"bytes"
	"cmp"
	"errors"
	"runtime/debug"
	"slices"

	"github.com/rafsd/rafsd/rafs"
)

// Check implements rafs.Image. Superblocks and tables were checked when the
// image was opened; what remains are the sums over devices, the prefetch table,
// the chunk table with its overlaps, and the tree.
//
// Time and memory are linear in the size of the bootstrap: an inode is examined
// once, and as structures of a sound image do not overlap, the examined bytes
// never exceed the file.
func (im *Image) Check(report func(rafs.Fault) bool) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	c := &checker{im: im, report: report, budget: uint64(len(im.data)),
		visited: make([]uint64, uint64(len(im.data))/slotSize/64+1)}
	c.devices()
	c.prefetch()
	c.chunkTable()
	if err := c.tree(); err != nil {
		return err
	}
	return nil
}

type checker struct {
	im      *Image
	report  func(rafs.Fault) bool
	stopped bool
	budget  uint64   // bytes of inodes and their data still to be examined
	visited []uint64 // a bit for each slot
	path    []byte
}

// fault reports err, and whether to go on.
func (c *checker) fault(structure string, off uint64, path string, err error) bool {
	if !c.stopped {
		c.stopped = !c.report(rafs.NewFault(structure, off, path, err))
	}
	return !c.stopped
}

func (c *checker) devices() {
	var sum uint64
	for i := range c.im.blobs {
		off := uint64(deviceOffset + i*deviceSize + 64)
		blocks := uint64(le.Uint32(c.im.data[off:]))
		sum += blocks
		b := &c.im.blobs[i]
		size := b.UncompressedSize
		if b.Features&rafs.BlobExternal != 0 {
			size &^= c.im.blockSize() - 1 // the rest of a foreign object has no block
		}
		if blocks<<c.im.blockBits != size {
			c.fault("device table", off, "", rafs.Damaged("device table", off,
				"blob %d has %d blocks and %d bytes", i, blocks, size))
		}
	}
	if len(c.im.blobs) > 0 && sum != uint64(c.im.blocks) {
		c.fault("superblock", superOffset+36, "", rafs.Damaged("superblock", superOffset+36,
			"%d blocks, the devices have %d", c.im.blocks, sum))
	}
}

func (c *checker) prefetch() {
	var n inode
	for off := c.im.prefetch.off; off < c.im.prefetch.end() && !c.stopped; off += 4 {
		nid := uint64(le.Uint32(c.im.data[off:]))
		if nid == 0 {
			return
		}
		if err := c.im.inode(nid, &n); err != nil {
			c.fault("prefetch table", off, "", rafs.Damaged("prefetch table", off, "nid %d: %v", nid, err))
		}
	}
}

func (c *checker) chunkTable() {
	im := c.im
	if im.isTar() {
		c.tarChunks()
		return
	}
	spans := make([]rafs.ChunkSpan, 0, im.records())
	for ref := range im.records() {
		if c.stopped {
			return
		}
		off := im.chunkTable.off + uint64(ref)*rafs.ChunkRecordSize
		var r rafs.ChunkRecord
		r.Decode(im.data[off:])
		if err := r.Verify("chunk table", off, im.blobs, im.info.ChunkSize); err != nil {
			c.fault("chunk table", off, "", err)
			continue
		}
		spans = append(spans, rafs.ChunkSpan{
			Off: r.UncompressedOffset, Size: r.UncompressedSize, Blob: r.Blob, Index: r.Index, Ref: ref,
		})
	}
	rafs.Overlapping(spans, func(a, b rafs.ChunkSpan) bool {
		off := im.chunkTable.off + uint64(b.Ref)*rafs.ChunkRecordSize
		return c.fault("chunk table", off, "", rafs.Damaged("chunk table", off,
			"chunks %d and %d of blob %d overlap in the uncompressed address space at %d", a.Index, b.Index, a.Blob, b.Off))
	})
	slices.SortFunc(spans, func(a, b rafs.ChunkSpan) int {
		return cmp.Or(cmp.Compare(a.Blob, b.Blob), cmp.Compare(a.Index, b.Index))
	})
	for i := 1; i < len(spans) && !c.stopped; i++ {
		if a, b := spans[i-1], spans[i]; a.Blob == b.Blob && a.Index == b.Index {
			off := im.chunkTable.off + uint64(b.Ref)*rafs.ChunkRecordSize
			c.fault("chunk table", off, "", rafs.Damaged("chunk table", off, "a second record for chunk %d of blob %d", b.Index, b.Blob))
		}
	}
}

// tarChunks looks for chunks of a tar that overlap. There are no records to
// examine; the tree's addresses are, later.
func (c *checker) tarChunks() {
	x, err := c.im.chunkIndex()
	if err != nil {
		c.fault("chunk address", c.im.meta, "", err)
		return
	}
	var spans []rafs.ChunkSpan
	for i := range x.tar {
		if t := &x.tar[i]; t.size > 0 {
			spans = append(spans, rafs.ChunkSpan{Off: t.off(), Size: t.size, Blob: t.blob, Index: t.index, Ref: uint32(i)})
		}
	}
	rafs.Overlapping(spans, func(a, b rafs.ChunkSpan) bool {
		return c.fault("chunk address", c.im.meta, "", rafs.Damaged("chunk address", c.im.meta,
			"chunks %d and %d of the tar %d overlap at %d", a.Index, b.Index, a.Blob, b.Off))
	})
}

// frame is a directory on the way from the root to where the check is.
type frame struct {
	nid     uint64
	k       uint64 // block
	i       int    // entry to come in it
	pathLen int    // of the directory's own path
	prev    []byte // name of the last entry, a copy
	dot     bool   // the entry "." was seen
	dotDot  bool   // the entry ".." was seen
}

// tree walks all directories and examines every inode once.
func (c *checker) tree() error {
	var n inode
	if err := c.inode(c.im.root, &n, "/"); err != nil {
		return nil
	}
	stack := []frame{{nid: c.im.root}}
	for len(stack) > 0 && !c.stopped {
		top := &stack[len(stack)-1]
		child, name, more := c.nextEntry(stack, &n)
		if !more {
			if at := c.im.offset(top.nid); !top.dot || !top.dotDot {
				c.fault("directory", at, c.pathOf(top, nil), rafs.Damaged("directory", at, "no entry . or .."))
			}
			c.path = c.path[:top.pathLen]
			stack = stack[:len(stack)-1]
			continue
		}
		c.path = append(append(c.path[:top.pathLen], '/'), name...)
		path := string(c.path)
		var cn inode
		if c.isVisited(child) {
			if err := c.im.inode(child, &cn); err == nil && cn.isDir() {
				c.fault("directory", c.im.offset(top.nid), path,
					rafs.Damaged("directory", c.im.offset(top.nid), "the directory %d is named twice", child))
			}
			continue
		}
		if err := c.inode(child, &cn, path); err != nil || !cn.isDir() {
			if errors.Is(err, errBudget) {
				return nil
			}
			continue
		}
		if len(stack) == rafs.MaxDepth {
			c.fault("directory", cn.off, path, rafs.Damaged("directory", cn.off, "nested more than %d deep", rafs.MaxDepth))
			continue
		}
		stack = append(stack, frame{nid: child, pathLen: len(c.path)})
	}
	return nil
}

// nextEntry advances the topmost directory to its next entry that leads to an
// inode, examining what it passes.
func (c *checker) nextEntry(stack []frame, n *inode) (child uint64, name []byte, more bool) {
	im, f := c.im, &stack[len(stack)-1]
	if im.inode(f.nid, n) != nil {
		return 0, nil, false
	}
	for ; f.k < c.im.blocksOf(n.size) && !c.stopped; f.k, f.i = f.k+1, 0 {
		blk, err := im.dirBlock(n, f.k)
		if err != nil {
			c.fault("directory", n.off, c.pathOf(f, nil), err)
			continue
		}
		for f.i < blk.entries && !c.stopped {
			i := f.i
			f.i++
			at := blk.off + uint64(i*direntSize)
			bad := func(format string, args ...any) {
				c.fault("directory", at, c.pathOf(f, name), rafs.Damaged("directory", at, format, args...))
			}
			raw, err := blk.name(i)
			if err != nil {
				c.fault("directory", at, c.pathOf(f, nil), err)
				continue
			}
			name = bytes.Clone(raw)
			if f.prev != nil && bytes.Compare(f.prev, name) >= 0 {
				bad("%q is not behind %q", name, f.prev)
			}
			f.prev = name
			nid := blk.nid(i)
			switch string(name) {
			case ".":
				f.dot = true
				if nid != f.nid {
					bad("the entry . leads to %d, the directory is %d", nid, f.nid)
				}
				continue
			case "..":
				f.dotDot = true
				parent := f.nid
				if len(stack) > 1 {
					parent = stack[len(stack)-2].nid
				}
				if nid != parent {
					bad("the entry .. leads to %d, the parent is %d", nid, parent)
				}
				continue
			}
			if !sound(name, nid, blk.direntType(i)) {
				bad("name %q, nid %d, file type %d", name, nid, blk.b[i*direntSize+10])
				continue
			}
			if err := im.checkTarget(&blk, i, nid); err != nil {
				c.fault("directory", at, c.pathOf(f, name), err)
				continue
			}
			return nid, name, true
		}
	}
	return 0, nil, false
}

// pathOf names an entry of a directory, or the directory itself.
func (c *checker) pathOf(f *frame, name []byte) string {
	p := string(c.path[:f.pathLen])
	if name != nil || p == "" {
		p += "/" + string(name)
	}
	return p
}

func (c *checker) isVisited(nid uint64) bool {
	return nid/64 < uint64(len(c.visited)) && c.visited[nid/64]>>(nid%64)&1 != 0
}

var errBudget = errors.New("structures overlap")

// inode examines an inode and all that belongs to it.
func (c *checker) inode(nid uint64, n *inode, path string) error {
	im := c.im
	if err := im.inode(nid, n); err != nil {
		c.fault("inode", im.offset(nid), path, err)
		return err
	}
	if nid/64 < uint64(len(c.visited)) {
		c.visited[nid/64] |= 1 << (nid % 64)
	}
	cost := n.body - n.off
	switch n.mode & rafs.ModeType {
	case rafs.ModeRegular:
		cost += im.chunks(n) * chunkAddressSize
	case rafs.ModeDir, rafs.ModeSymlink:
		cost += n.size
	}
	if cost > c.budget {
		c.fault("inode", n.off, path, rafs.Damaged("inode", n.off,
			"inodes and their data take more bytes than the bootstrap has: they overlap"))
		c.stopped = true
		return errBudget
	}
	c.budget -= cost

	c.xattrs(n, path)
	switch n.mode & rafs.ModeType {
	case rafs.ModeSymlink:
		c.symlink(n, path)
	case rafs.ModeRegular:
		return c.chunks(n, path)
	}
	return nil
}

func (c *checker) xattrs(n *inode, path string) {
	l, err := c.im.xattrsOf(n)
	seen := map[string]struct{}{}
	var x xattr
	for err == nil {
		var more bool
		if more, err = c.im.nextXattr(&l, &x); !more || err != nil {
			break
		}
		name := x.prefix + string(x.suffix)
		if _, twice := seen[name]; twice {
			c.fault("xattrs", x.off, path, rafs.Damaged("xattrs", x.off, "%q twice", name))
		}
		seen[name] = struct{}{}
	}
	if err != nil {
		c.fault("xattrs", n.xattrs, path, err)
	}
}

func (c *checker) symlink(n *inode, path string) {
	var nul bool
	for k := range c.im.blocksOf(n.size) {
		nul = nul || bytes.IndexByte(c.im.flatBlock(n, k), 0) >= 0
	}
	switch {
	case nul:
		c.fault("symbolic link", n.off, path, rafs.Damaged("symbolic link", n.off, "a NUL in the target"))
	case n.size >= maxSymlink:
		c.fault("symbolic link", n.off, path, rafs.Damaged("symbolic link", n.off,
			"a target of %d bytes, Linux follows at most %d", n.size, maxSymlink-1))
	}
}

// chunks examines all chunk addresses of a regular file.
func (c *checker) chunks(n *inode, path string) error {
	index, err := c.im.chunkIndex()
	if err != nil {
		c.fault("chunk table", c.im.chunkTable.off, path, err)
		return err
	}
	for i := range c.im.chunks(n) {
		if c.stopped {
			break
		}
		var e rafs.Extent
		if err := c.im.extent(index, n, i<<c.im.chunkBits, &e); err != nil {
			c.fault("chunk address", n.addresses()+i*chunkAddressSize, path, err)
		}
	}
	return nil
}
