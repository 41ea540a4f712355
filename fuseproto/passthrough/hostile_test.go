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

// badNames are names that no entry of a directory has.
var badNames = []string{"..", ".", "/", "a/b", "../outside", "/etc/passwd", strings.Repeat("n", 256), ""}

// TestBadNames sends every bad name with every opcode that carries one.
func TestBadNames(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		parent := source(t)
		share := mkdir(t, filepath.Join(parent, "share"))
		write(t, filepath.Join(parent, "outside"), "secret")
		write(t, filepath.Join(share, "f"), "")
		g := serve(t, share, o)
		f := g.look("f").Node
		root, err := hostfs.Open(share, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := passthrough.New(root, o)
		if err != nil {
			t.Fatal(err)
		}
		defer bare.Close()
		for _, name := range badNames {
			replies := map[string]fusetest.Reply{
				"create":  g.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), name),
				"mkdir":   g.root(fuseproto.OpMkdir, 1, 128, uint32(0o755), uint32(0), name),
				"mknod":   g.root(fuseproto.OpMknod, 1, 128, uint32(unix.S_IFREG|0o600), uint32(0), uint32(0), uint32(0), name),
				"symlink": g.root(fuseproto.OpSymlink, 1, 128, name, "target"),
				"link":    g.root(fuseproto.OpLink, 1, 128, f, name),
				"unlink":  g.root(fuseproto.OpUnlink, 1, 0, name),
				"rmdir":   g.root(fuseproto.OpRmdir, 1, 0, name),
				"rename":  g.root(fuseproto.OpRename, 1, 0, uint64(1), name, "x"),
				"into":    g.root(fuseproto.OpRename, 1, 0, uint64(1), "f", name),
				"rename2": g.root(fuseproto.OpRename2, 1, 0, uint64(1), uint32(2), uint32(0), "f", name),
			}
			if name != "." {
				_, replies["lookup"] = g.Lookup(1, name)
			}
			for op, r := range replies {
				if r.Errno != syscall.EINVAL && r.Errno != syscall.ENAMETOOLONG {
					t.Errorf("%s %q: %v, want EINVAL or ENAMETOOLONG", op, name, r.Errno)
				}
			}
			// Without the server, which has checks of its own.
			var e fuseproto.Entry
			var out fuseproto.OpenOut
			op, n := fuseproto.NewOp(t.Context()), []byte(name)
			for what, err := range map[string]error{
				"create":  bare.Create(op, 1, &fuseproto.CreateIn{Mode: 0o644}, n, &e, &out),
				"mkdir":   bare.Mkdir(op, 1, &fuseproto.MkdirIn{}, n, &e),
				"mknod":   bare.Mknod(op, 1, &fuseproto.MknodIn{}, n, &e),
				"symlink": bare.Symlink(op, 1, n, []byte("x"), &e),
				"link":    bare.Link(op, 1, 1, n, &e),
				"unlink":  bare.Unlink(op, 1, n),
				"rmdir":   bare.Rmdir(op, 1, n),
				"rename":  bare.Rename(op, 1, n, 1, []byte("x"), 0),
				"into":    bare.Rename(op, 1, []byte("f"), 1, n, 0),
			} {
				if err != unix.EINVAL && err != unix.ENAMETOOLONG {
					t.Errorf("FS: %s %q: %v, want EINVAL or ENAMETOOLONG", what, name, err)
				}
			}
			if name != "." {
				if err := bare.Lookup(op, 1, n, &e); err != unix.EINVAL && err != unix.ENAMETOOLONG {
					t.Errorf("FS: lookup %q: %v, want EINVAL or ENAMETOOLONG", name, err)
				}
			}
		}
		// On the wire a name ends at its first NUL.
		if err := bare.Unlink(fuseproto.NewOp(t.Context()), 1, []byte("f\x00x")); err != unix.EINVAL {
			t.Errorf("a name with a NUL in it: %v, want EINVAL", err)
		}
		if got := g.list(1, 4096, false); len(got) != 3 {
			t.Errorf("directory holds %v", got)
		}
		if b, err := os.ReadFile(filepath.Join(parent, "outside")); err != nil || string(b) != "secret" {
			t.Errorf("outside: %q %v", b, err)
		}
	})
}

