package testimage

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	superOffsetV6    = 1024
	superSizeV6      = 128
	extSuperOffsetV6 = superOffsetV6 + superSizeV6
	extSuperSizeV6   = 256
	deviceOffsetV6   = extSuperOffsetV6 + extSuperSizeV6
	deviceSizeV6     = 128
	blobEntrySizeV6  = 256
	deviceAlignV6    = 512 << 10 // of a blob in the flattened image

	nidUnit    = 32
	rootNid    = 128
	compactV6  = 32
	extendedV6 = 64

	layoutPlain  = 0
	layoutInline = 2
	layoutChunks = 4

	chunkFormatIndexes = 0x20 // entries of 8 bytes
)

// shapeV6 holds the sizes of the parts of an inode. Its inode, xattrs and
// inline data follow each other; the chunk array starts at a multiple of 8.
type shapeV6 struct {
	inode  int64 // 64, compact 32
	xattrs int64 // with their header
	layout uint16
	size   int64 // i_size
	inline int64 // bytes of data behind the inode
	blocks int64 // whole blocks elsewhere
	chunks int64 // bytes of the chunk array
}

// end is where the inode's last part ends, counted from its start.
func (s *shapeV6) end() int64 {
	if s.chunks > 0 {
		return roundUp(s.inode+s.xattrs, 8) + s.chunks
	}
	return s.inode + s.xattrs + s.inline
}

func (img *Image) shapeV6(nr uint32) shapeV6 {
	e := img.plan.at(nr)
	n := e.node
	var s shapeV6
	switch n.kind() {
	case unix.S_IFREG:
		s.size = n.content.Size()
		s.layout = layoutChunks
		s.chunks = 8 * int64(e.refCount)
	case unix.S_IFLNK:
		s.size = int64(len(n.target))
	case unix.S_IFDIR:
		s.size = img.direntsSize(nr)
	}
	s.inode = extendedV6
	if img.Options.Compact && n.uid < 1<<16 && n.gid < 1<<16 && e.nlink < 1<<16 && s.size < 1<<32 {
		s.inode = compactV6
	}
	if len(n.xattrs) > 0 {
		s.xattrs = 12
		for _, x := range n.xattrs {
			_, suffix, _ := splitXattr(x.name) // checked when it was added
			s.xattrs += roundUp(int64(4+len(suffix)+len(x.value)), 4)
		}
	}
	if s.layout == layoutPlain && s.size > 0 {
		s.blocks = roundUp(s.size, blockSize) / blockSize
		if tail := s.size % blockSize; tail != 0 && s.inode+s.xattrs+tail <= blockSize {
			s.layout, s.inline, s.blocks = layoutInline, tail, s.blocks-1
		}
	}
	return s
}

// writeV6 writes the bootstrap: superblocks and device table, blob table,
// prefetch table, inodes, whole blocks of directories and links, chunk table.
func writeV6(f io.Writer, img *Image, prefetch []uint32) error {
	p, l := img.plan, &img.Layout

	l.Superblock = Range{superOffsetV6, superSizeV6}
	l.ExtSuperblock = Range{extSuperOffsetV6, extSuperSizeV6}
	l.DeviceTable = Range{deviceOffsetV6, deviceSizeV6 * int64(len(img.Blobs))}
	l.BlobTable = Range{roundUp(l.DeviceTable.End(), blockSize), blobEntrySizeV6 * int64(len(img.Blobs))}
	l.PrefetchTable = Range{l.BlobTable.End(), 4 * int64(len(prefetch))}
	if len(img.Blobs) > 0 || len(prefetch) > 0 {
		l.MetaAddress = roundUp(l.PrefetchTable.End(), blockSize)
	}
	if err := img.placeV6(); err != nil {
		return err
	}
	records := img.chunkTableV6()
	l.ChunkTable = Range{l.Blocks.End(), int64(len(records)) * chunkRecordSize}
	l.Size = roundUp(l.ChunkTable.End(), blockSize)

	w := &offsetWriter{w: bufio.NewWriterSize(f, 1<<20)}
	head, err := img.superblocksV6()
	if err != nil {
		return err
	}
	w.write(head)
	w.padTo(l.BlobTable.Offset)
	w.write(img.blobTableV6())
	var table []byte
	for _, nr := range prefetch {
		nid := img.nid(nr)
		if nid >= 1<<32 {
			return fmt.Errorf("nid %d of %s is too large for the prefetch table", nid, p.path(nr))
		}
		table = le.AppendUint32(table, uint32(nid))
	}
	w.write(table)
	img.writeInodesV6(w)
	w.padTo(l.ChunkTable.Offset)
	var record []byte
	for _, c := range records {
		record = img.Options.appendChunkRecord(record[:0], c, c.FileOffset)
		w.write(record)
	}
	w.padTo(l.Size)
	return w.w.Flush() // reports the first failed write
}

