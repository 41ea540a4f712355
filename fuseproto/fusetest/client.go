package fusetest

import (
	"context"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
)

// Client sends requests to a Server and fails the test when a reply breaks a
// rule that holds for every reply. It is for one goroutine.
type Client struct {
	T       testing.TB
	Server  *fuseproto.Server
	Op      *fuseproto.Op
	Unique  uint64
	Blocked int // requests that left the queue's goroutine
	// Scribbles allows a request that has to wait to have filled a part of the
	// reply's room, as a read into Out.Segments does.
	Scribbles bool
	// Slot, if set, is the table's place of every request from now on.
	Slot *Slot
}

// NewClient returns a Client of s, before INIT.
func NewClient(t testing.TB, s *fuseproto.Server) *Client {
	return &Client{T: t, Server: s, Op: new(fuseproto.Op)}
}

// GuestFlags is what a Linux 7.2 guest offers.
const GuestFlags = 0x5ff<<32 | 0x7bfffffb

// Init begins a session as a Linux 7.2 guest does and returns what was granted.
func (c *Client) Init() (flags uint64) {
	c.T.Helper()
	r := c.Call(fuseproto.OpInit, 0, 64, InitBody(7, 45, GuestFlags))
	if r.Errno != 0 || len(r.Body) != 64 {
		c.T.Fatalf("INIT: errno %v, %d bytes", r.Errno, len(r.Body))
	}
	return uint64(le.Uint32(r.Body[12:])) | uint64(le.Uint32(r.Body[32:]))<<32
}

// InitBody returns the 64-byte body of INIT.
func InitBody(major, minor uint32, flags uint64) []byte {
	b := make([]byte, 64)
	le.PutUint32(b, major)
	le.PutUint32(b[4:], minor)
	le.PutUint32(b[8:], 128<<10)
	le.PutUint32(b[12:], uint32(flags))
	le.PutUint32(b[16:], uint32(flags>>32))
	return b
}

// Call sends a request with room for body bytes behind the reply's header and
// returns the checked reply, whose Body is valid until the next call of the same
// memory.
func (c *Client) Call(opcode fuseproto.Opcode, node uint64, body int, parts ...any) Reply {
	c.T.Helper()
	c.Unique += 2
	m := NewMessage(Request(opcode, c.Unique, node, parts...), 16+body)
	m.Slot = c.Slot
	return c.Send(m, c.Unique)
}

// Send serves m, on a second way if it has to wait, and returns the checked reply.
func (c *Client) Send(m *Message, unique uint64) Reply {
	c.T.Helper()
	written, done := c.Server.Serve(c.Op, m)
	if !done {
		if err := m.Untouched(0); err != nil && !c.Scribbles {
			c.T.Fatalf("request that waits: %v", err)
		}
		c.Blocked++
		var err error
		written, err = c.Server.ServeBlocking(context.Background(), c.Op, m)
		if err != nil {
			c.T.Fatalf("ServeBlocking: %v", err)
		}
	}
	r, err := m.Reply(written, unique)
	if err != nil {
		c.T.Fatalf("%v: %v", fuseproto.Opcode(le.Uint32(m.request[4:])), err)
	}
	if r.Errno == 0 {
		if err := m.Untouched(written); err != nil {
			c.T.Fatalf("%v: %v", fuseproto.Opcode(le.Uint32(m.request[4:])), err)
		}
	}
	return r
}

// Lookup looks name up in dir and returns the entry of the reply.
func (c *Client) Lookup(dir uint64, name string) (Entry, Reply) {
	c.T.Helper()
	r := c.Call(fuseproto.OpLookup, dir, 128, name)
	if r.Errno != 0 {
		return Entry{}, r
	}
	return DecodeEntry(c.T, r.Body), r
}

// GetAttr asks for the attributes of node.
func (c *Client) GetAttr(node uint64) (Attr, Reply) {
	c.T.Helper()
	r := c.Call(fuseproto.OpGetAttr, node, 104, uint32(0), uint32(0), uint64(0))
	if r.Errno != 0 {
		return Attr{}, r
	}
	if len(r.Body) != 104 {
		c.T.Fatalf("GETATTR: body of %d bytes, want 104", len(r.Body))
	}
	a := decodeAttr(r.Body[16:])
	a.ValidSec, a.ValidNsec = le.Uint64(r.Body), le.Uint32(r.Body[8:])
	return a, r
}

// Read reads size bytes of node at off.
func (c *Client) Read(node, off uint64, size uint32) Reply {
	c.T.Helper()
	return c.Call(fuseproto.OpRead, node, int(size), ReadBody(0, off, size))
}

