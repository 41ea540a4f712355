package fuseproto_test

import (
	"bytes"
	"io"
	"log"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// oracle shows a Tree through another implementation of the protocol.
type oracle struct {
	gofuse.RawFileSystem
	tree *fusetest.Tree
	op   *fuseproto.Op
	t    *testing.T
}

func theirAttr(a *fuseproto.Attr) gofuse.Attr {
	return gofuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks, Atime: uint64(a.Atime), Mtime: uint64(a.Mtime), Ctime: uint64(a.Ctime),
		Atimensec: a.AtimeNsec, Mtimensec: a.MtimeNsec, Ctimensec: a.CtimeNsec, Mode: a.Mode, Nlink: a.Nlink,
		Owner: gofuse.Owner{Uid: a.UID, Gid: a.GID}, Rdev: a.Rdev, Blksize: a.Blksize, Flags: a.Flags,
	}
}

func theirEntry(e *fuseproto.Entry) gofuse.EntryOut {
	return gofuse.EntryOut{
		NodeId: e.Node, Generation: e.Generation, EntryValid: e.EntryTimeout.Sec, EntryValidNsec: e.EntryTimeout.Nsec,
		AttrValid: e.AttrTimeout.Sec, AttrValidNsec: e.AttrTimeout.Nsec, Attr: theirAttr(&e.Attr),
	}
}

func (o *oracle) Lookup(_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	var e fuseproto.Entry
	err := o.tree.Lookup(o.op, h.NodeId, []byte(name), &e)
	*out = theirEntry(&e)
	return gofuse.ToStatus(err)
}

func (o *oracle) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	var a fuseproto.AttrOut
	err := o.tree.GetAttr(o.op, in.NodeId, nil, &a)
	*out = gofuse.AttrOut{AttrValid: a.Timeout.Sec, AttrValidNsec: a.Timeout.Nsec, Attr: theirAttr(&a.Attr)}
	return gofuse.ToStatus(err)
}

func (o *oracle) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	*out = gofuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	return gofuse.OK
}

func (o *oracle) Readlink(_ <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	b := make([]byte, 4096)
	out := fuseproto.NewOut(b)
	err := o.tree.Readlink(o.op, h.NodeId, out)
	return b[:out.Len()], gofuse.ToStatus(err)
}

func (o *oracle) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

func (o *oracle) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE | gofuse.FOPEN_CACHE_DIR
	return gofuse.OK
}

func (o *oracle) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	out := fuseproto.NewOut(buf)
	err := o.tree.Read(o.op, in.NodeId, &fuseproto.ReadIn{Offset: in.Offset, Size: in.Size}, out)
	return gofuse.ReadResultData(buf[:out.Len()]), gofuse.ToStatus(err)
}

// entries returns what is behind off, decoded from a listing that fits all.
func (o *oracle) entries(node, off uint64) []fusetest.Dirent {
	b := make([]byte, 1<<20)
	w := fuseproto.NewDirWriter(b, true)
	if err := o.tree.ReadDir(o.op, node, &fuseproto.ReadIn{Offset: off}, w); err != nil {
		o.t.Error(err)
	}
	return fusetest.DecodeDirents(o.t, b[:w.Len()], true)
}

func (o *oracle) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	for _, d := range o.entries(in.NodeId, in.Offset) {
		if !out.AddDirEntry(gofuse.DirEntry{Mode: d.Type << 12, Name: d.Name, Ino: d.Ino, Off: d.Off}) {
			break
		}
	}
	return gofuse.OK
}

func (o *oracle) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	for _, d := range o.entries(in.NodeId, in.Offset) {
		e := out.AddDirLookupEntry(gofuse.DirEntry{Mode: d.Type << 12, Name: d.Name, Ino: d.Ino, Off: d.Off})
		if e == nil {
			break
		}
		if d.Name == "." || d.Name == ".." {
			continue
		}
		var ours fuseproto.Entry
		if err := o.tree.Lookup(o.op, in.NodeId, []byte(d.Name), &ours); err != nil {
			o.t.Error(err)
		}
		*e = theirEntry(&ours)
	}
	return gofuse.OK
}