// placeV6 finds a place for every inode and for the whole blocks behind them.
// An inode, its xattrs and its inline data stay inside a block where they fit
// in one; for the kernel inline data must.
func (img *Image) placeV6() error {
	p, l := img.plan, &img.Layout
	img.places.at = make([]int64, len(p.entries))
	img.places.blocks = make([]int64, len(p.entries))
	l.Inodes.Offset = l.MetaAddress + rootNid*nidUnit
	at, blocks := l.Inodes.Offset, int64(0)
	for nr := uint32(1); nr <= uint32(len(p.entries)); nr++ {
		e := p.at(nr)
		if !p.isFirst(nr) {
			continue
		}
		if len(e.node.target) > blockSize {
			return fmt.Errorf("%s: link target of %d bytes, more than 4096", p.path(nr), len(e.node.target))
		}
		s := img.shapeV6(nr)
		if (s.xattrs-12)/4+1 > 0xFFFF {
			return fmt.Errorf("%s: %d bytes of xattrs, more than an inode can have", p.path(nr), s.xattrs)
		}
		at = roundUp(at, nidUnit)
		together := s.inode + s.xattrs + s.inline
		if left := roundUp(at, blockSize) - at; left < together && together <= blockSize {
			at += left
		}
		img.places.at[nr-1] = at
		if s.blocks > 0 {
			img.places.blocks[nr-1] = blocks // counted from l.Blocks for now
			blocks += s.blocks * blockSize
		}
		at += s.end()
	}
	l.Inodes.Size = at - l.Inodes.Offset
	l.Blocks = Range{roundUp(at, blockSize), blocks}
	for nr := uint32(1); nr <= uint32(len(p.entries)); nr++ {
		if p.isFirst(nr) {
			img.places.blocks[nr-1] += l.Blocks.Offset
		}
	}
	if l.Blocks.End()/blockSize >= 1<<32 {
		return fmt.Errorf("metadata of %d bytes has no 32-bit block numbers", l.Blocks.End())
	}
	return nil
}

// nid returns the node id of entry nr.
func (img *Image) nid(nr uint32) uint64 {
	at := img.places.at[img.plan.at(nr).first-1]
	return uint64(at-img.Layout.MetaAddress) / nidUnit
}

// superblocksV6 returns the start of the file up to the device table's end.
func (img *Image) superblocksV6() ([]byte, error) {
	l, opt := &img.Layout, &img.Options
	b := make([]byte, l.DeviceTable.End())
	blocks, mapped := uint64(0), uint64(roundUp(l.Size, deviceAlignV6)/blockSize)
	for i, blob := range img.Blobs {
		slot := b[deviceOffsetV6+i*deviceSizeV6:]
		n := blob.UncompressedSize / blockSize
		copy(slot[:64], blob.ID)
		le.PutUint32(slot[64:], uint32(n))
		le.PutUint32(slot[68:], uint32(mapped))
		blocks += n
		mapped = roundUp(mapped+n, deviceAlignV6/blockSize)
	}
	if blocks >= 1<<32 || mapped >= 1<<32 {
		return nil, fmt.Errorf("blobs of %d blocks have no 32-bit block numbers", blocks)
	}

	s := b[superOffsetV6:]
	le.PutUint32(s[0:], 0xE0F5E1E2)
	le.PutUint32(s[8:], 0x40000000) // compatible features: RAFS
	s[12] = byte(bits.TrailingZeros32(blockSize))
	le.PutUint16(s[14:], rootNid)
	le.PutUint64(s[16:], uint64(len(img.plan.entries)))
	le.PutUint32(s[36:], uint32(blocks))
	le.PutUint32(s[40:], uint32(l.MetaAddress/blockSize))
	le.PutUint32(s[80:], 0x4|0x8) // incompatible: chunked files, device table
	le.PutUint16(s[86:], uint16(len(img.Blobs)))
	le.PutUint16(s[88:], deviceOffsetV6/deviceSizeV6)

	x := b[extSuperOffsetV6:]
	le.PutUint64(x[0:], opt.superFlags(img.plan.xattrs))
	le.PutUint64(x[8:], uint64(l.BlobTable.Offset))
	le.PutUint32(x[16:], uint32(l.BlobTable.Size))
	le.PutUint32(x[20:], opt.ChunkSize)
	le.PutUint64(x[24:], uint64(l.ChunkTable.Offset))
	le.PutUint64(x[32:], uint64(l.ChunkTable.Size))
	if l.PrefetchTable.Size > 0 {
		le.PutUint64(x[40:], uint64(l.PrefetchTable.Offset))
		le.PutUint32(x[48:], uint32(l.PrefetchTable.Size))
	}
	return b, nil
}

