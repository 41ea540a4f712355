package passthrough

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mount is a mount of the host, the first one or one below it. No descriptor of
// it is kept while it is idle: that would make the host's umount fail with EBUSY.
// It is opened again from where it is mounted, and its number tells whether it is
// still there.
//
// All but waits, refs and fd is immutable.
type mount struct {
	number  uint64 // of STATX_MNT_ID
	dev     uint64 // of its root
	isDir   bool   // its root is a directory: a file may be mounted on a file
	handles bool   // its files are known by handle
	quick   bool   // its pages are memory (tmpfs): reading never waits
	remote  bool   // maybe behind a network: closing a file can fail, asking for attributes can wait
	parent  *node  // of the directory that it is mounted in; nil for the first
	name    string // in parent
	index   uint32 // in the session record; 0 for the first

	waits atomic.Bool // files here refuse RWF_NOWAIT: reads are for other goroutines

	refs atomic.Int64 // nodes, and look-ups under way
	fd   slot         // its root, opened for reading; for handles
}

// Magic numbers of statfs(2).
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
	extMagic   = 0xef53
	xfsMagic   = 0x58465342
	btrfsMagic = 0x9123683e
	f2fsMagic  = 0xf2f52010
)

// describe fills m with what its file system can do; fd is its root, O_PATH.
func (fs *FS) describe(m *mount, fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	switch uint32(st.Type) {
	case tmpfsMagic, ramfsMagic:
		m.quick = true
	case extMagic, xfsMagic, btrfsMagic, f2fsMagic:
	default:
		m.remote = true
	}
	if fs.opts.FileHandles == HandlesNever || !m.isDir {
		return nil
	}
	err := fs.tryHandles(fd)
	if err != nil && fs.opts.FileHandles == HandlesMandatory {
		return fmt.Errorf("file handles are mandatory: %w", err)
	}
	m.handles = err == nil
	return nil
}

// tryHandles tells whether what a handle of fd stands for can be opened: the file
// system must have them, and we CAP_DAC_READ_SEARCH.
func (fs *FS) tryHandles(fd int) error {
	var h rawHandle
	if err := nameToHandle(fd, &empty, unix.AT_EMPTY_PATH, &h); err != nil {
		return err
	}
	root, err := fs.reopenFD(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	again, err := openHandle(root, string(h.pack()), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	return unix.Close(again)
}

// reopenFD opens what an O_PATH descriptor stands for with other flags, through
// the directory of our descriptors. The caller has checked that it is a regular
// file or a directory.
func (fs *FS) reopenFD(fd, flags int) (int, error) {
	var name cname
	name.number(fd)
	return fs.withRoom(func() (int, error) { return openat(fs.procFD, &name, flags&^unix.O_NOFOLLOW, 0) })
}

// mountOf returns the mount that st lies in, with a reference that the caller gives
// back by leaveMount. dir holds the entry name that st describes: if it is in
// another mount than dir, that mount begins at it.
func (fs *FS) mountOf(dir *node, dirFD int, name *cname, st *unix.Statx_t) (*mount, error) {
	if st.Mnt_id == dir.mount.number {
		dir.mount.refs.Add(1)
		return dir.mount, nil
	}
	dev := devOf(st)
	fs.mountsMu.RLock()
	m := fs.mounts[st.Mnt_id]
	known := m != nil && m.dev == dev && m.parent.same(dir) && m.name == string(name.bytes())
	if known {
		m.refs.Add(1)
	}
	fs.mountsMu.RUnlock()
	if known {
		return m, nil
	}
	// New, or mounted elsewhere than it was.
	fd, err := fs.openPath(dirFD, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var now unix.Statx_t
	if err := statFD(fd, &now); err != nil {
		return nil, err
	}
	if now.Mnt_id != st.Mnt_id || now.Ino != st.Ino {
		return nil, unix.ESTALE // changed under our hands: the guest asks again
	}
	m = &mount{number: st.Mnt_id, dev: dev, isDir: uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR, parent: dir, name: string(name.bytes())}
	if err := fs.describe(m, fd); err != nil {
		return nil, err
	}
	fs.recordMount(m, st.Ino)
	fs.mountsMu.Lock()
	defer fs.mountsMu.Unlock()
	if old := fs.mounts[st.Mnt_id]; old != nil && old.dev == dev && old.parent.same(dir) && old.name == m.name {
		m = old
	} else {
		fs.mounts[st.Mnt_id] = m
	}
	m.refs.Add(1)
	return m, nil
}

// leaveMount gives a reference back; what nobody refers to is forgotten.
func (fs *FS) leaveMount(m *mount) {
	if m.refs.Add(-1) > 0 || m.parent == nil {
		return
	}
	fs.mountsMu.Lock()
	gone := m.refs.Load() == 0 && fs.mounts[m.number] == m
	if gone {
		delete(fs.mounts, m.number)
	}
	fs.mountsMu.Unlock()
	if gone && m.index != 0 {
		fs.unrecord(fs.mountKey(m.index))
	}
	fs.idle.remove(&m.fd)
}

// holdMount returns a descriptor of the mount's root, opened for reading, for the
// length of a request. ESTALE says that the mount has gone.
func (fs *FS) holdMount(m *mount) (held, error) {
	if m == fs.root.mount {
		return held{fd: fs.rootFD, open: true}, nil
	}
	if d := takeFrom(&m.fd); d != nil {
		return held{fd: d.fd, d: d, open: true}, nil
	}
	parent, err := fs.hold(m.parent)
	if err != nil {
		return held{}, err
	}
	defer parent.release()
	var name cname
	if err := name.set([]byte(m.name)); err != nil {
		return held{}, unix.ESTALE
	}
	path, err := fs.openPath(parent.fd, &name)
	if err != nil {
		return held{}, stale(err)
	}
	defer unix.Close(path)
	var st unix.Statx_t
	if err := statFD(path, &st); err != nil {
		return held{}, err
	}
	if st.Mnt_id != m.number || devOf(&st) != m.dev || uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR {
		return held{}, unix.ESTALE
	}
	fd, err := fs.reopenFD(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return held{}, err
	}
	d := fs.idle.keep(&m.fd, fd, false)
	return held{fd: d.fd, d: d, open: true}, nil
}
