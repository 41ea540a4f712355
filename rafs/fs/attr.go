package fs

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs"
)

const (
	blockSize = 4096 // st_blksize
	statUnit  = 512  // of statfs
)

// attr fills out with what stat(2) shows of an inode.
func (f *FS) attr(a *rafs.Attr, out *fuseproto.Attr) {
	*out = fuseproto.Attr{
		Ino:       a.Ino,
		Size:      a.Size,
		Blocks:    a.Blocks,
		Atime:     a.Mtime,
		Mtime:     a.Mtime,
		Ctime:     a.Mtime,
		AtimeNsec: a.MtimeNsec,
		MtimeNsec: a.MtimeNsec,
		CtimeNsec: a.MtimeNsec,
		Mode:      a.Mode,
		Nlink:     a.Nlink,
		UID:       a.UID,
		GID:       a.GID,
		Rdev:      a.Rdev,
		Blksize:   blockSize,
	}
	if f.override {
		out.UID, out.GID = f.uid, f.gid
	}
}

// entry fills out with the answer to a look-up that found ino.
func (f *FS) entry(s *scratch, ino uint64, out *fuseproto.Entry) error {
	if err := f.img.Attr(ino, &s.attr); err != nil {
		return err
	}
	*out = fuseproto.Entry{Node: ino, EntryTimeout: fuseproto.Forever, AttrTimeout: fuseproto.Forever}
	f.attr(&s.attr, &out.Attr)
	return nil
}

// GetAttr implements fuseproto.FileSystem.
func (f *FS) GetAttr(_ *fuseproto.Op, node uint64, _ *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	s := scratches.Get().(*scratch)
	err := f.img.Attr(node, &s.attr)
	if err == nil {
		out.Timeout = fuseproto.Forever
		f.attr(&s.attr, &out.Attr)
	}
	s.release()
	return errno(err)
}

// Lookup implements fuseproto.FileSystem. A name that is not there is a negative
// entry, which the guest keeps; one that cannot be looked up is an error, which
// it does not.
func (f *FS) Lookup(_ *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	s := scratches.Get().(*scratch)
	err := f.lookup(s, dir, name, out)
	s.release()
	if errors.Is(err, rafs.ErrNotExist) {
		*out = fuseproto.Entry{EntryTimeout: fuseproto.Forever}
		return nil
	}
	return errno(err)
}

func (f *FS) lookup(s *scratch, dir uint64, name []byte, out *fuseproto.Entry) error {
	var ino uint64
	var err error
	switch string(name) {
	case ".": // a file handle is decoded: dir may be any inode
		ino = dir
	case "..":
		ino, err = f.img.Parent(dir)
	default:
		ino, err = f.img.Lookup(dir, name)
	}
	if err != nil {
		return err
	}
	if err := f.entry(s, ino, out); err != nil {
		if errors.Is(err, rafs.ErrStale) && ino != dir {
			return fmt.Errorf("%w: %q of inode %d leads to %d, which is no inode", rafs.ErrDamaged, name, dir, ino)
		}
		return err
	}
	return nil
}

// Readlink implements fuseproto.FileSystem.
func (f *FS) Readlink(_ *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	s := scratches.Get().(*scratch)
	var err error
	if s.bytes, err = f.img.Readlink(node, s.bytes[:0]); err == nil {
		_, err = out.Write(s.bytes)
	}
	s.release()
	return errno(err)
}

// GetXattr implements fuseproto.FileSystem.
func (f *FS) GetXattr(op *fuseproto.Op, node uint64, name []byte, out *fuseproto.Out) error {
	if !f.xattr {
		return f.ReadOnly.GetXattr(op, node, name, out)
	}
	s := scratches.Get().(*scratch)
	var err error
	if s.bytes, err = f.img.Xattr(node, name, s.bytes[:0]); err == nil {
		_, err = out.Write(s.bytes)
	}
	s.release()
	return errno(err)
}

// ListXattr implements fuseproto.FileSystem.
func (f *FS) ListXattr(op *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	if !f.xattr {
		return f.ReadOnly.ListXattr(op, node, out)
	}
	s := scratches.Get().(*scratch)
	var err error
	if s.bytes, err = f.img.XattrNames(node, s.bytes[:0]); err == nil {
		_, err = out.Write(s.bytes)
	}
	s.release()
	return errno(err)
}

// StatFS implements fuseproto.FileSystem. An image has no free space, and its
// files are those that the superblock counts.
func (f *FS) StatFS(_ *fuseproto.Op, _ uint64, out *fuseproto.StatFSOut) error {
	*out = fuseproto.StatFSOut{
		Files:   f.img.Info().Inodes,
		Bsize:   statUnit,
		Frsize:  statUnit,
		Namelen: rafs.MaxName,
	}
	return nil
}
