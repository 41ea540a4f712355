package passthrough_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

func TestCreateWriteReadUnlink(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		e, fh := g.create(1, "a", unix.O_RDWR|unix.O_CREAT, 0o100640)
		if e.Attr.Mode != 0o100640 {
			t.Errorf("mode = %#o, want 0100640", e.Attr.Mode)
		}
		g.write(e.Node, fh, 0, "hello, ")
		g.write(e.Node, fh, 7, "world")
		if got := g.read(e.Node, fh, 0, 100); string(got) != "hello, world" {
			t.Errorf("read = %q", got)
		}
		if got := g.read(e.Node, fh, 7, 3); string(got) != "wor" {
			t.Errorf("read in the middle = %q", got)
		}
		if got := g.read(e.Node, fh, 1000, 10); len(got) != 0 {
			t.Errorf("read behind the end = %q", got)
		}
		if got := g.hostRead("a"); got != "hello, world" {
			t.Errorf("host sees %q", got)
		}
		again := g.look("a")
		if again.Node != e.Node || again.Attr.Size != 12 {
			t.Errorf("looked up again: node %d size %d, want %d 12", again.Node, again.Attr.Size, e.Node)
		}
		g.ok(g.root(fuseproto.OpUnlink, 1, 0, "a"))
		_, r := g.Lookup(1, "a")
		g.want(r, syscall.ENOENT)
		// By node, without a handle, as long as it is open.
		if a, r := g.GetAttr(e.Node); r.Errno != 0 || a.Nlink != 0 || a.Size != 12 {
			t.Errorf("GETATTR of a removed open file: %v nlink %d size %d", r.Errno, a.Nlink, a.Size)
		}
		g.ok(g.setattr(e.Node, fuseproto.SetAttrSize, func(b []byte) { le.PutUint64(b[16:], 5) }))
		if got := g.read(e.Node, fh, 0, 100); string(got) != "hello" {
			t.Errorf("read of the removed file = %q", got)
		}
		g.ok(g.root(fuseproto.OpSetXattr, e.Node, 0, uint32(1), uint32(0), "user.a", []byte("v")))
		g.release(e.Node, fh)
		g.forget(e.Node, 2)
		_, r = g.GetAttr(e.Node)
		g.want(r, syscall.ESTALE)
		if s := g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// setattr sends SETATTR with what fill puts into its body.
func (g *guest) setattr(node uint64, valid uint32, fill func(b []byte)) fusetest.Reply {
	g.t.Helper()
	b := make([]byte, 88)
	le.PutUint32(b, valid)
	fill(b)
	return g.root(fuseproto.OpSetAttr, node, 104, b)
}

func TestMkdirRenameReaddir(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		r := g.ok(g.root(fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "d"))
		d := fusetest.DecodeEntry(t, r.Body)
		if d.Attr.Mode != unix.S_IFDIR|0o755 {
			t.Errorf("mode = %#o", d.Attr.Mode)
		}
		e, fh := g.create(d.Node, "x", unix.O_WRONLY, 0o100600)
		g.write(e.Node, fh, 0, "data")
		g.release(e.Node, fh)
		g.ok(g.root(fuseproto.OpSymlink, d.Node, 128, "link", "/etc/passwd"))
		g.ok(g.root(fuseproto.OpMknod, d.Node, 128, uint32(unix.S_IFCHR|0o600), uint32(0), uint32(0), uint32(0), "white"))
		g.ok(g.root(fuseproto.OpRename2, d.Node, 0, uint64(1), uint32(fuseproto.RenameNoReplace), uint32(0), "x", "y"))
		if got := g.look("y"); got.Node != e.Node {
			t.Errorf("renamed file has node %d, want %d", got.Node, e.Node)
		}
		g.fs.ReleaseIdle()
		if a, r := g.GetAttr(e.Node); r.Errno != 0 || a.Size != 4 {
			t.Errorf("GETATTR after rename: %v size %d", r.Errno, a.Size)
		}
		for _, plus := range []bool{false, true} {
			got := map[string]uint32{}
			for _, e := range g.list(d.Node, 4096, plus) {
				got[e.Name] = e.Type
				if plus && (e.Name == "." || e.Name == "..") != (e.Entry.Node == 0) {
					t.Errorf("%q has node %d in READDIRPLUS", e.Name, e.Entry.Node)
				}
			}
			want := map[string]uint32{".": unix.DT_DIR, "..": unix.DT_DIR, "link": unix.DT_LNK, "white": unix.DT_CHR}
			if len(got) != len(want) {
				t.Errorf("plus %v: listing = %v, want %v", plus, got, want)
			}
			for name, typ := range want {
				if got[name] != typ {
					t.Errorf("plus %v: type of %q = %d, want %d", plus, name, got[name], typ)
				}
			}
		}
		l := g.look("d", "link")
		if got := g.ok(g.root(fuseproto.OpReadlink, l.Node, 4096)).Body; string(got) != "/etc/passwd" {
			t.Errorf("READLINK = %q", got)
		}
		g.want(g.root(fuseproto.OpOpen, l.Node, 16, uint32(0), uint32(0)), syscall.ELOOP)
		// Exchange and whiteout, as overlayfs wants them of an upper.
		g.hostWrite("one", "1")
		g.hostWrite("two", "2")
		g.ok(g.root(fuseproto.OpRename2, 1, 0, uint64(1), uint32(fuseproto.RenameExchange), uint32(0), "one", "two"))
		if g.hostRead("one") != "2" || g.hostRead("two") != "1" {
			t.Error("RENAME_EXCHANGE did not exchange")
		}
		g.ok(g.root(fuseproto.OpRename2, 1, 0, uint64(1), uint32(fuseproto.RenameWhiteout), uint32(0), "one", "three"))
		if st := g.stat("one"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("whiteout has mode %#o, rdev %d", st.Mode, st.Rdev)
		}
		g.want(g.root(fuseproto.OpRmdir, 1, 0, "d"), syscall.ENOTEMPTY)
		g.ok(g.root(fuseproto.OpUnlink, d.Node, 0, "link"))
		g.ok(g.root(fuseproto.OpUnlink, d.Node, 0, "white"))
		g.ok(g.root(fuseproto.OpRmdir, 1, 0, "d"))
	})
}

