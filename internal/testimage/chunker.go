package testimage

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// Chunk is a stored piece of one or several files.
type Chunk struct {
	Digest     [32]byte // of the uncompressed bytes
	Blob       uint32   // index in the blob table
	Index      uint32   // in the blob
	CRC32C     uint32   // of the uncompressed bytes
	Compressed bool     // stored compressed; else both sizes are equal

	CompressedSize     uint32
	UncompressedSize   uint32
	CompressedOffset   uint64 // in the blob
	UncompressedOffset uint64 // in the blob's uncompressed address space
	FileOffset         uint64 // in the last file that has it, at its last place there
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunker cuts files into chunks, drops those that are there already, and
// spreads the rest over blobs: each file that brings new chunks puts them all
// into the next blob, in turn.
type chunker struct {
	opt    *Options
	dir    string
	enc    *encoder
	chunks []Chunk
	blobs  []*blobWriter
	next   int         // the blob of the next file with new chunks
	tar    *tar.Writer // of a layer; nil without Options.Zran

	byDigest map[chunkKey]uint32
	byRange  map[rangeKey]uint32 // ranges of generated content seen before
	buf      []byte
}

type chunkKey struct {
	digest [32]byte
	size   uint32
}

func newChunker(opt *Options, blobDir string) (*chunker, error) {
	compressor := opt.Compressor
	if opt.Zran {
		compressor = None // the layer is compressed as a whole
	}
	enc, err := newEncoder(compressor)
	if err != nil {
		return nil, err
	}
	return &chunker{
		opt: opt, dir: blobDir, enc: enc,
		byDigest: map[chunkKey]uint32{}, byRange: map[rangeKey]uint32{},
	}, nil
}

// file stores the chunks of content and appends their numbers to refs.
func (c *chunker) file(content Content, refs []uint32) ([]uint32, error) {
	size, step := content.Size(), int64(c.opt.ChunkSize)
	same, repeats := content.(repeating)
	repeats = repeats && c.tar == nil // a tar holds all bytes
	before := len(c.chunks)
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		var key rangeKey
		if repeats {
			key = same.rangeKey(off, n)
			if nr, ok := c.byRange[key]; ok {
				refs = append(refs, nr)
				continue
			}
		}
		if int64(len(c.buf)) < n {
			c.buf = make([]byte, n)
		}
		data := c.buf[:n]
		if got, err := content.ReadAt(data, off); got != len(data) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("content at %d: %d of %d bytes: %w", off, got, n, err)
		}
		nr, err := c.store(data)
		if err != nil {
			return nil, err
		}
		if repeats {
			c.byRange[key] = nr
		}
		refs = append(refs, nr)
	}
	if len(c.chunks) > before {
		c.next = (c.next + 1) % c.opt.Blobs
	}
	return refs, nil
}

// store returns the number of the chunk with these bytes, new or known.
func (c *chunker) store(data []byte) (uint32, error) {
	key := chunkKey{c.opt.Digest.sum(data), uint32(len(data))}
	if nr, ok := c.byDigest[key]; ok {
		if c.tar != nil {
			_, err := c.tar.Write(data)
			return nr, err
		}
		return nr, nil
	}
	if c.next == len(c.blobs) {
		b, err := createBlob(c.dir, uint32(c.next))
		if err != nil {
			return 0, err
		}
		c.blobs = append(c.blobs, b)
	}
	blob := c.blobs[c.next]
	if blob.count >= maxBlobChunks {
		return 0, fmt.Errorf("blob %d is full with %d chunks", c.next, blob.count)
	}
	stored, compressed, err := c.enc.encode(data)
	if err != nil {
		return 0, err
	}
	chunk := Chunk{
		Digest: key.digest, Blob: uint32(c.next), Index: blob.count,
		CRC32C: crc32.Checksum(data, castagnoli), Compressed: compressed,
		CompressedSize: uint32(len(stored)), UncompressedSize: key.size,
		CompressedOffset: blob.size, UncompressedOffset: blob.addresses,
	}
	write := blob.write
	if c.tar != nil {
		write = func(p []byte) error { _, err := c.tar.Write(p); return err }
	}
	if err := write(stored); err != nil {
		return 0, err
	}
	blob.count++
	blob.addresses += uint64(len(data))
	if c.opt.Version == V6 || c.opt.Aligned {
		blob.addresses = roundUp(blob.addresses, blockSize)
	}
	nr := uint32(len(c.chunks))
	c.chunks = append(c.chunks, chunk)
	c.byDigest[key] = nr
	return nr, nil
}

// maxBlobChunks is the builder's own limit; the format's field has 24 bits.
const maxBlobChunks = 1<<24 - 2

// blobWriter is a blob that grows under a temporary name.
type blobWriter struct {
	file      *os.File
	buf       *bufio.Writer
	hash      hash.Hash
	size      uint64 // bytes written
	addresses uint64 // end of the uncompressed address space
	count     uint32 // chunks
}

func createBlob(dir string, index uint32) (*blobWriter, error) {
	f, err := os.CreateTemp(dir, fmt.Sprintf(".blob-%d-*", index))
	if err != nil {
		return nil, err
	}
	return &blobWriter{file: f, buf: bufio.NewWriterSize(f, 1<<18), hash: sha256.New()}, nil
}

func (b *blobWriter) write(p []byte) error {
	b.hash.Write(p)
	b.size += uint64(len(p))
	_, err := b.buf.Write(p)
	return err
}

// finish closes the blob and gives it its name, the sha256 of all its bytes.
func (b *blobWriter) finish() (id, path string, err error) {
	if err = b.buf.Flush(); err != nil {
		return "", "", err
	}
	if err = b.file.Chmod(0o644); err != nil {
		return "", "", err
	}
	if err = b.file.Close(); err != nil {
		return "", "", err
	}
	id = hex.EncodeToString(b.hash.Sum(nil))
	path = filepath.Join(filepath.Dir(b.file.Name()), id)
	return id, path, os.Rename(b.file.Name(), path)
}

// discard removes an unfinished blob; after finish it does nothing.
func (b *blobWriter) discard() {
	b.file.Close()
	os.Remove(b.file.Name())
}
