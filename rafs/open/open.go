package open

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/rafs"
)

// Options say what an image must be.
type Options struct {
	// Digest pins the bootstrap: if it is set, one with another SHA-256 is refused
	// with ErrDigest. Of a blob that holds its bootstrap, it is the bootstrap's,
	// uncompressed.
	Digest *[32]byte
	// WantDigest asks for Info.Digest, which costs reading the whole file. It
	// is implied by Digest.
	WantDigest bool
	// VerifyMetadata wants the digests of all inodes recomputed, up to the
	// root's, in time linear in the metadata. v6 has no such digests: an image of
	// that version is then refused with ErrUnsupported.
	VerifyMetadata bool
	// File is the bootstrap itself, open for reading, if the caller has it open: path
	// is then only its name. It stays the caller's.
	File *os.File
}

// ErrDigest reports a bootstrap that is not the one that was pinned.
var ErrDigest = errors.New("the bootstrap is not the pinned one")

// Image opens the bootstrap at path. Each successful call is matched by one
// Close of its result, even where calls share one image.
func Image(path string, o Options) (rafs.Image, error) {
	img, err := images.open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	if o.Digest != nil && img.Info().Digest != *o.Digest {
		err := fmt.Errorf("open image %s: %w: sha256 %x, want %x", path, ErrDigest, img.Info().Digest, *o.Digest)
		return nil, errors.Join(err, img.Close())
	}
	if o.VerifyMetadata {
		if err := verify(img); err != nil {
			return nil, errors.Join(fmt.Errorf("open image: verify_metadata: %w", err), img.Close())
		}
	}
	return img, nil
}

// verify recomputes the digests of an image's inodes.
func verify(img rafs.Image) error {
	if v5, ok := img.(interface{ VerifyTree() error }); ok {
		return v5.VerifyTree()
	}
	return fmt.Errorf("%s: %w: inodes of v%d have no digests (the bootstrap's own sha256 can be pinned instead)",
		img.Info().Path, rafs.ErrUnsupported, img.Info().Version)
}

// key is what opens must agree on to share an image: the state of the file, and
// what else goes into the image. The name does where a bootstrap that was cut
// out of its blob is named by the blob.
type key struct {
	id     rafs.FileID
	name   string
	digest bool
}

type shared struct {
	img rafs.Image
	b   *rafs.Bootstrap
}

// table holds the open images of the process.
type table struct {
	mu     sync.Mutex // a leaf
	images map[key]shared
}

var images = table{images: map[key]shared{}}

func (t *table) open(path string, o Options) (rafs.Image, error) {
	f := o.File
	if f == nil {
		var err error
		if f, err = hostfs.OpenRegular(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	id, err := rafs.StatFile(f)
	if err != nil {
		return nil, err
	}
	k := key{id: id, name: filepath.Base(path), digest: o.WantDigest || o.Digest != nil}
	if img, ok := t.retain(k); ok {
		return img, nil
	}

	b, err := rafs.Map(f)
	if err != nil {
		return nil, err
	}
	img, err := openDigested(b, k.digest)
	if err == nil {
		var now rafs.FileID
		if now, err = rafs.StatFile(f); err == nil && (now != id || b.ID() != id) {
			err = errors.New("the file changed while it was opened")
		}
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return t.publish(k, shared{img, b}), nil
}

// retain returns the image that is open under a key, with one more holder.
func (t *table) retain(k key) (rafs.Image, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.images[k]
	if !ok || !s.b.Retain() {
		return nil, false
	}
	return s.img, true
}

// publish makes an image known to later opens and returns it, or, if another
// open was faster, closes it and returns the other's.
func (t *table) publish(k key, s shared) rafs.Image {
	s.b.OnLastClose(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.images[k].b == s.b {
			delete(t.images, k)
		}
	})
	t.mu.Lock()
	other, ok := t.images[k]
	if !ok || !other.b.Retain() {
		t.images[k] = s
		t.mu.Unlock()
		return s.img
	}
	t.mu.Unlock()
	// Nobody but this open knows the mapping, and the other image serves: a
	// failure to unmap it would harm nothing.
	_ = s.img.Close()
	return other.img
}

// openDigested opens a mapped bootstrap and fills in its digest if it is wanted:
// that of the bootstrap, also where a blob holds it.
func openDigested(b *rafs.Bootstrap, digest bool) (rafs.Image, error) {
	img, err := Bootstrap(b)
	if err != nil || !digest {
		return img, err
	}
	sum, err := b.SHA256()
	if err != nil {
		return nil, err // b is the caller's to close, and with it all of img
	}
	img.Info().Digest = sum // not shared yet
	return img, nil
}