func TestLinkAndTmpfile(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		e, fh := g.create(1, "a", unix.O_WRONLY, 0o100644)
		r := g.ok(g.root(fuseproto.OpLink, 1, 128, e.Node, "b"))
		if l := fusetest.DecodeEntry(t, r.Body); l.Node != e.Node || l.Attr.Nlink != 2 {
			t.Errorf("link is node %d with %d names, want %d with 2", l.Node, l.Attr.Nlink, e.Node)
		}
		g.release(e.Node, fh)
		// Overlayfs links whiteouts.
		w := fusetest.DecodeEntry(t, g.ok(g.root(fuseproto.OpMknod, 1, 128, uint32(unix.S_IFCHR), uint32(0), uint32(0), uint32(0), "w")).Body)
		g.ok(g.root(fuseproto.OpLink, 1, 128, w.Node, "w2"))
		// A link itself, not what it leads to.
		s := fusetest.DecodeEntry(t, g.ok(g.root(fuseproto.OpSymlink, 1, 128, "s", "nowhere")).Body)
		g.ok(g.root(fuseproto.OpLink, 1, 128, s.Node, "s2"))
		if st := g.stat("s2"); st.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("link to a link has mode %#o", st.Mode)
		}
		r = g.ok(g.root(fuseproto.OpTmpfile, 1, 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "/"))
		tmp, tfh := fusetest.DecodeEntry(t, r.Body[:128]), le.Uint64(r.Body[128:])
		g.write(tmp.Node, tfh, 0, "temporary")
		g.ok(g.root(fuseproto.OpLink, 1, 128, tmp.Node, "kept"))
		g.release(tmp.Node, tfh)
		if got := g.hostRead("kept"); got != "temporary" {
			t.Errorf("linked temporary file holds %q", got)
		}
	})
}

