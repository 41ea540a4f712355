package passthrough_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/internal/hostfs"
)

func TestCacheModes(t *testing.T) {
	for text, want := range map[string]struct {
		sec        uint64
		open, dir  uint32
		negative   bool
		plus, auto bool
	}{
		"auto":     {1, 0, 0, false, true, true},
		"never":    {0, fuseproto.FOpenDirectIO, 0, false, false, false},
		"none":     {0, fuseproto.FOpenDirectIO, 0, false, false, false},
		"metadata": {1, fuseproto.FOpenDirectIO, 0, false, true, true},
		"always":   {86400, fuseproto.FOpenKeepCache, fuseproto.FOpenKeepCache | fuseproto.FOpenCacheDir, true, true, true},
	} {
		t.Run(text, func(t *testing.T) {
			mode, err := passthrough.ParseCacheMode(text)
			if err != nil {
				t.Fatal(err)
			}
			o := passthrough.Options{Cache: mode}
			g := serve(t, source(t), o)
			g.hostWrite("f", "")
			e := g.look("f")
			a, _ := g.GetAttr(e.Node)
			if e.ValidSec != want.sec || e.AttrValidSec != want.sec || a.ValidSec != want.sec {
				t.Errorf("time-outs %d, %d, %d, want %d", e.ValidSec, e.AttrValidSec, a.ValidSec, want.sec)
			}
			r := g.ok(g.root(fuseproto.OpOpen, e.Node, 16, uint32(unix.O_RDWR), uint32(0)))
			if got := le.Uint32(r.Body[8:]); got != want.open {
				t.Errorf("flags of OPEN %#x, want %#x", got, want.open)
			}
			r = g.ok(g.root(fuseproto.OpOpenDir, 1, 16, uint32(0), uint32(0)))
			if got := le.Uint32(r.Body[8:]); got != want.dir {
				t.Errorf("flags of OPENDIR %#x, want %#x", got, want.dir)
			}
			none, r := g.Lookup(1, "absent")
			if negative := r.Errno == 0 && none.Node == 0 && none.ValidSec == want.sec; negative != want.negative || !want.negative && r.Errno != syscall.ENOENT {
				t.Errorf("absent name: %v node %d for %d s", r.Errno, none.Node, none.ValidSec)
			}
			f := o.SessionFlags()
			if f&fuseproto.FlagDoReadDirPlus != 0 != want.plus || f&fuseproto.FlagReadDirPlusAuto != 0 != want.auto {
				t.Errorf("session flags %#x", f)
			}
		})
	}
	if _, err := passthrough.ParseCacheMode("sometimes"); err == nil {
		t.Error("a cache mode that does not exist was parsed")
	}
}

