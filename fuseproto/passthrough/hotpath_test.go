package passthrough_test

import (
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// hot returns a message for each request whose cost counts, cut as Linux cuts them.
func hot(g *guest) map[string]*fusetest.Message {
	e, fh := g.create(1, "child", unix.O_RDWR, 0o100600)
	g.write(e.Node, fh, 0, string(make([]byte, 1<<20)))
	read := func(size int) *fusetest.Message {
		m := fusetest.NewMessage(fusetest.Request(fuseproto.OpRead, 2, e.Node, fusetest.ReadBody(fh, 0, uint32(size))), 16+size)
		m.CutRequest(40)
		var at []int
		for i := 16; i < 16+size; i += 4096 {
			at = append(at, i)
		}
		m.CutRoom(at...)
		return m
	}
	write := func(size int) *fusetest.Message {
		m := fusetest.NewMessage(fusetest.Request(fuseproto.OpWrite, 2, e.Node, fh, uint64(0), uint32(size), uint32(0), uint64(0), uint64(0), make([]byte, size)), 16+8)
		at := []int{40, 80}
		for i := 80 + 4096; i < 80+size; i += 4096 {
			at = append(at, i)
		}
		m.CutRequest(at...)
		m.CutRoom(16)
		return m
	}
	return map[string]*fusetest.Message{
		"GETATTR":       fusetest.NewMessage(fusetest.Request(fuseproto.OpGetAttr, 2, e.Node, make([]byte, 16)), 120),
		"LOOKUP":        fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, 1, "child"), 144),
		"LOOKUP none":   fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, 1, "absent"), 144),
		"READ/4K":       read(4 << 10),
		"READ/128K":     read(128 << 10),
		"READ/1M":       read(1 << 20),
		"WRITE/4K":      write(4 << 10),
		"WRITE/128K":    write(128 << 10),
		"WRITE/1M":      write(1 << 20),
		"GETXATTR none": fusetest.NewMessage(fusetest.Request(fuseproto.OpGetXattr, 2, e.Node, uint64(0), "security.capability"), 24),
		"STATFS":        fusetest.NewMessage(fusetest.Request(fuseproto.OpStatFS, 2, 1), 96),
		"FLUSH":         fusetest.NewMessage(fusetest.Request(fuseproto.OpFlush, 2, e.Node, releaseBody(fh)), 16),
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, g := range []*guest{serve(t, source(t), passthrough.Options{}), newLine(t, source(t), passthrough.Options{}).guest} {
		noHitAllocates(t, g)
	}
}

// noHitAllocates serves requests as those that a table in flight remembers.
func noHitAllocates(t *testing.T, g *guest) {
	for name, m := range hot(g) {
		m.Slot = new(fusetest.Slot)
		op := new(fuseproto.Op)
		serve := func() {
			if n, done := g.srv.Serve(op, m); !done || n < 16 {
				t.Fatalf("%s: %d bytes, done %v", name, n, done)
			}
		}
		serve()
		if n := testing.AllocsPerRun(200, serve); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// TestNodeSize holds what docs/passthrough.md says of memory.
func TestNodeSize(t *testing.T) {
	if n := passthrough.NodeSize; unsafe.Sizeof(n) == 0 || n > 96 {
		t.Errorf("a node has %d bytes, at most 96 were promised", n)
	}
}

func BenchmarkHits(b *testing.B) {
	benchmarkHits(b, serve(b, source(b), passthrough.Options{}))
}

// BenchmarkHitsOfRecord is BenchmarkHits of a session that survives the process.
func BenchmarkHitsOfRecord(b *testing.B) {
	benchmarkHits(b, newLine(b, source(b), passthrough.Options{}).guest)
}

func benchmarkHits(b *testing.B, g *guest) {
	for name, m := range hot(g) {
		b.Run(name, func(b *testing.B) {
			m.Slot = new(fusetest.Slot)
			op := new(fuseproto.Op)
			b.ReportAllocs()
			for b.Loop() {
				if _, done := g.srv.Serve(op, m); !done {
					b.Fatal("would block")
				}
			}
		})
	}
}

// BenchmarkSmallFiles makes, writes and removes files of 4 KiB, as a package
// manager of the guest does.
func BenchmarkSmallFiles(b *testing.B) {
	for _, uid := range []uint32{0, 1000} {
		b.Run(fmt.Sprint("uid=", uid), func(b *testing.B) {
			g := serve(b, source(b), passthrough.Options{})
			data := make([]byte, 4096)
			i := 0
			for b.Loop() {
				name := fmt.Sprint("f", i)
				i++
				g.want(g.as(uid, uid, fuseproto.OpLookup, 1, 128, name), unix.ENOENT)
				r := g.ok(g.as(uid, uid, fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o100644), uint32(0), uint32(0), name))
				node, fh := le.Uint64(r.Body), le.Uint64(r.Body[128:])
				g.ok(g.writeReq(node, fh, 0, data, 0))
				g.ok(g.root(fuseproto.OpFlush, node, 0, releaseBody(fh)))
				g.release(node, fh)
				g.ok(g.root(fuseproto.OpUnlink, 1, 0, name))
				g.forget(node, 1)
			}
		})
	}
}
