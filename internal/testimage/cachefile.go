package testimage

import (
	"fmt"
	"os"
	"path/filepath"
)

// WriteUncompressed writes the uncompressed address space of every blob as
// dir/ID, the layout of a full cache file, by decoding the blob. Gaps between
// chunks are holes. Of a v6 image they are devices for the kernel's EROFS. It
// returns their paths by blob index.
func (img *Image) WriteUncompressed(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	paths := make([]string, len(img.Blobs))
	for i := range img.Blobs {
		paths[i] = filepath.Join(dir, img.Blobs[i].ID)
		if err := img.uncompressBlob(uint32(i), paths[i]); err != nil {
			return nil, fmt.Errorf("uncompress blob %s: %w", img.Blobs[i].ID, err)
		}
	}
	return paths, nil
}

func (img *Image) uncompressBlob(index uint32, path string) (err error) {
	blob, err := os.Open(img.Blobs[index].Path)
	if err != nil {
		return err
	}
	defer blob.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	for i := range img.Chunks {
		c := &img.Chunks[i]
		if c.Blob != index {
			continue
		}
		stored := make([]byte, c.CompressedSize)
		if _, err := blob.ReadAt(stored, int64(c.CompressedOffset)); err != nil {
			return err
		}
		how := None
		if c.Compressed {
			how = img.Options.Compressor
		}
		data, err := decode(how, stored, int(c.UncompressedSize))
		if err != nil {
			return fmt.Errorf("chunk %d: %w", c.Index, err)
		}
		if _, err := out.WriteAt(data, int64(c.UncompressedOffset)); err != nil {
			return err
		}
	}
	return out.Truncate(int64(img.Blobs[index].UncompressedSize))
}
