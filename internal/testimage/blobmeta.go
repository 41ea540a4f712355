package testimage

import "encoding/binary"

var le = binary.LittleEndian

// Sizes and marks of a v6 blob's chunk information.
const (
	ciEntrySize  = 16 // v1
	ciHeaderSize = 4096
	ciMagic      = 0xB10BB10B

	featureAligned   = 0x1        // uncompressed addresses in whole 4 KiB
	featureCapTarTOC = 0x40000000 // "built by 2.2 or newer"
)

// chunkInfo is where a v6 blob keeps its chunk information.
type chunkInfo struct {
	compressor       Compressor
	offset           uint64
	compressedSize   uint64
	uncompressedSize uint64
}

// writeChunkInfo appends the chunk information, version 1, and its header.
// chunks are those of this blob, by index.
func writeChunkInfo(b *blobWriter, chunks []*Chunk, enc *encoder) (chunkInfo, error) {
	plain := make([]byte, 0, len(chunks)*ciEntrySize)
	for _, c := range chunks {
		plain = appendChunkInfo(plain, c)
	}
	stored, compressed, err := enc.encode(plain)
	if err != nil {
		return chunkInfo{}, err
	}
	ci := chunkInfo{
		offset: b.size, compressedSize: uint64(len(stored)), uncompressedSize: uint64(len(plain)),
	}
	if compressed {
		ci.compressor = enc.algorithm
	}
	if err := b.write(stored); err != nil {
		return chunkInfo{}, err
	}
	var h [ciHeaderSize]byte
	le.PutUint32(h[0:], ciMagic)
	le.PutUint32(h[4:], featureAligned|featureCapTarTOC)
	le.PutUint32(h[8:], uint32(ci.compressor))
	le.PutUint32(h[12:], uint32(len(chunks)))
	le.PutUint64(h[16:], ci.offset)
	le.PutUint64(h[24:], ci.compressedSize)
	le.PutUint64(h[32:], ci.uncompressedSize)
	le.PutUint32(h[4092:], ciMagic)
	return ci, b.write(h[:])
}

// appendChunkInfo appends a v1 entry: two words with the sizes less one split
// into their low 20 and high 4 bits around the offsets.
func appendChunkInfo(b []byte, c *Chunk) []byte {
	u, z := uint64(c.UncompressedSize-1), uint64(c.CompressedSize-1)
	b = le.AppendUint64(b, u&0xFFFFF<<44|c.UncompressedOffset|u>>20<<8)
	return le.AppendUint64(b, z&0xFFFFF<<44|z>>20<<40|c.CompressedOffset)
}
