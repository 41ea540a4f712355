package rafstest

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/rafs"
)

// Source yields the bytes of chunks.
type Source interface {
	Chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error)
}

// BlobDir reads stored chunks from files named by blob id, and verifies them.
type BlobDir struct {
	Dir   string
	blobs map[string][]byte
	last  struct {
		blob  int
		index uint32
		data  []byte
	}
}

// Chunk implements Source.
func (s *BlobDir) Chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error) {
	if s.last.data != nil && s.last.blob == blob && s.last.index == index {
		return s.last.data, nil
	}
	b := &img.Blobs()[blob]
	stored, ok := s.blobs[b.ID]
	if !ok {
		var err error
		if stored, err = os.ReadFile(filepath.Join(s.Dir, b.ID)); err != nil {
			return nil, err
		}
		if s.blobs == nil {
			s.blobs = map[string][]byte{}
		}
		s.blobs[b.ID] = stored
	}
	if c.CompressedOffset+uint64(c.CompressedSize) > uint64(len(stored)) {
		return nil, fmt.Errorf("chunk %d at %d+%d of a blob of %d", index, c.CompressedOffset, c.CompressedSize, len(stored))
	}
	algorithm := codec.Algorithm(b.Compressor)
	if c.Flags&rafs.ChunkCompressed == 0 {
		algorithm = codec.Algorithm(rafs.CompressorNone)
	}
	data := make([]byte, c.UncompressedSize)
	if err := codec.Decode(algorithm, data, stored[c.CompressedOffset:][:c.CompressedSize]); err != nil {
		return nil, fmt.Errorf("chunk %d of blob %d: %w", index, blob, err)
	}
	if got := codec.Sum(codec.Digester(b.Digester), data); got != c.Digest && c.Digest != [32]byte{} {
		return nil, fmt.Errorf("chunk %d of blob %d: digest %x, want %x", index, blob, got, c.Digest)
	}
	if c.Flags&rafs.ChunkHasCRC != 0 {
		if got := codec.CRC32C(data); got != c.CRC32C {
			return nil, fmt.Errorf("chunk %d of blob %d: CRC %#x, want %#x", index, blob, got, c.CRC32C)
		}
	}
	s.last.blob, s.last.index, s.last.data = blob, index, data
	return data, nil
}

// CacheDir reads chunks from files of uncompressed data, at their place. The
// files are named by blob id and Suffix.
type CacheDir struct{ Dir, Suffix string }

// Chunk implements Source.

func (s CacheDir) Chunk(img rafs.Image, blob int, _ uint32, c *rafs.Chunk) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.Dir, img.Blobs()[blob].ID+s.Suffix))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, c.UncompressedSize)
	_, err = f.ReadAt(data, int64(c.UncompressedOffset))
	return data, err
}
