package passthrough_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// descriptors counts the descriptors of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestSecondInit: F07. An INIT without a DESTROY before it gives everything back.
func TestSecondInit(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.PosixLocks = true
		g := serve(t, source(t), o)
		before := 0
		for i := range 5 {
			e, fh := g.create(1, fmt.Sprint("f", i), unix.O_RDWR, 0o100600)
			g.ok(g.lock(e.Node, fh, 1, unix.F_WRLCK, 0, 10))
			d := g.opendir(1)
			g.list(1, 4096, true)
			if i%2 == 0 {
				g.Init()
			} else {
				g.ok(g.root(fuseproto.OpDestroy, 0, 0))
				g.Init()
			}
			g.fs.ReleaseIdle()
			if s := g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 || s.Idle != 0 {
				t.Errorf("round %d left over: %+v", i, s)
			}
			_, r := g.GetAttr(e.Node)
			g.want(r, syscall.ESTALE)
			g.want(g.root(fuseproto.OpRead, e.Node, 10, fusetest.ReadBody(fh, 0, 10)), syscall.EBADF)
			g.want(g.root(fuseproto.OpReadDir, 1, 4096, fusetest.ReadBody(d, 0, 4096)), syscall.EBADF)
			if n := descriptors(t); i == 0 {
				before = n
			} else if n > before {
				t.Errorf("round %d: %d descriptors, %d after the first", i, n, before)
			}
		}
	})
}

// TestCounts: F13. After any mix of requests the references that the guest holds are
// those it was granted less those it gave back.
func TestCounts(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.MaxOpen = 5
		g := serve(t, source(t), o)
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 1))
		granted := map[uint64]uint64{}
		grant := func(r fusetest.Reply) {
			if r.Errno == 0 {
				granted[le.Uint64(r.Body)]++
			}
		}
		dirs := []uint64{1}
		for _, name := range []string{"d", "e"} {
			r := g.ok(g.root(fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), name))
			grant(r)
			dirs = append(dirs, le.Uint64(r.Body))
			granted[le.Uint64(r.Body)]++ // one of our own, never given back below
			g.look(name)
		}
		any := func() uint64 {
			for n := range granted {
				return n
			}
			return 1
		}
		name := func() string { return fmt.Sprint("n", rng.IntN(12)) }
		dir := func() uint64 { return dirs[rng.IntN(len(dirs))] }
		for range 3000 {
			switch rng.IntN(12) {
			case 0, 1:
				r := g.root(fuseproto.OpLookup, dir(), 128, name())
				grant(r)
			case 2:
				r := g.root(fuseproto.OpCreate, dir(), 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), name())
				grant(r)
				if r.Errno == 0 {
					g.release(le.Uint64(r.Body), le.Uint64(r.Body[128:]))
				}
			case 3:
				grant(g.root(fuseproto.OpSymlink, dir(), 128, name(), "x"))
			case 4:
				grant(g.root(fuseproto.OpMknod, dir(), 128, uint32(unix.S_IFIFO|0o600), uint32(0), uint32(0), uint32(0), name()))
			case 5:
				grant(g.root(fuseproto.OpLink, dir(), 128, any(), name()))
			case 6:
				g.root(fuseproto.OpUnlink, dir(), 0, name())
			case 7:
				g.root(fuseproto.OpRename2, dir(), 0, dir(), uint32(rng.IntN(3)), uint32(0), name(), name())
			case 8:
				d := dir()
				for _, e := range g.list(d, uint32(300+rng.IntN(1000)), true) {
					if e.Entry.Node != 0 {
						granted[e.Entry.Node]++
					}
				}
			case 9:
				n := any()
				k := 1 + rng.Uint64N(3)
				if own := n == dirs[1] || n == dirs[2]; n != 1 && granted[n] > k && !own {
					g.forget(n, k)
					granted[n] -= k
				}
			case 10:
				n := any()
				if n != 1 && n != dirs[1] && n != dirs[2] {
					g.forget(n, granted[n])
					delete(granted, n)
				}
			case 11:
				if rng.IntN(10) == 0 {
					g.fs.ReleaseIdle()
				}
				g.GetAttr(any())
			}
		}
		delete(granted, 1)
		if s := g.fs.Stats(); int(s.Nodes) != len(granted) {
			t.Errorf("seed %d: %d nodes, the guest has references to %d", seed, s.Nodes, len(granted))
		}
		for n, count := range granted {
			if count > 1 {
				g.forget(n, count-1)
			}
			if g.fs.Known(n) != 1 {
				t.Errorf("seed %d: node %d has %d references after %d of %d were given back", seed, n, g.fs.Known(n), count-1, count)
			}
			g.forget(n, 1)
			if g.fs.Known(n) != 0 {
				t.Errorf("seed %d: node %d is known although all %d references were given back", seed, n, count)
			}
		}
		if s := g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 {
			t.Errorf("seed %d left over: %+v", seed, s)
		}
		// More than was ever given does no harm.
		g.forget(dirs[1], 1<<60)
		g.forget(1, 1<<60)
		g.forget(12345, 1)
		if _, r := g.GetAttr(1); r.Errno != 0 {
			t.Errorf("the root was forgotten: %v", r.Errno)
		}
	})
}

