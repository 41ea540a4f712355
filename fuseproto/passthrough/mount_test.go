package passthrough_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

func mkdir(t testing.TB, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestUnmountIsNeverBusy: L39. Whatever the guest has looked at, the host can
// unmount it right after ReleaseIdle, and within 2 s without.
func TestUnmountIsNeverBusy(t *testing.T) {
	mounts(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		at := mkdir(t, filepath.Join(g.dir, "sub"))
		for _, released := range []bool{true, false} {
			mount(t, "tmpfs", at, "tmpfs", 0, "")
			write(t, filepath.Join(at, "f"), "data")
			mkdir(t, filepath.Join(at, "d/e"))
			g.look("sub", "d", "e")
			f := g.look("sub", "f")
			fh := g.open(f.Node, unix.O_RDONLY)
			if got := g.read(f.Node, fh, 0, 10); string(got) != "data" {
				t.Fatalf("read %q", got)
			}
			g.list(g.look("sub").Node, 4096, true)
			if err := unix.Unmount(at, 0); err != unix.EBUSY {
				t.Errorf("umount with an open file: %v, want EBUSY", err)
			}
			g.release(f.Node, fh)
			if released {
				g.fs.ReleaseIdle()
				if err := unix.Unmount(at, 0); err != nil {
					t.Fatalf("umount after ReleaseIdle: %v", err)
				}
			} else if !within(2*time.Second, func() bool { return unix.Unmount(at, 0) == nil }) {
				t.Fatal("umount still fails after 2 s")
			}
			// What was in it is gone, and what it covered is seen.
			_, r := g.GetAttr(f.Node)
			g.want(r, syscall.ESTALE)
			_, r = g.Lookup(g.look("sub").Node, "f")
			g.want(r, syscall.ENOENT)
		}
	})
}

// within tries f until it is true, ten times as long as it may take.
func within(d time.Duration, f func() bool) bool {
	for end := time.Now().Add(10 * d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return true
		}
	}
	return false
}

