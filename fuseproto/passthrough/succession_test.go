package passthrough_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/internal/record"
)

// line is a guest whose back-end is a line of processes, one after the other, on one
// session record.
type line struct {
	*guest
	store *record.Store
	o     passthrough.Options
	state []byte // of the FUSE session
	log   bytes.Buffer
	ended bool
}

func newLine(t testing.TB, dir string, o passthrough.Options) *line {
	t.Helper()
	l := &line{guest: &guest{t: t, dir: dir}, store: record.NewStore()}
	t.Cleanup(func() {
		if err := l.store.Close(); err != nil {
			t.Error(err)
		}
	})
	l.o = o
	l.o.Record, l.o.RecordKey = l.store, "share/1/"
	l.o.Log = slog.New(slog.NewTextHandler(&l.log, nil))
	l.begin()
	t.Cleanup(func() {
		if !l.ended {
			l.kill()
		}
	})
	l.Init()
	return l
}

// begin starts a process on what is in the record.
func (l *line) begin() {
	l.t.Helper()
	root, err := hostfs.Open(l.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	if l.fs, err = passthrough.New(root, l.o); err != nil {
		root.Close()
		l.t.Fatal(err)
	}
	if l.srv, err = fuseproto.NewServer(l.fs, fuseproto.Config{Flags: l.o.SessionFlags(), Logger: l.o.Log}); err != nil {
		l.t.Fatal(err)
	}
	unique := uint64(0)
	if l.Client != nil {
		unique = l.Unique
	}
	l.Client = newClient(l.t, l.srv)
	l.Unique = unique
	if l.state != nil {
		if err := l.srv.Restore(l.state); err != nil {
			l.t.Fatal(err)
		}
	}
	l.srv.OnChange(func(state []byte) error {
		l.state = bytes.Clone(state)
		return nil
	})
}

// kill ends the process as SIGKILL does: its descriptors close, and nobody tells the
// record.
func (l *line) kill() {
	l.t.Helper()
	l.ended = true
	l.fs.Leave()
	if err := l.fs.Close(); err != nil {
		l.t.Error(err)
	}
}

// next kills the process and starts the next one.
func (l *line) next() {
	l.t.Helper()
	l.kill()
	l.ended = false
	l.begin()
}

// TestNodesGoOn: what the guest has looked up means the same in the next process, and
// is forgotten as often as it was looked up.
func TestNodesGoOn(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		l := newLine(t, source(t), o)
		long := strings.Repeat("n", 255)
		l.hostWrite("f", "content")
		if err := os.MkdirAll(filepath.Join(l.dir, "d", long, "e"), 0o755); err != nil {
			t.Fatal(err)
		}
		l.hostWrite("d/"+long+"/"+long[1:], "deep")
		if err := os.Symlink("f", filepath.Join(l.dir, "link")); err != nil {
			t.Fatal(err)
		}
		nodes := map[string]fusetest.Entry{
			"f": l.look("f"), "d": l.look("d"), "long": l.look("d", long), "deep": l.look("d", long, long[1:]), "link": l.look("link"),
		}
		for range 9 {
			l.look("f")
		}
		gone := l.look("d", long, "e")
		l.forget(gone.Node, 1)
		if o.FileHandles == passthrough.HandlesNever {
			l.ok(l.root(fuseproto.OpRename, 1, 0, uint64(1), "f", "moved")) // its place is another one now
		}
		for range 3 {
			l.next()
			for name, was := range nodes {
				a, r := l.GetAttr(was.Node)
				l.want(r, 0)
				if a.Ino != was.Attr.Ino || a.Mode != was.Attr.Mode || a.Size != was.Attr.Size || a.Mtime != was.Attr.Mtime {
					t.Errorf("%s: %+v, was %+v", name, a, was.Attr)
				}
			}
			if n, want := l.fs.Known(nodes["f"].Node), uint64(10); n != want {
				t.Errorf("%d references, the guest has %d", n, want)
			}
			if n := l.fs.Known(nodes["d"].Node); n != 4 {
				t.Errorf("%d references to d, the guest has 4", n)
			}
			_, r := l.GetAttr(gone.Node)
			l.want(r, syscall.ESTALE)
		}
		again := l.look("d", long, long[1:])
		if again.Node != nodes["deep"].Node {
			t.Errorf("node %d, was %d", again.Node, nodes["deep"].Node)
		}
		l.hostWrite("new", "")
		if e := l.look("new"); e.Node <= gone.Node {
			t.Errorf("the new node %d has a number that was given before (%d)", e.Node, gone.Node)
		}
		l.forget(nodes["f"].Node, 10)
		_, r := l.GetAttr(nodes["f"].Node)
		l.want(r, syscall.ESTALE)
		l.next()
		_, r = l.GetAttr(nodes["f"].Node)
		l.want(r, syscall.ESTALE)
		if strings.Contains(l.log.String(), "ERROR") {
			t.Error(l.log.String())
		}
	})
}