// TestReadDirPlusThatDoesNotFit: an entry that is not told gives no reference.
func TestReadDirPlusThatDoesNotFit(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{})
	for i := range 30 {
		g.hostWrite(fmt.Sprintf("some-name-%02d", i), "")
	}
	for _, size := range []uint32{175, 176, 200, 500, 4096} {
		seen := map[string]int{}
		for _, d := range g.list(1, size, true) {
			seen[d.Name]++
			if d.Entry.Node != 0 {
				g.forget(d.Entry.Node, 1)
			}
		}
		if len(seen) != 32 {
			t.Errorf("size %d: %d names, want 32", size, len(seen))
		}
		if s := g.fs.Stats(); s.Nodes != 0 {
			t.Errorf("size %d: %d nodes left over", size, s.Nodes)
		}
	}
}

// TestCookies: a listing goes on from every cookie, with another handle too, and
// both kinds of listing mix.
func TestCookies(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{})
	for i := range 400 {
		g.hostWrite(fmt.Sprintf("name-%03d", i), "")
	}
	all := g.list(1, 4096, false)
	if len(all) != 402 {
		t.Fatalf("%d names, want 402", len(all))
	}
	fh := g.opendir(1)
	for _, i := range []int{0, 1, 57, 300, 299, 17, 400} {
		for _, opcode := range []fuseproto.Opcode{fuseproto.OpReadDir, fuseproto.OpReadDirPlus} {
			part := fusetest.DecodeDirents(t, g.ok(g.root(opcode, 1, 2048, fusetest.ReadBody(fh, all[i].Off, 2048))).Body, opcode == fuseproto.OpReadDirPlus)
			for k, d := range part {
				if d.Name != all[i+1+k].Name {
					t.Fatalf("behind %d with %v: entry %d is %q, want %q", i, opcode, k, d.Name, all[i+1+k].Name)
				}
			}
			if len(part) == 0 {
				t.Errorf("nothing behind %d", i)
			}
		}
	}
	g.releasedir(1, fh)
}