// TestLinksAreNotFollowed: wherever a link leads, the host's side never goes there.
func TestLinksAreNotFollowed(t *testing.T) {
	needRoot(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		parent := source(t)
		share := mkdir(t, filepath.Join(parent, "share"))
		write(t, filepath.Join(parent, "secret"), "secret")
		g := serve(t, share, o)
		for name, target := range map[string]string{
			"absolute": filepath.Join(parent, "secret"), "up": "../secret", "dir": "..", "root": "/",
			"magic": "/proc/self/root", "fd": "/proc/self/fd/3", "dangling": "../made",
		} {
			l := fusetest.DecodeEntry(t, g.ok(g.root(fuseproto.OpSymlink, 1, 128, name, target)).Body).Node
			g.want(g.root(fuseproto.OpOpen, l, 16, uint32(unix.O_RDWR), uint32(0)), syscall.ELOOP)
			g.want(g.root(fuseproto.OpOpenDir, l, 16, uint32(0), uint32(0)), syscall.ENOTDIR)
			_, r := g.Lookup(l, "secret")
			g.want(r, syscall.ENOTDIR)
			g.want(g.root(fuseproto.OpCreate, l, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), "x"), syscall.ENOTDIR)
			g.want(g.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR|unix.O_TRUNC), uint32(0o644), uint32(0), uint32(0), name), syscall.EEXIST)
			g.want(g.setattr(l, fuseproto.SetAttrSize, func([]byte) {}), syscall.EINVAL)
			g.want(g.setattr(l, fuseproto.SetAttrMode, func([]byte) {}), syscall.EOPNOTSUPP)
			// Owner and times are the link's own.
			g.ok(g.setattr(l, fuseproto.SetAttrUID|fuseproto.SetAttrMtime, func(b []byte) {
				le.PutUint32(b[76:], 77)
				le.PutUint64(b[40:], 1)
			}))
			if st := g.stat(name); st.Uid != 77 || st.Mtim.Sec != 1 {
				t.Errorf("%s: uid %d mtime %d", name, st.Uid, st.Mtim.Sec)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(parent, "secret"), &st); err != nil || st.Uid != 0 || st.Mtim.Sec == 1 || st.Size != 6 {
			t.Errorf("secret was changed: %+v %v", st, err)
		}
		if _, err := os.Lstat(filepath.Join(parent, "made")); !os.IsNotExist(err) {
			t.Errorf("a file was made through a dangling link: %v", err)
		}
	})
}

// TestOnlyFilesAndDirectoriesAreOpened: a fifo would hang, a device act.
func TestOnlyFilesAndDirectoriesAreOpened(t *testing.T) {
	needRoot(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "null": unix.S_IFCHR, "disk": unix.S_IFBLK} {
			e := fusetest.DecodeEntry(t, g.ok(g.root(fuseproto.OpMknod, 1, 128, mode|0o666, uint32(1<<8|3), uint32(0), uint32(0), name)).Body)
			g.fs.ReleaseIdle()
			for range 2 {
				for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY | unix.O_TRUNC, unix.O_RDWR | unix.O_NONBLOCK} {
					g.want(g.root(fuseproto.OpOpen, e.Node, 16, flags, uint32(0)), syscall.ENXIO)
				}
				g.want(g.root(fuseproto.OpCreate, 1, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), name), syscall.EEXIST)
				g.want(g.root(fuseproto.OpOpenDir, e.Node, 16, uint32(0), uint32(0)), syscall.ENOTDIR)
				g.want(g.setattr(e.Node, fuseproto.SetAttrSize, func([]byte) {}), syscall.EINVAL)
			}
		}
	})
}

