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

	mu       sync.Mutex
	chunks   map[uint32][]byte
	isReady  map[uint32]bool
	fetches  [][2]uint32
	dropped  []uint32
	fail     error // of the next fetch
	unmapped bool  // chunks are had by ReadAt only
	forgets  bool  // fetched chunks are gone at once
	closed   bool
}

func (b *fakeBlob) Data(chunk, off, n uint32) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unmapped || !b.isReady[chunk] {
		return nil, false
	}
	return b.chunks[chunk][off:][:n], true
}

func (b *fakeBlob) ReadAt(chunk uint32, p []byte, off uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.isReady[chunk] {
		return errors.New("not there")
	}
	copy(p, b.chunks[chunk][off:])
	return nil
}

func (b *fakeBlob) Drop(chunk uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped = append(b.dropped, chunk)
	b.isReady[chunk] = false
	return nil
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
		b.chunks[i] = data
		b.isReady[i] = !b.forgets
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
		b := &fakeBlob{img: img, index: len(blobs), src: &rafstest.BlobDir{Dir: dir}, isReady: map[uint32]bool{}, chunks: map[uint32][]byte{}}
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
