package rafstest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
)

// Source yields the bytes of chunks.
type Source interface {
	Chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error)
}

// BlobDir reads chunks from files named by blob id, in Dir or one of More, and
// verifies them: digests by the reader of exports, and CRCs here.
type BlobDir struct {
	Dir  string
	More []string

	img    rafs.Image
	chunks *export.BlobChunks
}

// Chunk implements Source.
func (s *BlobDir) Chunk(img rafs.Image, blob int, index uint32, c *rafs.Chunk) ([]byte, error) {
	if s.img != img {
		b, err := localfs.New(localfs.Options{Dir: s.Dir, AltDirs: s.More})
		if err != nil {
			return nil, err
		}
		s.img = img
		s.chunks = export.NewBlobChunks(img, func(id string) export.Source {
			src, err := b.Blob(id)
			if err != nil {
				panic(err) // the image checked the id
			}
			return src
		})
	}
	data, err := s.chunks.Chunk(context.Background(), blob, index)
	if err != nil {
		return nil, err
	}
	if got := codec.Sum(codec.Digester(img.Blobs()[blob].Digester), data); got != c.Digest && c.Digest != [32]byte{} {
		return nil, fmt.Errorf("chunk %d of blob %d: digest %x, want %x", index, blob, got, c.Digest)
	}
	if c.Flags&rafs.ChunkHasCRC != 0 {
		if got := codec.CRC32C(data); got != c.CRC32C {
			return nil, fmt.Errorf("chunk %d of blob %d: CRC %#x, want %#x", index, blob, got, c.CRC32C)
		}
	}
	return bytes.Clone(data), nil
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