func TestXattr(t *testing.T) {
	needRoot(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		g.hostWrite("f", "")
		if err := os.Symlink("f", filepath.Join(g.dir, "l")); err != nil {
			t.Fatal(err)
		}
		set := func(node uint64, name, value string) fusetest.Reply {
			return g.root(fuseproto.OpSetXattr, node, 0, uint32(len(value)), uint32(0), name, []byte(value))
		}
		for _, node := range []uint64{1, g.look("f").Node} {
			g.ok(set(node, "trusted.overlay.opaque", "y"))
			g.ok(set(node, "user.a", "value"))
			if got := g.ok(g.root(fuseproto.OpGetXattr, node, 100, uint32(100), uint32(0), "user.a")).Body; string(got) != "value" {
				t.Errorf("user.a = %q", got)
			}
			if got := le.Uint32(g.ok(g.root(fuseproto.OpGetXattr, node, 8, uint32(0), uint32(0), "user.a")).Body); got != 5 {
				t.Errorf("size of user.a = %d", got)
			}
			g.want(g.root(fuseproto.OpGetXattr, node, 2, uint32(2), uint32(0), "user.a"), syscall.ERANGE)
			list := string(g.ok(g.root(fuseproto.OpListXattr, node, 1000, uint32(1000), uint32(0))).Body)
			if !strings.Contains(list, "user.a\x00") || !strings.Contains(list, "trusted.overlay.opaque\x00") {
				t.Errorf("list = %q", list)
			}
			g.ok(g.root(fuseproto.OpRemoveXattr, node, 0, "user.a"))
			g.want(g.root(fuseproto.OpGetXattr, node, 100, uint32(100), uint32(0), "user.a"), syscall.ENODATA)
			g.want(set(node, "system.posix_acl_access", "x"), syscall.EOPNOTSUPP)
		}
		// Of the link itself, not of the file that it leads to.
		l := g.look("l").Node
		g.ok(set(l, "trusted.onlink", "1"))
		g.want(g.root(fuseproto.OpGetXattr, g.look("f").Node, 100, uint32(100), uint32(0), "trusted.onlink"), syscall.ENODATA)
	})
}

func TestSetAttr(t *testing.T) {
	needRoot(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		g.hostWrite("f", "0123456789")
		n := g.look("f").Node
		g.ok(g.setattr(n, fuseproto.SetAttrMode|fuseproto.SetAttrUID|fuseproto.SetAttrGID, func(b []byte) {
			le.PutUint32(b[68:], unix.S_IFREG|0o4755)
			le.PutUint32(b[76:], 12)
			le.PutUint32(b[80:], 34)
		}))
		if st := g.stat("f"); st.Mode != unix.S_IFREG|0o4755 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("mode %#o uid %d gid %d", st.Mode, st.Uid, st.Gid)
		}
		r := g.ok(g.setattr(n, fuseproto.SetAttrAtime|fuseproto.SetAttrMtime, func(b []byte) {
			le.PutUint64(b[32:], 0xfffffffffffffff6) // -10
			le.PutUint64(b[40:], 1000)
			le.PutUint32(b[60:], 5)
		}))
		if st := g.stat("f"); st.Atim.Sec != -10 || st.Mtim.Sec != 1000 || st.Mtim.Nsec != 5 {
			t.Errorf("times %v %v", st.Atim, st.Mtim)
		}
		if len(r.Body) != 104 {
			t.Errorf("reply of %d bytes", len(r.Body))
		}
		g.want(g.setattr(n, fuseproto.SetAttrMtime, func(b []byte) { le.PutUint32(b[60:], 0x3fffffff) }), syscall.EINVAL)
		g.ok(g.setattr(n, fuseproto.SetAttrSize, func(b []byte) { le.PutUint64(b[16:], 3) }))
		if got := g.hostRead("f"); got != "012" {
			t.Errorf("truncated to %q", got)
		}
	})
}

