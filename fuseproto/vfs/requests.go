package vfs

import (
	"syscall"

	"github.com/rafsd/rafsd/fuseproto"
)

// overlayCookie is added to the cookies of names that are laid over the root of
// the mount at "/". With all that is added it is below 1<<31, and no file system's
// root has a cookie between: an image's or xfs's would need 8 GiB of directory to
// come near, tmpfs counts from the bottom, and ext4 and btrfs are far above.
const overlayCookie = 0x7e000000

// flagsNoOpen are the bits of a session whose guest opens files without a request.
const flagsNoOpen = fuseproto.FlagNoOpenSupport | fuseproto.FlagNoOpenDirSupport

// enter finds the mount that a node belongs to and the index in it, and counts
// the request in; the caller leaves the mount's gate. A node that belongs to no
// mount any more is ESTALE.
func (v *FS) enter(op *fuseproto.Op, node uint64) (*mount, uint64, error) {
	for {
		m, index := v.table.Load().find(node)
		if m == nil {
			return nil, 0, syscall.ESTALE
		}
		if m.gate.enter(op.Shard(), op.MayBlock()) {
			return m, index, nil
		}
		// It was removed from the table before its gate was shut: look again.
	}
}

// enterBoth is enter for a request on two nodes, which must be of one mount.
func (v *FS) enterBoth(op *fuseproto.Op, node, other uint64) (m *mount, index, otherIndex uint64, err error) {
	m, index, err = v.enter(op, node)
	if err != nil {
		return nil, 0, 0, err
	}
	om, otherIndex := v.table.Load().find(other)
	switch {
	case om == m:
		return m, index, otherIndex, nil
	case om == nil:
		err = syscall.ESTALE
	default:
		err = syscall.EXDEV
	}
	m.gate.leave(op.Shard())
	return nil, 0, 0, err
}

// nodeEntry fills out with an entry whose name must not be cached: that of a pseudo
// directory or of the root of a mount.
func (v *FS) nodeEntry(op *fuseproto.Op, node uint64, out *fuseproto.Entry) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	if err := op.EntryOf(m.fs, index, out); err != nil {
		return err
	}
	return m.entry(out)
}

// laidOver returns what is laid over the directory index of m under that name.
func (v *FS) laidOver(m *mount, index uint64, name []byte) *entry {
	if !m.overlaid(index) {
		return nil
	}
	return v.table.Load().dirs[fuseproto.RootID].lookup(name)
}

// Root implements fuseproto.FileSystem.
func (v *FS) Root() uint64 { return fuseproto.RootID }

// Init tells all mounts of a new session.
func (v *FS) Init(flags uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live, v.flags = true, flags
	v.table.Load().each(func(m *mount) { m.fs.Init(flags) })
}

// Restore implements fuseproto.Restorer: those mounts that can go on with the session
// do, for all others it is a new one.
func (v *FS) Restore(flags, session uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live, v.flags = true, flags
	v.table.Load().each(func(m *mount) {
		if r, ok := m.fs.(fuseproto.Restorer); ok {
			r.Restore(flags, session)
		} else {
			m.fs.Init(flags)
		}
	})
}

// Destroy tells all mounts that the session has ended.
func (v *FS) Destroy() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live, v.flags = false, 0
	v.table.Load().each(func(m *mount) { m.fs.Destroy() })
}

// each calls f for every mount.
func (t *table) each(f func(*mount)) {
	for _, p := range t.pages {
		if p == nil {
			continue
		}
		for _, m := range p {
			if m != nil {
				f(m)
			}
		}
	}
}

// Lookup implements fuseproto.FileSystem.
func (v *FS) Lookup(op *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	m, index, err := v.enter(op, dir)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	overlaid := m.overlaid(index)
	switch {
	case overlaid && v.laidOver(m, index, name) != nil:
		return v.pseudo.Lookup(op, fuseproto.RootID, name, out)
	case m.node != fuseproto.RootID && index == m.root && string(name) == "..":
		return v.nodeEntry(op, m.parent, out)
	}
	if err := m.fs.Lookup(op, index, name, out); err != nil {
		return err
	}
	if out.Node == 0 && overlaid {
		return syscall.ENOENT // something may be mounted there at any time
	}
	return m.entry(out)
}