// TestAtomicSwap: L41. A "..data" link that the host replaces is seen by a guest
// that asks again when its time-outs have passed: nothing here remembers the old one.
func TestAtomicSwap(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		for _, v := range []string{"v1", "v2"} {
			write(t, filepath.Join(mkdir(t, filepath.Join(g.dir, v)), "config"), v)
		}
		if err := os.Symlink("v1", filepath.Join(g.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		target := func() string {
			return string(g.ok(g.root(fuseproto.OpReadlink, g.look("..data").Node, 4096)).Body)
		}
		if got := target(); got != "v1" {
			t.Fatalf("..data = %q", got)
		}
		if err := os.Symlink("v2", filepath.Join(g.dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(g.dir, "..tmp"), filepath.Join(g.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		if got := target(); got != "v2" {
			t.Errorf("..data = %q after the swap", got)
		}
	})
}

func TestSessionFlags(t *testing.T) {
	all := passthrough.Options{
		Cache: passthrough.CacheAlways, PosixACL: true, Writeback: true, Submounts: true, AllowMmap: true,
		PosixLocks: true, Flock: true, SecurityLabel: true,
	}
	for bit, name := range map[uint64]string{
		fuseproto.FlagCacheSymlinks: "CACHE_SYMLINKS", fuseproto.FlagPosixACL: "POSIX_ACL", fuseproto.FlagDontMask: "DONT_MASK",
		fuseproto.FlagSetXattrExt: "SETXATTR_EXT", fuseproto.FlagWritebackCache: "WRITEBACK", fuseproto.FlagSubmounts: "SUBMOUNTS",
		fuseproto.FlagDirectIOAllowMmap: "ALLOW_MMAP", fuseproto.FlagPosixLocks: "POSIX_LOCKS", fuseproto.FlagFlockLocks: "FLOCK",
		fuseproto.FlagSecurityCtx: "SECURITY_CTX",
	} {
		if all.SessionFlags()&bit == 0 {
			t.Errorf("%s is not granted", name)
		}
		if (passthrough.Options{}).SessionFlags()&bit != 0 {
			t.Errorf("%s is granted by default", name)
		}
	}
	if (passthrough.Options{}).SessionFlags()&fuseproto.FlagHandleKillprivV2 == 0 || (passthrough.Options{NoKillprivV2: true}).SessionFlags()&fuseproto.FlagHandleKillprivV2 != 0 {
		t.Error("HANDLE_KILLPRIV_V2 does not follow its option")
	}
}

func TestWriteback(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{Writeback: true})
	g.hostWrite("f", "0123456789")
	n := g.look("f").Node
	fh := g.open(n, unix.O_WRONLY|unix.O_APPEND)
	// The guest's kernel reads what it is about to write, and knows the end itself.
	if got := g.read(n, fh, 0, 3); string(got) != "012" {
		t.Errorf("read %q", got)
	}
	g.write(n, fh, 2, "xx")
	if got := g.hostRead("f"); got != "01xx456789" {
		t.Errorf("wrote %q", got)
	}
	g.release(n, fh)
}

// TestUmaskAndACL: with ACLs the umask is ours to apply, but not where a default ACL
// takes its place.
func TestUmaskAndACL(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{PosixACL: true})
	mkdirAs := func(dir uint64, name string) uint32 {
		g.ok(g.root(fuseproto.OpMkdir, dir, 128, uint32(0o777), uint32(0o027), name))
		return 0
	}
	mkdirAs(1, "plain")
	if st := g.stat("plain"); st.Mode != unix.S_IFDIR|0o750 {
		t.Errorf("mode %#o, want 0750", st.Mode&0o7777)
	}
	// user::rwx user:1000:rwx group::rwx mask::rwx other::rwx
	acl := le.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 7, 1000}, {4, 7, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 7, ^uint32(0)}} {
		acl = le.AppendUint16(le.AppendUint16(acl, uint16(e[0])), uint16(e[1]))
		acl = le.AppendUint32(acl, e[2])
	}
	r := g.root(fuseproto.OpSetXattr, 1, 0, uint32(len(acl)), uint32(0), uint32(0), uint32(0), "system.posix_acl_default", acl)
	if r.Errno == syscall.EOPNOTSUPP {
		t.Skip("the host's file system has no ACLs")
	}
	g.ok(r)
	mkdirAs(1, "inherited")
	if st := g.stat("inherited"); st.Mode != unix.S_IFDIR|0o777 {
		t.Errorf("below a default ACL: mode %#o, want 0777", st.Mode&0o7777)
	}
	got := g.ok(g.root(fuseproto.OpGetXattr, 1, 1000, uint32(1000), uint32(0), "system.posix_acl_default")).Body
	if !bytes.Equal(got, acl) {
		t.Errorf("ACL = %x, want %x", got, acl)
	}
}

// TestModeIsExact: the umask of this process takes nothing away.
func TestModeIsExact(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	g := serve(t, source(t), passthrough.Options{})
	g.create(1, "f", unix.O_RDWR, 0o100666)
	r := g.ok(g.root(fuseproto.OpMkdir, 1, 128, uint32(0o2777), uint32(0), "d"))
	if a := fusetest.DecodeEntry(t, r.Body).Attr; a.Mode != unix.S_IFDIR|0o2777 {
		t.Errorf("the reply says mode %#o", a.Mode)
	}
	g.ok(g.root(fuseproto.OpTmpfile, 1, 144, uint32(unix.O_RDWR), uint32(0o100666), uint32(0), uint32(0), "/"))
	if f, d := g.stat("f").Mode, g.stat("d").Mode; f != unix.S_IFREG|0o666 || d != unix.S_IFDIR|0o2777 {
		t.Errorf("modes %#o %#o", f, d)
	}
}

