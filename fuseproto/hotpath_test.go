package fuseproto_test

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/vfs"
)

// constant is a file system that does next to nothing, so that what is measured
// is this package and vfs.
type constant struct {
	fuseproto.ReadOnly
	data []byte
}

var childName = []byte("child-of-thirty-characters-abc")

func (c *constant) Root() uint64 { return 1 }

func (c *constant) entry(node uint64, out *fuseproto.Entry) {
	out.Node, out.Attr.Ino = node, node
	out.EntryTimeout, out.AttrTimeout = fuseproto.Forever, fuseproto.Forever
	out.Attr.Mode, out.Attr.Nlink = syscall.S_IFREG|0o644, 1
}

func (c *constant) Lookup(_ *fuseproto.Op, _ uint64, _ []byte, out *fuseproto.Entry) error {
	c.entry(2, out)
	return nil
}

func (c *constant) GetAttr(_ *fuseproto.Op, node uint64, _ *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	out.Attr.Ino, out.Timeout = node, fuseproto.Forever
	return nil
}

func (c *constant) Readlink(_ *fuseproto.Op, _ uint64, out *fuseproto.Out) error {
	_, err := out.Write(childName)
	return err
}

func (c *constant) Read(_ *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	_, err := out.Write(c.data[:in.Size])
	return err
}

func (c *constant) ReadDir(_ *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
	var e fuseproto.Entry
	for off := in.Offset + 1; off < 1000; off++ {
		c.entry(off+1, &e)
		if !w.AddPlus(fuseproto.DirEntry{Name: childName, Ino: off + 1, Off: off, Type: fuseproto.DTReg}, &e) {
			break
		}
	}
	return nil
}

// hot are the requests whose cost counts, cut as Linux cuts them.
func hot() map[string]func(root uint64) *fusetest.Message {
	read := func(size int) func(uint64) *fusetest.Message {
		return func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpRead, 2, root+1, fusetest.ReadBody(0, 0, uint32(size))), 16+size)
			m.CutRequest(40)
			var at []int
			for i := 16; i < 16+size; i += 4096 {
				at = append(at, i)
			}
			m.CutRoom(at...)
			return m
		}
	}
	return map[string]func(uint64) *fusetest.Message{
		"LOOKUP": func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, root, string(childName)), 144)
			m.CutRequest(40)
			m.CutRoom(16)
			return m
		},
		"GETATTR": func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpGetAttr, 2, root, make([]byte, 16)), 120)
			m.CutRequest(40)
			m.CutRoom(16)
			return m
		},
		"READ/4K":   read(4 << 10),
		"READ/128K": read(128 << 10),
		"READ/1M":   read(1 << 20),
		"READDIRPLUS": func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpReadDirPlus, 2, root, fusetest.ReadBody(0, 0, 8192)), 16+8192)
			m.CutRequest(40)
			m.CutRoom(16, 16+4096)
			return m
		},
		"READLINK": func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpReadlink, 2, root), 16+4096)
			m.CutRoom(16)
			return m
		},
		"GETXATTR absent": func(root uint64) *fusetest.Message {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpGetXattr, 2, root, uint64(100), "security.capability"), 116)
			m.CutRequest(40)
			return m
		},
		"FORGET": func(root uint64) *fusetest.Message {
			return fusetest.NewMessage(fusetest.Request(fuseproto.OpForget, 2, root+1, uint64(1)), 0)
		},
	}
}

// mounted returns a Server of a tree with a constant file system at /a/b, and the
// node of its root.
func mounted(t testing.TB) (*fuseproto.Server, uint64) {
	t.Helper()
	v := vfs.New(0)
	t.Cleanup(func() { v.Close() })
	if _, err := v.Mount(t.Context(), "/a/b", &constant{data: make([]byte, 1<<20)}, vfs.MountOptions{}); err != nil {
		t.Fatal(err)
	}
	s := serverOf(t, v, fuseproto.Config{})
	c := fusetest.NewClient(t, s)
	c.Init()
	a, _ := c.Lookup(1, "a")
	b, _ := c.Lookup(a.Node, "b")
	return s, b.Node
}

func TestServeAllocates(t *testing.T) {
	s, root := mounted(t)
	requests := hot()
	// The way there is walked again for each open: nothing of it is cached.
	requests["LOOKUP of a pseudo directory"] = func(uint64) *fusetest.Message {
		return fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, 1, "a"), 144)
	}
	a, _ := fusetest.NewClient(t, s).Lookup(1, "a")
	requests["LOOKUP of a mount"] = func(uint64) *fusetest.Message {
		return fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, a.Node, "b"), 144)
	}
	requests["READDIR of a pseudo directory"] = func(uint64) *fusetest.Message {
		return fusetest.NewMessage(fusetest.Request(fuseproto.OpReadDir, 2, 1, fusetest.ReadBody(0, 0, 4096)), 16+4096)
	}
	for name, request := range requests {
		op, m := new(fuseproto.Op), request(root)
		n := testing.AllocsPerRun(100, func() {
			if _, done := s.Serve(op, m); !done {
				t.Errorf("%s waits", name)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if m.Room() == nil || len(m.Room()) == 0 {
			continue
		}
		if r, err := m.Reply(uint32(m.Room()[0])|uint32(m.Room()[1])<<8|uint32(m.Room()[2])<<16, 2); err != nil || r.Errno != 0 && r.Errno != syscall.ENODATA {
			t.Errorf("%s: %v, %v", name, r.Errno, err)
		}
	}
}

func BenchmarkServe(b *testing.B) {
	s, root := mounted(b)
	requests := hot()
	for _, name := range []string{"GETATTR", "LOOKUP", "READ/4K", "READ/128K", "READ/1M", "READDIRPLUS"} {
		b.Run(name, func(b *testing.B) {
			op, m := new(fuseproto.Op), requests[name](root)
			b.ReportAllocs()
			if n := len(m.Room()); name[:4] == "READ" {
				b.SetBytes(int64(n - 16))
			}
			for b.Loop() {
				s.Serve(op, m)
			}
		})
	}
	for _, name := range []string{"GETATTR", "READ/4K"} {
		b.Run(fmt.Sprintf("%s/queues", name), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				op, m := new(fuseproto.Op), requests[name](root)
				for pb.Next() {
					s.Serve(op, m)
				}
			})
		})
	}
}