// TestHandlesOfOthers: a handle counts with its own node and kind alone, and never
// twice.
func TestHandlesOfOthers(t *testing.T) {
	g := serve(t, source(t), passthrough.Options{PosixLocks: true})
	a, afh := g.create(1, "a", unix.O_RDWR, 0o100600)
	b, bfh := g.create(1, "b", unix.O_RDWR, 0o100600)
	dir := g.opendir(1)
	for _, c := range []struct{ node, fh uint64 }{{a.Node, bfh}, {b.Node, afh}, {a.Node, dir}, {a.Node, 0}, {a.Node, ^uint64(0)}, {1, afh}, {999, afh}} {
		g.want(g.root(fuseproto.OpRead, c.node, 10, fusetest.ReadBody(c.fh, 0, 10)), syscall.EBADF)
		g.want(g.writeReq(c.node, c.fh, 0, []byte("x"), 0), syscall.EBADF)
		g.want(g.root(fuseproto.OpFsync, c.node, 0, c.fh, uint64(0)), syscall.EBADF)
		g.want(g.root(fuseproto.OpFlush, c.node, 0, releaseBody(c.fh)), syscall.EBADF)
		g.want(g.root(fuseproto.OpRelease, c.node, 0, releaseBody(c.fh)), syscall.EBADF)
		g.want(g.root(fuseproto.OpLseek, c.node, 8, c.fh, uint64(0), uint32(3), uint32(0)), syscall.EBADF)
		g.want(g.root(fuseproto.OpFallocate, c.node, 0, c.fh, uint64(0), uint64(1), uint64(0)), syscall.EBADF)
	}
	g.want(g.root(fuseproto.OpReadDir, 1, 4096, fusetest.ReadBody(afh, 0, 4096)), syscall.EBADF)
	g.want(g.root(fuseproto.OpReleaseDir, a.Node, 0, releaseBody(afh)), syscall.EBADF)
	g.release(a.Node, afh)
	g.want(g.root(fuseproto.OpRelease, a.Node, 0, releaseBody(afh)), syscall.EBADF)
	g.want(g.root(fuseproto.OpRead, a.Node, 10, fusetest.ReadBody(afh, 0, 10)), syscall.EBADF)
	g.release(b.Node, bfh)
	g.releasedir(1, dir)
}

// TestMovedOut: a directory that the host moves away is the guest's no more.
func TestMovedOut(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		parent := source(t)
		share := mkdir(t, filepath.Join(parent, "share"))
		mkdir(t, filepath.Join(share, "d/e"))
		mkdir(t, filepath.Join(share, "kept"))
		g := serve(t, share, o)
		d, e := g.look("d").Node, g.look("d", "e").Node
		fh := g.opendir(e)
		if err := os.Rename(filepath.Join(share, "d"), filepath.Join(parent, "d")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(parent, "d/secret"), "secret")
		write(t, filepath.Join(parent, "d/e/secret"), "secret")
		for what, try := range map[string]func() syscall.Errno{
			"LOOKUP": func() syscall.Errno { _, r := g.Lookup(d, "secret"); return r.Errno },
			"below":  func() syscall.Errno { _, r := g.Lookup(e, "secret"); return r.Errno },
			"CREATE": func() syscall.Errno { return g.root(fuseproto.OpMkdir, e, 128, uint32(0o755), uint32(0), "x").Errno },
			"READDIR": func() syscall.Errno {
				return g.root(fuseproto.OpReadDir, e, 4096, fusetest.ReadBody(fh, 0, 4096)).Errno
			},
		} {
			if !within(2*time.Second, func() bool { return try() == syscall.ESTALE }) {
				t.Errorf("%s in a directory that was moved out: %v, want ESTALE", what, try())
			}
		}
		// Moved about inside, it is still there.
		if err := os.Rename(filepath.Join(share, "kept"), filepath.Join(share, "moved")); err != nil {
			t.Fatal(err)
		}
		if o.FileHandles == passthrough.HandlesMandatory {
			write(t, filepath.Join(share, "moved/f"), "")
		}
		g.look("moved")
		g.releasedir(e, fh)
	})
}