// TestWalkWithFewDescriptors: every name is seen, and no descriptor is missing,
// although there are many more files than descriptors.
func TestWalkWithFewDescriptors(t *testing.T) {
	n := 20000
	switch {
	case os.Getenv("RAFSD_LONG") == "1":
		n = 400_000
	case testing.Short() || raceEnabled:
		n = 2000
	}
	dir := source(t)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprint("d", i%20))
		if i < 20 {
			mkdir(t, sub)
		}
		fd, err := unix.Open(filepath.Join(sub, fmt.Sprint("file", i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.MaxOpen = 8
		g := serve(t, dir, o)
		before := descriptors(t)
		seen := 0
		nodes := make([]uint64, 0, n)
		heap := heapInUse()
		for i := range 20 {
			d := g.look(fmt.Sprint("d", i))
			for _, e := range g.list(d.Node, 32<<10, true) {
				if e.Name == "." || e.Name == ".." {
					continue
				}
				seen++
				if e.Entry.Node == 0 {
					t.Fatalf("%s came without attributes", e.Name)
				}
				nodes = append(nodes, e.Entry.Node)
			}
			if k := descriptors(t); k > before+12 {
				t.Fatalf("%d descriptors, %d at the start, 8 allowed", k, before)
			}
		}
		if seen != n {
			t.Errorf("saw %d names of %d", seen, n)
		}
		per := (heapInUse() - heap) / int64(n)
		t.Logf("%d bytes of heap for each of %d nodes", per, n)
		// Tables double now and then; a node by place has its name and that record.
		if most := int64(320); per > most && !raceEnabled {
			t.Errorf("%d bytes of heap for each node, at most %d", per, most)
		}
		for _, i := range rand.Perm(len(nodes))[:500] {
			if _, r := g.GetAttr(nodes[i]); r.Errno != 0 {
				t.Fatalf("GETATTR of a file whose descriptor was closed: %v", r.Errno)
			}
		}
		for _, node := range nodes {
			g.forget(node, 1)
		}
		if s := g.fs.Stats(); s.Nodes > 20 {
			t.Errorf("%d nodes after all files were forgotten", s.Nodes)
		}
	})
}

// heapInUse returns how many bytes are reachable.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func (g *guest) lock(node, fh, owner uint64, typ uint32, start, end uint64) fusetest.Reply {
	g.t.Helper()
	return g.root(fuseproto.OpSetLk, node, 0, fh, owner, start, end, typ, uint32(1), uint32(0), uint32(0))
}

// TestPosixLocks: owners exclude each other and the host's processes; closing the
// file by FLUSH ends an owner's locks.
func TestPosixLocks(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{PosixLocks: true, Flock: true})
	e, fh := g.create(1, "f", unix.O_RDWR, 0o100600)
	g.ok(g.lock(e.Node, fh, 1, unix.F_WRLCK, 0, 9))
	g.want(g.lock(e.Node, fh, 2, unix.F_RDLCK, 5, 20), syscall.EAGAIN)
	g.ok(g.lock(e.Node, fh, 2, unix.F_RDLCK, 10, 1<<63-1))
	r := g.ok(g.root(fuseproto.OpGetLk, e.Node, 24, fh, uint64(2), uint64(0), uint64(100), uint32(unix.F_WRLCK), uint32(0), uint64(0)))
	if start, end, typ := le.Uint64(r.Body), le.Uint64(r.Body[8:]), le.Uint32(r.Body[16:]); start != 0 || end != 9 || typ != unix.F_WRLCK {
		t.Errorf("GETLK = [%d, %d] type %d", start, end, typ)
	}
	host, err := os.OpenFile(filepath.Join(g.dir, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &l); err != unix.EAGAIN {
		t.Errorf("the host's lock: %v, want EAGAIN", err)
	}
	g.ok(g.root(fuseproto.OpFlush, e.Node, 0, fh, uint64(0), uint64(1)))
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		t.Errorf("the host's lock after FLUSH: %v", err)
	}
	// One that waits gets it when the host lets go.
	got := make(chan syscall.Errno, 1)
	wait := func(ctx context.Context, owner uint64) {
		c := fusetest.NewClient(t, g.srv)
		m := fusetest.NewMessage(fusetest.Request(fuseproto.OpSetLkW, 2, e.Node, fh, owner, uint64(0), uint64(9), uint32(unix.F_WRLCK), uint32(1), uint64(0)), 16)
		if _, done := g.srv.Serve(c.Op, m); done {
			t.Error("SETLKW of a held lock did not wait")
		}
		go func() {
			n, err := g.srv.ServeBlocking(ctx, c.Op, m)
			if err != nil {
				t.Error(err)
			}
			r, _ := m.Reply(n, 2)
			got <- r.Errno
		}()
	}
	wait(t.Context(), 1)
	l.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		t.Fatal(err)
	}
	if errno := await(t, got); errno != 0 {
		t.Errorf("SETLKW: %v", errno)
	}
	// One that waits for ever ends with its request, or with its session.
	ctx, cancel := context.WithCancel(t.Context())
	wait(ctx, 3)
	cancel()
	if errno := await(t, got); errno != syscall.EINTR {
		t.Errorf("SETLKW of a request that ended: %v, want EINTR", errno)
	}
	wait(t.Context(), 4)
	g.Init()
	if errno := await(t, got); errno == 0 {
		t.Error("SETLKW got a lock of a session that is over")
	}
	if s := g.fs.Stats(); s.OpenFiles != 0 {
		t.Errorf("left over: %+v", s)
	}
}

