package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// making is a creating request on its way.
type making struct {
	s    *session
	d    *node
	h    held // of d
	name cname
	ext  fuseproto.CreateExt
	mode uint32 // for the system call
	fix  bool   // the host's umask may take bits from mode
}

// make begins a creating request; the caller releases m.h unless there is an error.
// The umask is the guest's to apply, but for sessions with ACLs.
func (fs *FS) make(op *fuseproto.Op, dir uint64, name []byte, mode, umask uint32, m *making) error {
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	var err error
	if m.s, m.d, err = fs.dir(op, dir); err != nil {
		return err
	}
	if name != nil {
		if err := m.name.set(name); err != nil {
			return err
		}
	}
	if m.h, err = fs.hold(m.d); err != nil {
		return err
	}
	m.ext = op.CreateExt()
	if m.s.flags&fuseproto.FlagDontMask == 0 {
		umask = 0
	}
	// A default ACL takes the place of any umask, ours too.
	m.mode = mode
	if (umask|fs.umask)&mode&0o777 != 0 && !fs.hasDefaultACL(&m.h) {
		m.mode = mode &^ (umask & 0o777)
		m.fix = fs.umask&m.mode != 0
	}
	return nil
}

// finish does what a system call could not do with the new file n, and tells its
// attributes as they are then.
func (fs *FS) finish(m *making, n *node, out *fuseproto.Entry) error {
	label := fs.opts.SecurityLabel && len(m.ext.LabelName) > 0
	if !m.fix && !label || n.typ == unix.S_IFLNK && !label {
		return nil
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	if m.fix && n.typ != unix.S_IFLNK {
		var self cname
		self.number(h.fd)
		if err := fchmodat(fs.procFD, &self, m.mode&0o7777); err != nil {
			return err
		}
	}
	if label {
		if err := fs.setXattr(&h, m.ext.LabelName, m.ext.Label, 0, false); err != nil && err != unix.EOPNOTSUPP {
			return err
		}
	}
	var st unix.Statx_t
	if err := statFD(h.fd, &st); err != nil {
		return err
	}
	fs.fill(n, &st, out)
	return nil
}

// done looks up what was made, finishes it, and removes it again if that fails.
func (fs *FS) done(m *making, remove int, out *fuseproto.Entry) error {
	if err := fs.entry(m.s, m.d, m.h.fd, &m.name, out); err != nil {
		return err
	}
	n := m.s.nodes.get(out.Node)
	if n == nil {
		return unix.ESTALE
	}
	if err := fs.finish(m, n, out); err != nil {
		_ = unlinkat(m.h.fd, &m.name, remove) // the first error is the one to tell
		fs.forget(m.s, n.id, 1)
		return err
	}
	return nil
}

// Mknod implements fuseproto.FileSystem.
func (fs *FS) Mknod(op *fuseproto.Op, dir uint64, in *fuseproto.MknodIn, name []byte, out *fuseproto.Entry) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.madeBefore(&r, err, out)
	}
	var m making
	if err := fs.make(op, dir, name, in.Mode, in.Umask, &m); err != nil {
		return err
	}
	defer m.h.release()
	r.making()
	err := fs.asGuest(op, &m.ext, true, func() error {
		return mknodat(m.h.fd, &m.name, m.mode, decodeDev(in.Rdev))
	})
	typ := m.mode & unix.S_IFMT
	if typ == 0 {
		typ = unix.S_IFREG
	}
	if err == unix.EEXIST && fs.isOurs(&r, &m, typ, decodeDev(in.Rdev), nil) {
		err = nil
	}
	if err == nil {
		err = fs.done(&m, 0, out)
	}
	return r.result(err, out.Node, 0)
}

// Mkdir implements fuseproto.FileSystem.
func (fs *FS) Mkdir(op *fuseproto.Op, dir uint64, in *fuseproto.MkdirIn, name []byte, out *fuseproto.Entry) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.madeBefore(&r, err, out)
	}
	var m making
	if err := fs.make(op, dir, name, in.Mode&0o7777, in.Umask, &m); err != nil {
		return err
	}
	defer m.h.release()
	r.making()
	err := fs.asGuest(op, &m.ext, true, func() error { return mkdirat(m.h.fd, &m.name, m.mode) })
	if err == unix.EEXIST && fs.isOurs(&r, &m, unix.S_IFDIR, 0, nil) {
		err = nil
	}
	if err == nil {
		err = fs.done(&m, unix.AT_REMOVEDIR, out)
	}
	return r.result(err, out.Node, 0)
}

