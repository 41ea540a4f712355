package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// Lookup implements fuseproto.FileSystem. A file that is known and at hand takes
// one system call, any other two.
func (fs *FS) Lookup(op *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	r := fs.run(op)
	err := fs.lookup(op, dir, name, out)
	return fs.looked(&r, out.Node, err)
}

func (fs *FS) lookup(op *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	s, d, err := fs.node(op, dir)
	if err != nil {
		return err
	}
	if string(name) == "." {
		return fs.again(s, d, out)
	}
	if d.typ != unix.S_IFDIR {
		return unix.ENOTDIR
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
	err = fs.entry(s, d, h.fd, &c, out)
	if err == unix.ENOENT && fs.opts.Cache == CacheAlways {
		*out = fuseproto.Entry{EntryTimeout: fs.opts.Cache.timeout()}
		return nil
	}
	return err
}

// again gives the guest one more reference to a node that it has.
func (fs *FS) again(s *session, n *node, out *fuseproto.Entry) error {
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	var st unix.Statx_t
	if err := statFD(h.fd, &st); err != nil {
		return err
	}
	if n != fs.root {
		sh := s.nodes.shardOf(n)
		sh.mu.Lock()
		gone := n.count == 0
		if !gone {
			n.count++
			fs.countedLocked(n)
		}
		sh.mu.Unlock()
		if gone {
			return unix.ESTALE
		}
	}
	fs.fill(n, &st, out)
	return nil
}

// fill makes an entry of n.
func (fs *FS) fill(n *node, st *unix.Statx_t, out *fuseproto.Entry) {
	t := fs.opts.Cache.timeout()
	*out = fuseproto.Entry{Node: n.id, EntryTimeout: t, AttrTimeout: t}
	fs.attr(n.mount, st, n.isMountRoot(), &out.Attr)
}

// isMountRoot tells whether a mount begins at n.
func (n *node) isMountRoot() bool {
	p := n.place.Load()
	return p != nil && n.mount.parent != nil && n.mount.parent.same(p.parent) && n.mount.name == p.name
}

// entry looks name up in the directory d, open as dirFD, and gives the guest a
// reference to what is there.
func (fs *FS) entry(s *session, d *node, dirFD int, name *cname, out *fuseproto.Entry) error {
	var st unix.Statx_t
	for tries := 0; ; tries++ {
		if err := fs.statEntry(d, dirFD, name, &st); err != nil {
			return err
		}
		err := fs.entryOf(s, d, dirFD, name, &st, out)
		// Something else has the name now: look again, but not for ever.
		if err != unix.ESTALE || tries == 3 {
			return err
		}
	}
}

// statEntry is statName, and tells the Go scheduler nothing of it (see statOpen) where
// the name is in the kernel's cache of names: three short calls are quicker then than
// one that the scheduler is told of.
func (fs *FS) statEntry(d *node, dirFD int, name *cname, st *unix.Statx_t) error {
	if d.mount.remote {
		return statName(dirFD, name, st)
	}
	switch fd, err := openCached(dirFD, name); err {
	case nil:
		err = statOpen(fd, st)
		closeNow(fd)
		return err
	case unix.ENOENT:
		return err
	}
	return statName(dirFD, name, st)
}

func (fs *FS) entryOf(s *session, d *node, dirFD int, name *cname, st *unix.Statx_t, out *fuseproto.Entry) error {
	m, err := fs.mountOf(d, dirFD, name, st)
	if err != nil {
		return err
	}
	defer fs.leaveMount(m)
	if n := fs.refer(s, m, st); n != nil {
		if p := n.place.Load(); p != nil && (!p.parent.same(d) || p.name != string(name.bytes())) {
			fs.seenAt(s, n, &place{d, string(name.bytes()), p.btime})
		}
		fs.fill(n, st, out)
		return nil
	}
	id := identity{mount: m, dev: devOf(st), ino: st.Ino, typ: uint32(st.Mode) & unix.S_IFMT}
	if m.handles && m == d.mount {
		var h rawHandle
		if err := nameToHandle(dirFD, name, 0, &h); err != nil {
			return err
		}
		id.handle = h.pack()
		n := fs.publish(s, &id, d, nil)
		if n == nil {
			return unix.ESTALE
		}
		fs.fill(n, st, out)
		return nil
	}
	// By place. The descriptor is taken now: while it is open, the number is not
	// given to another file.
	fd, err := fs.openPath(dirFD, name)
	if err != nil {
		return err
	}
	var now unix.Statx_t
	if err := statFD(fd, &now); err != nil {
		unix.Close(fd)
		return err
	}
	if now.Ino != st.Ino || now.Mnt_id != st.Mnt_id || devOf(&now) != id.dev || now.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		unix.Close(fd)
		return unix.ESTALE
	}
	id.btime = now.Btime
	n := fs.publish(s, &id, d, name.bytes())
	if n == nil {
		unix.Close(fd)
		return unix.ESTALE
	}
	fs.keep(n, fd, m == fs.root.mount).release()
	fs.fill(n, &now, out)
	return nil
}

// entryByFD makes an entry of what was made as name in d and is open as fd.
func (fs *FS) entryByFD(s *session, d *node, name []byte, fd int, out *fuseproto.Entry) (*node, error) {
	var st unix.Statx_t
	var h rawHandle
	if err := statFD(fd, &st); err != nil {
		return nil, err
	}
	id := identity{mount: d.mount, dev: devOf(&st), ino: st.Ino, typ: uint32(st.Mode) & unix.S_IFMT}
	if d.mount.handles {
		if err := nameToHandle(fd, &empty, unix.AT_EMPTY_PATH, &h); err != nil {
			return nil, err
		}
		id.handle = h.pack()
	} else {
		id.btime = st.Btime
	}
	n := fs.publish(s, &id, d, name)
	if n == nil {
		return nil, unix.ESTALE
	}
	n.flags.Or(nodeProven)
	fs.fill(n, &st, out)
	return n, nil
}

// Forget implements fuseproto.FileSystem.
func (fs *FS) Forget(node, nlookup uint64) { fs.forget(fs.session.Load(), node, nlookup) }