// TestFilesGoOn: handles read, write and list on where they were, also of files that
// have no name any more.
func TestFilesGoOn(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		l := newLine(t, source(t), o)
		e, fh := l.create(1, "f", unix.O_RDWR, 0o100644)
		l.write(e.Node, fh, 0, "one")
		ro := l.open(e.Node, unix.O_RDONLY)
		ap := l.open(e.Node, unix.O_WRONLY|unix.O_APPEND|unix.O_TRUNC)
		l.write(e.Node, fh, 0, "one")
		removed, rfh := l.create(1, "removed", unix.O_RDWR|unix.O_EXCL, 0o100600)
		l.write(removed.Node, rfh, 0, "no name")
		over, ofh := l.create(1, "over", unix.O_RDWR, 0o100600)
		l.write(over.Node, ofh, 0, "renamed over")
		other, otherFH := l.create(1, "other", unix.O_RDWR, 0o100600)
		l.ok(l.root(fuseproto.OpUnlink, 1, 0, "removed"))
		l.ok(l.root(fuseproto.OpRename, 1, 0, uint64(1), "other", "over"))
		r := l.root(fuseproto.OpTmpfile, 1, 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "/")
		tmp, tfh := fusetest.Entry{}, uint64(0)
		if r.Errno == 0 {
			tmp, tfh = fusetest.DecodeEntry(t, r.Body[:128]), le.Uint64(r.Body[128:])
			l.write(tmp.Node, tfh, 0, "temporary")
		}
		for i := range 500 {
			l.hostWrite(fmt.Sprintf("entry-%03d", i), "")
		}
		dir := l.opendir(1)
		seen := map[string]int{}
		off := uint64(0)
		list := func() bool {
			part := fusetest.DecodeDirents(t, l.ok(l.root(fuseproto.OpReadDir, 1, 4096, fusetest.ReadBody(dir, off, 4096))).Body, false)
			for _, d := range part {
				seen[d.Name]++
				off = d.Off
			}
			return len(part) > 0
		}
		want := "one"
		for i := range 4 {
			list()
			l.next()
			if got := string(l.read(e.Node, ro, 0, 100)); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			l.want(l.writeReq(e.Node, ro, 0, []byte("x"), 0), syscall.EBADF)
			l.write(e.Node, ap, 0, fmt.Sprint(i))
			want += fmt.Sprint(i)
			if got := string(l.read(e.Node, fh, 0, 100)); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if got := string(l.read(removed.Node, rfh, 0, 100)); got != "no name" {
				t.Errorf("removed: %q", got)
			}
			if a, r := l.GetAttr(removed.Node); r.Errno != 0 || a.Nlink != 0 {
				t.Errorf("removed: %v, %d links", r.Errno, a.Nlink)
			}
			if got := string(l.read(over.Node, ofh, 0, 100)); got != "renamed over" {
				t.Errorf("renamed over: %q", got)
			}
			if tfh != 0 {
				if got := string(l.read(tmp.Node, tfh, 0, 100)); got != "temporary" {
					t.Errorf("temporary: %q", got)
				}
			}
		}
		for list() {
		}
		for i := range 500 {
			if n := seen[fmt.Sprintf("entry-%03d", i)]; n != 1 {
				t.Fatalf("entry %d was listed %d times", i, n)
			}
		}
		if s := l.fs.Stats(); s.OpenFiles != 8 && tfh != 0 {
			t.Errorf("%d open files, want 8", s.OpenFiles)
		}
		l.release(removed.Node, rfh)
		l.release(over.Node, ofh)
		l.release(other.Node, otherFH)
		if tfh != 0 {
			l.release(tmp.Node, tfh)
		}
		for _, e := range l.store.Entries() {
			t.Errorf("%s is still in the record", e.Key)
		}
		l.next()
		l.want(l.root(fuseproto.OpRead, removed.Node, 10, fusetest.ReadBody(rfh, 0, 10)), syscall.EBADF)
		if _, next := l.create(1, "last", unix.O_RDWR, 0o100600); next <= rfh {
			t.Errorf("handle %d was given before", next)
		}
		if strings.Contains(l.log.String(), "ERROR") {
			t.Error(l.log.String())
		}
	})
}