func await(t *testing.T, c <-chan syscall.Errno) syscall.Errno {
	t.Helper()
	select {
	case errno := <-c:
		return errno
	case <-time.After(20 * time.Second):
		t.Fatal("a lock was waited for too long")
		return 0
	}
}

// TestFlock: the guest's open files exclude each other.
func TestFlock(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{Flock: true})
	e, a := g.create(1, "f", unix.O_RDWR, 0o100600)
	b := g.open(e.Node, unix.O_RDWR)
	flock := func(fh uint64, typ uint32) fusetest.Reply {
		return g.root(fuseproto.OpSetLk, e.Node, 0, fh, uint64(0), uint64(0), uint64(1<<63-1), typ, uint32(0), uint32(fuseproto.LkFlock), uint32(0))
	}
	g.ok(flock(a, unix.F_WRLCK))
	g.want(flock(b, unix.F_RDLCK), syscall.EAGAIN)
	g.release(e.Node, a)
	g.ok(flock(b, unix.F_WRLCK))
	g.ok(flock(b, unix.F_UNLCK))
	g.release(e.Node, b)
	// Without the options the guest keeps its locks to itself.
	g = serve(t, source(t), passthrough.Options{})
	e, a = g.create(1, "f", unix.O_RDWR, 0o100600)
	g.want(g.lock(e.Node, a, 1, unix.F_WRLCK, 0, 9), syscall.ENOSYS)
}

// TestManyAtOnce lets the race detector look at everything at the same time.
func TestManyAtOnce(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.MaxOpen, o.PosixLocks = 4, true
		g := serve(t, source(t), o)
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				c := *g
				c.Client = newClient(t, g.srv)
				rng := rand.New(rand.NewPCG(uint64(w), 2))
				for range 300 {
					name := fmt.Sprint("n", rng.IntN(6))
					r := c.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), name)
					if r.Errno == 0 {
						node, fh := le.Uint64(r.Body), le.Uint64(r.Body[128:])
						c.writeReq(node, fh, 0, []byte("data"), 0)
						c.root(fuseproto.OpRead, node, 10, fusetest.ReadBody(fh, 0, 10))
						c.lock(node, fh, uint64(w), unix.F_WRLCK, 0, 1)
						c.root(fuseproto.OpRelease, node, 0, releaseBody(fh))
						c.GetAttr(node)
						c.forget(node, 1)
					}
					for _, d := range c.list(1, 2000, true) {
						if d.Entry.Node != 0 {
							c.forget(d.Entry.Node, 1)
						}
					}
					c.root(fuseproto.OpUnlink, 1, 0, name)
					if w == 0 {
						c.fs.ReleaseIdle()
					}
				}
			})
		}
		wg.Wait()
		if s := g.fs.Stats(); s.Nodes != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}
