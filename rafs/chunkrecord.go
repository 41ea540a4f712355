package rafs

import "encoding/binary"

// ChunkRecordSize is the size of the chunk record that v5 inodes and the chunk
// table of v6 are made of.
const ChunkRecordSize = 80

// ChunkRecord is a decoded chunk record. Nothing of it is checked.
type ChunkRecord struct {
	Chunk
	Blob       uint32
	Index      uint32 // chunk index in the blob
	FileOffset uint64 // of the chunk in the file, v5 only
}

// Decode reads a record from b, which holds ChunkRecordSize bytes. Layout:
// digest 0:32, blob index 32:4, flags 36:4, compressed size 40:4, uncompressed
// size 44:4, compressed offset 48:8, uncompressed offset 56:8, file offset 64:8,
// index 72:4, CRC-32C 76:4.
func (r *ChunkRecord) Decode(b []byte) {
	b = b[:ChunkRecordSize]
	le := binary.LittleEndian
	r.Digest = [32]byte(b)
	r.Blob = le.Uint32(b[32:])
	r.Flags = le.Uint32(b[36:])
	r.CompressedSize = le.Uint32(b[40:])
	r.UncompressedSize = le.Uint32(b[44:])
	r.CompressedOffset = le.Uint64(b[48:])
	r.UncompressedOffset = le.Uint64(b[56:])
	r.FileOffset = le.Uint64(b[64:])
	r.Index = le.Uint32(b[72:])
	r.CRC32C = le.Uint32(b[76:])
}

// Verify checks a record that was found at offset of the bootstrap against the
// blob table and against the format. Sizes that pass are at most MaxChunkSize
// and ends stay below 1<<63. What a record says of the stored bytes of a blob
// that is StoredByMeta is not looked at: it is not meant to be used.
func (r *ChunkRecord) Verify(structure string, offset uint64, blobs []Blob, chunkSize uint32) error {
	if uint64(r.Blob) >= uint64(len(blobs)) {
		return Damaged(structure, offset, "blob index %d, the image has %d blobs", r.Blob, len(blobs))
	}
	blob := &blobs[r.Blob]
	switch {
	case r.Flags&^blob.chunkFlags() != 0:
		return Damaged(structure, offset, "chunk %d of blob %d has flags %#x, which its chunks have not",
			r.Index, r.Blob, r.Flags)
	case r.UncompressedSize == 0 || r.UncompressedSize > chunkSize:
		return Damaged(structure, offset, "chunk %d of blob %d has %d bytes, the chunk size is %d",
			r.Index, r.Blob, r.UncompressedSize, chunkSize)
	case r.Index >= MaxChunks:
		return Damaged(structure, offset, "chunk index %d, a blob has at most %d chunks", r.Index, MaxChunks)
	case blob.ChunkCount != 0 && r.Index >= blob.ChunkCount && blob.Features&BlobChunkdict == 0:
		return Damaged(structure, offset, "chunk index %d, blob %d has %d chunks", r.Index, r.Blob, blob.ChunkCount)
	case !within(r.UncompressedOffset, r.UncompressedSize, roundUp4K(blob.UncompressedSize)):
		return Damaged(structure, offset, "chunk %d has the place %d+%d of blob %d, which has %d bytes uncompressed",
			r.Index, r.UncompressedOffset, r.UncompressedSize, r.Blob, blob.UncompressedSize)
	}
	if blob.StoredByMeta() {
		return nil
	}
	plain := r.UncompressedSize
	if r.Flags&ChunkEncrypted != 0 && plain < cipherUnit {
		plain = cipherPadded
	}
	switch {
	case r.Flags&ChunkCompressed == 0 && r.CompressedSize != plain:
		return Damaged(structure, offset, "chunk %d of blob %d is stored as it is, in %d bytes for %d",
			r.Index, r.Blob, r.CompressedSize, r.UncompressedSize)
	case r.CompressedSize == 0 || r.CompressedSize > maxStored(r.UncompressedSize):
		return Damaged(structure, offset, "chunk %d of blob %d has %d stored bytes for %d",
			r.Index, r.Blob, r.CompressedSize, r.UncompressedSize)
	case !within(r.CompressedOffset, r.CompressedSize, blob.CompressedSize):
		return Damaged(structure, offset, "chunk %d is stored at %d+%d of blob %d, which has %d bytes of chunks",
			r.Index, r.CompressedOffset, r.CompressedSize, r.Blob, blob.CompressedSize)
	}
	return nil
}

// What the cipher makes of data that are shorter than its unit.
const (
	cipherUnit   = 16
	cipherPadded = 18
)

// chunkFlags are the flags that chunks of the blob may have.
func (b *Blob) chunkFlags() uint32 {
	flags := uint32(ChunkCompressed | ChunkHasCRC)
	if b.Cipher != nil {
		flags |= ChunkEncrypted
	}
	if b.Features&BlobBatch != 0 {
		flags |= ChunkBatch
	}
	return flags
}

// maxStored bounds the stored size of a chunk. Builders store what does not
// shrink as it is; the ones that estimate (stargz) add less than a tenth.
func maxStored(uncompressed uint32) uint32 { return uncompressed + uncompressed/8 + 4096 }

// within tells whether [off, off+n) lies below limit, 0 standing for a limit
// that is not known: then for the largest address of the formats.
func within(off uint64, n uint32, limit uint64) bool {
	if limit == 0 {
		limit = MaxUncompressedSize
	}
	return off <= limit && uint64(n) <= limit-off
}

func roundUp4K(n uint64) uint64 { return (n + 4095) &^ 4095 }