// Symlink implements fuseproto.FileSystem. The target means something to the guest
// alone; the host's side never follows it.
func (fs *FS) Symlink(op *fuseproto.Op, dir uint64, name, target []byte, out *fuseproto.Entry) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.madeBefore(&r, err, out)
	}
	var m making
	if err := fs.make(op, dir, name, 0, 0, &m); err != nil {
		return err
	}
	defer m.h.release()
	buf := takeBuffer()
	defer buf.free()
	if len(target) == 0 || len(target) >= unix.PathMax {
		return unix.EINVAL
	}
	n := copy(buf.b, target)
	buf.b[n] = 0
	r.making()
	err := fs.asGuest(op, &m.ext, true, func() error { return symlinkat(buf.b[:n+1], m.h.fd, &m.name) })
	if err == unix.EEXIST && fs.isOurs(&r, &m, unix.S_IFLNK, 0, target) {
		err = nil
	}
	if err == nil {
		err = fs.done(&m, 0, out)
	}
	return r.result(err, out.Node, 0)
}

// Create implements fuseproto.FileSystem. The file is made, never found: what is
// there already is looked up and opened as any other, and never if it is no
// regular file.
func (fs *FS) Create(op *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, name []byte, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.createdBefore(&r, err, in, entry, out)
	}
	var m making
	if err := fs.make(op, dir, name, in.Mode&0o7777, in.Umask, &m); err != nil {
		return err
	}
	defer m.h.release()
	if err := fs.openOne(); err != nil {
		return err
	}
	flags, f := fs.openFlags(in.Flags)
	fd, err := -1, error(nil)
	r.making()
	err = fs.asGuest(op, &m.ext, true, func() (err error) {
		fd, err = fs.withRoom(func() (int, error) {
			return openat(m.h.fd, &m.name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, m.mode)
		})
		return err
	})
	if err == unix.EEXIST && fs.isOurs(&r, &m, unix.S_IFREG, 0, nil) {
		err = fs.createAgain(&m, flags, &f, entry, out)
	} else if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		err = fs.createFound(op, &m, in, flags, &f, entry, out)
	} else if err == nil {
		if err = fs.createMade(&m, fd, &f, entry, out); err != nil {
			_ = unlinkat(m.h.fd, &m.name, 0)
		}
	}
	if err != nil {
		fs.files.Add(-1)
		return r.result(err, 0, 0)
	}
	out.Flags = fs.cacheFlags(in.Flags)
	return r.result(nil, entry.Node, out.Fh)
}

// madeBefore answers a request whose work an earlier process has done.
func (fs *FS) madeBefore(r *run, err error, out *fuseproto.Entry) error {
	if err != nil {
		return err
	}
	return fs.entryAgain(r, out)
}

// createdBefore is madeBefore for a file that was opened too.
func (fs *FS) createdBefore(r *run, err error, in *fuseproto.CreateIn, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	if err := fs.madeBefore(r, err, entry); err != nil {
		return err
	}
	if !fs.openedBefore(r, r.node) {
		return unix.ESTALE // it was logged why
	}
	out.Fh, out.Flags = r.fh, fs.cacheFlags(in.Flags)
	return nil
}

// createAgain opens what an earlier process has made of the request.
func (fs *FS) createAgain(m *making, flags int, f *file, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	if err := fs.entry(m.s, m.d, m.h.fd, &m.name, entry); err != nil {
		return err
	}
	n := m.s.nodes.get(entry.Node)
	if n == nil {
		return unix.ESTALE
	}
	fd, err := fs.openFile(n, flags)
	if err == nil {
		if out.Fh, err = fs.opened(m.s, n, fd, f); err != nil {
			unix.Close(fd)
		}
	}
	if err == nil {
		return fs.finish(m, n, entry)
	}
	fs.forget(m.s, n.id, 1)
	return err
}

