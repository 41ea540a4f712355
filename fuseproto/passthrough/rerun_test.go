package passthrough_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// die is where a process ends while it serves a request.
type die int

const (
	dieBeforeNote  die = iota // before it has noted anything
	dieBeforeCall             // EXECUTING is noted, the system call is not made
	dieAfterCall              // the system call is made, its RESULT is not noted
	dieAfterResult            // RESULT is noted, the reply is not handed over
	dieNever
)

var dies = map[die]string{dieBeforeNote: "before the note", dieBeforeCall: "before the call", dieAfterCall: "after the call", dieAfterResult: "after the result"}

// serveOnce serves m on a goroutine of its own, which ends as slot.OnSet says, and
// tells whether there was a reply.
func (l *line) serveOnce(m *fusetest.Message) (written uint32, ok bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, served := l.srv.Serve(l.Op, m)
		if !served {
			var err error
			if n, err = l.srv.ServeBlocking(context.Background(), l.Op, m); err != nil {
				l.t.Error(err)
				return
			}
		}
		written, ok = n, true
	}()
	<-done
	return written, ok
}

// crash runs a request in a process that ends at d, and again in the next one, and
// returns that one's reply. meanwhile happens between the two.
func (l *line) crash(d die, meanwhile func(), opcode fuseproto.Opcode, node uint64, room int, parts ...any) fusetest.Reply {
	l.t.Helper()
	l.Unique += 2
	unique := l.Unique
	request := fusetest.Request(opcode, unique, node, parts...)
	le.PutUint32(request[24:], 0)
	le.PutUint32(request[28:], 0)
	m := fusetest.NewMessage(request, 16+room)
	m.Slot = &fusetest.Slot{OnSet: func(phase uint8, kept bool) {
		if d == dieBeforeNote && !kept ||
			d == dieBeforeCall && phase == fuseproto.PhaseExecuting && kept ||
			d == dieAfterCall && phase == fuseproto.PhaseResult && !kept ||
			d == dieAfterResult && phase == fuseproto.PhaseResult && kept {
			runtime.Goexit()
		}
	}}
	written, ok := l.serveOnce(m)
	if ok {
		if d != dieNever {
			l.t.Fatalf("%v did not come to %q", opcode, dies[d])
		}
	} else {
		l.next()
		if meanwhile != nil {
			meanwhile()
		}
		again := fusetest.NewMessage(request, 16+room)
		again.Slot = &fusetest.Slot{Again: true, Phase: m.Slot.Phase, Errno: m.Slot.Errno, Text: m.Slot.Text}
		m = again
		if written, ok = l.serveOnce(m); !ok {
			l.t.Fatalf("%v run again has no reply", opcode)
		}
	}
	r, err := m.Reply(written, unique)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// tree describes all that is in the directory, but for times and numbers.
func (l *line) tree() string {
	l.t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, l.dir)
		st := l.stat(name)
		fmt.Fprintf(&b, "%s %o %d links, of %d:%d", name, st.Mode, st.Nlink, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			fmt.Fprintf(&b, " %d %q", st.Size, l.hostRead(name))
			var v [100]byte
			if n, err := unix.Getxattr(path, "user.a", v[:]); err == nil {
				fmt.Fprintf(&b, " user.a=%s", v[:n])
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " to %s", target)
		}
		b.WriteByte('\n')
		return nil
	}); err != nil {
		l.t.Fatal(err)
	}
	return b.String()
}

// rerunCase is a request on a directory that has files a and b, a link to neither, and
// a directory d; fh is a handle of a for appending, rw one for both.
type rerunCase struct {
	name   string
	opcode fuseproto.Opcode
	room   int
	parts  func(s *rerunState) (node uint64, parts []any)
	entry  bool // the reply begins with an entry
	dies   []die
}

type rerunState struct{ a, b, d, fhAppend, fhRW uint64 }

