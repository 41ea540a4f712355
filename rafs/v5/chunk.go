package v5

import (
	"bytes"
	"cmp"
	"runtime/debug"
	"slices"

	"github.com/rafsd/rafsd/rafs"
)

// chunkIndex leads from (blob, chunk index) to one record that describes the
// chunk, named by its offset in units of 8 bytes. It is immutable.
type chunkIndex struct {
	byIndex *rafs.ChunkIndex
	// ranked holds, for blobs whose chunks have no index of their own, the
	// records by ascending stored offset, each offset once: a chunk's index is
	// its rank. nil for other blobs.
	ranked [][]uint32
	err    error // why there is none: found once, told at each use
}

// Parts of a chunk record that describe the chunk; the rest (file offset, index,
// CRC) tells where it is used or comes with it.
const (
	recordBlob        = 32
	recordStoredAt    = 48
	recordDescription = 64 // digest, blob, flags, sizes, both offsets
	recordIndex       = 72
)

// eachChunk calls f for the offset of every chunk record. Further names of a
// file are left out, nothing is served by their lists, and so is what is
// damaged. The lists of a sound image do not overlap, which bounds the work: an
// image whose lists have more bytes than the file is refused.
func (im *Image) eachChunk(f func(off uint64)) error {
	budget := uint64(len(im.data)) / rafs.ChunkRecordSize
	var n inode
	for index := uint64(1); index <= im.entries(); index++ {
		if im.first(index, &n) != nil || n.mode&rafs.ModeType != rafs.ModeRegular {
			continue
		}
		if n.childCount > budget {
			return rafs.Damaged("inode", n.off, "chunk lists of several inodes overlap")
		}
		budget -= n.childCount
		for i := range n.childCount {
			f(n.chunks + i*rafs.ChunkRecordSize)
		}
	}
	return nil
}

// chunkIndex returns the index of chunk records, making it on the first call.
func (im *Image) chunkIndex() (*chunkIndex, error) {
	if x := im.index.Load(); x != nil {
		return x, x.err
	}
	im.indexMu.Lock()
	defer im.indexMu.Unlock()
	if x := im.index.Load(); x != nil {
		return x, x.err
	}
	x := &chunkIndex{ranked: make([][]uint32, len(im.blobs))}
	for i := range im.blobs {
		if im.blobs[i].ChunkCount == 0 {
			x.ranked[i] = []uint32{}
		}
	}
	var err error
	x.byIndex, err = rafs.BuildChunkIndex(len(im.blobs), func(yield func(blob, index, ref uint32)) error {
		return im.eachChunk(func(off uint64) {
			blob := le.Uint32(im.data[off+recordBlob:])
			if uint64(blob) < uint64(len(im.blobs)) && x.ranked[blob] == nil {
				yield(blob, le.Uint32(im.data[off+recordIndex:]), uint32(off/recordUnit))
			}
		})
	})
	if err == nil {
		err = im.rank(x)
	}
	if err != nil {
		x = &chunkIndex{err: err}
	}
	im.index.Store(x)
	return x, err
}

// rank sorts the records of blobs without chunk indexes.
func (im *Image) rank(x *chunkIndex) error {
	if err := im.eachChunk(func(off uint64) {
		blob := le.Uint32(im.data[off+recordBlob:])
		if uint64(blob) < uint64(len(im.blobs)) && x.ranked[blob] != nil {
			x.ranked[blob] = append(x.ranked[blob], uint32(off/recordUnit))
		}
	}); err != nil {
		return err
	}
	for i, refs := range x.ranked {
		if refs == nil {
			continue
		}
		slices.SortStableFunc(refs, func(a, b uint32) int { return cmp.Compare(im.storedAt(a), im.storedAt(b)) })
		refs = slices.CompactFunc(refs, func(a, b uint32) bool { return im.storedAt(a) == im.storedAt(b) })
		x.ranked[i] = slices.Clone(refs[:min(len(refs), rafs.MaxChunks)])
	}
	return nil
}

func (im *Image) storedAt(ref uint32) uint64 {
	return le.Uint64(im.data[uint64(ref)*recordUnit+recordStoredAt:])
}

// lookup returns the record of a chunk.
func (x *chunkIndex) lookup(blob, index uint32) (ref uint32, ok bool) {
	if uint64(blob) >= uint64(len(x.ranked)) {
		return 0, false
	}
	if refs := x.ranked[blob]; refs != nil {
		if uint64(index) >= uint64(len(refs)) {
			return 0, false
		}
		return refs[index], true
	}
	return x.byIndex.Lookup(blob, index)
}

