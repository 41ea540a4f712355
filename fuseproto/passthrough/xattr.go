package passthrough

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// Extended attributes are those of the file that a node stands for, never of what
// a link leads to: by a descriptor that was opened for use, or else by the magic
// link of an O_PATH one.

const aclPrefix = "system.posix_acl_"

// xattrSizeMax is the kernel's XATTR_SIZE_MAX.
const xattrSizeMax = 64 << 10

// probeXattrat tells whether the kernel has getxattrat and its like (Linux 6.13).
// Without them /proc has to be mounted at /proc where the daemon runs.
func (fs *FS) probeXattrat() bool {
	var self cname
	self.number(fs.rootFD)
	_, err := getxattrat(fs.procFD, &self, []byte("user.\x00"), nil)
	return err != unix.ENOSYS
}

// xattrName returns the host's name for the guest's with a NUL behind it, in b.
func (fs *FS) xattrName(name, b []byte) ([]byte, error) {
	if fs.opts.NoXattr {
		return nil, unix.EOPNOTSUPP
	}
	// Who does not honour ACLs must not let them be set: the group bits of the
	// mode mean something else where there is one.
	if !fs.opts.PosixACL && bytes.HasPrefix(name, []byte(aclPrefix)) {
		return nil, unix.EOPNOTSUPP
	}
	host, err := fs.opts.XattrMap.toHost(name)
	if err != nil {
		return nil, err
	}
	if len(host) > maxName {
		return nil, unix.ERANGE
	}
	return append(append(b[:0], host...), 0), nil
}

// viaProc returns the path of a descriptor, for kernels without the calls above.
func viaProc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// GetXattr implements fuseproto.FileSystem.
func (fs *FS) GetXattr(op *fuseproto.Op, id uint64, name []byte, out *fuseproto.Out) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	buf := takeBuffer()
	defer buf.free()
	host, err := fs.xattrName(name, buf.b[:0:maxName+1])
	if err != nil {
		return err
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	// The kernel allocates as much as is asked for: ask for what the guest can
	// take. If it asks for the length alone, no byte is written.
	value := buf.b[maxName+1:]
	value = value[:min(out.Room(), xattrSizeMax)]
	k, err := fs.getXattr(&h, host, value)
	if err != nil {
		return err
	}
	_, err = out.Write(value[:k:cap(value)])
	return err
}

func (fs *FS) getXattr(h *held, name, value []byte) (int, error) {
	switch {
	case h.open:
		return fgetxattr(h.fd, name, value)
	case fs.xattrs:
		var self cname
		self.number(h.fd)
		return getxattrat(fs.procFD, &self, name, value)
	}
	return unix.Getxattr(viaProc(h.fd), string(name[:len(name)-1]), value)
}

// hasDefaultACL tells whether what is made in a directory inherits an ACL.
func (fs *FS) hasDefaultACL(h *held) bool {
	buf := takeBuffer()
	defer buf.free()
	k := copy(buf.b, aclPrefix+"default\x00")
	n, err := fs.getXattr(h, buf.b[:k], nil)
	return err == nil && n > 0
}

// ListXattr implements fuseproto.FileSystem.
func (fs *FS) ListXattr(op *fuseproto.Op, id uint64, out *fuseproto.Out) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if fs.opts.NoXattr {
		return unix.EOPNOTSUPP
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	buf := takeBuffer()
	defer buf.free()
	list := buf.b[:1024]
	k, err := fs.listXattr(&h, list)
	if err == unix.ERANGE {
		list = buf.b
		k, err = fs.listXattr(&h, list)
	}
	if err != nil {
		return err
	}
	for rest := list[:k]; len(rest) > 0; {
		i := bytes.IndexByte(rest, 0)
		if i < 0 {
			break
		}
		name := rest[:i]
		rest = rest[i+1:]
		if !fs.opts.PosixACL && bytes.HasPrefix(name, []byte(aclPrefix)) {
			continue
		}
		shown, ok := fs.opts.XattrMap.toGuest(name)
		if !ok {
			continue
		}
		if _, err := out.Write(shown); err != nil {
			return err
		}
		if _, err := out.Write(empty[:1]); err != nil {
			return err
		}
	}
	return nil
}

func (fs *FS) listXattr(h *held, list []byte) (int, error) {
	switch {
	case h.open:
		return flistxattr(h.fd, list)
	case fs.xattrs:
		var self cname
		self.number(h.fd)
		return listxattrat(fs.procFD, &self, list)
	}
	return unix.Listxattr(viaProc(h.fd), list)
}

// setXattrKillSgid is FUSE_SETXATTR_ACL_KILL_SGID.
const setXattrKillSgid = 1

// SetXattr implements fuseproto.FileSystem.
func (fs *FS) SetXattr(op *fuseproto.Op, id uint64, in *fuseproto.SetXattrIn, name, value []byte) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	kill := in.SetXattrFlags&setXattrKillSgid != 0
	if in.Flags&unix.XATTR_CREATE == 0 {
		return fs.setXattr(&h, name, value, in.Flags, kill)
	}
	r := fs.run(op)
	if done, err := r.done(); done {
		return err
	}
	r.executing()
	err = fs.setXattr(&h, name, value, in.Flags, kill)
	if err == unix.EEXIST && r.again() && fs.hasXattr(&h, name, value) {
		err = nil
	}
	return r.result(err, 0, 0)
}

// hasXattr tells whether an attribute has that value.
func (fs *FS) hasXattr(h *held, name, value []byte) bool {
	buf := takeBuffer()
	defer buf.free()
	host, err := fs.xattrName(name, buf.b[:0:maxName+1])
	if err != nil {
		return false
	}
	now := buf.b[maxName+1:]
	n, err := fs.getXattr(h, host, now[:xattrSizeMax])
	return err == nil && bytes.Equal(now[:n], value)
}

func (fs *FS) setXattr(h *held, name, value []byte, flags uint32, kill bool) error {
	buf := takeBuffer()
	defer buf.free()
	host, err := fs.xattrName(name, buf.b[:0:maxName+1])
	if err != nil {
		return err
	}
	if len(value) > xattrSizeMax {
		return unix.E2BIG
	}
	private := buf.b[maxName+1:][:copy(buf.b[maxName+1:], value)]
	return withoutFsetid(kill, func() error {
		switch {
		case h.open:
			return fsetxattr(h.fd, host, private, int(flags))
		case fs.xattrs:
			var self cname
			self.number(h.fd)
			return setxattrat(fs.procFD, &self, host, private, int(flags))
		}
		return unix.Setxattr(viaProc(h.fd), string(host[:len(host)-1]), private, int(flags))
	})
}

// RemoveXattr implements fuseproto.FileSystem.
func (fs *FS) RemoveXattr(op *fuseproto.Op, id uint64, name []byte) error {
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	buf := takeBuffer()
	defer buf.free()
	host, err := fs.xattrName(name, buf.b[:0:maxName+1])
	if err != nil {
		return err
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	r := fs.run(op)
	if done, err := r.done(); done {
		return err
	}
	r.executing()
	switch {
	case h.open:
		err = fremovexattr(h.fd, host)
	case fs.xattrs:
		var self cname
		self.number(h.fd)
		err = removexattrat(fs.procFD, &self, host)
	default:
		err = unix.Removexattr(viaProc(h.fd), string(host[:len(host)-1]))
	}
	if err == unix.ENODATA && r.again() {
		err = nil
	}
	return r.result(err, 0, 0)
}