func newRerunLine(t *testing.T, o passthrough.Options) (*line, *rerunState) {
	t.Helper()
	l := newLine(t, source(t), o)
	l.hostWrite("a", "content of a")
	l.hostWrite("b", strings.Repeat("b", 16<<10))
	if err := os.MkdirAll(filepath.Join(l.dir, "d", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(l.dir, "b"), "user.a", []byte("old"), 0); err != nil {
		t.Skipf("no extended attributes here: %v", err)
	}
	s := &rerunState{a: l.look("a").Node, b: l.look("b").Node, d: l.look("d").Node}
	s.fhAppend = l.open(s.a, unix.O_WRONLY|unix.O_APPEND)
	s.fhRW = l.open(s.b, unix.O_RDWR)
	return l, s
}

func names(dir uint64, parts ...any) func(*rerunState) (uint64, []any) {
	return func(*rerunState) (uint64, []any) { return dir, parts }
}

var (
	allDies   = []die{dieBeforeNote, dieBeforeCall, dieAfterCall, dieAfterResult}
	resultOne = []die{dieBeforeNote, dieAfterResult} // those that note a result alone
)

var rerunCases = []rerunCase{
	{"LOOKUP", fuseproto.OpLookup, 128, names(1, "a"), true, resultOne},
	{"LOOKUP of nothing new", fuseproto.OpLookup, 128, names(1, "d"), true, resultOne},
	{"MKNOD of a file", fuseproto.OpMknod, 128, names(1, uint32(0o100640), uint32(0), uint32(0), uint32(0), "new"), true, allDies},
	{"MKNOD of a fifo", fuseproto.OpMknod, 128, names(1, uint32(0o10640), uint32(0), uint32(0), uint32(0), "new"), true, allDies},
	{"MKNOD on a file", fuseproto.OpMknod, 128, names(1, uint32(0o100640), uint32(0), uint32(0), uint32(0), "a"), false, allDies},
	{"MKDIR", fuseproto.OpMkdir, 128, names(1, uint32(0o750), uint32(0), "new"), true, allDies},
	{"MKDIR on a directory", fuseproto.OpMkdir, 128, names(1, uint32(0o700), uint32(0), "d"), false, allDies},
	{"SYMLINK", fuseproto.OpSymlink, 128, names(1, "new", "some/where"), true, allDies},
	{"SYMLINK on a file", fuseproto.OpSymlink, 128, names(1, "a", "some/where"), false, allDies},
	{"LINK", fuseproto.OpLink, 128, func(s *rerunState) (uint64, []any) { return 1, []any{s.a, "new"} }, true, allDies},
	{"LINK on another file", fuseproto.OpLink, 128, func(s *rerunState) (uint64, []any) { return 1, []any{s.a, "b"} }, false, allDies},
	{"CREATE", fuseproto.OpCreate, 144, names(1, uint32(unix.O_RDWR|unix.O_EXCL), uint32(0o100400), uint32(0), uint32(0), "new"), true, allDies},
	{"CREATE that may find", fuseproto.OpCreate, 144, names(1, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "new"), true, allDies},
	{"CREATE that finds", fuseproto.OpCreate, 144, names(1, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "a"), true, allDies},
	{"CREATE that must not find", fuseproto.OpCreate, 144, names(1, uint32(unix.O_RDWR|unix.O_EXCL), uint32(0o100600), uint32(0), uint32(0), "a"), false, allDies},
	{"TMPFILE", fuseproto.OpTmpfile, 144, names(1, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "/"), true, resultOne},
	{"OPEN", fuseproto.OpOpen, 16, func(s *rerunState) (uint64, []any) { return s.a, []any{uint32(unix.O_RDWR), uint32(0)} }, false, resultOne},
	{"OPENDIR", fuseproto.OpOpenDir, 16, names(1, uint32(unix.O_DIRECTORY), uint32(0)), false, resultOne},
	{"UNLINK", fuseproto.OpUnlink, 0, names(1, "a"), false, allDies},
	{"UNLINK of an open file", fuseproto.OpUnlink, 0, names(1, "b"), false, allDies},
	{"UNLINK of a directory", fuseproto.OpUnlink, 0, names(1, "d"), false, allDies},
	{"RMDIR", fuseproto.OpRmdir, 0, func(s *rerunState) (uint64, []any) { return s.d, []any{"empty"} }, false, allDies},
	{"RMDIR of what is not empty", fuseproto.OpRmdir, 0, names(1, "d"), false, allDies},
	{"RENAME", fuseproto.OpRename, 0, func(s *rerunState) (uint64, []any) { return 1, []any{s.d, "a", "new"} }, false, allDies},
	{"RENAME over an open file", fuseproto.OpRename, 0, names(1, uint64(1), "a", "b"), false, allDies},
	{"RENAME of nothing", fuseproto.OpRename, 0, names(1, uint64(1), "nothing", "b"), false, allDies},
	{"RENAME2 of two", fuseproto.OpRename2, 0, names(1, uint64(1), uint32(fuseproto.RenameExchange), uint32(0), "a", "b"), false, allDies},
	{"RENAME2 that must not replace", fuseproto.OpRename2, 0, names(1, uint64(1), uint32(fuseproto.RenameNoReplace), uint32(0), "a", "new"), false, allDies},
	{"RENAME2 that would replace", fuseproto.OpRename2, 0, names(1, uint64(1), uint32(fuseproto.RenameNoReplace), uint32(0), "a", "b"), false, allDies},
	{"SETXATTR with CREATE", fuseproto.OpSetXattr, 0, setXattr("a", unix.XATTR_CREATE), false, allDies},
	{"SETXATTR with CREATE on one", fuseproto.OpSetXattr, 0, setXattr("b", unix.XATTR_CREATE), false, allDies},
	{"SETXATTR with REPLACE", fuseproto.OpSetXattr, 0, setXattr("b", unix.XATTR_REPLACE), false, nil},
	{"REMOVEXATTR", fuseproto.OpRemoveXattr, 0, func(s *rerunState) (uint64, []any) { return s.b, []any{"user.a"} }, false, allDies},
	{"WRITE that appends", fuseproto.OpWrite, 8, func(s *rerunState) (uint64, []any) {
		return s.a, []any{s.fhAppend, uint64(0), uint32(5), uint32(0), uint64(0), uint32(0), uint32(0), []byte(" more")}
	}, false, allDies},
	{"WRITE", fuseproto.OpWrite, 8, func(s *rerunState) (uint64, []any) {
		return s.b, []any{s.fhRW, uint64(3), uint32(5), uint32(0), uint64(0), uint32(0), uint32(0), []byte("bytes")}
	}, false, nil},
	{"FALLOCATE that takes out", fuseproto.OpFallocate, 0, fallocate(0, 4096, unix.FALLOC_FL_COLLAPSE_RANGE), false, allDies},
	{"FALLOCATE that puts in", fuseproto.OpFallocate, 0, fallocate(4096, 4096, unix.FALLOC_FL_INSERT_RANGE), false, allDies},
	{"FALLOCATE that frees", fuseproto.OpFallocate, 0, fallocate(0, 4096, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE), false, nil},
	{"COPY_FILE_RANGE onto itself", fuseproto.OpCopyFileRange, 8, func(s *rerunState) (uint64, []any) {
		return s.b, []any{s.fhRW, uint64(0), s.b, s.fhRW, uint64(100), uint64(4096), uint64(0)}
	}, false, nil},
	{"COPY_FILE_RANGE", fuseproto.OpCopyFileRange, 8, func(s *rerunState) (uint64, []any) {
		return s.b, []any{s.fhRW, uint64(0), s.b, s.fhRW, uint64(8192), uint64(4096), uint64(0)}
	}, false, nil},
	{"RELEASE", fuseproto.OpRelease, 0, func(s *rerunState) (uint64, []any) { return s.b, []any{releaseBody(s.fhRW)} }, false, nil},
}

func setXattr(name string, flags uint32) func(s *rerunState) (uint64, []any) {
	return func(s *rerunState) (uint64, []any) {
		node := s.a
		if name == "b" {
			node = s.b
		}
		return node, []any{uint32(3), flags, "user.a", []byte("new")}
	}
}

func fallocate(off, n uint64, mode uint32) func(s *rerunState) (uint64, []any) {
	return func(s *rerunState) (uint64, []any) { return s.b, []any{s.fhRW, off, n, mode, uint32(0)} }
}

// TestRequestsRunAgain: wherever the process ends in a request, the next one answers it
// as if it had been served once, and the host has what it has then.
func TestRequestsRunAgain(t *testing.T) {
	needRoot(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		for _, c := range rerunCases {
			t.Run(c.name, func(t *testing.T) { c.test(t, o) })
		}
	})
}

