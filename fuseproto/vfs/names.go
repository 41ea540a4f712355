package vfs

import (
	"syscall"

	"github.com/rafsd/rafsd/fuseproto"
)

// The requests that make, move and remove names. What is laid over a root can be
// neither made again nor taken away by the guest.

// enterToMake enters the mount of dir for a request that makes name in it.
func (v *FS) enterToMake(op *fuseproto.Op, dir uint64, name []byte) (*mount, uint64, error) {
	return v.enterFor(op, dir, name, syscall.EEXIST)
}

// enterFor is enter, and the error covered if name is laid over.
func (v *FS) enterFor(op *fuseproto.Op, dir uint64, name []byte, covered error) (*mount, uint64, error) {
	m, index, err := v.enter(op, dir)
	if err != nil {
		return nil, 0, err
	}
	if v.laidOver(m, index, name) != nil {
		m.gate.leave(op.Shard())
		return nil, 0, covered
	}
	return m, index, nil
}

// made turns the entry of a method that made something into the tree's.
func (m *mount) made(out *fuseproto.Entry, err error) error {
	if err != nil {
		return err
	}
	return m.entry(out)
}

// Mknod implements fuseproto.FileSystem.
func (v *FS) Mknod(op *fuseproto.Op, dir uint64, in *fuseproto.MknodIn, name []byte, out *fuseproto.Entry) error {
	m, index, err := v.enterToMake(op, dir, name)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.made(out, m.fs.Mknod(op, index, in, name, out))
}

// Mkdir implements fuseproto.FileSystem.
func (v *FS) Mkdir(op *fuseproto.Op, dir uint64, in *fuseproto.MkdirIn, name []byte, out *fuseproto.Entry) error {
	m, index, err := v.enterToMake(op, dir, name)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.made(out, m.fs.Mkdir(op, index, in, name, out))
}

// Symlink implements fuseproto.FileSystem.
func (v *FS) Symlink(op *fuseproto.Op, dir uint64, name, target []byte, out *fuseproto.Entry) error {
	m, index, err := v.enterToMake(op, dir, name)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.made(out, m.fs.Symlink(op, index, name, target, out))
}

// Link implements fuseproto.FileSystem; between mounts it is EXDEV.
func (v *FS) Link(op *fuseproto.Op, node, newDir uint64, newName []byte, out *fuseproto.Entry) error {
	m, index, dir, err := v.enterBoth(op, node, newDir)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	if v.laidOver(m, dir, newName) != nil {
		return syscall.EEXIST
	}
	return m.made(out, m.fs.Link(op, index, dir, newName, out))
}

// Unlink implements fuseproto.FileSystem.
func (v *FS) Unlink(op *fuseproto.Op, dir uint64, name []byte) error {
	m, index, err := v.enterFor(op, dir, name, syscall.EISDIR)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Unlink(op, index, name)
}

// Rmdir implements fuseproto.FileSystem.
func (v *FS) Rmdir(op *fuseproto.Op, dir uint64, name []byte) error {
	m, index, err := v.enterFor(op, dir, name, syscall.EBUSY)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.fs.Rmdir(op, index, name)
}

// Rename implements fuseproto.FileSystem; between mounts it is EXDEV.
func (v *FS) Rename(op *fuseproto.Op, dir uint64, name []byte, newDir uint64, newName []byte, flags uint32) error {
	m, index, newIndex, err := v.enterBoth(op, dir, newDir)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	if v.laidOver(m, index, name) != nil || v.laidOver(m, newIndex, newName) != nil {
		return syscall.EBUSY
	}
	return m.fs.Rename(op, index, name, newIndex, newName, flags)
}

// Create implements fuseproto.FileSystem.
func (v *FS) Create(op *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, name []byte, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	m, index, err := v.enterToMake(op, dir, name)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.made(entry, m.fs.Create(op, index, in, name, entry, out))
}

// Tmpfile implements fuseproto.FileSystem.
func (v *FS) Tmpfile(op *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	m, index, err := v.enter(op, dir)
	if err != nil {
		return err
	}
	defer m.gate.leave(op.Shard())
	return m.made(entry, m.fs.Tmpfile(op, index, in, entry, out))
}