// createMade makes entry and handle of a file that was just made, open as fd.
func (fs *FS) createMade(m *making, fd int, f *file, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	n, err := fs.entryByFD(m.s, m.d, m.name.bytes(), fd, entry)
	if err != nil {
		unix.Close(fd)
		return err
	}
	if out.Fh, err = fs.opened(m.s, n, fd, f); err != nil {
		unix.Close(fd)
		fs.forget(m.s, n.id, 1)
		return err
	}
	if fs.euid != 0 && entry.Attr.Mode&0o600 != 0o600 {
		fs.parkHandle(m.s, out.Fh) // it could not be opened so again
	}
	if err := fs.finish(m, n, entry); err != nil {
		// Its count goes down twice if the caller's does too: take the handle out
		// here without it.
		fs.files.Add(1)
		if s := m.s.take(out.Fh); s != nil {
			fs.dropFile(s)
		}
		fs.forget(m.s, n.id, 1)
		return err
	}
	return nil
}

// createFound opens what the guest thought was not there. The guest's kernel has
// not checked its caller's rights to it, so the host's does.
func (fs *FS) createFound(op *fuseproto.Op, m *making, in *fuseproto.CreateIn, flags int, f *file, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	if err := fs.entry(m.s, m.d, m.h.fd, &m.name, entry); err != nil {
		return err
	}
	n := m.s.nodes.get(entry.Node)
	if n == nil {
		return unix.ESTALE
	}
	h, err := fs.hold(n)
	if err == nil {
		defer h.release()
		if n.typ != unix.S_IFREG {
			err = unix.EEXIST
		}
	}
	fd := -1
	if err == nil {
		err = fs.asGuest(op, nil, false, func() (err error) {
			fd, err = fs.reopenFD(h.fd, flags|unix.O_NONBLOCK)
			return err
		})
	}
	if err == nil {
		if out.Fh, err = fs.opened(m.s, n, fd, f); err != nil {
			unix.Close(fd)
		}
	}
	if err == nil && flags&unix.O_TRUNC != 0 {
		entry.Attr.Size, entry.Attr.Blocks = 0, 0
	}
	if err != nil {
		fs.forget(m.s, n.id, 1)
	}
	return err
}

// Tmpfile implements fuseproto.FileSystem.
func (fs *FS) Tmpfile(op *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.createdBefore(&r, err, in, entry, out)
	}
	var m making
	if err := fs.make(op, dir, nil, in.Mode&0o7777, in.Umask, &m); err != nil {
		return err
	}
	defer m.h.release()
	if err := fs.openOne(); err != nil {
		return err
	}
	flags, f := fs.openFlags(in.Flags)
	flags = flags&^unix.O_TRUNC | unix.O_TMPFILE | int(in.Flags)&unix.O_EXCL
	self := cname{'.'}
	fd := -1
	err := fs.asGuest(op, &m.ext, true, func() (err error) {
		fd, err = openat(m.h.fd, &self, flags, m.mode)
		return err
	})
	if err == nil {
		err = fs.createMade(&m, fd, &f, entry, out)
	}
	if err == nil {
		fs.parkHandle(m.s, out.Fh)
	}
	if err != nil {
		fs.files.Add(-1)
		return r.result(err, 0, 0)
	}
	out.Flags = fs.cacheFlags(in.Flags)
	return r.result(nil, entry.Node, out.Fh)
}

// Link implements fuseproto.FileSystem.
func (fs *FS) Link(op *fuseproto.Op, id, newDir uint64, newName []byte, out *fuseproto.Entry) error {
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	r := fs.run(op)
	if done, err := r.done(); done {
		return fs.madeBefore(&r, err, out)
	}
	s, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	_, d, err := fs.dir(op, newDir)
	if err != nil {
		return err
	}
	var name, self cname
	if err := name.set(newName); err != nil {
		return err
	}
	from, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer from.release()
	to, err := fs.hold(d)
	if err != nil {
		return err
	}
	defer to.release()
	// The magic link leads to the file itself, even if that is a link.
	self.number(from.fd)
	r.executing()
	err = linkat(fs.procFD, &self, to.fd, &name, unix.AT_SYMLINK_FOLLOW)
	if err == unix.EEXIST && r.again() {
		var st unix.Statx_t
		if statName(to.fd, &name, &st) == nil && n.sameFile(&st) {
			err = nil
		}
	}
	if err != nil {
		return r.result(err, 0, 0)
	}
	if p := n.place.Load(); p != nil && n.mount.parent == nil {
		fs.seenAt(s, n, &place{d, string(name.bytes()), p.btime})
	}
	err = fs.again(s, n, out)
	return r.result(err, out.Node, 0)
}

