package daemon

import "github.com/rafsd/rafsd/fuseproto"

// The operations of an image, counted. What is not here changes nothing in an
// image and is answered without looking at it.

// GetAttr implements fuseproto.FileSystem.
func (m *image) GetAttr(op *fuseproto.Op, node uint64, in *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	start := m.meter.begin(op, FSGetAttr)
	err := m.FS.GetAttr(op, node, in, out)
	m.meter.end(op, FSGetAttr, node, start, err)
	return err
}

// Readlink implements fuseproto.FileSystem.
func (m *image) Readlink(op *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	start := m.meter.begin(op, FSReadlink)
	err := m.FS.Readlink(op, node, out)
	m.meter.end(op, FSReadlink, node, start, err)
	return err
}

// Open implements fuseproto.FileSystem.
func (m *image) Open(op *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	start := m.meter.begin(op, FSOpen)
	err := m.FS.Open(op, node, in, out)
	m.meter.end(op, FSOpen, node, start, err)
	if err == nil {
		m.meter.opened(op, 1)
	}
	return err
}

// Release implements fuseproto.FileSystem.
func (m *image) Release(op *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	start := m.meter.begin(op, FSRelease)
	err := m.FS.Release(op, node, in)
	m.meter.end(op, FSRelease, node, start, err)
	m.meter.opened(op, -1)
	return err
}

// Read implements fuseproto.FileSystem.
func (m *image) Read(op *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	start := m.meter.begin(op, FSRead)
	err := m.FS.Read(op, node, in, out)
	m.meter.end(op, FSRead, node, start, err)
	if err == nil {
		m.meter.read(op, node, in.Size, out.Len())
	}
	return err
}

// StatFS implements fuseproto.FileSystem.
func (m *image) StatFS(op *fuseproto.Op, node uint64, out *fuseproto.StatFSOut) error {
	start := m.meter.begin(op, FSStatFS)
	err := m.FS.StatFS(op, node, out)
	m.meter.end(op, FSStatFS, node, start, err)
	return err
}

// GetXattr implements fuseproto.FileSystem.
func (m *image) GetXattr(op *fuseproto.Op, node uint64, name []byte, out *fuseproto.Out) error {
	start := m.meter.begin(op, FSGetXattr)
	err := m.FS.GetXattr(op, node, name, out)
	m.meter.end(op, FSGetXattr, node, start, err)
	return err
}

// ListXattr implements fuseproto.FileSystem.
func (m *image) ListXattr(op *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	start := m.meter.begin(op, FSListXattr)
	err := m.FS.ListXattr(op, node, out)
	m.meter.end(op, FSListXattr, node, start, err)
	return err
}

// OpenDir implements fuseproto.FileSystem.
func (m *image) OpenDir(op *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	start := m.meter.begin(op, FSOpenDir)
	err := m.FS.OpenDir(op, node, in, out)
	m.meter.end(op, FSOpenDir, node, start, err)
	return err
}

// Lookup implements fuseproto.FileSystem.
func (m *image) Lookup(op *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	start := m.meter.begin(op, FSLookup)
	err := m.FS.Lookup(op, dir, name, out)
	m.meter.end(op, FSLookup, dir, start, err)
	return err
}

// ReadDir implements fuseproto.FileSystem.
func (m *image) ReadDir(op *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	what := FSReadDir
	if out.Plus() {
		what = FSReadDirPlus
	}
	start := m.meter.begin(op, what)
	err := m.FS.ReadDir(op, node, in, out)
	m.meter.end(op, what, node, start, err)
	return err
}

// Forget implements fuseproto.FileSystem.
func (m *image) Forget(node, _ uint64) {
	m.meter.shards[node%fsShards].hits[FSForget].Add(1)
}
