package v5

import (
	"bytes"

	"github.com/rafsd/rafsd/rafs"
)

const (
	blobHeaderSize = 8 // readahead offset and size
	extEntrySize   = 64
	tarHeaderSize  = 512

	// maxBlobs is far above what builders write (256).
	maxBlobs = 1 << 12

	// The low bits of the feature field that no version has defined are
	// ignored in v5: its field was reserved before 2.2.
	undefinedFeatures = 0xF000
)

// readBlobs reads the blob table, whose entries are a readahead range (offset 0:4, size 4:4)
// and an id that ends with a NUL or with the table, and the extended table, if
// there is one: chunk count 0:4, features 4:4, uncompressed size 8:8, compressed
// size 16:8 of 64 bytes.
func (im *Image) readBlobs() error {
	ids := map[string]int{}
	for off := im.blobTable.off; im.blobTable.end()-off > blobHeaderSize; {
		i := len(im.blobs)
		if i == maxBlobs {
			return rafs.Damaged("blob table", off, "more than %d blobs", maxBlobs)
		}
		id := im.data[off+blobHeaderSize : im.blobTable.end()]
		if end := bytes.IndexByte(id, 0); end >= 0 {
			id = id[:end]
		}
		blob := rafs.Blob{Compressor: im.info.Compressor, Digester: im.info.Digester}
		blob.Readahead = rafs.Range{Offset: uint64(le.Uint32(im.data[off:])), Size: uint64(le.Uint32(im.data[off+4:]))}
		if im.extBlobs.size != 0 {
			if err := im.readExtended(i, &blob); err != nil {
				return err
			}
		}
		var err error
		if blob.ID, err = rafs.ResolveBlobID(i, off, string(id[:min(len(id), 65)]), blob.Features, im.b.Path()); err != nil {
			return err
		}
		if first, twice := ids[blob.ID]; twice {
			return rafs.Damaged("blob table", off, "blobs %d and %d have the id %s", first, i, blob.ID)
		}
		ids[blob.ID] = i
		im.blobs = append(im.blobs, blob)
		off = min(off+blobHeaderSize+uint64(len(id))+1, im.blobTable.end())
	}
	return nil
}

// readExtended fills in what the extended table says of blob i.
func (im *Image) readExtended(i int, blob *rafs.Blob) error {
	off := im.extBlobs.off + uint64(i)*extEntrySize
	if off >= im.extBlobs.end() {
		return rafs.Damaged("extended blob table", im.extBlobs.off, "%d entries, the blob table has more",
			im.extBlobs.size/extEntrySize)
	}
	e := im.data[off : off+extEntrySize]
	blob.ChunkCount = le.Uint32(e)
	blob.Features = le.Uint32(e[4:])
	blob.UncompressedSize, blob.CompressedSize = le.Uint64(e[8:]), le.Uint64(e[16:])
	blob.RecordedSize = blob.CompressedSize
	if err := rafs.CheckBlobFeatures(i, blob.Features&^undefinedFeatures, rafs.BlobExternal); err != nil {
		return err
	}
	switch {
	case blob.ChunkCount > rafs.MaxChunks:
		return rafs.Damaged("extended blob table", off, "blob %d has %d chunks, at most %d are possible",
			i, blob.ChunkCount, rafs.MaxChunks)
	case blob.UncompressedSize > rafs.MaxUncompressedSize:
		return rafs.Damaged("extended blob table", off+8, "blob %d has %d bytes", i, blob.UncompressedSize)
	case blob.CompressedSize > rafs.MaxCompressedSize:
		return rafs.Damaged("extended blob table", off+16, "blob %d has %d stored bytes", i, blob.CompressedSize)
	}
	// Since 2.2 the recorded size is that of the file with its tar header.
	if cut := uint32(rafs.BlobCapTarTOC | rafs.BlobHasTarHeader); blob.Features&cut == cut {
		if blob.CompressedSize < tarHeaderSize {
			return rafs.Damaged("extended blob table", off+16, "blob %d: no room for a tar header in %d bytes", i, blob.CompressedSize)
		}
		blob.CompressedSize -= tarHeaderSize
	}
	return nil
}