// indexOf returns the chunk index of the record at off, which is of that blob:
// its own, or its rank.
func (im *Image) indexOf(x *chunkIndex, blob uint32, off uint64) (uint32, bool) {
	refs := x.ranked[blob]
	if refs == nil {
		return le.Uint32(im.data[off+recordIndex:]), true
	}
	stored := le.Uint64(im.data[off+recordStoredAt:])
	lo, hi := 0, len(refs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if im.storedAt(refs[mid]) < stored {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return uint32(lo), lo < len(refs) && im.storedAt(refs[lo]) == stored
}

// ChunksIndexed implements rafs.Image.
func (im *Image) ChunksIndexed() bool { return im.index.Load() != nil }

// Extents implements rafs.Image.
func (im *Image) Extents(ino, off, length uint64, dst []rafs.Extent) (_ []rafs.Extent, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.first(ino, &n); err != nil {
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
	x, err := im.chunkIndex()
	if err != nil {
		return dst, im.wrap(ino, err)
	}
	kept := len(dst)
	end := off + min(length, n.size-off, rafs.MaxExtents)
	for i := im.chunkAt(&n, off); off < end; i++ {
		piece := rafs.Extent{FileOffset: off, Blob: -1}
		left := end - off
		if i < n.childCount {
			if err := im.extent(x, &n, i, off, &piece); err != nil {
				return dst[:kept], im.wrap(ino, err)
			}
			left = min(left, uint64(piece.Length))
			if piece.Blob < 0 {
				i-- // a hole before chunk i
			}
		}
		piece.Length = uint32(left)
		dst = append(dst, piece)
		off += left
	}
	return dst, nil
}

// chunkAt returns the number of the chunk that holds offset off of a file, or,
// in a file with holes, of the first one that ends behind it.
func (im *Image) chunkAt(n *inode, off uint64) uint64 {
	if n.flags&flagHasHole == 0 {
		return off >> im.chunkBits
	}
	lo, hi := uint64(0), n.childCount
	for lo < hi {
		mid := lo + (hi-lo)/2
		rec := im.data[n.chunks+mid*rafs.ChunkRecordSize:]
		if start := le.Uint64(rec[64:]); start > off || off-start < uint64(le.Uint32(rec[44:])) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// extent fills e with the rest of chunk i, which begins at off or holds it, or,
// in a file with holes, with the hole before chunk i, as far as MaxExtents goes:
// Blob is then left alone.
func (im *Image) extent(x *chunkIndex, n *inode, i, off uint64, e *rafs.Extent) error {
	at := n.chunks + i*rafs.ChunkRecordSize
	rec := im.data[at : at+rafs.ChunkRecordSize]
	blob, size, start := le.Uint32(rec[recordBlob:]), uint64(le.Uint32(rec[44:])), le.Uint64(rec[64:])
	if n.flags&flagHasHole != 0 {
		if start >= n.size || size == 0 || size > min(n.size-start, uint64(im.info.ChunkSize)) {
			return rafs.Damaged("chunk record", at, "chunk %d: %d bytes at %d of a file of %d", i, size, start, n.size)
		}
		if off < start {
			e.Length = uint32(min(start-off, rafs.MaxExtents))
			return nil
		}
		if off-start >= size {
			return rafs.Damaged("chunk record", at, "chunk %d at %d of the file is out of order", i, start)
		}
	} else if begin := i << im.chunkBits; start != begin || size != min(n.size-begin, uint64(im.info.ChunkSize)) {
		return rafs.Damaged("chunk record", at, "chunk %d: %d bytes at %d of a file of %d", i, size, start, n.size)
	}
	if uint64(blob) >= uint64(len(im.blobs)) {
		return rafs.Damaged("chunk record", at, "blob index %d, the image has %d blobs", blob, len(im.blobs))
	}
	index, ok := im.indexOf(x, blob, at)
	ref, known := x.lookup(blob, index)
	if !ok || !known {
		return rafs.Damaged("chunk record", at, "chunk %d of blob %d is not indexed", index, blob)
	}
	// What is stored and verified is the chunk as one record describes it: all
	// others must say the same.
	if same := uint64(ref) * recordUnit; same != at &&
		!bytes.Equal(rec[:recordDescription], im.data[same:same+recordDescription]) {
		return rafs.Damaged("chunk record", at, "chunk %d of blob %d is described otherwise at %#x", index, blob, same)
	}
	within := off - start
	e.UncompressedOffset = le.Uint64(rec[56:]) + within
	e.Blob, e.Chunk = int32(blob), index
	e.ChunkOffset, e.Length = uint32(within), uint32(size-within)
	return nil
}

// ChunkCount implements rafs.Image.
func (im *Image) ChunkCount(blob int) (_ uint32, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	x, err := im.chunkIndex()
	if err != nil {
		return 0, err
	}
	if blob >= 0 && blob < len(x.ranked) && x.ranked[blob] != nil {
		return uint32(len(x.ranked[blob])), nil
	}
	return x.byIndex.Len(blob), nil
}

// Chunk implements rafs.Image.
func (im *Image) Chunk(blob int, chunk uint32, c *rafs.Chunk) (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	x, err := im.chunkIndex()
	if err != nil {
		return err
	}
	if blob < 0 || blob >= len(im.blobs) {
		return rafs.ErrNoChunk
	}
	ref, ok := x.lookup(uint32(blob), chunk)
	if !ok {
		return rafs.ErrNoChunk
	}
	var r rafs.ChunkRecord
	if err := im.chunkRecord(x, uint64(ref)*recordUnit, &r); err != nil {
		return err
	}
	if r.Blob != uint32(blob) || r.Index != chunk {
		return rafs.Damaged("chunk record", uint64(ref)*recordUnit, "it changed while the image was open")
	}
	*c = r.Chunk
	return nil
}

// chunkRecord reads and verifies the chunk record at off. Index is set also
// where the record has none.
func (im *Image) chunkRecord(x *chunkIndex, off uint64, r *rafs.ChunkRecord) error {
	r.Decode(im.data[off:])
	if uint64(r.Blob) < uint64(len(im.blobs)) && x.ranked[r.Blob] != nil {
		index, ok := im.indexOf(x, r.Blob, off)
		if !ok {
			return rafs.Damaged("chunk record", off, "it is not indexed")
		}
		r.Index = index
	}
	return r.Verify("chunk record", off, im.blobs, im.info.ChunkSize)
}
