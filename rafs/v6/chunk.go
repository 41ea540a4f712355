package v6

import (
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

// address is a decoded chunk address of a regular file, 8 bytes: chunk index low
// 0:2, blob index plus one 2:1, chunk index high 3:1, block in the blob's
// uncompressed address space 4:4.
type address struct {
	blob, index uint32
	off         uint64 // uncompressed
}

const noBlock = 1<<32 - 1 // a hole to the kernel; no builder writes it

// address reads address i of a file that checkChunked accepted.
func (im *Image) address(n *inode, i uint64) (address, error) {
	off := n.addresses() + i*chunkAddressSize
	v := le.Uint64(im.data[off:])
	blob, blk := uint32(v>>16&0xFF), uint32(v>>32)
	switch {
	case blob == 0 || uint64(blob) > uint64(len(im.blobs)):
		return address{}, rafs.Damaged("chunk address", off, "device %d, the image has %d blobs", blob, len(im.blobs))
	case blk == noBlock:
		return address{}, rafs.Damaged("chunk address", off, "a hole, which RAFS has not")
	}
	return address{
		blob:  blob - 1,
		index: uint32(v&0xFFFF) | uint32(v>>24&0xFF)<<16,
		off:   uint64(blk) << im.blockBits,
	}, nil
}

// chunkIndex leads from (blob, chunk index) to what describes the chunk. It is
// immutable.
type chunkIndex struct {
	refs *rafs.ChunkIndex // to records of the chunk table, or to tar
	tar  []tarChunk       // of images of tar files
	err  error            // why there is none: found once, told at each use
}

// chunkIndex returns the index of chunks, making it on the first call.
func (im *Image) chunkIndex() (*chunkIndex, error) {
	if x := im.index.Load(); x != nil {
		return x, x.err
	}
	im.indexMu.Lock()
	defer im.indexMu.Unlock()
	if x := im.index.Load(); x != nil {
		return x, x.err
	}
	x, err := im.makeIndex()
	if err != nil {
		x = &chunkIndex{err: err}
	}
	im.index.Store(x)
	return x, err
}

func (im *Image) makeIndex() (*chunkIndex, error) {
	if im.isTar() {
		return im.tarIndex()
	}
	refs, err := rafs.BuildChunkIndex(len(im.blobs), func(yield func(blob, index, ref uint32)) error {
		for ref := range im.records() {
			rec := im.data[im.chunkTable.off+uint64(ref)*rafs.ChunkRecordSize:]
			yield(le.Uint32(rec[32:]), le.Uint32(rec[72:]), ref)
		}
		return nil
	})
	return &chunkIndex{refs: refs}, err
}

// records is the number of records of the chunk table; a bootstrap has at most
// 2 GiB, so it is below 1<<25.
func (im *Image) records() uint32 { return uint32(im.chunkTable.size / rafs.ChunkRecordSize) }

// record reads and verifies record ref of the chunk table, which the index says
// describes the chunk of that blob and index.
func (im *Image) record(ref, blob, index uint32, r *rafs.ChunkRecord) error {
	off := im.chunkTable.off + uint64(ref)*rafs.ChunkRecordSize
	r.Decode(im.data[off:])
	if r.Blob != blob || r.Index != index {
		return rafs.Damaged("chunk table", off, "record %d changed while the image was open", ref)
	}
	return r.Verify("chunk table", off, im.blobs, im.info.ChunkSize)
}

// ChunksIndexed implements rafs.Image.
func (im *Image) ChunksIndexed() bool { return im.index.Load() != nil }

// Extents implements rafs.Image.
func (im *Image) Extents(ino, off, length uint64, dst []rafs.Extent) (_ []rafs.Extent, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.inode(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	switch n.mode & rafs.ModeType {
	case rafs.ModeRegular:
	case rafs.ModeDir:
		return dst, rafs.ErrIsDir
	default:
		return dst, rafs.ErrNotRegular
	}
	if off >= n.size || length == 0 {
		return dst, nil
	}
	index, err := im.chunkIndex()
	if err != nil {
		return dst, im.wrap(ino, err)
	}
	kept := len(dst)
	end := off + min(length, n.size-off, rafs.MaxExtents)
	for off < end {
		var piece rafs.Extent
		if err := im.extent(index, &n, off, &piece); err != nil {
			return dst[:kept], im.wrap(ino, err)
		}
		piece.Length = uint32(min(uint64(piece.Length), end-off))
		dst = append(dst, piece)
		off += uint64(piece.Length)
	}
	return dst, nil
}

// place returns where the chunk is that an address names: its offset in the
// blob's uncompressed address space and its size. at is the address's offset.
func (im *Image) place(x *chunkIndex, addr address, at uint64) (off, size uint64, err error) {
	ref, ok := x.refs.Lookup(addr.blob, addr.index)
	if !ok {
		return 0, 0, rafs.Damaged("chunk address", at, "no record for chunk %d of blob %d", addr.index, addr.blob)
	}
	if im.isTar() {
		c := &x.tar[ref]
		return c.off(), uint64(c.size), nil
	}
	// The record, not the address, is what the chunk is verified and stored by.
	rec := im.chunkTable.off + uint64(ref)*rafs.ChunkRecordSize
	b := im.data[rec:]
	if le.Uint32(b[32:]) != addr.blob || le.Uint32(b[72:]) != addr.index {
		return 0, 0, rafs.Damaged("chunk table", rec, "record %d changed while the image was open", ref)
	}
	return le.Uint64(b[56:]), uint64(le.Uint32(b[44:])), nil
}

// extent fills e with the rest of the chunk that holds offset off of a file.
func (im *Image) extent(x *chunkIndex, n *inode, off uint64, e *rafs.Extent) error {
	i := off >> im.chunkBits
	at := n.addresses() + i*chunkAddressSize
	addr, err := im.address(n, i)
	if err != nil {
		return err
	}
	place, size, err := im.place(x, addr, at)
	if err != nil {
		return err
	}
	named := place // what an address can say of it
	if im.blobs[addr.blob].Features&rafs.BlobExternal != 0 {
		named &^= im.blockSize() - 1 // foreign objects align nothing
	}
	start := i << im.chunkBits
	if want := min(n.size-start, uint64(im.info.ChunkSize)); named != addr.off || size != want {
		return rafs.Damaged("chunk address", at,
			"chunk %d of blob %d: %d bytes at %d of the blob, its record says %d bytes at %d",
			addr.index, addr.blob, want, addr.off, size, place)
	}
	within := off - start
	*e = rafs.Extent{
		FileOffset:         off,
		UncompressedOffset: place + within,
		Blob:               int32(addr.blob),
		Chunk:              addr.index,
		ChunkOffset:        uint32(within),
		Length:             uint32(size - within),
	}
	return nil
}

// ChunkCount implements rafs.Image.
func (im *Image) ChunkCount(blob int) (_ uint32, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	index, err := im.chunkIndex()
	if err != nil {
		return 0, err
	}
	return index.refs.Len(blob), nil
}

// Chunk implements rafs.Image.
func (im *Image) Chunk(blob int, chunk uint32, c *rafs.Chunk) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	index, err := im.chunkIndex()
	if err != nil {
		return err
	}
	if blob < 0 || blob >= len(im.blobs) {
		return rafs.ErrNoChunk
	}
	ref, ok := index.refs.Lookup(uint32(blob), chunk)
	if !ok {
		return rafs.ErrNoChunk
	}
	if im.isTar() {
		index.tar[ref].describe(c)
		return nil
	}
	var r rafs.ChunkRecord
	if err := im.record(ref, uint32(blob), chunk, &r); err != nil {
		return err
	}
	*c = r.Chunk
	return nil
}