// ext returns extensions of a creating request: a group, or a security label.
func groupExt(gid uint32) []byte {
	b := le.AppendUint32(nil, 16)
	b = le.AppendUint32(b, 32)
	return le.AppendUint32(le.AppendUint32(b, 1), gid)
}

func labelExt(name, value string) []byte {
	record := append(append([]byte(name), 0), value...)
	n := (8 + len(record) + 7) &^ 7
	b := le.AppendUint32(nil, uint32(8+n))
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(value))), 0)
	return append(append(b, record...), make([]byte, n-8-len(record))...)
}

// withExt sends a creating request with extensions.
func (g *guest) withExt(uid, gid uint32, opcode fuseproto.Opcode, node uint64, room int, ext []byte, parts ...any) fusetest.Reply {
	g.t.Helper()
	g.Unique += 2
	b := fusetest.Request(opcode, g.Unique, node, append(parts, ext)...)
	le.PutUint32(b[24:], uid)
	le.PutUint32(b[28:], gid)
	le.PutUint16(b[36:], uint16(len(ext)/8))
	return g.Send(fusetest.NewMessage(b, 16+room), g.Unique)
}

// TestSupplementaryGroup: a member of a setgid directory's group keeps the bit on
// what it makes there; who is none loses it.
func TestSupplementaryGroup(t *testing.T) {
	needRoot(t)
	g := serve(t, source(t), passthrough.Options{})
	if err := unix.Chown(g.dir, 0, 5000); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(g.dir, 0o2777); err != nil {
		t.Fatal(err)
	}
	body := []any{uint32(unix.O_RDWR), uint32(0o102755), uint32(0), uint32(0)}
	g.ok(g.withExt(1000, 1000, fuseproto.OpCreate, 1, 144, groupExt(5000), append(body, "member")...))
	g.ok(g.withExt(1000, 1000, fuseproto.OpCreate, 1, 144, nil, append(body, "stranger")...))
	if st := g.stat("member"); st.Gid != 5000 || st.Mode&0o7777 != 0o2755 {
		t.Errorf("member's: gid %d mode %#o", st.Gid, st.Mode)
	}
	if st := g.stat("stranger"); st.Gid != 5000 || st.Mode&0o7777 != 0o755 {
		t.Errorf("stranger's: gid %d mode %#o", st.Gid, st.Mode)
	}
	// Our own groups are ours again.
	groups, err := unix.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, gid := range groups {
		if gid == 5000 {
			t.Error("the guest's group was kept")
		}
	}
}

func TestSecurityLabel(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{SecurityLabel: true})
	label := labelExt("user.label", "some_u:some_r:some_t:s0")
	g.ok(g.withExt(0, 0, fuseproto.OpMkdir, 1, 128, label, uint32(0o755), uint32(0), "d"))
	g.ok(g.withExt(0, 0, fuseproto.OpCreate, 1, 144, label, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "f"))
	for _, name := range []string{"d", "f"} {
		r := g.ok(g.root(fuseproto.OpGetXattr, g.look(name).Node, 100, uint32(100), uint32(0), "user.label"))
		if string(r.Body) != "some_u:some_r:some_t:s0" {
			t.Errorf("label of %s = %q", name, r.Body)
		}
	}
	// A label that cannot be stored leaves nothing behind.
	r := g.withExt(0, 0, fuseproto.OpMkdir, 1, 128, labelExt("user."+strings.Repeat("n", 300), "x"), uint32(0o755), uint32(0), "bad")
	g.want(r, syscall.ERANGE)
	_, r = g.Lookup(1, "bad")
	g.want(r, syscall.ENOENT)
}

