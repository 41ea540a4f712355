package fs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/chunktable"
)

// Options of a mounted image.
type Options struct {
	// EnableXattr shows extended attributes also of an image whose superblock
	// does not say that it has any; an image that says so shows them anyway.
	EnableXattr bool
	// UID and GID own the files of an image that records no owners. If
	// OwnerSet is false, they are those of this process.
	OwnerSet bool
	UID, GID uint32
}

// OpenBlob opens a blob of the image. It must not wait for a network.
type OpenBlob func(blobstore.BlobDesc) (Blob, error)

// FS is a mounted image. It implements fuseproto.FileSystem.
type FS struct {
	fuseproto.ReadOnly

	img   rafs.Image
	blobs []Blob // by blob index

	xattr    bool
	override bool // owners: uid and gid, not the image's
	uid, gid uint32
}

var _ fuseproto.FileSystem = (*FS)(nil)

// New makes a file system of an image, opening its blobs. On success the FS owns
// img and the blobs until Close; on failure img stays with the caller.
func New(img rafs.Image, open OpenBlob, o Options) (*FS, error) {
	f := &FS{
		img:      img,
		blobs:    make([]Blob, 0, len(img.Blobs())),
		xattr:    o.EnableXattr || img.Info().HasXattr,
		override: !img.Info().ExplicitIDs,
		uid:      o.UID,
		gid:      o.GID,
	}
	if !o.OwnerSet {
		f.uid, f.gid = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	for i := range img.Blobs() {
		d, err := chunktable.Describe(img, i)
		var b Blob
		if err == nil {
			b, err = open(d)
		}
		if err != nil {
			err = fmt.Errorf("open blob %d of %s: %w", i, img.Info().Path, err)
			return nil, errors.Join(err, f.closeBlobs())
		}
		f.blobs = append(f.blobs, b)
	}
	return f, nil
}

// Close gives back the blobs and the image. No request may be running.
func (f *FS) Close() error {
	return errors.Join(f.closeBlobs(), f.img.Close())
}

func (f *FS) closeBlobs() (err error) {
	for _, b := range f.blobs {
		err = errors.Join(err, b.Close())
	}
	return err
}

// Image returns the image that is served; it is the FS's.
func (f *FS) Image() rafs.Image { return f.img }

// Root implements fuseproto.FileSystem.
func (f *FS) Root() uint64 { return f.img.Root() }

// scratch is what a request needs besides its Op. Parameters that are passed
// through an interface live on the heap: this keeps them from being made anew.
type scratch struct {
	attr    rafs.Attr
	dirent  rafs.Dirent
	cursor  rafs.Cursor
	entry   fuseproto.Entry
	extents []rafs.Extent
	pieces  [][]byte // of a read, by extent
	at      int      // the piece that is being copied
	bytes   []byte   // targets, values, lists of names
}

// maxKept bounds what a scratch keeps from one request to the next.
const maxKept = 16 << 10

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// release puts s back. A request that panics loses its scratch instead.
func (s *scratch) release() {
	if cap(s.bytes) > maxKept {
		s.bytes = nil
	}
	if cap(s.extents) > maxKept/64 {
		s.extents, s.pieces = nil, nil
	}
	clear(s.pieces)
	scratches.Put(s)
}

// errno turns the plain answers of an image into what the guest sees. What is
// left is EIO, which the server logs with the cause.
func errno(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rafs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, rafs.ErrNotDir):
		return syscall.ENOTDIR
	case errors.Is(err, rafs.ErrIsDir):
		return syscall.EISDIR
	case errors.Is(err, rafs.ErrNotSymlink), errors.Is(err, rafs.ErrNotRegular):
		return syscall.EINVAL
	case errors.Is(err, rafs.ErrNoXattr):
		return syscall.ENODATA
	case errors.Is(err, rafs.ErrTooLong):
		return syscall.E2BIG
	case errors.Is(err, rafs.ErrStale):
		return syscall.ESTALE
	}
	return err
}