// Unlink implements fuseproto.FileSystem.
func (fs *FS) Unlink(op *fuseproto.Op, dir uint64, name []byte) error {
	return fs.remove(op, dir, name, 0)
}

// Rmdir implements fuseproto.FileSystem.
func (fs *FS) Rmdir(op *fuseproto.Op, dir uint64, name []byte) error {
	return fs.remove(op, dir, name, unix.AT_REMOVEDIR)
}

func (fs *FS) remove(op *fuseproto.Op, dir uint64, name []byte, flags int) error {
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	r := fs.run(op)
	if done, err := r.done(); done {
		return err
	}
	s, d, err := fs.dir(op, dir)
	if err != nil {
		return err
	}
	var c cname
	if err := c.set(name); err != nil {
		return err
	}
	h, err := fs.hold(d)
	if err != nil {
		return err
	}
	defer h.release()
	fs.parkVictim(s, d, h.fd, &c)
	r.executing()
	err = unlinkat(h.fd, &c, flags)
	if err == unix.ENOENT && r.again() {
		err = nil
	}
	return r.result(err, 0, 0)
}

// Rename implements fuseproto.FileSystem.
func (fs *FS) Rename(op *fuseproto.Op, dir uint64, name []byte, newDir uint64, newName []byte, flags uint32) error {
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	if flags&^(fuseproto.RenameNoReplace|fuseproto.RenameExchange|fuseproto.RenameWhiteout) != 0 {
		return unix.EINVAL
	}
	r := fs.run(op)
	if done, err := r.done(); done {
		return err
	}
	s, d, err := fs.dir(op, dir)
	if err != nil {
		return err
	}
	_, nd, err := fs.dir(op, newDir)
	if err != nil {
		return err
	}
	var from, to cname
	if err := from.set(name); err != nil {
		return err
	}
	if err := to.set(newName); err != nil {
		return err
	}
	h, err := fs.hold(d)
	if err != nil {
		return err
	}
	defer h.release()
	nh, err := fs.hold(nd)
	if err != nil {
		return err
	}
	defer nh.release()
	fs.parkMoved(s, d, h.fd, &from)
	if flags&fuseproto.RenameExchange == 0 {
		fs.parkVictim(s, nd, nh.fd, &to)
	} else {
		fs.parkMoved(s, nd, nh.fd, &to)
	}
	rename := func() error { return renameat2(h.fd, &from, nh.fd, &to, flags) }
	exchange := flags&fuseproto.RenameExchange != 0
	if r.on && !r.again() {
		other := uint64(0)
		if exchange {
			other = inodeAt(nh.fd, &to)
		}
		r.executing(inodeAt(h.fd, &from), other)
	}
	if r.renamedBefore(h.fd, &from, nh.fd, &to, exchange) {
		err = nil
	} else if flags&fuseproto.RenameWhiteout != 0 {
		err = fs.asGuest(op, nil, true, rename) // a whiteout is made, and is somebody's
	} else {
		err = rename()
	}
	if err != nil {
		return r.result(err, 0, 0)
	}
	if !nd.mount.handles {
		fs.moved(s, nd, nh.fd, &to)
		if flags&fuseproto.RenameExchange != 0 {
			fs.moved(s, d, h.fd, &from)
		}
	}
	return r.result(nil, 0, 0)
}

// moved tells the node that now has a name in d, if it is known by place.
func (fs *FS) moved(s *session, d *node, dirFD int, name *cname) {
	var st unix.Statx_t
	if statName(dirFD, name, &st) != nil {
		return
	}
	h := s.nodes.hash(d.mount, devOf(&st), st.Ino)
	sh := &s.nodes.byKey[h%nodeShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for n := sh.nodes[h]; n != nil; n = n.next {
		if p := n.place.Load(); p != nil && n.mount == d.mount && n.sameFile(&st) {
			fs.placeLocked(n, &place{d, string(name.bytes()), p.btime})
		}
	}
}

// seenAt tells n that it has a name elsewhere.
func (fs *FS) seenAt(s *session, n *node, p *place) {
	sh := s.nodes.shardOf(n)
	sh.mu.Lock()
	fs.placeLocked(n, p)
	sh.mu.Unlock()
}
