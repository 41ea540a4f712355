package testimage

import (
	"bufio"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

const (
	superSizeV5 = 8192
	inodeSizeV5 = 128
	maxSizeV5   = 1 << 31

	inodeFlagSymlink = 1
	inodeFlagXattr   = 4
)

// recordV5 holds the sizes of the parts of an inode record, padding left out,
// and where they start in it.
type recordV5 struct {
	targetAt, target int64
	xattrsAt, xattrs int64
	chunksAt, chunks int64
	size             int64
}

func layoutV5(e *entry) recordV5 {
	var r recordV5
	r.targetAt = inodeSizeV5 + roundUp(int64(len(e.name)), 8)
	r.target = int64(len(e.node.target))
	r.xattrsAt = r.targetAt + roundUp(r.target, 8)
	if len(e.node.xattrs) > 0 {
		r.xattrs = 8 + xattrPairsV5(e.node)
	}
	r.chunksAt = r.xattrsAt + roundUp(r.xattrs, 8)
	r.chunks = int64(e.refCount) * chunkRecordSize
	r.size = r.chunksAt + r.chunks
	return r
}

// xattrPairsV5 returns the bytes of the xattr pairs of n.
func xattrPairsV5(n *node) (size int64) {
	for _, x := range n.xattrs {
		size += int64(4 + len(x.name) + 1 + len(x.value))
	}
	return size
}

// writeV5 writes the bootstrap: superblock, inode table, prefetch table, blob
// table, extended blob table, and the inode records in depth-first order.
func writeV5(f io.Writer, img *Image, prefetch []uint32) error {
	p, opt, l := img.plan, &img.Options, &img.Layout

	l.Superblock = Range{0, superSizeV5}
	l.InodeTable = Range{superSizeV5, 4 * int64(len(p.entries))}
	l.PrefetchTable = Range{roundUp(l.InodeTable.End(), 8), 4 * int64(len(prefetch))}
	blobTable := blobTableV5(img.Blobs)
	l.BlobTable = Range{roundUp(l.PrefetchTable.End(), 8), int64(len(blobTable))}
	l.ExtBlobTable = Range{Offset: l.BlobTable.End()}
	if !opt.NoExtBlobTable {
		l.ExtBlobTable.Size = 64 * int64(len(img.Blobs))
	}
	l.Inodes.Offset = l.ExtBlobTable.End()

	at := l.Inodes.Offset
	img.places.at = make([]int64, len(p.entries))
	p.depthFirst(1, func(nr uint32) {
		img.places.at[nr-1] = at
		at += layoutV5(p.at(nr)).size
	})
	l.Inodes.Size = at - l.Inodes.Offset
	l.Size = at
	if l.Size > maxSizeV5 {
		return fmt.Errorf("v5 bootstrap of %d bytes, more than 2 GiB", l.Size)
	}

	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(superblockV5(img, len(prefetch)))
	table := make([]byte, 0, l.BlobTable.Offset-l.InodeTable.Offset)
	for _, at := range img.places.at {
		table = le.AppendUint32(table, uint32(at/8))
	}
	table = pad(table, 8)
	for _, nr := range prefetch {
		table = le.AppendUint32(table, nr)
	}
	w.Write(pad(table, 8))
	w.Write(blobTable)
	if !opt.NoExtBlobTable {
		w.Write(extBlobTableV5(img.Blobs))
	}
	digests := img.inodeDigests()
	var record []byte
	p.depthFirst(1, func(nr uint32) {
		record = img.appendInodeV5(record[:0], nr, &digests[nr-1])
		w.Write(record)
	})
	return w.Flush() // reports the first failed write
}

func superblockV5(img *Image, prefetch int) []byte {
	l := &img.Layout
	b := make([]byte, superSizeV5)
	le.PutUint32(b[0:], 0x52414653)
	le.PutUint32(b[4:], 0x500)
	le.PutUint32(b[8:], superSizeV5)
	le.PutUint32(b[12:], img.Options.ChunkSize)
	le.PutUint64(b[16:], img.Options.superFlags(img.plan.xattrs))
	le.PutUint64(b[24:], uint64(img.plan.inodes))
	le.PutUint64(b[32:], uint64(l.InodeTable.Offset))
	le.PutUint64(b[40:], uint64(l.PrefetchTable.Offset))
	le.PutUint64(b[48:], uint64(l.BlobTable.Offset))
	le.PutUint32(b[56:], uint32(len(img.plan.entries)))
	le.PutUint32(b[60:], uint32(prefetch))
	le.PutUint32(b[64:], uint32(l.BlobTable.Size))
	if !img.Options.NoExtBlobTable {
		le.PutUint32(b[68:], uint32(len(img.Blobs)))
		le.PutUint64(b[72:], uint64(l.ExtBlobTable.Offset))
	}
	return b
}

func blobTableV5(blobs []Blob) []byte {
	var b []byte
	for i, blob := range blobs {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, make([]byte, 8)...) // no range for readahead
		b = append(b, blob.ID...)
	}
	return pad(b, 8)
}