func TestAppendTruncSyncAndLargeWrites(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{})
	g.hostWrite("f", "begin ")
	n := g.look("f").Node
	fh := g.open(n, unix.O_WRONLY|unix.O_APPEND)
	g.write(n, fh, 0, "end") // wherever the guest thought the end was
	if got := g.hostRead("f"); got != "begin end" {
		t.Errorf("appended: %q", got)
	}
	// A dirty page written back through a file opened for appending.
	g.ok(g.writeReq(n, fh, 0, []byte("BEGIN"), fuseproto.WriteCache))
	if got := g.hostRead("f"); got != "BEGIN end" {
		t.Errorf("written back: %q", got)
	}
	g.release(n, fh)
	blocked := g.Blocked
	fh = g.open(n, unix.O_WRONLY|unix.O_TRUNC|unix.O_DSYNC)
	g.write(n, fh, 0, "synced")
	if g.Blocked == blocked {
		t.Error("a synced write did not leave the queue's goroutine")
	}
	g.write(n, fh, 6, " twice")
	if got := g.hostRead("f"); got != "synced twice" {
		t.Errorf("synced: %q", got)
	}
	g.ok(g.root(fuseproto.OpFsync, n, 0, fh, uint64(0)))
	g.release(n, fh)
	// More segments than one system call takes.
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	fh = g.open(n, unix.O_RDWR)
	g.Unique += 2
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpWrite, g.Unique, n, fh, uint64(1), uint32(len(data)), uint32(0), uint64(0), uint64(0), data), 16+8)
	m.CutRequest(fusetest.CutEvery(40+40+len(data), 500)...)
	if got := le.Uint32(g.ok(g.Send(m, g.Unique)).Body); int(got) != len(data) {
		t.Fatalf("wrote %d bytes of %d", got, len(data))
	}
	if got := g.hostRead("f"); got[1:] != string(data) {
		t.Error("data written in many segments differ")
	}
	g.Unique += 2
	m = fusetest.NewMessage(fusetest.Request(fuseproto.OpRead, g.Unique, n, fusetest.ReadBody(fh, 1, 1<<20)), 16+1<<20)
	m.CutRoom(fusetest.CutEvery(16+1<<20, 700)...)
	if got := g.ok(g.Send(m, g.Unique)).Body; !bytes.Equal(got, data) {
		t.Error("data read in many segments differ")
	}
	g.release(n, fh)
}

func TestFallocateLseekCopy(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{})
	e, fh := g.create(1, "f", unix.O_RDWR, 0o100600)
	g.ok(g.root(fuseproto.OpFallocate, e.Node, 0, fh, uint64(0), uint64(1<<20), uint32(0), uint32(0)))
	if st := g.stat("f"); st.Size != 1<<20 || st.Blocks < 2048 {
		t.Errorf("size %d blocks %d", st.Size, st.Blocks)
	}
	g.ok(g.root(fuseproto.OpFallocate, e.Node, 0, fh, uint64(0), uint64(1<<20), uint32(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE), uint32(0)))
	g.write(e.Node, fh, 512<<10, "data")
	if off := le.Uint64(g.ok(g.root(fuseproto.OpLseek, e.Node, 8, fh, uint64(0), uint32(fuseproto.SeekData), uint32(0))).Body); off != 512<<10 {
		t.Errorf("SEEK_DATA = %d, want %d", off, 512<<10)
	}
	to, tfh := g.create(1, "g", unix.O_RDWR, 0o100600)
	n := le.Uint64(g.ok(g.root(fuseproto.OpCopyFileRange64, e.Node, 8, fh, uint64(512<<10), to.Node, tfh, uint64(3), uint64(4), uint64(0))).Body)
	if n != 4 || g.hostRead("g") != "\x00\x00\x00data" {
		t.Errorf("copied %d: %q", n, g.hostRead("g"))
	}
	g.want(g.root(fuseproto.OpCopyFileRange64, e.Node, 8, fh, uint64(0), e.Node, tfh, uint64(3), uint64(4), uint64(0)), syscall.EBADF)
	r := g.ok(g.root(fuseproto.OpIoctl, e.Node, 16+4, fh, uint32(0), uint32(0x80086601), uint64(0), uint32(0), uint32(4)))
	if len(r.Body) != 20 {
		t.Errorf("FS_IOC_GETFLAGS: reply of %d bytes", len(r.Body))
	}
	g.want(g.root(fuseproto.OpIoctl, e.Node, 16+4, fh, uint32(0), uint32(0x40086602), uint64(0), uint32(4), uint32(0), []byte{0x10, 0, 0, 0}), syscall.ENOTTY)
	g.ok(g.root(fuseproto.OpStatFS, e.Node, 80))
	g.ok(g.root(fuseproto.OpSyncFS, 1, 0, uint64(0)))
}