// Forget gives references back. Roots are never forgotten: a file system does
// not count references to its own. Those of mounts that are gone mean nothing.
func (v *FS) Forget(node, nlookup uint64) {
	m, index := v.table.Load().find(node)
	if m == nil || index == m.root || !m.gate.enter(uint32(node), false) {
		return
	}
	defer m.gate.leave(uint32(node))
	m.fs.Forget(index, nlookup)
}

// GetAttr implements fuseproto.FileSystem.
func (v *FS) GetAttr(op *fuseproto.Op, node uint64, in *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.attrOut(index, out, m.fs.GetAttr(op, index, in, out))
}

// SetAttr implements fuseproto.FileSystem.
func (v *FS) SetAttr(op *fuseproto.Op, node uint64, in *fuseproto.SetAttrIn, out *fuseproto.AttrOut) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.attrOut(index, out, m.fs.SetAttr(op, index, in, out))
}

func (m *mount) attrOut(index uint64, out *fuseproto.AttrOut, err error) error {
	if err != nil {
		return err
	}
	out.Timeout = m.attrTimeout(index, out.Timeout)
	m.attr(index, &out.Attr)
	return nil
}

// Readlink implements fuseproto.FileSystem.
func (v *FS) Readlink(op *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Readlink(op, index, out)
}

// StatFS implements fuseproto.FileSystem.
func (v *FS) StatFS(op *fuseproto.Op, node uint64, out *fuseproto.StatFSOut) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.StatFS(op, index, out)
}

// noOpen tells whether the guest shall learn to open nothing: the tree never
// changes, and the session allows it.
func (m *mount) noOpen(op *fuseproto.Op) bool {
	return m.static && op.SessionFlags()&flagsNoOpen == flagsNoOpen
}

// Open implements fuseproto.FileSystem.
func (v *FS) Open(op *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	if err := m.fs.Open(op, index, in, out); err != nil {
		return err
	}
	if m.noOpen(op) {
		return syscall.ENOSYS
	}
	return nil
}

// Read implements fuseproto.FileSystem.
func (v *FS) Read(op *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Read(op, index, in, out)
}

// Write implements fuseproto.FileSystem.
func (v *FS) Write(op *fuseproto.Op, node uint64, in *fuseproto.WriteIn, data fuseproto.Payload) (uint32, error) {
	m, index, err := v.enter(op, node)
	if err != nil {
		return 0, err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Write(op, index, in, data)
}

// Flush implements fuseproto.FileSystem. It succeeds for files of a mount that
// is gone: there is nothing left that could fail.
func (v *FS) Flush(op *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return nil
	}
	defer m.gate.leave(op.Shard())
	if m.noOpen(op) {
		return syscall.ENOSYS
	}
	return m.fs.Flush(op, index, in)
}

// Release implements fuseproto.FileSystem; as Flush.
func (v *FS) Release(op *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return nil
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Release(op, index, in)
}

// Fsync implements fuseproto.FileSystem.
func (v *FS) Fsync(op *fuseproto.Op, node uint64, in *fuseproto.FsyncIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Fsync(op, index, in)
}

// Fallocate implements fuseproto.FileSystem.
func (v *FS) Fallocate(op *fuseproto.Op, node uint64, in *fuseproto.FallocateIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Fallocate(op, index, in)
}

