package blobstore

import (
	"errors"
	"fmt"
)

// Digest is the content address of a chunk: BLAKE3-256 or SHA-256 of its
// uncompressed bytes, as the image says.
type Digest [32]byte

// Compressor names how chunks of a blob are stored.
type Compressor uint8

// The compressors of the format, numbered as a v6 blob table stores them.
const (
	CompressNone Compressor = 0
	CompressLZ4  Compressor = 1 // one raw LZ4 block, no frame
	CompressGzip Compressor = 2 // one gzip member
	CompressZstd Compressor = 3 // one zstd frame
)

// Digester names the digest algorithm of a blob's chunks, numbered as a v6 blob
// table stores it.
type Digester uint8

// The digest algorithms of the format.
const (
	DigestBlake3 Digester = 0
	DigestSHA256 Digester = 1
)

// ChunkFlags tell how one chunk is stored. The values are those of a chunk
// record (80 bytes) of the format.
type ChunkFlags uint32

// Flags of a chunk.
const (
	ChunkCompressed ChunkFlags = 1 << 0
	ChunkHasCRC     ChunkFlags = 1 << 4
	// ChunkNoDigest: the image has no digest for this chunk (its Digest is
	// zero); the CRC, if there is one, is all that can be checked.
	ChunkNoDigest ChunkFlags = 1 << 16
)

// Chunk describes one chunk of a blob: where its stored bytes are, where its
// uncompressed bytes have their place, and what they must hash to. It is a
// plain value, so that neither the image formats nor this package import each
// other.
type Chunk struct {
	CompressedOffset   uint64 // in the blob
	UncompressedOffset uint64 // in the blob's uncompressed address space
	CompressedSize     uint32
	UncompressedSize   uint32
	Flags              ChunkFlags
	CRC32C             uint32 // Castagnoli, over the uncompressed bytes, if ChunkHasCRC
	Digest             Digest
}

// Table describes the chunks of one blob by their index. Implementations are
// safe for concurrent use and may read a mapped file: they check bounds on each
// use and report what is wrong as an error.
type Table interface {
	// Len is one more than the highest chunk index. Some indexes below it may
	// be unknown to this image (a merged image names only what it uses).
	Len() uint32
	// Chunk fills c with chunk i, or returns ErrNoChunk for an index of which
	// the image knows nothing.
	Chunk(i uint32, c *Chunk) error
}

// ErrNoChunk reports a chunk index that the table does not describe.
var ErrNoChunk = errors.New("no such chunk in the image")

// BlobDesc is what an image says of one of its blobs.
type BlobDesc struct {
	ID               string // checked by the image: 1..64 bytes of [0-9A-Za-z._-], no leading dot
	Compressor       Compressor
	Digester         Digester
	CompressedSize   uint64 // bytes of chunk data in the blob; 0 = unknown
	UncompressedSize uint64 // size of the uncompressed address space; 0 = unknown
	Table            Table
}

// ChunkError says which bytes of which blob could not be served, and why. It is
// what reaches the log; a guest sees EIO.
type ChunkError struct {
	Op   string // "fetch", "decompress", "verify", "store"
	Blob string // blob id, whole
	Off  uint64 // offset of the stored bytes in the blob
	Len  uint32 // length of the stored bytes
	Err  error
}

func (e *ChunkError) Error() string {
	return fmt.Sprintf("%s chunk: blob %s offset %d length %d: %v", e.Op, e.Blob, e.Off, e.Len, e.Err)
}

// Unwrap returns the cause.
func (e *ChunkError) Unwrap() error { return e.Err }

// ErrDigestMismatch is the cause of a ChunkError when the bytes at hand are not
// those that the image promises.
var ErrDigestMismatch = errors.New("digest mismatch")