// ReadDir asks for one listing of node behind off.
func (c *Client) ReadDir(node, off uint64, size uint32, plus bool) ([]Dirent, Reply) {
	c.T.Helper()
	opcode := fuseproto.OpReadDir
	if plus {
		opcode = fuseproto.OpReadDirPlus
	}
	r := c.Call(opcode, node, int(size), ReadBody(0, off, size))
	if r.Errno != 0 {
		return nil, r
	}
	return DecodeDirents(c.T, r.Body, plus), r
}

// List lists the whole of node with listings of size bytes.
func (c *Client) List(node uint64, size uint32, plus bool) []Dirent {
	c.T.Helper()
	var all []Dirent
	for off := uint64(0); ; {
		list, r := c.ReadDir(node, off, size, plus)
		if r.Errno != 0 {
			c.T.Fatalf("listing of node %d behind %d: %v", node, off, r.Errno)
		}
		if len(list) == 0 {
			return all
		}
		all = append(all, list...)
		off = list[len(list)-1].Off
	}
}

// ReadBody returns the body of READ, READDIR and READDIRPLUS.
func ReadBody(fh, off uint64, size uint32) []byte {
	b := make([]byte, 40)
	le.PutUint64(b, fh)
	le.PutUint64(b[8:], off)
	le.PutUint32(b[16:], size)
	return b
}

// Attr is struct fuse_attr as the guest sees it, with the time-out of GETATTR.
type Attr struct {
	Ino, Size, Blocks               uint64
	Atime, Mtime, Ctime             int64
	AtimeNsec, MtimeNsec, CtimeNsec uint32
	Mode, Nlink, UID, GID, Rdev     uint32
	Blksize, Flags                  uint32
	ValidSec                        uint64
	ValidNsec                       uint32
}

func decodeAttr(b []byte) Attr {
	return Attr{
		Ino: le.Uint64(b), Size: le.Uint64(b[8:]), Blocks: le.Uint64(b[16:]),
		Atime: int64(le.Uint64(b[24:])), Mtime: int64(le.Uint64(b[32:])), Ctime: int64(le.Uint64(b[40:])),
		AtimeNsec: le.Uint32(b[48:]), MtimeNsec: le.Uint32(b[52:]), CtimeNsec: le.Uint32(b[56:]),
		Mode: le.Uint32(b[60:]), Nlink: le.Uint32(b[64:]), UID: le.Uint32(b[68:]), GID: le.Uint32(b[72:]),
		Rdev: le.Uint32(b[76:]), Blksize: le.Uint32(b[80:]), Flags: le.Uint32(b[84:]),
	}
}

// Entry is struct fuse_entry_out as the guest sees it.
type Entry struct {
	Node, Generation         uint64
	ValidSec, AttrValidSec   uint64
	ValidNsec, AttrValidNsec uint32
	Attr                     Attr
}

// DecodeEntry decodes an entry, which must be b as a whole.
func DecodeEntry(t testing.TB, b []byte) Entry {
	t.Helper()
	if len(b) != 128 {
		t.Fatalf("entry of %d bytes, want 128", len(b))
	}
	return Entry{
		Node: le.Uint64(b), Generation: le.Uint64(b[8:]),
		ValidSec: le.Uint64(b[16:]), AttrValidSec: le.Uint64(b[24:]),
		ValidNsec: le.Uint32(b[32:]), AttrValidNsec: le.Uint32(b[36:]),
		Attr: decodeAttr(b[40:]),
	}
}

// Dirent is one record of a listing. Entry counts in READDIRPLUS only.
type Dirent struct {
	Entry Entry
	Ino   uint64
	Off   uint64
	Type  uint32
	Name  string
}

// DecodeDirents decodes a listing as strictly as the kernel.
func DecodeDirents(t testing.TB, b []byte, plus bool) []Dirent {
	t.Helper()
	var list []Dirent
	for len(b) > 0 {
		var d Dirent
		r := b
		if plus {
			if len(r) < 152 {
				t.Fatalf("listing ends with %d bytes of a record", len(r))
			}
			d.Entry = DecodeEntry(t, r[:128])
			r = r[128:]
		}
		if len(r) < 24 {
			t.Fatalf("listing ends with %d bytes of a record", len(r))
		}
		d.Ino, d.Off, d.Type = le.Uint64(r), le.Uint64(r[8:]), le.Uint32(r[20:])
		n := int(le.Uint32(r[16:]))
		if n == 0 || n > 255 || 24+n > len(r) {
			t.Fatalf("name of %d bytes in %d", n, len(r)-24)
		}
		d.Name = string(r[24 : 24+n])
		size := (len(b) - len(r) + 24 + n + 7) &^ 7
		if size > len(b) {
			t.Fatalf("padding of %q is missing", d.Name)
		}
		for _, c := range b[len(b)-len(r)+24+n : size] {
			if c != 0 {
				t.Fatalf("padding of %q is not zero", d.Name)
			}
		}
		if d.Off == 0 {
			t.Fatalf("cookie of %q is 0", d.Name)
		}
		list = append(list, d)
		b = b[size:]
	}
	return list
}