// Lseek implements fuseproto.FileSystem.
func (v *FS) Lseek(op *fuseproto.Op, node uint64, in *fuseproto.LseekIn) (uint64, error) {
	m, index, err := v.enter(op, node)
	if err != nil {
		return 0, err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Lseek(op, index, in)
}

// CopyFileRange implements fuseproto.FileSystem. Between mounts it is EXDEV, upon
// which the guest copies by itself.
func (v *FS) CopyFileRange(op *fuseproto.Op, node uint64, in *fuseproto.CopyFileRangeIn) (uint64, error) {
	m, index, out, err := v.enterBoth(op, node, in.NodeOut)
	if err != nil {
		return 0, err
	}
	defer m.gate.leave(op.Shard())
	in.NodeOut = out
	return m.fs.CopyFileRange(op, index, in)
}

// Ioctl implements fuseproto.FileSystem.
func (v *FS) Ioctl(op *fuseproto.Op, node uint64, in *fuseproto.IoctlIn, data []byte, out *fuseproto.Out) (int32, error) {
	m, index, err := v.enter(op, node)
	if err != nil {
		return 0, err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Ioctl(op, index, in, data, out)
}

// GetLk implements fuseproto.FileSystem.
func (v *FS) GetLk(op *fuseproto.Op, node uint64, in *fuseproto.LkIn, out *fuseproto.FileLock) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.GetLk(op, index, in, out)
}

// SetLk implements fuseproto.FileSystem.
func (v *FS) SetLk(op *fuseproto.Op, node uint64, in *fuseproto.LkIn, wait bool) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.SetLk(op, index, in, wait)
}

// OpenDir implements fuseproto.FileSystem.
func (v *FS) OpenDir(op *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	if err := m.fs.OpenDir(op, index, in, out); err != nil {
		return err
	}
	switch {
	case m.noOpen(op):
		return syscall.ENOSYS
	case m.overlaid(index):
		out.Flags &^= fuseproto.FOpenKeepCache | fuseproto.FOpenCacheDir
	}
	return nil
}

// ReadDir implements fuseproto.FileSystem. What is laid over a root follows when
// the file system has no more to tell.
func (v *FS) ReadDir(op *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	nodes := m.nodes
	if index == m.root && node != fuseproto.RootID {
		nodes.ParentIno = m.parent
	}
	overlaid := m.overlaid(index)
	if !overlaid || in.Offset < overlayCookie || in.Offset > overlayCookie+maxCookie {
		out.Translate(nodes)
		if err := m.fs.ReadDir(op, index, in, out); err != nil {
			return err
		}
		if !overlaid || out.Full() || out.Len() > 0 {
			return nil
		}
	}
	out.Translate(fuseproto.NodeMap{})
	behind := uint64(0)
	if in.Offset <= overlayCookie+maxCookie {
		behind = max(in.Offset, overlayCookie) - overlayCookie
	}
	v.table.Load().dirs[fuseproto.RootID].list(behind, overlayCookie, out)
	return nil
}

// ReleaseDir implements fuseproto.FileSystem; as Flush.
func (v *FS) ReleaseDir(op *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return nil
	}
	defer m.gate.leave(op.Shard())
	return m.fs.ReleaseDir(op, index, in)
}

// FsyncDir implements fuseproto.FileSystem.
func (v *FS) FsyncDir(op *fuseproto.Op, node uint64, in *fuseproto.FsyncIn) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.FsyncDir(op, index, in)
}

// SyncFS implements fuseproto.FileSystem. The guest has one super block for the
// whole tree and syncs its root: all mounts are meant.
func (v *FS) SyncFS(op *fuseproto.Op, node uint64) error {
	if node != fuseproto.RootID {
		return v.syncOne(op, node)
	}
	var first error
	v.table.Load().each(func(m *mount) {
		if err := v.syncOne(op, m.node); err != nil && err != syscall.ESTALE && first == nil {
			first = err
		}
	})
	return first
}

func (v *FS) syncOne(op *fuseproto.Op, node uint64) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.SyncFS(op, index)
}

// GetXattr implements fuseproto.FileSystem.
func (v *FS) GetXattr(op *fuseproto.Op, node uint64, name []byte, out *fuseproto.Out) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.GetXattr(op, index, name, out)
}

// ListXattr implements fuseproto.FileSystem.
func (v *FS) ListXattr(op *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.ListXattr(op, index, out)
}

// SetXattr implements fuseproto.FileSystem.
func (v *FS) SetXattr(op *fuseproto.Op, node uint64, in *fuseproto.SetXattrIn, name, value []byte) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.SetXattr(op, index, in, name, value)
}

// RemoveXattr implements fuseproto.FileSystem.
func (v *FS) RemoveXattr(op *fuseproto.Op, node uint64, name []byte) error {
	m, index, err := v.enter(op, node)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.RemoveXattr(op, index, name)
}
