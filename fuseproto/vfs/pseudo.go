package vfs

import (
	"syscall"

	"github.com/rafsd/rafsd/fuseproto"
)

// pseudo is the file system of the pseudo directories: mount 0 of the tree. Its
// indexes are node ids, and its entries are node ids of other mounts where those
// are.
type pseudo struct {
	fuseproto.ReadOnly
	v *FS
}

var (
	dot    = []byte(".")
	dotDot = []byte("..")
)

func (p *pseudo) Root() uint64 { return fuseproto.RootID }

func (p *pseudo) dir(index uint64) (*dir, error) {
	if d := p.v.table.Load().dirs[index]; d != nil {
		return d, nil
	}
	return nil, syscall.ESTALE
}

// Lookup never gives a negative entry: the name may be mounted at any time.
func (p *pseudo) Lookup(op *fuseproto.Op, index uint64, name []byte, out *fuseproto.Entry) error {
	d, err := p.dir(index)
	if err != nil {
		return err
	}
	switch {
	case string(name) == ".":
		return p.v.nodeEntry(op, index, out)
	case string(name) == "..":
		return p.v.nodeEntry(op, d.parent, out)
	}
	e := d.lookup(name)
	switch {
	case e == nil:
		return syscall.ENOENT
	case e.mount != nil:
		return p.v.nodeEntry(op, e.mount.node, out)
	}
	return p.v.nodeEntry(op, e.dir, out)
}

func (p *pseudo) GetAttr(_ *fuseproto.Op, index uint64, _ *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	d, err := p.dir(index)
	if err != nil {
		return err
	}
	*out = fuseproto.AttrOut{Timeout: shortly, Attr: d.attr()}
	return nil
}

func (p *pseudo) Readlink(*fuseproto.Op, uint64, *fuseproto.Out) error { return syscall.EINVAL }

func (p *pseudo) Open(*fuseproto.Op, uint64, *fuseproto.OpenIn, *fuseproto.OpenOut) error {
	return syscall.EISDIR
}

func (p *pseudo) Read(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.Out) error {
	return syscall.EISDIR
}

// OpenDir lets the guest keep nothing of the listing.
func (p *pseudo) OpenDir(_ *fuseproto.Op, index uint64, _ *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	*out = fuseproto.OpenOut{}
	_, err := p.dir(index)
	return err
}

// ReadDir lists names without attributes: the guest may not keep them anyway.
func (p *pseudo) ReadDir(_ *fuseproto.Op, index uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	d, err := p.dir(index)
	if err != nil {
		return err
	}
	if in.Offset < 1 && !out.Add(fuseproto.DirEntry{Name: dot, Ino: index, Off: 1, Type: fuseproto.DTDir}) {
		return nil
	}
	if in.Offset < 2 && !out.Add(fuseproto.DirEntry{Name: dotDot, Ino: d.parent, Off: 2, Type: fuseproto.DTDir}) {
		return nil
	}
	d.list(in.Offset, 0, out)
	return nil
}

// list adds the entries behind cookie, whose own cookies are base higher.
func (d *dir) list(cookie, base uint64, out *fuseproto.DirWriter) {
	for i, entries := 0, d.behind(cookie); i < len(entries); i++ {
		e := &entries[i]
		ino := e.dir
		if e.mount != nil {
			ino = e.mount.nodes.Base | e.mount.root
		}
		if !out.Add(fuseproto.DirEntry{Name: e.name, Ino: ino, Off: base + e.cookie, Type: fuseproto.DTDir}) {
			return
		}
	}
}