// TestLocksGoOn: no lock is lost with a process, and each is given back once.
func TestLocksGoOn(t *testing.T) {
	l := newLine(t, source(t), passthrough.Options{PosixLocks: true, Flock: true})
	e, fh := l.create(1, "f", unix.O_RDWR, 0o100600)
	fh2 := l.open(e.Node, unix.O_RDWR)
	l.ok(l.lock(e.Node, fh, 1, unix.F_WRLCK, 0, 9))
	flock := func(fh uint64, typ uint32) fusetest.Reply {
		return l.root(fuseproto.OpSetLk, e.Node, 0, fh, fh, uint64(0), uint64(0), typ, uint32(1), uint32(fuseproto.LkFlock), uint32(0))
	}
	l.ok(flock(fh, unix.F_WRLCK))
	host, err := os.OpenFile(filepath.Join(l.dir, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	free := func() (posix, whole error) {
		fl := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
		posix = unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &fl)
		whole = unix.Flock(int(host.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if posix == nil {
			fl.Type = unix.F_UNLCK
			if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &fl); err != nil {
				t.Error(err)
			}
		}
		if whole == nil {
			if err := unix.Flock(int(host.Fd()), unix.LOCK_UN); err != nil {
				t.Error(err)
			}
		}
		return posix, whole
	}
	for range 3 {
		l.kill()
		if posix, whole := free(); posix == nil || whole == nil {
			t.Fatalf("between two processes the host gets the locks: %v, %v", posix, whole)
		}
		l.ended = false
		l.begin()
		l.want(l.lock(e.Node, fh2, 2, unix.F_WRLCK, 5, 5), syscall.EAGAIN)
		l.want(flock(fh2, unix.F_RDLCK), syscall.EAGAIN)
		l.ok(l.lock(e.Node, fh, 1, unix.F_WRLCK, 0, 9)) // run again
		l.ok(flock(fh, unix.F_WRLCK))
	}
	l.ok(l.root(fuseproto.OpFlush, e.Node, 0, append(le.AppendUint64(nil, fh), append(make([]byte, 8), le.AppendUint64(nil, 1)...)...)))
	l.ok(flock(fh, unix.F_UNLCK))
	if posix, whole := free(); posix != nil || whole != nil {
		t.Errorf("given back, but the host gets %v, %v", posix, whole)
	}
	l.ok(l.lock(e.Node, fh2, 2, unix.F_WRLCK, 5, 5))
	l.next()
	l.want(l.lock(e.Node, fh, 1, unix.F_WRLCK, 5, 5), syscall.EAGAIN)
	l.ok(l.root(fuseproto.OpDestroy, 0, 0))
	if posix, whole := free(); posix != nil || whole != nil {
		t.Errorf("the session is over, but the host gets %v, %v", posix, whole)
	}
	if left := l.store.Entries(); len(left) != 0 {
		t.Errorf("%d entries are left in the record, the first is %s", len(left), left[0].Key)
	}
}

// A session that ended in one process leaves nothing to the next one, also if that
// one died before it had given all of it back.
func TestEndedSessionGoesOnAsNone(t *testing.T) {
	l := newLine(t, source(t), passthrough.Options{})
	e, fh := l.create(1, "f", unix.O_RDWR, 0o100600)
	l.ok(l.root(fuseproto.OpUnlink, 1, 0, "f"))
	l.kill() // with the session's last word lost
	l.state = nil
	l.ended = false
	l.begin()
	l.Init()
	if s := l.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 || len(l.store.Entries()) != 0 {
		t.Errorf("left over: %+v, %d entries", s, len(l.store.Entries()))
	}
	l.want(l.root(fuseproto.OpRead, e.Node, 10, fusetest.ReadBody(fh, 0, 10)), syscall.EBADF)
	l.next()
	_, r := l.GetAttr(e.Node)
	l.want(r, syscall.ESTALE)
}

// Mounts of the host below the directory are crossed by the next process as before.
func TestMountsGoOn(t *testing.T) {
	mounts(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		dir := source(t)
		at := filepath.Join(dir, "a", "m")
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		mount(t, "tmpfs", at, "tmpfs", 0, "")
		l := newLine(t, dir, o)
		l.hostWrite("a/m/f", "mounted")
		e := l.look("a", "m", "f")
		fh := l.open(e.Node, unix.O_RDONLY)
		for range 2 {
			l.next()
			if a, r := l.GetAttr(e.Node); r.Errno != 0 || a.Ino != e.Attr.Ino {
				t.Fatalf("%v, ino %d, was %d; log: %s", r.Errno, a.Ino, e.Attr.Ino, l.log.String())
			}
			if got := string(l.read(e.Node, fh, 0, 10)); got != "mounted" {
				t.Errorf("%q", got)
			}
			if again := l.look("a", "m", "f"); again.Node != e.Node {
				t.Errorf("node %d, was %d", again.Node, e.Node)
			}
		}
	})
}

// Slots are used again, and a table of another release is refused.
func TestTable(t *testing.T) {
	dir := source(t)
	l := newLine(t, dir, passthrough.Options{})
	l.hostWrite("f", "")
	for range 1000 {
		e := l.look("f")
		fh := l.open(e.Node, unix.O_RDONLY)
		l.release(e.Node, fh)
		l.forget(e.Node, 1)
	}
	mem, err := l.store.Memory("share/1/nodes", 4096)
	if err != nil {
		t.Fatal(err)
	}
	if used := le.Uint32(mem[24:]); used > 4 {
		t.Errorf("%d slots were used for one node", used)
	}
	// The form of the table is what the next release reads.
	e := l.look("f")
	st := l.stat("f")
	slot := mem[128:]
	if string(mem[:4]) != "TFPR" || le.Uint64(mem[8:]) != e.Node {
		t.Errorf("header %x, want the magic and the last node %d", mem[:32], e.Node)
	}
	found := false
	for ; len(slot) >= 128; slot = slot[128:] {
		if le.Uint64(slot) == e.Node {
			found = le.Uint64(slot[8:]) == 1 && le.Uint64(slot[16:]) == st.Dev && le.Uint64(slot[24:]) == st.Ino &&
				le.Uint32(slot[44:]) == 0 && le.Uint16(slot[52:]) == unix.S_IFREG
		}
	}
	if !found {
		t.Errorf("node %d is not in its slot as it was", e.Node)
	}
	le.PutUint32(mem[4:], 2)
	root, err := hostfs.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := passthrough.New(root, l.o); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("New on a table of version 2: %v", err)
	}
	le.PutUint32(mem[4:], 1)
}