func TestXattrMap(t *testing.T) {
	m, err := passthrough.ParseXattrMap(":map::user.virtiofs.:")
	if err != nil {
		t.Fatal(err)
	}
	g := serve(t, source(t), passthrough.Options{XattrMap: m})
	g.ok(g.root(fuseproto.OpSetXattr, 1, 0, uint32(1), uint32(0), "trusted.overlay.opaque", []byte("y")))
	if err := unix.Setxattr(g.dir, "user.hosts", []byte("own"), 0); err != nil {
		t.Fatal(err)
	}
	var buf [100]byte
	if n, err := unix.Getxattr(g.dir, "user.virtiofs.trusted.overlay.opaque", buf[:]); err != nil || string(buf[:n]) != "y" {
		t.Errorf("on the host: %q %v", buf[:max(n, 0)], err)
	}
	list := string(g.ok(g.root(fuseproto.OpListXattr, 1, 1000, uint32(1000), uint32(0))).Body)
	if list != "trusted.overlay.opaque\x00" {
		t.Errorf("list = %q", list)
	}
	for rules, ok := range map[string]bool{
		":prefix:all::user.v.:\n:bad:all:::": true, ":ok:all:::": true, "/prefix/client/trusted./user.v./\n/ok/all///": true,
		":map:trusted.:user.v.:": true, ":unsupported:client:security.::  :ok:all:::": true,
		"": false, ":map:": false, ":some:all:::": false, ":ok:some:::": false, ":ok:all::": false, ":ok:client:::": false,
		":map::a.: :ok:all:::": false,
	} {
		if _, err := passthrough.ParseXattrMap(rules); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", rules, err, ok)
		}
	}
	// One prefix is mapped, all else is as it is, and the host's own is not mistaken.
	m, err = passthrough.ParseXattrMap(":map:trusted.:user.v.:")
	if err != nil {
		t.Fatal(err)
	}
	g = serve(t, source(t), passthrough.Options{XattrMap: m})
	g.ok(g.root(fuseproto.OpSetXattr, 1, 0, uint32(1), uint32(0), "trusted.a", []byte("1")))
	g.ok(g.root(fuseproto.OpSetXattr, 1, 0, uint32(1), uint32(0), "user.b", []byte("2")))
	g.want(g.root(fuseproto.OpSetXattr, 1, 0, uint32(1), uint32(0), "user.v.trusted.a", []byte("3")), syscall.EPERM)
	list = string(g.ok(g.root(fuseproto.OpListXattr, 1, 1000, uint32(1000), uint32(0))).Body)
	if !strings.Contains(list, "trusted.a\x00") || !strings.Contains(list, "user.b\x00") || strings.Contains(list, "user.v.") {
		t.Errorf("list = %q", list)
	}
	g = serve(t, source(t), passthrough.Options{NoXattr: true})
	g.want(g.root(fuseproto.OpGetXattr, 1, 10, uint32(10), uint32(0), "user.a"), syscall.EOPNOTSUPP)
	g.want(g.root(fuseproto.OpListXattr, 1, 10, uint32(10), uint32(0)), syscall.EOPNOTSUPP)
}

func TestIDMap(t *testing.T) {
	needRoot(t)
	uids, err := passthrough.ParseIDMap("map:0:100000:1000, squash-guest:1000:7:60000 forbid-guest:70000:10")
	if err != nil {
		t.Fatal(err)
	}
	g := serve(t, source(t), passthrough.Options{UIDMap: uids})
	g.ok(g.as(5, 0, fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "mapped"))
	g.ok(g.as(2000, 0, fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "squashed"))
	g.want(g.as(70005, 0, fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), "none"), syscall.EPERM)
	if a, b := g.stat("mapped").Uid, g.stat("squashed").Uid; a != 100005 || b != 7 {
		t.Errorf("the host's uids are %d and %d", a, b)
	}
	if e := g.look("mapped"); e.Attr.UID != 5 {
		t.Errorf("the guest's uid is %d", e.Attr.UID)
	}
	g.ok(g.setattr(g.look("mapped").Node, fuseproto.SetAttrUID, func(b []byte) { le.PutUint32(b[76:], 6) }))
	if got := g.stat("mapped").Uid; got != 100006 {
		t.Errorf("after chown the host's uid is %d", got)
	}
	for rule, ok := range map[string]bool{
		"": true, "guest:0:1:1,host:1:0:1": true, "squash-host:0:9:4294967295": true, "map:0:4294967294:1": true,
		"map:0:4294967295:1": false, "map:4294967295:0:1": false, "map:0:1:0": false, "map:0:1": false, "some:0:1:1": false,
		"map:0:x:1": false, "map:0:10:10,guest:5:50:1": false, "forbid-guest:1:2:3": false, "map:0:1:-1": false,
	} {
		if _, err := passthrough.ParseIDMap(rule); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", rule, err, ok)
		}
	}
}