// TestSwapsWhileWalking: the host swaps a directory with a link to the outside as
// fast as it can. Nothing outside is ever seen.
func TestSwapsWhileWalking(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		o.MaxOpen = 2
		parent := source(t)
		share := mkdir(t, filepath.Join(parent, "share"))
		outside := mkdir(t, filepath.Join(parent, "outside"))
		write(t, filepath.Join(outside, "f"), "secret")
		write(t, filepath.Join(mkdir(t, filepath.Join(share, "a")), "f"), "public")
		if err := os.Symlink("../outside", filepath.Join(share, "b")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(filepath.Join(share, "fifo"), 0o666); err != nil {
			t.Fatal(err)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
				}
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(share, "a"), unix.AT_FDCWD, filepath.Join(share, "b"), unix.RENAME_EXCHANGE)
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(share, "a"), unix.AT_FDCWD, filepath.Join(share, "fifo"), unix.RENAME_EXCHANGE)
			}
		}()
		g := serve(t, share, o)
		seen := 0
		// On a busy machine the swapper may not run for long: until something was
		// seen, with a guard against a hang.
		for i, guard := 0, time.Now().Add(time.Minute); i < 3000 || seen == 0 && time.Now().Before(guard); i++ {
			e, r := g.Lookup(1, "a")
			if r.Errno != 0 {
				continue
			}
			if f, r := g.Lookup(e.Node, "f"); r.Errno == 0 {
				if o := g.root(fuseproto.OpOpen, f.Node, 16, uint32(unix.O_RDONLY), uint32(0)); o.Errno == 0 {
					fh := le.Uint64(o.Body)
					if got := g.read(f.Node, fh, 0, 100); string(got) != "public" {
						t.Errorf("read %q", got)
					}
					seen++
					g.release(f.Node, fh)
				}
				g.forget(f.Node, 1)
			}
			if r := g.root(fuseproto.OpOpen, e.Node, 16, uint32(unix.O_RDWR), uint32(0)); r.Errno == 0 {
				t.Error("opened something that is no file")
			}
			g.forget(e.Node, 1)
		}
		close(stop)
		<-stopped
		if seen == 0 {
			t.Error("the walk never got through")
		}
		if s := g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// TestInodeNumberUsedAgain: a file that has the number of a removed one is another.
func TestInodeNumberUsedAgain(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		for i := range 50 {
			g.hostWrite("f", fmt.Sprint("first", i))
			old := g.look("f")
			if err := os.Remove(filepath.Join(g.dir, "f")); err != nil {
				t.Fatal(err)
			}
			g.hostWrite("f", fmt.Sprint("second", i))
			now := g.look("f")
			if now.Node == old.Node {
				t.Fatalf("round %d: another file has the node of the removed one (inode numbers %d, %d)", i, old.Attr.Ino, now.Attr.Ino)
			}
			fh := g.open(now.Node, unix.O_RDONLY)
			if got := g.read(now.Node, fh, 0, 100); !bytes.Equal(got, fmt.Append(nil, "second", i)) {
				t.Errorf("read %q", got)
			}
			g.release(now.Node, fh)
			g.forget(now.Node, 1)
			if i%2 == 0 {
				g.forget(old.Node, 1)
			}
		}
	})
}

// TestReplacedByTheHost: the node of a file that the host replaced never shows the
// other one. By handle it is the old file, or gone; by place it is ESTALE.
func TestReplacedByTheHost(t *testing.T) {
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		g.hostWrite("f", "old")
		g.hostWrite("new", "replacement")
		n := g.look("f").Node
		fh := g.open(n, unix.O_RDWR)
		if err := os.Rename(filepath.Join(g.dir, "new"), filepath.Join(g.dir, "f")); err != nil {
			t.Fatal(err)
		}
		g.fs.ReleaseIdle()
		// Open, it is the old file.
		if a, r := g.GetAttr(n); r.Errno != 0 || a.Size != 3 {
			t.Errorf("GETATTR of the open old file: %v size %d", r.Errno, a.Size)
		}
		g.write(n, fh, 0, "OLD")
		g.release(n, fh)
		g.fs.ReleaseIdle()
		_, r := g.GetAttr(n)
		g.want(r, syscall.ESTALE)
		g.want(g.root(fuseproto.OpOpen, n, 16, uint32(unix.O_RDWR|unix.O_TRUNC), uint32(0)), syscall.ESTALE)
		g.want(g.setattr(n, fuseproto.SetAttrMode, func([]byte) {}), syscall.ESTALE)
		if got := g.hostRead("f"); got != "replacement" {
			t.Errorf("the other file holds %q", got)
		}
		if e := g.look("f"); e.Node == n || e.Attr.Size != 11 {
			t.Errorf("looked up again: node %d size %d", e.Node, e.Attr.Size)
		}
	})
}