func (o *oracle) GetXAttr(_ <-chan struct{}, h *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	return o.xattr(dest, func(out *fuseproto.Out) error { return o.tree.GetXattr(o.op, h.NodeId, []byte(name), out) })
}

func (o *oracle) ListXAttr(_ <-chan struct{}, h *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	return o.xattr(dest, func(out *fuseproto.Out) error { return o.tree.ListXattr(o.op, h.NodeId, out) })
}

func (o *oracle) xattr(dest []byte, get func(*fuseproto.Out) error) (uint32, gofuse.Status) {
	b := make([]byte, 1000)
	out := fuseproto.NewOut(b)
	if err := get(out); err != nil {
		return 0, gofuse.ToStatus(err)
	}
	if out.Len() > len(dest) {
		return uint32(out.Len()), gofuse.ERANGE
	}
	return uint32(copy(dest, b[:out.Len()])), gofuse.OK
}

// The same requests to both implementations, over the same tree, give the same
// bytes.
func TestSameBytesAsAnotherImplementation(t *testing.T) {
	_, c := guest(t)
	o := &oracle{gofuse.NewDefaultRawFileSystem(), testTree(), fuseproto.NewOp(t.Context()), t}
	ps := gofuse.NewProtocolServer(o, &gofuse.MountOptions{Logger: log.New(io.Discard, "", 0)})
	theirs := func(m *fusetest.Message) []byte {
		n, _ := ps.HandleRequest(m.Readable(), m.Writable())
		return m.Room()[:n]
	}
	theirs(one{fuseproto.OpInit, 0, 64, []any{fusetest.InitBody(7, 45, fusetest.GuestFlags)}}.message(2))

	requests := []one{
		{fuseproto.OpLookup, 1, 128, []any{"dir"}},
		{fuseproto.OpLookup, 1, 128, []any{"absent"}},
		{fuseproto.OpLookup, nodeFile, 128, []any{"below a file"}},
		{fuseproto.OpGetAttr, nodeFile, 104, []any{make([]byte, 16)}},
		{fuseproto.OpReadlink, nodeLink, 4096, nil},
		{fuseproto.OpStatFS, 1, 80, nil},
		{fuseproto.OpOpen, nodeFile, 16, []any{make([]byte, 8)}},
		{fuseproto.OpOpenDir, nodeDir, 16, []any{make([]byte, 8)}},
		{fuseproto.OpRelease, nodeFile, 0, []any{make([]byte, 24)}},
		{fuseproto.OpReleaseDir, nodeDir, 0, []any{make([]byte, 24)}},
		{fuseproto.OpGetXattr, nodeFile, 100, []any{uint64(100), "user.name"}},
		{fuseproto.OpGetXattr, nodeFile, 4, []any{uint64(4), "user.name"}},
		{fuseproto.OpGetXattr, nodeFile, 8, []any{uint64(0), "user.name"}},
		{fuseproto.OpGetXattr, nodeFile, 100, []any{uint64(100), "user.absent"}},
		{fuseproto.OpListXattr, nodeFile, 100, []any{uint64(100)}},
		{fuseproto.OpListXattr, nodeFile, 8, []any{uint64(0)}},
	}
	for _, off := range []uint64{0, 1, fileSize - 10, fileSize, fileSize + 1} {
		for _, size := range []uint32{1, 100, 4096, fileSize} {
			requests = append(requests, one{fuseproto.OpRead, nodeFile, int(size), []any{fusetest.ReadBody(0, off, size)}})
		}
	}
	for off := range uint64(7) {
		for _, size := range []uint32{32, 100, 175, 320, 4096} {
			for _, op := range []fuseproto.Opcode{fuseproto.OpReadDir, fuseproto.OpReadDirPlus} {
				requests = append(requests, one{op, 1, int(size), []any{fusetest.ReadBody(0, off, size)}})
			}
		}
	}
	for _, o := range requests {
		m := o.message(42)
		c.Send(m, 42)
		ours := bytes.Clone(m.Room())
		m = o.message(42)
		want := theirs(m)
		sameBytes(t, o.op.String(), ours[:min(len(ours), int(le.Uint32(ours)))], want)
	}
}