// TestLaterMounts: L38. Mounts that appear later are seen, on files too, and
// read-only ones stay so, although the same file system is writable beside.
func TestLaterMounts(t *testing.T) {
	mounts(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		other := source(t)
		write(t, filepath.Join(other, "f"), "other")
		write(t, filepath.Join(other, "resolv"), "nameserver")
		mkdir(t, filepath.Join(g.dir, "rw"))
		mkdir(t, filepath.Join(g.dir, "ro"))
		write(t, filepath.Join(g.dir, "file"), "covered")
		g.look("ro")
		before := g.look("file")
		mount(t, other, filepath.Join(g.dir, "rw"), "", unix.MS_BIND, "")
		mount(t, other, filepath.Join(g.dir, "ro"), "", unix.MS_BIND, "")
		if err := unix.Mount("", filepath.Join(g.dir, "ro"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		mount(t, filepath.Join(other, "resolv"), filepath.Join(g.dir, "file"), "", unix.MS_BIND, "")
		rw, ro := g.look("rw", "f"), g.look("ro", "f")
		if rw.Attr.Ino != ro.Attr.Ino {
			t.Error("two mounts of one file show different inode numbers")
		}
		for range 2 { // by descriptor, and opened again
			g.want(g.root(fuseproto.OpOpen, ro.Node, 16, uint32(unix.O_RDWR), uint32(0)), syscall.EROFS)
			g.want(g.setattr(ro.Node, fuseproto.SetAttrMode, func([]byte) {}), syscall.EROFS)
			g.want(g.root(fuseproto.OpUnlink, g.look("ro").Node, 0, "f"), syscall.EROFS)
			g.want(g.root(fuseproto.OpCreate, g.look("ro").Node, 144, uint32(unix.O_RDWR), uint32(0o644), uint32(0), uint32(0), "g"), syscall.EROFS)
			g.want(g.root(fuseproto.OpSetXattr, ro.Node, 0, uint32(1), uint32(0), "user.a", []byte("v")), syscall.EROFS)
			fh := g.open(rw.Node, unix.O_RDWR)
			g.write(rw.Node, fh, 0, "OTHER")
			g.release(rw.Node, fh)
			g.fs.ReleaseIdle()
		}
		bound := g.look("file")
		if bound.Node == before.Node {
			t.Error("a file mounted over another has its node")
		}
		fh := g.open(bound.Node, unix.O_RDONLY)
		if got := g.read(bound.Node, fh, 0, 100); string(got) != "nameserver" {
			t.Errorf("mounted file holds %q", got)
		}
		g.release(bound.Node, fh)
		g.fs.ReleaseIdle()
		if a, r := g.GetAttr(bound.Node); r.Errno != 0 || a.Size != 10 {
			t.Errorf("mounted file, opened again: %v size %d", r.Errno, a.Size)
		}
		// Between mounts nothing is moved or linked, as on the host.
		g.want(g.root(fuseproto.OpRename, g.look("rw").Node, 0, uint64(1), "f", "f"), syscall.EXDEV)
		g.want(g.root(fuseproto.OpLink, 1, 128, rw.Node, "h"), syscall.EXDEV)
		g.want(g.root(fuseproto.OpRmdir, 1, 0, "rw"), syscall.EBUSY)
	})
}

// TestRemountedWritable: a node of a read-only mount is not opened in the writable
// one of the same file system that is there now.
func TestRemountedWritable(t *testing.T) {
	mounts(t)
	handleModes(t, func(t *testing.T, o passthrough.Options) {
		g := serve(t, source(t), o)
		other := source(t)
		write(t, filepath.Join(mkdir(t, filepath.Join(other, "d")), "f"), "data")
		at := mkdir(t, filepath.Join(g.dir, "x"))
		mount(t, other, at, "", unix.MS_BIND, "")
		if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		n, d := g.look("x", "d", "f").Node, g.look("x", "d").Node
		g.fs.ReleaseIdle()
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
		mount(t, other, at, "", unix.MS_BIND, "")
		g.want(g.root(fuseproto.OpOpen, n, 16, uint32(unix.O_RDWR), uint32(0)), syscall.ESTALE)
		g.want(g.root(fuseproto.OpMkdir, d, 128, uint32(0o755), uint32(0), "y"), syscall.ESTALE)
		now := g.look("x", "d", "f").Node
		if now == n {
			t.Error("the file has the node of the other mount")
		}
		g.release(now, g.open(now, unix.O_RDWR))
	})
}

// TestEqualInodeNumbers: L40. Two file systems with equal inode numbers are kept
// apart, and shown with different ones unless they are announced as submounts.
func TestEqualInodeNumbers(t *testing.T) {
	mounts(t)
	for _, announced := range []bool{false, true} {
		g := serve(t, source(t), passthrough.Options{Submounts: announced})
		var nodes, inos [2]uint64
		for i, name := range []string{"a", "b"} {
			at := mkdir(t, filepath.Join(g.dir, name))
			mount(t, "tmpfs", at, "tmpfs", 0, "")
			write(t, filepath.Join(at, "f"), name)
			e, dir := g.look(name, "f"), g.look(name)
			nodes[i], inos[i] = e.Node, e.Attr.Ino
			if got := dir.Attr.Flags&fuseproto.AttrSubmount != 0; got != announced {
				t.Errorf("submount flag %v, want %v", got, announced)
			}
			if e.Attr.Flags != 0 {
				t.Errorf("flags of a file are %#x", e.Attr.Flags)
			}
		}
		if a, b := g.stat("a/f"), g.stat("b/f"); a.Ino != b.Ino {
			t.Fatalf("the host's inode numbers differ (%d, %d): nothing is tested", a.Ino, b.Ino)
		}
		if nodes[0] == nodes[1] || (inos[0] == inos[1]) != announced {
			t.Errorf("announced %v: nodes %v, inode numbers %v", announced, nodes, inos)
		}
		for i, want := range []string{"a", "b"} {
			g.fs.ReleaseIdle()
			fh := g.open(nodes[i], unix.O_RDONLY)
			if got := g.read(nodes[i], fh, 0, 10); string(got) != want {
				t.Errorf("%s/f holds %q", want, got)
			}
			g.release(nodes[i], fh)
		}
		// Another file system at the same place.
		if err := unix.Unmount(filepath.Join(g.dir, "b"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		mount(t, "tmpfs", filepath.Join(g.dir, "b"), "tmpfs", 0, "")
		write(t, filepath.Join(g.dir, "b/f"), "new")
		g.fs.ReleaseIdle()
		_, r := g.GetAttr(nodes[1])
		g.want(r, syscall.ESTALE)
		if e := g.look("b", "f"); e.Attr.Size != 3 || e.Node == nodes[1] {
			t.Errorf("new file system: node %d size %d", e.Node, e.Attr.Size)
		}
	}
}

// TestOtherHosts runs the tests again with the source on tmpfs and on xfs.
func TestOtherHosts(t *testing.T) {
	mounts(t)
	if os.Getenv("RAFSD_TEST_HOST") != "" {
		t.Skip("is run by itself")
	}
	hosts := map[string]func(t *testing.T, at string){
		"tmpfs": func(t *testing.T, at string) { mount(t, "tmpfs", at, "tmpfs", 0, "size=256m") },
		"xfs": func(t *testing.T, at string) {
			mkfs, err := exec.LookPath("mkfs.xfs")
			if err != nil {
				t.Skip("mkfs.xfs is missing: xfs was not tested")
			}
			image := filepath.Join(t.TempDir(), "xfs")
			write(t, image, "")
			if err := os.Truncate(image, 400<<20); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{mkfs, "-q", image}, {"mount", "-o", "loop", image, at}} {
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", args, err, out)
				}
			}
			t.Cleanup(func() {
				if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
					t.Errorf("umount: %v: %s", err, out)
				}
			})
		},
	}
	for name, host := range hosts {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			host(t, at)
			cmd := exec.Command("/proc/self/exe", "-test.run=^Test", "-test.skip=MovedOut|Allocate", "-test.short", "-test.count=1")
			cmd.Env = append(os.Environ(), "TMPDIR="+at, "RAFSD_TEST_HOST="+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}