// TestColdRead: what is not in the page cache is read off the queue's goroutine,
// and the same bytes.
func TestColdRead(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{})
	want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	g.hostWrite("f", string(want))
	f, err := os.OpenFile(filepath.Join(g.dir, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	// Pages that a processor has just handled are dropped only later, and those of
	// tmpfs never.
	cold := false
	for range 1000 {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		_, err := unix.Preadv2(int(f.Fd()), [][]byte{make([]byte, 1)}, 500_000, unix.RWF_NOWAIT)
		if cold = err == unix.EAGAIN; cold || err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	n := g.look("f").Node
	fh := g.open(n, unix.O_RDONLY)
	var got []byte
	for off := 0; off < len(want)+1; off += 300_000 {
		got = append(got, g.read(n, fh, uint64(off), 300_000)...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read %d bytes that differ from the %d on the host", len(got), len(want))
	}
	if !cold {
		t.Log("the host keeps the file in memory: only the bytes were tested")
	} else if g.Blocked == 0 {
		t.Error("no read left the queue's goroutine")
	}
	g.release(n, fh)
}

// TestGuestsShareOfDescriptors: a guest that opens files without end gets ENFILE,
// and everything else goes on.
func TestGuestsShareOfDescriptors(t *testing.T) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	low := lim
	low.Cur = 400
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	g := serve(t, source(t), passthrough.Options{})
	g.hostWrite("f", "")
	n := g.look("f").Node
	var open []uint64
	for len(open) < 1000 {
		r := g.root(fuseproto.OpOpen, n, 16, uint32(0), uint32(0))
		if r.Errno != 0 {
			g.want(r, syscall.ENFILE)
			break
		}
		open = append(open, le.Uint64(r.Body))
	}
	if len(open) != 200 {
		t.Errorf("%d files could be opened, want 200", len(open))
	}
	for i := range 50 {
		g.hostWrite(fmt.Sprint("g", i), "")
		g.look(fmt.Sprint("g", i))
	}
	for _, fh := range open {
		g.release(n, fh)
	}
	g.release(n, g.open(n, unix.O_RDWR))
}

// TestIdleIsSwept: with nothing to do, no descriptor is kept and no timer runs.
func TestIdleIsSwept(t *testing.T) {
	needRoot(t)
	g := serve(t, source(t), passthrough.Options{FileHandles: passthrough.HandlesMandatory})
	for i := range 20 {
		g.hostWrite(fmt.Sprint("f", i), "")
		g.GetAttr(g.look(fmt.Sprint("f", i)).Node)
	}
	if s := g.fs.Stats(); s.Idle != 20 || s.Nodes != 20 {
		t.Errorf("%+v, want 20 of each", s)
	}
	if !within(400*time.Millisecond, func() bool { return g.fs.Stats().Idle == 0 }) {
		t.Errorf("%d descriptors are kept", g.fs.Stats().Idle)
	}
}

func TestNewRefuses(t *testing.T) {
	f, err := hostfs.Open("/proc/self/status", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := descriptors(t)
	if fs, err := passthrough.New(f, passthrough.Options{}); err == nil {
		fs.Close()
		t.Error("a file was taken for a directory")
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
