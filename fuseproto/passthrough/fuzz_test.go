package passthrough_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// FuzzRequests sends a sequence of requests, each three bytes and what they choose:
// opcode, node, handle or name, body. Whatever comes, nothing outside the directory
// changes, nothing is opened that is no file or directory, no reply breaks the
// protocol's frame, and after the session nothing is left over.
func FuzzRequests(f *testing.F) {
	f.Add([]byte{35, 1, 0, 16, 2, 0, 15, 2, 0, 18, 2, 0, 10, 1, 0})                             // create, write, read, release, unlink
	f.Add([]byte{9, 1, 1, 9, 2, 2, 27, 2, 0, 44, 2, 0, 29, 2, 0, 11, 2, 2})                     // directories
	f.Add([]byte{6, 1, 3, 1, 1, 3, 5, 2, 0, 14, 2, 0, 1, 2, 12, 13, 2, 4})                      // a link and what hangs on it
	f.Add([]byte{1, 1, 12, 1, 1, 13, 10, 1, 14, 12, 1, 15, 45, 1, 12})                          // bad names
	f.Add([]byte{8, 1, 5, 14, 2, 0, 35, 1, 5, 4, 2, 0, 21, 2, 0, 22, 2, 0, 23, 2, 0, 24, 2, 0}) // a node of any type
	f.Add([]byte{51, 1, 0, 13, 2, 6, 46, 2, 0, 43, 2, 0, 47, 2, 0, 33, 2, 0, 26, 0, 0, 15, 2, 0, 38, 0, 0})
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "link", "fifo", "dir", "file", "..", ".", "a/b", "../outside", "", "/"}
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := source(t)
		share := mkdir(t, filepath.Join(parent, "share"))
		mkdir(t, filepath.Join(share, "dir"))
		write(t, filepath.Join(parent, "outside"), "secret")
		write(t, filepath.Join(share, "file"), "data")
		if err := os.Symlink("../outside", filepath.Join(share, "link")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(filepath.Join(share, "fifo"), 0o666); err != nil {
			t.Fatal(err)
		}
		var before unix.Stat_t
		if err := unix.Stat(filepath.Join(parent, "outside"), &before); err != nil {
			t.Fatal(err)
		}
		o := passthrough.Options{PosixLocks: true, Flock: true, PosixACL: true, SecurityLabel: true, MaxOpen: 3}
		if len(data) > 0 && data[0]&1 != 0 {
			o.FileHandles = passthrough.HandlesNever
		}
		g := serve(t, share, o)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // who would wait for a lock does not
		nodes, handles := []uint64{0, 1}, []uint64{0}
		for i := 0; i+3 <= len(data) && i < 3*200; i += 3 {
			opcode := fuseproto.Opcode(data[i])
			node := nodes[int(data[i+1])%len(nodes)]
			pick := int(data[i+2])
			name, fh := names[pick%len(names)], handles[pick%len(handles)]
			body := fuzzBody(opcode, node, fh, name, names[int(data[i+1])%len(names)], data[i:])
			m := fusetest.NewMessage(fusetest.Request(opcode, uint64(2*i+2), node, body...), 16+4096)
			op := new(fuseproto.Op)
			written, done := g.srv.Serve(op, m)
			if !done {
				var err error
				if written, err = g.srv.ServeBlocking(ctx, op, m); err != nil {
					t.Fatal(err)
				}
			}
			r, err := m.Reply(written, uint64(2*i+2))
			if err != nil {
				t.Fatalf("%v: %v", opcode, err)
			}
			if r.None || r.Errno != 0 {
				continue
			}
			switch opcode {
			case fuseproto.OpLookup, fuseproto.OpMknod, fuseproto.OpMkdir, fuseproto.OpSymlink, fuseproto.OpLink, fuseproto.OpCreate, fuseproto.OpTmpfile:
				nodes = append(nodes, le.Uint64(r.Body))
				if len(r.Body) == 144 {
					handles = append(handles, le.Uint64(r.Body[128:]))
				}
			case fuseproto.OpOpen, fuseproto.OpOpenDir:
				handles = append(handles, le.Uint64(r.Body))
			}
		}
		var after unix.Stat_t
		if err := unix.Stat(filepath.Join(parent, "outside"), &after); err != nil || after != before {
			t.Errorf("outside was touched: %+v, was %+v, %v", after, before, err)
		}
		if list, err := os.ReadDir(parent); err != nil || len(list) != 2 {
			t.Errorf("beside the directory: %v %v", list, err)
		}
		g.Init()
		g.fs.ReleaseIdle()
		if s := g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 || s.Idle != 0 {
			t.Errorf("left over: %+v", s)
		}
		if panics := g.srv.Counters().Panics; panics != 0 {
			t.Errorf("%d requests panicked", panics)
		}
	})
}