func (c *rerunCase) test(t *testing.T, o passthrough.Options) {
	once, s := newRerunLine(t, o)
	node, parts := c.parts(s)
	want := once.crash(dieNever, nil, c.opcode, node, c.room, parts...)
	if c.opcode != fuseproto.OpCreate && c.opcode != fuseproto.OpTmpfile && strings.Contains(c.name, "FALLOCATE") && want.Errno == syscall.EOPNOTSUPP {
		t.Skip("the host's file system cannot do it")
	}
	wantTree := once.tree()
	for _, d := range c.dies {
		l, s := newRerunLine(t, o)
		node, parts := c.parts(s)
		got := l.crash(d, nil, c.opcode, node, c.room, parts...)
		c.same(t, dies[d], got, want)
		if tree := l.tree(); tree != wantTree {
			t.Errorf("%s: the host has\n%s\nwant\n%s", dies[d], tree, wantTree)
		}
		if got.Errno == 0 && c.entry {
			e := fusetest.DecodeEntry(t, got.Body[:128])
			known, want := l.fs.Known(e.Node), once.fs.Known(fusetest.DecodeEntry(t, want.Body[:128]).Node)
			// Between a count and its note there may be one too many.
			between := d == dieAfterCall || d == dieBeforeNote && len(c.dies) == len(resultOne)
			if known != want && (!between || known != want+1) {
				t.Errorf("%s: %d references, want %d", dies[d], known, want)
			}
			if _, r := l.GetAttr(e.Node); r.Errno != 0 {
				t.Errorf("%s: GETATTR of the node: %v", dies[d], r.Errno)
			}
		}
		if c.opcode == fuseproto.OpUnlink && c.name == "UNLINK of an open file" || c.name == "RENAME over an open file" {
			if b := l.read(s.b, s.fhRW, 0, 4); string(b) != "bbbb" {
				t.Errorf("%s: the file that was open reads %q", dies[d], b)
			}
		}
		if strings.Contains(l.log.String(), "ERROR") {
			t.Errorf("%s: %s", dies[d], l.log.String())
		}
	}
	if c.dies != nil {
		return
	}
	// It notes nothing: all of it happened, and happens again.
	l, s := newRerunLine(t, o)
	node, parts = c.parts(s)
	l.crash(dieNever, nil, c.opcode, node, c.room, parts...)
	l.next()
	l.Slot = &fusetest.Slot{Again: true}
	c.same(t, "after all of it", l.root(c.opcode, node, c.room, parts...), want)
	if tree := l.tree(); tree != wantTree {
		t.Errorf("the host has\n%s\nwant\n%s", tree, wantTree)
	}
}