func (img *Image) blobTableV6() []byte {
	b := make([]byte, img.Layout.BlobTable.Size)
	for i, blob := range img.Blobs {
		e := b[i*blobEntrySizeV6:]
		copy(e[:64], blob.ID)
		le.PutUint32(e[64:], uint32(i))
		le.PutUint32(e[68:], img.Options.ChunkSize)
		le.PutUint32(e[72:], blob.ChunkCount)
		le.PutUint32(e[76:], uint32(img.Options.Compressor))
		le.PutUint32(e[80:], uint32(img.Options.Digest))
		le.PutUint32(e[84:], featureAligned|featureCapTarTOC)
		if img.Options.Zran {
			le.PutUint32(e[84:], featuresZran)
			digest, _ := hex.DecodeString(blob.MetaID) // ours: it is hex
			copy(e[168:200], digest)
			le.PutUint64(e[200:], blob.MetaSize)
		}
		le.PutUint64(e[88:], blob.Size)
		le.PutUint64(e[96:], blob.UncompressedSize)
		le.PutUint32(e[108:], uint32(blob.ChunkInfoCompressor))
		le.PutUint64(e[112:], uint64(blob.ChunkInfo.Offset))
		le.PutUint64(e[120:], uint64(blob.ChunkInfo.Size))
		le.PutUint64(e[128:], blob.ChunkInfoSize)
	}
	return b
}

