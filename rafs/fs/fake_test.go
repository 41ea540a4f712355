package fs_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/fs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// fakeBlob is a blob whose cache is memory: chunks are ready once they were
// fetched.
type fakeBlob struct {
	img   rafs.Image
	index int
	src   rafstest.Source

	mu      sync.Mutex
	cache   []byte // the uncompressed address space
	isReady map[uint32]bool
	fetches [][2]uint32
	fail    error // of the next fetch
	closed  bool
}

func (b *fakeBlob) Ready(chunk uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.isReady[chunk]
}

func (b *fakeBlob) Bytes(off uint64, n uint32) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if off > uint64(len(b.cache)) || uint64(n) > uint64(len(b.cache))-off {
		return nil, false
	}
	return b.cache[off:][:n], true
}

func (b *fakeBlob) Fetch(ctx context.Context, first, last uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetches = append(b.fetches, [2]uint32{first, last})
	if err := b.fail; err != nil {
		b.fail = nil
		return err
	}
	for i := first; i <= last; i++ {
		var c rafs.Chunk
		if err := b.img.Chunk(b.index, i, &c); err != nil {
			return err
		}
		data, err := b.src.Chunk(b.img, b.index, i, &c)
		if err != nil {
			return err
		}
		if end := int(c.UncompressedOffset) + len(data); end > len(b.cache) {
			b.cache = append(b.cache, make([]byte, end-len(b.cache))...)
		}
		copy(b.cache[c.UncompressedOffset:], data)
		b.isReady[i] = true
	}
	return nil
}

func (b *fakeBlob) Close() error {
	b.closed = true
	return nil
}

// mount opens an image whose blobs are files in dir, named by id.
func mount(t testing.TB, bootstrap, dir string, o fs.Options) (*fs.FS, []*fakeBlob) {
	t.Helper()
	img, err := open.Image(bootstrap, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var blobs []*fakeBlob
	f, err := fs.New(img, func(d blobstore.BlobDesc) (fs.Blob, error) {
		if d.ID != img.Blobs()[len(blobs)].ID || d.Table == nil {
			return nil, errors.New("blob described wrongly")
		}
		b := &fakeBlob{img: img, index: len(blobs), src: &rafstest.BlobDir{Dir: dir}, isReady: map[uint32]bool{}}
		blobs = append(blobs, b)
		return b, nil
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, blobs
}