// same compares replies but for times and inode numbers.
func (c *rerunCase) same(t *testing.T, when string, got, want fusetest.Reply) {
	t.Helper()
	if got.Errno != want.Errno || len(got.Body) != len(want.Body) {
		t.Errorf("%s: %v and %d bytes, want %v and %d", when, got.Errno, len(got.Body), want.Errno, len(want.Body))
		return
	}
	g, w := got.Body, want.Body
	if c.entry && got.Errno == 0 {
		a, b := fusetest.DecodeEntry(t, g[:128]), fusetest.DecodeEntry(t, w[:128])
		if a.Attr.Mode != b.Attr.Mode || a.Attr.Nlink != b.Attr.Nlink || a.Attr.Size != b.Attr.Size || a.Attr.UID != b.Attr.UID {
			t.Errorf("%s: entry %+v, want %+v", when, a, b)
		}
		g, w = g[128:], w[128:]
		if len(g) == 16 { // a handle: any that works
			g, w = g[8:], w[8:]
		}
	} else if c.opcode == fuseproto.OpOpen || c.opcode == fuseproto.OpOpenDir {
		g, w = g[8:], w[8:]
	}
	if string(g) != string(w) {
		t.Errorf("%s: reply %x, want %x", when, g, w)
	}
}

// TestRequestsThatNobodyCanTell: where what is there does not tell whether the request
// happened, it ends in EIO and a line in the log.
func TestRequestsThatNobodyCanTell(t *testing.T) {
	for name, c := range map[string]struct {
		opcode    fuseproto.Opcode
		parts     func(s *rerunState) (uint64, []any)
		meanwhile func(l *line)
	}{
		"append to a file that has grown by more": {fuseproto.OpWrite, rerunCaseOf("WRITE that appends").parts, func(l *line) {
			l.hostWrite("a", "somebody on the host has written more")
		}},
		"append to a file that has shrunk": {fuseproto.OpWrite, rerunCaseOf("WRITE that appends").parts, func(l *line) { l.hostWrite("a", "") }},
		"move in a file that has another length": {fuseproto.OpFallocate, rerunCaseOf("FALLOCATE that takes out").parts, func(l *line) {
			l.hostWrite("b", "short")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l, s := newRerunLine(t, passthrough.Options{})
			node, parts := c.parts(s)
			r := l.crash(dieBeforeCall, func() { c.meanwhile(l) }, c.opcode, node, 8, parts...)
			l.want(r, syscall.EIO)
			if !strings.Contains(l.log.String(), "cannot be told whether it happened") {
				t.Errorf("log: %s", l.log.String())
			}
		})
	}
}