// TestOwner: what a user of the guest makes is that user's, in a directory that
// the host would not let that user write to, with the mode as asked.
func TestOwner(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		g := serve(t, source(t), o)
		if err := os.Chmod(g.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		g.ok(g.as(1000, 2000, fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o100666), uint32(0), uint32(0), "f"))
		g.ok(g.as(1000, 2000, fuseproto.OpMkdir, 1, 128, uint32(0o777), uint32(0), "d"))
		g.ok(g.as(1000, 2000, fuseproto.OpMknod, 1, 128, uint32(unix.S_IFIFO|0o622), uint32(0), uint32(0), uint32(0), "p"))
		g.ok(g.as(1000, 2000, fuseproto.OpSymlink, 1, 128, "l", "x"))
		for name, mode := range map[string]uint32{"f": unix.S_IFREG | 0o666, "d": unix.S_IFDIR | 0o777, "p": unix.S_IFIFO | 0o622, "l": unix.S_IFLNK | 0o777} {
			if st := g.stat(name); st.Uid != 1000 || st.Gid != 2000 || st.Mode != mode {
				t.Errorf("%s: uid %d gid %d mode %#o, want 1000 2000 %#o", name, st.Uid, st.Gid, st.Mode, mode)
			}
		}
		// A setgid directory hands its group on, and directories their bit.
		if err := os.Mkdir(filepath.Join(g.dir, "s"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chown(filepath.Join(g.dir, "s"), 0, 3000); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(filepath.Join(g.dir, "s"), 0o2777); err != nil {
			t.Fatal(err)
		}
		s := g.look("s").Node
		g.ok(g.as(1000, 2000, fuseproto.OpMkdir, s, 128, uint32(0o755), uint32(0), "d"))
		if st := g.stat("s/d"); st.Gid != 3000 || st.Mode != unix.S_IFDIR|0o2755 {
			t.Errorf("below a setgid directory: gid %d mode %#o", st.Gid, st.Mode)
		}
		// Ids that an idmapped mount hides do not become root's.
		g.want(g.as(^uint32(0), ^uint32(0), fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "none"), syscall.EOVERFLOW)
		// The thread is ours again.
		g.ok(g.root(fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "mine"))
		if st := g.stat("mine"); st.Uid != 0 || st.Gid != 0 {
			t.Errorf("root's directory: uid %d gid %d", st.Uid, st.Gid)
		}
	})
}

func TestKillSuidgid(t *testing.T) {
	needRoot(t)
	g := serve(t, source(t), passthrough.Options{})
	setup := func() {
		g.hostWrite("f", "data")
		if err := unix.Chmod(filepath.Join(g.dir, "f"), 0o6755); err != nil {
			t.Fatal(err)
		}
	}
	setup()
	n := g.look("f").Node
	fh := g.open(n, unix.O_RDWR)
	g.ok(g.writeReq(n, fh, 0, []byte("x"), 0))
	if st := g.stat("f"); st.Mode&0o6000 != 0o6000 {
		t.Errorf("root's write: mode %#o", st.Mode)
	}
	g.ok(g.writeReq(n, fh, 0, []byte("x"), fuseproto.WriteKillSuidgid))
	if st := g.stat("f"); st.Mode&0o6000 != 0 {
		t.Errorf("a user's write: mode %#o", st.Mode)
	}
	setup()
	g.ok(g.setattr(n, fuseproto.SetAttrSize|fuseproto.SetAttrKillSuidgid, func(b []byte) {}))
	if st := g.stat("f"); st.Mode&0o6000 != 0 {
		t.Errorf("a user's truncation: mode %#o", st.Mode)
	}
	setup()
	g.ok(g.root(fuseproto.OpOpen, n, 16, uint32(unix.O_WRONLY|unix.O_TRUNC), uint32(fuseproto.OpenKillSuidgid)))
	if st := g.stat("f"); st.Mode&0o6000 != 0 || st.Size != 0 {
		t.Errorf("a user's O_TRUNC: mode %#o size %d", st.Mode, st.Size)
	}
	g.release(n, fh)
}