// fuzzBody returns a body of the right shape with numbers taken from noise.
func fuzzBody(opcode fuseproto.Opcode, node, fh uint64, name, other string, noise []byte) []any {
	n := func(i int) uint32 { return uint32(noise[i%len(noise)]) }
	wide := func(i int) uint64 { return uint64(n(i)) << (n(i+1) % 60) }
	switch opcode {
	case fuseproto.OpLookup, fuseproto.OpUnlink, fuseproto.OpRmdir, fuseproto.OpRemoveXattr:
		return []any{name}
	case fuseproto.OpForget:
		return []any{wide(3)}
	case fuseproto.OpGetAttr:
		return []any{n(2) & 1, uint32(0), fh}
	case fuseproto.OpSetAttr:
		b := make([]byte, 88)
		for i := 16; i < len(b); i++ {
			b[i] = byte(n(i))
		}
		le.PutUint64(b[16:], uint64(n(4))<<8)
		le.PutUint32(b, n(2)|n(5)<<4)
		le.PutUint64(b[8:], fh)
		return []any{b}
	case fuseproto.OpSymlink:
		return []any{name, other}
	case fuseproto.OpMknod:
		return []any{n(3)<<8 | n(4), n(5), n(6), uint32(0), name}
	case fuseproto.OpMkdir:
		return []any{n(3) << 4, n(4), name}
	case fuseproto.OpRename:
		return []any{node, name, other}
	case fuseproto.OpRename2:
		return []any{node, n(3) & 15, uint32(0), name, other}
	case fuseproto.OpLink:
		return []any{node, name}
	case fuseproto.OpOpen, fuseproto.OpOpenDir:
		return []any{n(3) | n(4)<<8, n(5) & 1}
	case fuseproto.OpRead, fuseproto.OpReadDir, fuseproto.OpReadDirPlus:
		return []any{fusetest.ReadBody(fh, wide(3), 4096)}
	case fuseproto.OpWrite:
		return []any{fh, wide(3) & (1<<24 - 1), uint32(5), n(5) & 7, uint64(0), uint64(0), []byte("noise")}
	case fuseproto.OpRelease, fuseproto.OpReleaseDir, fuseproto.OpFlush:
		return []any{fh, n(3), n(4), wide(5)}
	case fuseproto.OpFsync, fuseproto.OpFsyncDir:
		return []any{fh, uint64(n(3))}
	case fuseproto.OpSetXattr:
		return []any{uint32(3), n(3) & 3, uint32(0), uint32(0), "user." + name, []byte("val")}
	case fuseproto.OpGetXattr:
		return []any{n(3), uint32(0), "user." + name}
	case fuseproto.OpListXattr:
		return []any{n(3), uint32(0)}
	case fuseproto.OpInit:
		return []any{fusetest.InitBody(7, 45, fusetest.GuestFlags)}
	case fuseproto.OpGetLk, fuseproto.OpSetLk, fuseproto.OpSetLkW:
		return []any{fh, wide(3), wide(4), wide(5), n(6) & 3, uint32(0), n(7) & 1, uint32(0)}
	case fuseproto.OpCreate, fuseproto.OpTmpfile:
		return []any{n(3) | n(4)<<8, n(5) << 4, n(6), n(7) & 1, name}
	case fuseproto.OpFallocate:
		return []any{fh, wide(3) & (1<<20 - 1), wide(4) & (1<<20 - 1), n(5) & 63, uint32(0)}
	case fuseproto.OpLseek:
		return []any{fh, wide(3), n(4) & 7, uint32(0)}
	case fuseproto.OpCopyFileRange, fuseproto.OpCopyFileRange64:
		return []any{fh, wide(3) & (1<<16 - 1), node, fh, wide(4) & (1<<16 - 1), wide(5) & (1<<20 - 1), uint64(0)}
	case fuseproto.OpIoctl:
		return []any{fh, uint32(0), [...]uint32{0x80086601, 0x801c581f, 0x40086602, 5}[n(3)%4], uint64(0), uint32(0), uint32(64)}
	}
	return []any{wide(3), wide(4), name}
}

// FuzzParse feeds the two parsers of options.
func FuzzParse(f *testing.F) {
	f.Add(":map::user.virtiofs.:")
	f.Add(":prefix:all:trusted.:user.v.: :ok:all:::")
	f.Add("map:0:100000:1000,squash-guest:1000:7:60000")
	f.Add("forbid-guest:0:4294967295")
	f.Fuzz(func(t *testing.T, s string) {
		passthrough.ParseXattrMap(s)
		passthrough.ParseIDMap(s)
	})
}
