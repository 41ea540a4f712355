package blobstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/codec"
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
	// ChunkEncrypted: the stored bytes are encrypted with the blob's Cipher.
	ChunkEncrypted ChunkFlags = 1 << 2
	// ChunkBatch: the stored bytes are those of a context, which several small
	// chunks share.
	ChunkBatch  ChunkFlags = 1 << 3
	ChunkHasCRC ChunkFlags = 1 << 4
	// ChunkNoDigest: the image has no digest for this chunk (its Digest is
	// zero); the CRC, if there is one, is all that can be checked.
	ChunkNoDigest ChunkFlags = 1 << 16
	// ChunkZran: the stored bytes are a part of a gzip stream, which a context
	// says how to enter. This bit is ours.
	ChunkZran ChunkFlags = 1 << 17

	// ChunkShared are the flags of chunks that share their stored bytes.
	ChunkShared = ChunkBatch | ChunkZran
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

	// Context names the context of a chunk that shares its stored bytes: the
	// compressed range is then the context's, and ContextOffset is where the
	// chunk begins in what that yields.
	Context, ContextOffset uint32
}

// sharesWith reports whether the stored bytes of both chunks are the same.
func (c *Chunk) sharesWith(o *Chunk) bool {
	return c.Flags&ChunkShared != 0 && c.Flags&ChunkShared == o.Flags&ChunkShared &&
		c.Context == o.Context && c.CompressedOffset == o.CompressedOffset
}

// Context says how to decode stored bytes that several chunks share.
type Context struct {
	Size uint32 // uncompressed
	// Inflate: they go on in the middle of a gzip stream. Else they are stored
	// like a chunk: compressed if they are fewer than Size.
	Inflate bool
	Window  codec.Window // if Inflate; Dict is the Places' and must not be written to
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

// Places says where the chunks of a blob are stored, where the image's own table
// does not. It has the rules of a Table.
type Places interface {
	// Chunk fills in everything about chunk i but its digest.
	Chunk(i uint32, c *Chunk) error
	// Context fills in context i.
	Context(i uint32, x *Context) error
}

// LoadPlaces reads the places of a blob's chunks, from that blob or another at
// the same backend, which blob opens. alloc is where it gets memory from that
// may be large; what it returns goes when the blob is closed. An error of the
// backend keeps its class; any other, which the bytes read have caused, may pass
// as well, if they are read anew.
type LoadPlaces func(ctx context.Context, blob func(id string) (backend.Source, error), alloc func(n uint64) ([]byte, error)) (Places, error)

// ErrNoChunk reports a chunk index that the table does not describe.
var ErrNoChunk = errors.New("no such chunk in the image")

// BlobDesc is what an image says of one of its blobs.
type BlobDesc struct {
	ID               string // checked by the image: 1..64 bytes of [0-9A-Za-z._-], no leading dot
	Compressor       Compressor
	Digester         Digester
	CompressedSize   uint64 // bytes of chunk data in the blob; 0 = unknown
	UncompressedSize uint64 // size of the uncompressed address space; 0 = unknown
	// Table says what the chunks are: their digests and their places in the
	// uncompressed address space, and, unless Places is set, where they are stored.
	Table Table
	// Places, if it is set, finds out where the chunks are stored. It is called
	// when the first of them must be fetched.
	Places LoadPlaces
	// LocalPlaces, if it is set, finds the same in files in dirs, or returns nil.
	// What it returns is given up for Places if it leads to wrong bytes.
	LocalPlaces func(dirs []string, alloc func(n uint64) ([]byte, error)) (Places, error)
	Cipher      *codec.Cipher // of encrypted chunks
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