func rerunCaseOf(name string) *rerunCase {
	for i := range rerunCases {
		if rerunCases[i].name == name {
			return &rerunCases[i]
		}
	}
	panic(name)
}

// A process that is killed in the middle of an append has written a part of it; the
// next one writes the rest.
func TestAppendGoesOn(t *testing.T) {
	l, s := newRerunLine(t, passthrough.Options{})
	node, parts := rerunCaseOf("WRITE that appends").parts(s)
	r := l.crash(dieBeforeCall, func() { l.hostWrite("a", "content of a mo") }, fuseproto.OpWrite, node, 8, parts...)
	if n := le.Uint32(l.ok(r).Body); n != 5 || l.hostRead("a") != "content of a more" {
		t.Errorf("%d bytes written, the file has %q", n, l.hostRead("a"))
	}
}

// What somebody else has made meanwhile is not taken for ours.
func TestWhatOthersMadeIsNotOurs(t *testing.T) {
	needRoot(t)
	for name, meanwhile := range map[string]func(l *line) error{
		"another type":  func(l *line) error { return os.Mkdir(filepath.Join(l.dir, "new"), 0o700) },
		"another mode":  func(l *line) error { return os.WriteFile(filepath.Join(l.dir, "new"), nil, 0o604) },
		"another owner": func(l *line) error { l.hostWrite("new", ""); return os.Chown(filepath.Join(l.dir, "new"), 7, 7) },
	} {
		l, _ := newRerunLine(t, passthrough.Options{})
		r := l.crash(dieBeforeCall, func() {
			if err := meanwhile(l); err != nil {
				t.Fatal(err)
			}
		}, fuseproto.OpMknod, 1, 128, uint32(0o100640), uint32(0), uint32(0), uint32(0), "new")
		if r.Errno != syscall.EEXIST {
			t.Errorf("%s: %v, want EEXIST", name, r.Errno)
		}
	}
}

// TestForgetOnce: what a FORGET takes back it takes back once, or not at all if the
// process ends in the middle: the guest's node is never lost.
func TestForgetOnce(t *testing.T) {
	for d := range dies {
		if d == dieBeforeCall {
			continue
		}
		l := newLine(t, source(t), passthrough.Options{})
		l.hostWrite("f", "")
		e := l.look("f")
		for range 9 {
			l.look("f")
		}
		l.crashForget(d, fuseproto.OpForget, e.Node, uint64(4))
		l.crashForget(d, fuseproto.OpBatchForget, 0, uint32(1), uint32(0), e.Node, uint64(4))
		least := uint64(2)
		if n := l.fs.Known(e.Node); n < least || d == dieBeforeNote && n != least {
			t.Errorf("%s: %d references, want %d", dies[d], n, least)
		}
		if _, r := l.GetAttr(e.Node); r.Errno != 0 {
			t.Errorf("%s: the node is lost: %v", dies[d], r.Errno)
		}
	}
}

// crashForget is crash for what has no reply.
func (l *line) crashForget(d die, opcode fuseproto.Opcode, node uint64, parts ...any) {
	l.t.Helper()
	l.crash(d, nil, opcode, node, 0, parts...)
}

// A listing that is run again tells the same entries, and its references stay at
// least those that the guest has.
func TestReadDirPlusAgain(t *testing.T) {
	l := newLine(t, source(t), passthrough.Options{})
	for i := range 20 {
		l.hostWrite(fmt.Sprint("f", i), "")
	}
	dir := l.opendir(1)
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpReadDirPlus, 2, 1, fusetest.ReadBody(dir, 0, 4096)), 16+4096)
	n, ok := l.serveOnce(m)
	if !ok {
		t.Fatal("no reply")
	}
	lost, err := m.Reply(n, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := fusetest.DecodeDirents(t, lost.Body, true)
	l.next()
	l.Slot = &fusetest.Slot{Again: true}
	got := fusetest.DecodeDirents(t, l.ok(l.root(fuseproto.OpReadDirPlus, 1, 4096, fusetest.ReadBody(dir, 0, 4096))).Body, true)
	for i := range want {
		if i >= len(got) || got[i].Name != want[i].Name || got[i].Off != want[i].Off || got[i].Entry.Node != want[i].Entry.Node {
			t.Fatalf("entry %d: %+v, want %+v", i, got[i], want[i])
		}
		if n := l.fs.Known(got[i].Entry.Node); got[i].Entry.Node > 1 && (n < 1 || n > 2) {
			t.Errorf("%s: %d references", got[i].Name, n)
		}
	}
}
