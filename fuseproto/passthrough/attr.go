package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// GetAttr implements fuseproto.FileSystem.
func (fs *FS) GetAttr(op *fuseproto.Op, id uint64, in *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	s, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	h, err := fs.holdEither(s, n, in.Flags&fuseproto.GetAttrFh != 0, in.Fh)
	if err != nil {
		return err
	}
	defer h.release()
	return fs.attrOf(n, h.fd, out)
}

func (fs *FS) attrOf(n *node, fd int, out *fuseproto.AttrOut) error {
	var st unix.Statx_t
	var err error
	if n.mount.remote {
		err = statFD(fd, &st)
	} else {
		err = statOpen(fd, &st)
	}
	if err != nil {
		return err
	}
	out.Timeout = fs.opts.Cache.timeout()
	fs.attr(n.mount, &st, n.isMountRoot(), &out.Attr)
	return nil
}

// holdEither is hold, by the handle of an open file if there is one.
func (fs *FS) holdEither(s *session, n *node, byHandle bool, fh uint64) (held, error) {
	if !byHandle {
		return fs.hold(n)
	}
	f, err := s.file(n.id, fh)
	if err != nil {
		return held{}, err
	}
	return held{fd: f.d.fd, d: f.d, open: true}, nil
}

// SetAttr implements fuseproto.FileSystem. Owner goes before mode, since a change of
// owner clears bits of the mode.
func (fs *FS) SetAttr(op *fuseproto.Op, id uint64, in *fuseproto.SetAttrIn, out *fuseproto.AttrOut) error {
	s, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	byHandle := in.Valid&fuseproto.SetAttrFh != 0
	h, err := fs.holdEither(s, n, byHandle, in.Fh)
	if err != nil {
		return err
	}
	defer h.release()
	var self cname
	self.number(h.fd)

	if in.Valid&(fuseproto.SetAttrUID|fuseproto.SetAttrGID) != 0 {
		uid, gid := noID, noID
		if in.Valid&fuseproto.SetAttrUID != 0 {
			if uid, err = fs.opts.UIDMap.toHost(in.UID); err != nil {
				return err
			}
		}
		if in.Valid&fuseproto.SetAttrGID != 0 {
			if gid, err = fs.opts.GIDMap.toHost(in.GID); err != nil {
				return err
			}
		}
		if err := fchownFD(h.fd, uid, gid); err != nil {
			return err
		}
	}
	if in.Valid&fuseproto.SetAttrMode != 0 {
		if n.typ == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if fs.euid != 0 {
			fs.parkNode(n) // what is open may not be opened again with the new mode
		}
		if err := fchmodat(fs.procFD, &self, in.Mode&0o7777); err != nil {
			return err
		}
	}
	if in.Valid&fuseproto.SetAttrSize != 0 {
		if err := fs.truncate(s, n, in, byHandle); err != nil {
			return err
		}
	}
	if in.Valid&(fuseproto.SetAttrAtime|fuseproto.SetAttrMtime) != 0 {
		ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		if err := setTime(&ts[0], in.Valid, fuseproto.SetAttrAtime, fuseproto.SetAttrAtimeNow, in.Atime, in.AtimeNsec); err != nil {
			return err
		}
		if err := setTime(&ts[1], in.Valid, fuseproto.SetAttrMtime, fuseproto.SetAttrMtimeNow, in.Mtime, in.MtimeNsec); err != nil {
			return err
		}
		if err := utimensat(fs.procFD, &self, &ts); err != nil {
			return err
		}
	}
	return fs.attrOf(n, h.fd, out)
}

// setTime fills one time of utimensat(2). Values that mean something else there
// are refused.
func setTime(t *unix.Timespec, valid, bit, now uint32, sec int64, nsec uint32) error {
	switch {
	case valid&bit == 0:
	case valid&now != 0:
		t.Nsec = unix.UTIME_NOW
	case nsec >= 1e9:
		return unix.EINVAL
	default:
		t.Sec, t.Nsec = sec, int64(nsec)
	}
	return nil
}

// truncate sets the size of n: by the guest's own open file, which may have been
// opened for writing before the file's mode was changed, or by one opened for it.
func (fs *FS) truncate(s *session, n *node, in *fuseproto.SetAttrIn, byHandle bool) error {
	if in.Size > 1<<63-1 {
		return unix.EINVAL
	}
	if n.typ != unix.S_IFREG {
		if n.typ == unix.S_IFDIR {
			return unix.EISDIR
		}
		return unix.EINVAL
	}
	kill := in.Valid&fuseproto.SetAttrKillSuidgid != 0
	if byHandle {
		f, err := s.file(n.id, in.Fh)
		if err != nil {
			return err
		}
		defer f.d.release()
		return withoutFsetid(kill, func() error { return unix.Ftruncate(f.d.fd, int64(in.Size)) })
	}
	fd, err := fs.openFile(n, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return withoutFsetid(kill, func() error { return unix.Ftruncate(fd, int64(in.Size)) })
}

// Readlink implements fuseproto.FileSystem.
func (fs *FS) Readlink(op *fuseproto.Op, id uint64, out *fuseproto.Out) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if n.typ != unix.S_IFLNK {
		return unix.EINVAL
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	buf := takeBuffer()
	defer buf.free()
	k, err := readlinkFD(h.fd, buf.b[:unix.PathMax])
	if err != nil {
		return err
	}
	_, err = out.Write(buf.b[:k])
	return err
}

// StatFS implements fuseproto.FileSystem.
func (fs *FS) StatFS(op *fuseproto.Op, id uint64, out *fuseproto.StatFSOut) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	var st unix.Statfs_t
	if err := unix.Fstatfs(h.fd, &st); err != nil {
		return err
	}
	*out = fuseproto.StatFSOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Namelen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return nil
}