// chunkTableV6 returns the chunks in the order of the chunk table: by digest,
// blob, index. Digests alone decide, since no two chunks here share one.
func (img *Image) chunkTableV6() []*Chunk {
	table := make([]*Chunk, len(img.Chunks))
	for i := range img.Chunks {
		table[i] = &img.Chunks[i]
	}
	slices.SortFunc(table, func(a, b *Chunk) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
	return table
}

// writeInodesV6 writes the inodes in the order of their places, then the whole
// blocks, in the same order.
func (img *Image) writeInodesV6(w *offsetWriter) {
	p := img.plan
	var b []byte
	for nr := uint32(1); nr <= uint32(len(p.entries)); nr++ {
		if !p.isFirst(nr) {
			continue
		}
		e := p.at(nr)
		s := img.shapeV6(nr)
		w.padTo(img.places.at[nr-1])
		b = img.appendInodeV6(b[:0], nr, &s)
		b = appendXattrsV6(b, e.node)
		w.write(b)
		if s.inline > 0 {
			img.data(nr, func(block []byte, last bool) {
				if last {
					w.write(block)
				}
			})
		}
		if s.chunks > 0 {
			w.padTo(roundUp(w.at, 8))
			b = b[:0]
			for _, ref := range p.chunks(e) {
				b = appendChunkAddress(b, &img.Chunks[ref])
			}
			w.write(b)
		}
	}
	for nr := uint32(1); nr <= uint32(len(p.entries)); nr++ {
		if !p.isFirst(nr) {
			continue
		}
		s := img.shapeV6(nr)
		if s.blocks == 0 {
			continue
		}
		w.padTo(img.places.blocks[nr-1])
		img.data(nr, func(block []byte, last bool) {
			if !last || s.inline == 0 {
				w.write(block)
				w.padTo(roundUp(w.at, blockSize))
			}
		})
	}
}

// data calls emit for each block of the data of a directory or link, the last
// one cut to its length.
func (img *Image) data(nr uint32, emit func(block []byte, last bool)) {
	if e := img.plan.at(nr); e.node.dir == nil {
		emit([]byte(e.node.target), true) // one block at most
		return
	}
	img.direntBlocks(nr, emit)
}

func (img *Image) appendInodeV6(b []byte, nr uint32, s *shapeV6) []byte {
	e := img.plan.at(nr)
	n := e.node
	format, icount := s.layout<<1, uint16(0)
	if s.xattrs > 0 {
		icount = uint16((s.xattrs-12)/4 + 1)
	}
	union := uint32(0)
	switch {
	case s.layout == layoutChunks:
		union = img.chunkFormat(e)
	case n.dir != nil || n.target != "":
		union = uint32(img.places.blocks[nr-1] / blockSize)
	default:
		union = n.rdev
	}
	if s.inode == compactV6 {
		b = le.AppendUint16(b, format)
		b = le.AppendUint16(b, icount)
		b = le.AppendUint16(b, uint16(n.mode))
		b = le.AppendUint16(b, uint16(e.nlink))
		b = le.AppendUint32(b, uint32(s.size))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, union)
		b = le.AppendUint32(b, nr)
		b = le.AppendUint16(b, uint16(n.uid))
		b = le.AppendUint16(b, uint16(n.gid))
		return le.AppendUint32(b, 0)
	}
	b = le.AppendUint16(b, format|1)
	b = le.AppendUint16(b, icount)
	b = le.AppendUint16(b, uint16(n.mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(s.size))
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, nr)
	b = le.AppendUint32(b, n.uid)
	b = le.AppendUint32(b, n.gid)
	b = le.AppendUint64(b, uint64(n.mtime))
	b = le.AppendUint32(b, n.mtimeNsec)
	b = le.AppendUint32(b, e.nlink)
	return append(b, make([]byte, 16)...)
}

// chunkFormat returns the chunk format of a file: its chunk size, or, when all
// of its chunks follow each other in one blob, the power of two that holds the
// whole file, so that the kernel needs the first address only.
func (img *Image) chunkFormat(e *entry) uint32 {
	const blockBits = 12
	size := uint64(e.node.content.Size())
	sizeBits := bits.TrailingZeros32(img.Options.ChunkSize)
	refs := img.plan.chunks(e)
	if len(refs) > 1 && size <= 1<<(31+blockBits) {
		first, contiguous := &img.Chunks[refs[0]], true
		for i, ref := range refs {
			c := &img.Chunks[ref]
			contiguous = contiguous && c.Blob == first.Blob &&
				c.UncompressedOffset == first.UncompressedOffset+uint64(i)<<sizeBits
		}
		if contiguous {
			sizeBits = bits.Len64(size - 1)
		}
	}
	return chunkFormatIndexes | uint32(sizeBits-blockBits)
}

// appendChunkAddress appends the 8-byte entry of a file's chunk array.
func appendChunkAddress(b []byte, c *Chunk) []byte {
	b = le.AppendUint16(b, uint16(c.Index))
	b = append(b, byte(c.Blob+1), byte(c.Index>>16))
	return le.AppendUint32(b, uint32(c.UncompressedOffset/blockSize))
}

func appendXattrsV6(b []byte, n *node) []byte {
	if len(n.xattrs) == 0 {
		return b
	}
	b = append(b, make([]byte, 12)...) // no name filter, nothing shared
	for _, x := range n.xattrs {
		index, suffix, _ := splitXattr(x.name) // checked when it was added
		b = append(b, byte(len(suffix)), index)
		b = le.AppendUint16(b, uint16(len(x.value)))
		b = append(append(b, suffix...), x.value...)
		b = pad(b, 4)
	}
	return b
}

// offsetWriter knows how far it is.
type offsetWriter struct {
	w  *bufio.Writer // keeps the first error until Flush
	at int64
}

func (w *offsetWriter) write(b []byte) {
	w.w.Write(b)
	w.at += int64(len(b))
}

var zeroBlock [blockSize]byte

// padTo writes zeros up to the offset at.
func (w *offsetWriter) padTo(at int64) {
	for w.at < at {
		w.write(zeroBlock[:min(at-w.at, blockSize)])
	}
}