func extBlobTableV5(blobs []Blob) []byte {
	var b []byte
	for _, blob := range blobs {
		b = le.AppendUint32(b, blob.ChunkCount)
		b = le.AppendUint32(b, featureCapTarTOC)
		b = le.AppendUint64(b, blob.UncompressedSize)
		b = le.AppendUint64(b, blob.Size)
		b = append(b, make([]byte, 40)...)
	}
	return b
}

// inodeDigests returns the digest of every entry's inode: over the digests of
// its chunks or children, over a link's target, or over nothing.
func (img *Image) inodeDigests() [][32]byte {
	p := img.plan
	digests := make([][32]byte, len(p.entries))
	var buf []byte
	for nr := uint32(len(p.entries)); nr > 0; nr-- { // children have larger numbers
		e := p.at(nr)
		buf = buf[:0]
		switch e.node.kind() {
		case unix.S_IFREG:
			for _, c := range p.chunks(e) {
				buf = append(buf, img.Chunks[c].Digest[:]...)
			}
		case unix.S_IFDIR:
			for c := e.firstChild; c < e.firstChild+e.children; c++ {
				buf = append(buf, digests[c-1][:]...)
			}
		case unix.S_IFLNK:
			buf = append(buf, e.node.target...)
		}
		digests[nr-1] = img.Options.Digest.sum(buf)
	}
	return digests
}

// appendInodeV5 appends the record of entry nr.
func (img *Image) appendInodeV5(b []byte, nr uint32, digest *[32]byte) []byte {
	p, e := img.plan, img.plan.at(nr)
	n := e.node
	var flags uint64
	var size, xattrBytes int64
	childIndex, childCount := uint32(0), e.refCount
	switch n.kind() {
	case unix.S_IFREG:
		size = n.content.Size()
	case unix.S_IFLNK:
		size = int64(len(n.target))
		flags |= inodeFlagSymlink
	case unix.S_IFDIR:
		childIndex, childCount = e.firstChild, e.children
		for c := e.firstChild; c < e.firstChild+e.children; c++ {
			size += int64(len(p.at(c).name)) + 8
		}
		size = max(roundUp(size, blockSize), blockSize)
	}
	if len(n.xattrs) > 0 {
		flags |= inodeFlagXattr
		xattrBytes = roundUp(xattrPairsV5(n), 8)
	}

	b = append(b, digest[:]...)
	b = le.AppendUint64(b, uint64(e.parent))
	b = le.AppendUint64(b, uint64(e.first))
	b = le.AppendUint32(b, n.uid)
	b = le.AppendUint32(b, n.gid)
	b = le.AppendUint32(b, 0) // project id
	b = le.AppendUint32(b, n.mode)
	b = le.AppendUint64(b, uint64(size))
	b = le.AppendUint64(b, uint64(roundUp(size+xattrBytes, 512)/512))
	b = le.AppendUint64(b, flags)
	b = le.AppendUint32(b, e.nlink)
	b = le.AppendUint32(b, childIndex)
	b = le.AppendUint32(b, childCount)
	b = le.AppendUint16(b, uint16(len(e.name)))
	b = le.AppendUint16(b, uint16(len(n.target)))
	b = le.AppendUint32(b, n.rdev)
	if img.Options.NoExtBlobTable { // and no mtime
		b = append(b, make([]byte, 12)...)
	} else {
		b = le.AppendUint32(b, n.mtimeNsec)
		b = le.AppendUint64(b, uint64(n.mtime))
	}
	b = le.AppendUint64(b, 0)

	b = pad(append(b, e.name...), 8)
	b = pad(append(b, n.target...), 8)
	if len(n.xattrs) > 0 {
		b = le.AppendUint64(b, uint64(xattrPairsV5(n)))
		for _, x := range n.xattrs {
			b = le.AppendUint32(b, uint32(len(x.name)+1+len(x.value)))
			b = append(append(append(b, x.name...), 0), x.value...)
		}
		b = pad(b, 8)
	}
	for i, c := range p.chunks(e) {
		offset := uint64(i) * uint64(img.Options.ChunkSize)
		b = img.Options.appendChunkRecord(b, &img.Chunks[c], offset)
	}
	return b
}

// pad appends zeros up to a multiple of n.
func pad(b []byte, n int) []byte { return append(b, make([]byte, roundUp(len(b), n)-len(b))...) }
