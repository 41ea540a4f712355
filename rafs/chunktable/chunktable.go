package chunktable

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/meta"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/rafs"
)

// Describe returns what an image says of its blob i. The table in it reads the
// image and is valid as long as that is open. It asks nobody.
func Describe(img rafs.Image, i int) (blobstore.BlobDesc, error) {
	b := &img.Blobs()[i]
	d := blobstore.BlobDesc{
		ID:               b.ID,
		Compressor:       blobstore.Compressor(b.Compressor),
		Digester:         blobstore.Digester(b.Digester),
		CompressedSize:   b.CompressedSize,
		UncompressedSize: b.UncompressedSize,
		Table:            table{img, i},
	}
	var err error
	if d.Cipher, err = cipher(b); err != nil {
		return d, err
	}
	if b.StoredByMeta() {
		place, err := MetaPlace(b)
		if err != nil {
			return d, err
		}
		d.Places = loader(b.ChunkInfo.BlobID, place)
		d.LocalPlaces = localLoader(b, filepath.Dir(img.Info().Path), place)
	}
	return d, nil
}

// MetaPlace returns what an image says of a blob's chunk information.
func MetaPlace(b *rafs.Blob) (*meta.Place, error) {
	ci := &b.ChunkInfo
	p := &meta.Place{
		Header: meta.Header{
			Features: b.Features, Compressor: codec.Algorithm(ci.Compressor), Entries: b.ChunkCount,
			Offset: ci.Offset, StoredSize: ci.StoredSize, Size: ci.Size,
		},
		Bounds:   meta.Bounds{Stored: b.CompressedSize, Uncompressed: b.UncompressedSize},
		BlobSize: ci.BlobSize, BlobDigest: ci.BlobDigest,
		TOCSize: ci.TOCSize, TOCDigest: ci.TOCDigest,
	}
	var err error
	p.Cipher, err = cipher(b)
	return p, err
}

func cipher(b *rafs.Blob) (*codec.Cipher, error) {
	if b.Cipher == nil {
		return nil, nil
	}
	c, err := codec.NewCipher(b.Cipher.Reveal())
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", b.ID, err)
	}
	return c, nil
}

// loader loads the chunk information that is in blob id.
func loader(id string, p *meta.Place) blobstore.LoadPlaces {
	return func(ctx context.Context, blob func(string) (backend.Source, error), alloc func(uint64) ([]byte, error)) (blobstore.Places, error) {
		src, err := blob(id)
		if err != nil {
			return nil, err
		}
		t, faults := p.Load(ctx, src, alloc)
		if len(faults) > 0 {
			return nil, fmt.Errorf("chunk information in blob %s: %w", id, faults[0])
		}
		return t, nil
	}
}

// localLoader loads chunk information from files that are named by the blob, or by
// the one that holds it: nydusd keeps them in its cache, and images carry them
// beside their bootstrap.
func localLoader(b *rafs.Blob, near string, p *meta.Place) func([]string, func(uint64) ([]byte, error)) (blobstore.Places, error) {
	return func(dirs []string, alloc func(uint64) ([]byte, error)) (blobstore.Places, error) {
		var errs []error
		for _, dir := range append(dirs[:len(dirs):len(dirs)], near) {
			for _, id := range []string{b.ID, b.ChunkInfo.BlobID} {
				t, err := fromFile(filepath.Join(dir, id+".blob.meta"), p, alloc)
				if err == nil {
					return t, nil
				}
				errs = append(errs, err)
			}
		}
		return nil, errors.Join(errs...)
	}
}

func fromFile(path string, p *meta.Place, alloc func(uint64) ([]byte, error)) (*meta.Table, error) {
	f, err := hostfs.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := hostfs.Stat(f)
	if err != nil {
		return nil, err
	}
	t, err := p.FromCache(f, st.Size, alloc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// table is the chunk table of one blob, as the bootstrap has it.
type table struct {
	img  rafs.Image
	blob int
}

// Len is one more than the highest chunk index. If the metadata cannot be read,
// the table is empty; reading a chunk then says why.
func (t table) Len() uint32 {
	n, err := t.img.ChunkCount(t.blob)
	if err != nil {
		return 0
	}
	return n
}

// flags are those of a record that mean the same to the store.
const flags = blobstore.ChunkCompressed | blobstore.ChunkEncrypted | blobstore.ChunkHasCRC

// Chunk describes chunk i.
func (t table) Chunk(i uint32, c *blobstore.Chunk) error {
	var r rafs.Chunk
	if err := t.img.Chunk(t.blob, i, &r); err != nil {
		if errors.Is(err, rafs.ErrNoChunk) {
			return blobstore.ErrNoChunk
		}
		return err
	}
	*c = blobstore.Chunk{
		CompressedOffset:   r.CompressedOffset,
		UncompressedOffset: r.UncompressedOffset,
		CompressedSize:     r.CompressedSize,
		UncompressedSize:   r.UncompressedSize,
		Flags:              blobstore.ChunkFlags(r.Flags) & flags,
		CRC32C:             r.CRC32C,
		Digest:             blobstore.Digest(r.Digest),
	}
	if r.Digest == [32]byte{} {
		c.Flags |= blobstore.ChunkNoDigest
	}
	return nil
}