// TestTableUnderLoad: after any amount of requests at the same time the table holds what
// the process knows.
func TestTableUnderLoad(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.PosixLocks = true
		l := newLine(t, source(t), o)
		for round := range 3 {
			var wg sync.WaitGroup
			var names sync.RWMutex
			for w := range 8 {
				wg.Go(func() { l.work(uint64(round*8+w), w, &names) })
			}
			wg.Wait()
			type known struct{ node, refs uint64 }
			list := func() (all []known) {
				for id := uint64(2); id < 40000; id++ {
					if n := l.fs.Known(id); n > 0 {
						all = append(all, known{id, n})
					}
				}
				return all
			}
			before, stats := list(), l.fs.Stats()
			l.next()
			after := list()
			if !slices.Equal(before, after) || len(before) == 0 {
				t.Fatalf("round %d: %d nodes before, %d after", round, len(before), len(after))
			}
			if s := l.fs.Stats(); s.OpenFiles != stats.OpenFiles || s.Nodes != stats.Nodes {
				t.Errorf("round %d: %+v, was %+v", round, s, stats)
			}
		}
		if strings.Contains(l.log.String(), "ERROR") {
			t.Error(l.log.String())
		}
	})
}

// work is what one of several guests' tasks does: it makes, looks up, moves, removes,
// locks and forgets, and leaves some of it. names is held as a guest's kernel holds a
// directory.
func (l *line) work(seed uint64, w int, names *sync.RWMutex) {
	rng := rand.New(rand.NewPCG(seed, 1))
	g := &guest{newClient(l.t, l.srv), l.t, l.fs, l.dir, l.srv}
	type open struct{ node, fh uint64 }
	var files []open
	for range 120 {
		name := fmt.Sprint("n", rng.IntN(60))
		what := rng.IntN(8)
		if what < 3 {
			names.Lock()
		} else {
			names.RLock()
		}
		switch what {
		case 0:
			r := g.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), name)
			if r.Errno == 0 {
				files = append(files, open{le.Uint64(r.Body), le.Uint64(r.Body[128:])})
			}
		case 1:
			g.root(fuseproto.OpUnlink, 1, 0, name)
		case 2:
			g.root(fuseproto.OpRename, 1, 0, uint64(1), name, fmt.Sprint("n", rng.IntN(60)))
		case 3:
			g.list(1, 4096, true)
		case 4:
			if len(files) > 0 {
				f := files[rng.IntN(len(files))]
				g.lock(f.node, f.fh, uint64(w), unix.F_RDLCK, 0, 10)
			}
		case 5:
			if len(files) > 2 {
				g.root(fuseproto.OpRelease, files[0].node, 0, releaseBody(files[0].fh))
				files = files[1:]
			}
		default:
			if e, r := g.Lookup(1, name); r.Errno == 0 && rng.IntN(3) == 0 {
				g.forget(e.Node, 1)
			}
		}
		if what < 3 {
			names.Unlock()
		} else {
			names.RUnlock()
		}
	}
}

// BenchmarkRestore is the time until a session of 100,000 files, a thousand of them open,
// goes on.
func BenchmarkRestore(b *testing.B) {
	l := newLine(b, source(b), passthrough.Options{})
	for i := range 100_000 {
		name := fmt.Sprint("f", i)
		if i%100 == 0 {
			l.create(1, name, unix.O_RDWR, 0o100600)
		} else {
			l.ok(l.root(fuseproto.OpMknod, 1, 128, uint32(0o100600), uint32(0), uint32(0), uint32(0), name))
		}
	}
	for b.Loop() {
		b.StopTimer()
		l.kill()
		l.ended = false
		b.StartTimer()
		l.begin()
	}
}