// TestCapabilityOfFileIsCleared: what a changed file was allowed before, it is not
// after a write, a truncation or a change of owner.
func TestCapabilityOfFileIsCleared(t *testing.T) {
	needRoot(t)
	g := serve(t, source(t), passthrough.Options{})
	g.hostWrite("f", "data")
	n := g.look("f").Node
	fh := g.open(n, unix.O_RDWR)
	// struct vfs_cap_data, revision 2: CAP_NET_RAW, effective
	value := append(u32s(0x02000001, 1<<13, 0, 0), 0, 0, 0, 0)
	for name, change := range map[string]func(){
		"write":    func() { g.write(n, fh, 0, "x") },
		"truncate": func() { g.ok(g.setattr(n, fuseproto.SetAttrSize, func(b []byte) { le.PutUint64(b[16:], 1) })) },
		"chown":    func() { g.ok(g.setattr(n, fuseproto.SetAttrUID, func(b []byte) { le.PutUint32(b[76:], 5) })) },
	} {
		g.ok(g.root(fuseproto.OpSetXattr, n, 0, uint32(len(value)), uint32(0), "security.capability", value))
		g.ok(g.root(fuseproto.OpGetXattr, n, 8, uint32(0), uint32(0), "security.capability"))
		change()
		if r := g.root(fuseproto.OpGetXattr, n, 8, uint32(0), uint32(0), "security.capability"); r.Errno != syscall.ENODATA {
			t.Errorf("after %s: %v, want ENODATA", name, r.Errno)
		}
	}
	g.release(n, fh)
}

func u32s(v ...uint32) (b []byte) {
	for _, n := range v {
		b = le.AppendUint32(b, n)
	}
	return b
}

func TestReadOnly(t *testing.T) {
	dir := source(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := serve(t, dir, passthrough.Options{ReadOnly: true})
	n := g.look("f").Node
	fh := g.open(n, unix.O_RDONLY)
	if got := g.read(n, fh, 0, 10); string(got) != "data" {
		t.Errorf("read %q", got)
	}
	for name, r := range map[string]fusetest.Reply{
		"open":     g.root(fuseproto.OpOpen, n, 16, uint32(unix.O_RDWR), uint32(0)),
		"write":    g.writeReq(n, fh, 0, []byte("x"), 0),
		"create":   g.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), "g"),
		"tmpfile":  g.root(fuseproto.OpTmpfile, 1, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), "/"),
		"mkdir":    g.root(fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "d"),
		"mknod":    g.root(fuseproto.OpMknod, 1, 128, uint32(unix.S_IFREG), uint32(0), uint32(0), uint32(0), "m"),
		"symlink":  g.root(fuseproto.OpSymlink, 1, 128, "l", "x"),
		"link":     g.root(fuseproto.OpLink, 1, 128, n, "h"),
		"unlink":   g.root(fuseproto.OpUnlink, 1, 0, "f"),
		"rmdir":    g.root(fuseproto.OpRmdir, 1, 0, "f"),
		"rename":   g.root(fuseproto.OpRename, 1, 0, uint64(1), "f", "g"),
		"setattr":  g.setattr(n, fuseproto.SetAttrMode, func([]byte) {}),
		"setxattr": g.root(fuseproto.OpSetXattr, n, 0, uint32(1), uint32(0), "user.a", []byte("v")),
		"rmxattr":  g.root(fuseproto.OpRemoveXattr, n, 0, "user.a"),
		"falloc":   g.root(fuseproto.OpFallocate, n, 0, fh, uint64(0), uint64(10), uint64(0)),
		"copy":     g.root(fuseproto.OpCopyFileRange, n, 8, fh, uint64(0), n, fh, uint64(1), uint64(1), uint64(0)),
	} {
		if r.Errno != syscall.EROFS {
			t.Errorf("%s: %v, want EROFS", name, r.Errno)
		}
	}
	g.release(n, fh)
}
