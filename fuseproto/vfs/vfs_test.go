package vfs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var le = binary.LittleEndian

const (
	indexBits = 44
	cacheBits = fuseproto.FOpenKeepCache | fuseproto.FOpenCacheDir
)

// image returns a tree such as an image shows: /etc/hostname and /bin.
func image(hostname string) *fusetest.Tree {
	t := fusetest.NewTree(36)
	etc := t.Dir(36, "etc")
	t.File(etc, "hostname", []byte(hostname))
	t.Dir(36, "bin")
	return t
}

// guest returns a tree of nothing and a guest in a session with it.
func guest(t *testing.T, cfg fuseproto.Config) (*vfs.FS, *fusetest.Client) {
	t.Helper()
	v := vfs.New(0)
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	s, err := fuseproto.NewServer(v, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := fusetest.NewClient(t, s)
	c.Init()
	return v, c
}

func mount(t *testing.T, v *vfs.FS, path string, fs fuseproto.FileSystem) vfs.MountInfo {
	t.Helper()
	info, err := v.Mount(t.Context(), path, fs, vfs.MountOptions{})
	if err != nil {
		t.Fatalf("Mount(%s): %v", path, err)
	}
	return info
}

func unmount(t *testing.T, v *vfs.FS, path string) {
	t.Helper()
	done, err := v.Unmount(path)
	if err != nil {
		t.Fatalf("Unmount(%s): %v", path, err)
	}
	if err := <-done; err != nil {
		t.Fatalf("closing what was at %s: %v", path, err)
	}
}

// walk looks a path up from the root and returns the last entry.
func walk(c *fusetest.Client, path string) (fusetest.Entry, syscall.Errno) {
	c.T.Helper()
	e := fusetest.Entry{Node: fuseproto.RootID}
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		var r fusetest.Reply
		if e, r = c.Lookup(e.Node, name); r.Errno != 0 {
			return e, r.Errno
		}
		if e.Node == 0 {
			return e, syscall.ENOENT
		}
	}
	return e, 0
}

func names(list []fusetest.Dirent) string {
	var s []string
	for _, d := range list {
		s = append(s, d.Name)
	}
	return strings.Join(s, " ")
}

func TestF37_MountIsVisibleAtOnceAndGoneAtOnce(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	if _, r := c.Lookup(fuseproto.RootID, "rafs"); r.Errno != syscall.ENOENT {
		t.Fatalf("LOOKUP before the mount: %v, want ENOENT and not a negative entry", r.Errno)
	}
	mount(t, v, "/rafs/c1", image("one"))
	e, errno := walk(c, "/rafs/c1/etc/hostname")
	if errno != 0 {
		t.Fatalf("walk: %v", errno)
	}
	if got := c.Read(e.Node, 0, 100); string(got.Body) != "one" {
		t.Fatalf("READ: %v %q, want %q", got.Errno, got.Body, "one")
	}
	unmount(t, v, "/rafs/c1")
	if got := c.Read(e.Node, 0, 100); got.Errno != syscall.ESTALE {
		t.Errorf("READ after the unmount: %v, want ESTALE", got.Errno)
	}
	if _, r := c.Lookup(fuseproto.RootID, "rafs"); r.Errno != syscall.ENOENT {
		t.Errorf("LOOKUP of the emptied directory: %v, want ENOENT", r.Errno)
	}
	if got := names(c.List(fuseproto.RootID, 4096, false)); got != ". .." {
		t.Errorf("root has %q, want . and ..", got)
	}
	// What the guest still holds of it is given back without harm.
	c.Call(fuseproto.OpForget, e.Node, 0, uint64(1))
	for _, op := range []fuseproto.Opcode{fuseproto.OpRelease, fuseproto.OpFlush, fuseproto.OpReleaseDir} {
		if r := c.Call(op, e.Node, 0, make([]byte, 24)); r.Errno != 0 {
			t.Errorf("%v of a removed mount: %v, want success", op, r.Errno)
		}
	}
}

// What is mounted may change at any time, so no name on the way there lasts; but the
// guest may keep attributes, or it asks for those of its root at every path it walks.
func TestNoNameOfAMountIsCached(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/rafs/c1", image("one"))

	dir, _ := walk(c, "/rafs")
	root, _ := walk(c, "/rafs/c1")
	etc, _ := walk(c, "/rafs/c1/etc")
	for name, tt := range map[string]struct {
		e          fusetest.Entry
		name, attr uint64
	}{
		"pseudo directory":      {dir, 0, 1},
		"root of a mount":       {root, 0, 1},
		"inside of a mount":     {etc, fuseproto.Forever.Sec, fuseproto.Forever.Sec},
		"root seen from inside": {lookup(t, c, etc.Node, ".."), 0, 1},
		"dot of the root":       {lookup(t, c, root.Node, "."), 0, 1},
		"dot of the pseudo":     {lookup(t, c, dir.Node, "."), 0, 1},
		"dot dot of the pseudo": {lookup(t, c, dir.Node, ".."), 0, 1},
	} {
		if tt.e.ValidSec != tt.name || tt.e.AttrValidSec != tt.attr {
			t.Errorf("%s: entry %d s, attr %d s, want %d s and %d s", name, tt.e.ValidSec, tt.e.AttrValidSec, tt.name, tt.attr)
		}
		a, r := c.GetAttr(tt.e.Node)
		if r.Errno != 0 || a.ValidSec != tt.attr {
			t.Errorf("%s: GETATTR %v, %d s, want %d s", name, r.Errno, a.ValidSec, tt.attr)
		}
		if a.Ino != tt.e.Attr.Ino {
			t.Errorf("%s: ino %#x by GETATTR, %#x by LOOKUP", name, a.Ino, tt.e.Attr.Ino)
		}
	}
	for name, tt := range map[string]struct{ node, flags uint64 }{
		"pseudo directory": {dir.Node, 0},
		"root of a mount":  {root.Node, cacheBits},
		"root of the tree": {1, 0},
	} {
		r := c.Call(fuseproto.OpOpenDir, tt.node, 16, uint64(0))
		if r.Errno != 0 || uint64(r.Body[8]) != tt.flags {
			t.Errorf("OPENDIR of %s: %v, flags %#x, want %#x", name, r.Errno, r.Body[8], tt.flags)
		}
	}
	if e, r := c.Lookup(root.Node, "absent"); r.Errno != 0 || e.Node != 0 || e.ValidSec == 0 {
		t.Errorf("absent name inside a mount: %v %+v, want a negative entry that lasts", r.Errno, e)
	}
}

func lookup(t *testing.T, c *fusetest.Client, dir uint64, name string) fusetest.Entry {
	t.Helper()
	e, r := c.Lookup(dir, name)
	if r.Errno != 0 || e.Node == 0 {
		t.Fatalf("LOOKUP(%#x, %s): %v, node %d", dir, name, r.Errno, e.Node)
	}
	return e
}

func TestNodesOfMounts(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	one := mount(t, v, "/a/one", image("one"))
	two := mount(t, v, "/a/two", image("two"))
	for _, info := range []vfs.MountInfo{one, two} {
		root, _ := walk(c, info.Path)
		if want := uint64(info.ID)<<indexBits | 36; root.Node != want || root.Attr.Ino != want {
			t.Errorf("root of %s: node %#x, ino %#x, want %#x", info.Path, root.Node, root.Attr.Ino, want)
		}
		host, _ := walk(c, info.Path+"/etc/hostname")
		if want := uint64(info.ID)<<indexBits | 38; host.Node != want || host.Attr.Ino != want {
			t.Errorf("file of %s: node %#x, ino %#x, want %#x", info.Path, host.Node, host.Attr.Ino, want)
		}
		parent := lookup(t, c, root.Node, "..")
		if a, _ := walk(c, "/a"); parent.Node != a.Node || parent.Attr.Ino != a.Attr.Ino {
			t.Errorf("parent of %s: node %#x, want %#x", info.Path, parent.Node, a.Node)
		}
		for _, plus := range []bool{false, true} {
			for _, d := range c.List(root.Node, 4096, plus) {
				switch {
				case d.Name == ".." && d.Ino != parent.Attr.Ino:
					t.Errorf("ino of ..: %#x, want %#x", d.Ino, parent.Attr.Ino)
				case d.Name != ".." && d.Ino>>indexBits != uint64(info.ID):
					t.Errorf("ino of %s: %#x, want one of mount %d", d.Name, d.Ino, info.ID)
				case plus && d.Name != "." && d.Name != ".." && (d.Entry.Node != d.Ino || d.Entry.Attr.Ino != d.Ino):
					t.Errorf("%s: node %#x, attr.ino %#x, ino %#x", d.Name, d.Entry.Node, d.Entry.Attr.Ino, d.Ino)
				case plus && (d.Name == "." || d.Name == "..") && d.Entry.Node != 0:
					t.Errorf("%s has node %#x, want 0", d.Name, d.Entry.Node)
				}
			}
		}
	}
	if two.ID == one.ID {
		t.Errorf("both mounts have id %d", one.ID)
	}
	for node, want := range map[uint64]syscall.Errno{
		0:                       syscall.ESTALE,
		2:                       syscall.ESTALE,
		uint64(77) << indexBits: syscall.ESTALE,
		math.MaxUint64:          syscall.ESTALE,
		1<<indexBits | 1:        syscall.ESTALE,
		uint64(1<<20-1) << 44:   syscall.ESTALE,
	} {
		if _, r := c.GetAttr(node); r.Errno != want {
			t.Errorf("GETATTR of node %#x: %v, want %v", node, r.Errno, want)
		}
	}
}

func TestImageAtRoot(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	top := image("top")
	info := mount(t, v, "/", top)
	base := uint64(info.ID) << indexBits

	etc := lookup(t, c, fuseproto.RootID, "etc")
	for _, e := range []fusetest.Entry{
		lookup(t, c, fuseproto.RootID, "."), lookup(t, c, fuseproto.RootID, ".."), lookup(t, c, etc.Node, ".."),
	} {
		if e.Node != fuseproto.RootID || e.Attr.Ino != base|36 {
			t.Errorf("root by name: node %#x ino %#x, want 1 and %#x", e.Node, e.Attr.Ino, base|36)
		}
	}
	if a, _ := c.GetAttr(fuseproto.RootID); a.Ino != base|36 || a.ValidSec != 1 {
		t.Errorf("root: ino %#x for %d s, want %#x for 1 s", a.Ino, a.ValidSec, base|36)
	}
	if _, r := c.Lookup(fuseproto.RootID, "absent"); r.Errno != syscall.ENOENT {
		t.Errorf("absent name in a root that may change: %v, want ENOENT", r.Errno)
	}

	mount(t, v, "/run/c1", image("one"))
	if _, err := v.Mount(t.Context(), "/etc/c2", image("two"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrExists) {
		t.Errorf("Mount over a name of the image: %v, want ErrExists", err)
	}
	if _, err := v.Mount(t.Context(), "/", image("two"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrExists) {
		t.Errorf("second Mount at /: %v, want ErrExists", err)
	}
	if e, errno := walk(c, "/run/c1/etc/hostname"); errno != 0 {
		t.Errorf("walk into what is laid over: %v", errno)
	} else if r := c.Read(e.Node, 0, 9); string(r.Body) != "one" {
		t.Errorf("READ: %q", r.Body)
	}
	run := lookup(t, c, fuseproto.RootID, "run")
	if up := lookup(t, c, run.Node, ".."); up.Node != fuseproto.RootID || up.Attr.Ino != base|36 {
		t.Errorf("parent of what is laid over: node %#x ino %#x", up.Node, up.Attr.Ino)
	}
	for _, plus := range []bool{false, true} {
		for _, size := range []uint32{200, 4096} {
			if got := names(c.List(fuseproto.RootID, size, plus)); got != ". .. etc bin run" {
				t.Errorf("listing (plus %v, size %d): %q", plus, size, got)
			}
		}
	}
	if r := c.Call(fuseproto.OpOpenDir, fuseproto.RootID, 16, uint64(0)); r.Body[8] != 0 {
		t.Errorf("OPENDIR of the root: flags %#x, want 0", r.Body[8])
	}
	if r := c.Call(fuseproto.OpMkdir, fuseproto.RootID, 128, uint32(0o755), uint32(0), "run"); r.Errno != syscall.EEXIST {
		t.Errorf("MKDIR of what is laid over: %v, want EEXIST", r.Errno)
	}
	if r := c.Call(fuseproto.OpRmdir, fuseproto.RootID, 0, "run"); r.Errno != syscall.EBUSY {
		t.Errorf("RMDIR of what is laid over: %v, want EBUSY", r.Errno)
	}

	unmount(t, v, "/")
	if _, r := c.Lookup(etc.Node, "hostname"); r.Errno != syscall.ESTALE {
		t.Errorf("LOOKUP in the removed image: %v, want ESTALE", r.Errno)
	}
	if got := names(c.List(fuseproto.RootID, 4096, true)); got != ". .. run" {
		t.Errorf("root after the unmount: %q", got)
	}
	if _, err := v.Mount(t.Context(), "/", withName("run"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrExists) {
		t.Errorf("Mount at / of an image that has a mount's name: %v, want ErrExists", err)
	}
}

func withName(name string) *fusetest.Tree {
	t := fusetest.NewTree(1)
	t.Dir(1, name)
	return t
}

func TestMountErrors(t *testing.T) {
	v, _ := guest(t, fuseproto.Config{})
	mount(t, v, "//a//b/c/", image("one"))
	for path, want := range map[string]error{
		"":                                   vfs.ErrPath,
		"a":                                  vfs.ErrPath,
		"/a/../b":                            vfs.ErrPath,
		"/./b":                               vfs.ErrPath,
		"/a\x00":                             vfs.ErrPath,
		"/" + strings.Repeat("x", 256):       vfs.ErrPath,
		strings.Repeat("/xxxxxxxxxxxx", 400): vfs.ErrPath,
		"/a":                                 vfs.ErrExists,
		"/a/b":                               vfs.ErrExists,
		"/a/b/c":                             vfs.ErrExists,
		"/a/b/c/d":                           vfs.ErrExists,
	} {
		if _, err := v.Mount(t.Context(), path, image("two"), vfs.MountOptions{}); !errors.Is(err, want) {
			t.Errorf("Mount(%.20q): %v, want %v", path, err, want)
		}
	}
	for path, want := range map[string]error{
		"x": vfs.ErrPath, "/": vfs.ErrNotMounted, "/a": vfs.ErrNotMounted, "/a/b/c/d": vfs.ErrNotMounted,
	} {
		if _, err := v.Unmount(path); !errors.Is(err, want) {
			t.Errorf("Unmount(%q): %v, want %v", path, err, want)
		}
	}
	if _, err := v.Mount(t.Context(), "/z", fusetest.NewTree(1<<indexBits), vfs.MountOptions{}); err == nil {
		t.Error("Mount of a root of 45 bits succeeded")
	}
	list := v.List()
	if len(list) != 1 || list[0].Path != "/a/b/c" {
		t.Errorf("List() = %+v, want /a/b/c alone", list)
	}
}

func TestMountIDsAreNeverUsedTwice(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	var nodes []uint64
	for i := range 300 {
		info := mount(t, v, "/m", image("x"))
		if int(info.ID) != i+1 {
			t.Fatalf("mount %d has id %d", i+1, info.ID)
		}
		e, _ := walk(c, "/m/etc")
		nodes = append(nodes, e.Node)
		unmount(t, v, "/m")
	}
	for _, node := range nodes {
		if _, r := c.GetAttr(node); r.Errno != syscall.ESTALE {
			t.Fatalf("node %#x: %v, want ESTALE", node, r.Errno)
		}
	}
}

func TestMountIDsAreExhausted(t *testing.T) {
	v := vfs.New(1<<20 - 2)
	defer v.Close()
	info := mount(t, v, "/last", image("x"))
	if info.ID != 1<<20-1 {
		t.Errorf("last id is %d", info.ID)
	}
	if _, err := v.Mount(t.Context(), "/more", image("x"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrExhausted) {
		t.Errorf("Mount behind the last id: %v, want ErrExhausted", err)
	}
	if _, err := v.Unmount("/last"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Mount(t.Context(), "/more", image("x"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrExhausted) {
		t.Errorf("Mount after the unmount: %v, want ErrExhausted", err)
	}
}

// F28: a process that takes over mounts with the ids of the old one and shows
// the same nodes, pseudo directories included.
func TestF28_NodesAreStableOverARestart(t *testing.T) {
	show := func(v *vfs.FS, opts map[string]uint32) map[string]uint64 {
		s, err := fuseproto.NewServer(v, fuseproto.Config{})
		if err != nil {
			t.Fatal(err)
		}
		c := fusetest.NewClient(t, s)
		c.Init()
		for path, id := range opts {
			if _, err := v.Mount(t.Context(), path, image("x"), vfs.MountOptions{ID: id}); err != nil {
				t.Fatal(err)
			}
		}
		nodes := make(map[string]uint64)
		for _, path := range []string{"/rafs", "/rafs/deep", "/rafs/deep/two", "/rafs/one/etc/hostname", "/rafs/deep/two/bin"} {
			e, errno := walk(c, path)
			if errno != 0 {
				t.Fatalf("walk(%s): %v", path, errno)
			}
			nodes[path] = e.Node
		}
		return nodes
	}
	old, fresh := vfs.New(0), vfs.New(9)
	defer old.Close()
	defer fresh.Close()
	want := show(old, map[string]uint32{"/rafs/one": 4, "/rafs/deep/two": 9})
	got := show(fresh, map[string]uint32{"/rafs/deep/two": 9, "/rafs/one": 4})
	for path, node := range want {
		if got[path] != node {
			t.Errorf("%s: node %#x, was %#x", path, got[path], node)
		}
	}
	if old.LastID() != 9 || fresh.LastID() != 9 {
		t.Errorf("last ids %d and %d, want 9", old.LastID(), fresh.LastID())
	}
	if _, err := fresh.Mount(t.Context(), "/again", image("x"), vfs.MountOptions{ID: 4}); !errors.Is(err, vfs.ErrExists) {
		t.Errorf("Mount with an id in use: %v, want ErrExists", err)
	}
}

func TestRemount(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	old := image("old")
	mount(t, v, "/m", old)
	file, _ := walk(c, "/m/etc/hostname")

	same := image("same")
	_, done, err := v.Remount(t.Context(), "/m", same, true, vfs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-done
	if !old.Closed.Load() {
		t.Error("what was there before is not closed")
	}
	if r := c.Read(file.Node, 0, 9); string(r.Body) != "same" {
		t.Errorf("READ of a node that stays: %v %q, want %q", r.Errno, r.Body, "same")
	}
	info, done, err := v.Remount(t.Context(), "/m", image("new"), false, vfs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-done
	if r := c.Read(file.Node, 0, 9); r.Errno != syscall.ESTALE {
		t.Errorf("READ of a node of another image: %v, want ESTALE", r.Errno)
	}
	if e, _ := walk(c, "/m/etc/hostname"); e.Node>>indexBits != uint64(info.ID) {
		t.Errorf("node %#x, want one of mount %d", e.Node, info.ID)
	} else if r := c.Read(e.Node, 0, 9); string(r.Body) != "new" {
		t.Errorf("READ: %q, want new", r.Body)
	}
	if _, _, err := v.Remount(t.Context(), "/n", image("x"), true, vfs.MountOptions{}); !errors.Is(err, vfs.ErrNotMounted) {
		t.Errorf("Remount of nothing: %v, want ErrNotMounted", err)
	}
	if same.Inits.Load() != 1 || same.Destroys.Load() != 1 {
		t.Errorf("Init %d times, Destroy %d times, want 1 and 1", same.Inits.Load(), same.Destroys.Load())
	}
}

func TestRemountAtRoot(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/", image("old"))
	mount(t, v, "/run", image("one"))
	if _, _, err := v.Remount(t.Context(), "/", withName("run"), false, vfs.MountOptions{}); !errors.Is(err, vfs.ErrExists) {
		t.Fatalf("Remount of an image with the name of a mount: %v, want ErrExists", err)
	}
	_, done, err := v.Remount(t.Context(), "/", withName("new"), false, vfs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-done
	if got := names(c.List(fuseproto.RootID, 4096, false)); got != ". .. new run" {
		t.Errorf("root: %q", got)
	}
}

// A file system is closed when the last request has left it, not before; new
// requests do not find it meanwhile.
func TestCloseWaitsForTheLastRequest(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	tree := image("one")
	entered, release := make(chan struct{}), make(chan struct{})
	tree.MustBlock = func(op *fuseproto.Op) bool { return op.Opcode == fuseproto.OpRead }
	tree.Wait = func(*fuseproto.Op) error { close(entered); <-release; return nil }
	stopped := make(chan struct{})
	if _, err := v.Mount(t.Context(), "/m", tree, vfs.MountOptions{Stop: func() { close(stopped) }}); err != nil {
		t.Fatal(err)
	}
	e, _ := walk(c, "/m/etc/hostname")

	var wg sync.WaitGroup
	wg.Go(func() {
		reader := fusetest.NewClient(t, c.Server)
		if r := reader.Read(e.Node, 0, 9); string(r.Body) != "one" {
			t.Errorf("READ that began before the unmount: %v %q", r.Errno, r.Body)
		}
	})
	<-entered
	done, err := v.Unmount("/m")
	if err != nil {
		t.Fatal(err)
	}
	<-stopped
	if _, r := c.GetAttr(e.Node); r.Errno != syscall.ESTALE {
		t.Errorf("GETATTR after the unmount: %v, want ESTALE", r.Errno)
	}
	select {
	case <-done:
		t.Error("closed with a request in it")
	default:
	}
	if tree.Closed.Load() {
		t.Error("closed with a request in it")
	}
	close(release)
	wg.Wait()
	<-done
	if !tree.Closed.Load() {
		t.Error("not closed after the last request")
	}
}

// A panic in a mount is one request's; the mount can still be unmounted.
func TestPanicDoesNotHoldTheMount(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	tree := image("one")
	tree.Fail = func(op *fuseproto.Op) error {
		if op.Opcode == fuseproto.OpStatFS || op.Opcode == fuseproto.OpReadlink {
			panic("planted")
		}
		return nil
	}
	mount(t, v, "/m", tree)
	root, _ := walk(c, "/m")
	if r := c.Call(fuseproto.OpReadlink, root.Node, 100); r.Errno != syscall.EIO {
		t.Errorf("request that panics: %v, want EIO", r.Errno)
	}
	unmount(t, v, "/m")
}

func TestStaticMountAtRoot(t *testing.T) {
	v := vfs.New(0)
	defer v.Close()
	if _, err := v.Mount(t.Context(), "/x", image("x"), vfs.MountOptions{Static: true}); !errors.Is(err, vfs.ErrStatic) {
		t.Errorf("static Mount elsewhere: %v, want ErrStatic", err)
	}
	if _, err := v.Mount(t.Context(), "/", image("one"), vfs.MountOptions{Static: true}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"Mount":   func() error { _, err := v.Mount(t.Context(), "/m", image("x"), vfs.MountOptions{}); return err },
		"Unmount": func() error { _, err := v.Unmount("/"); return err },
		"Remount": func() error {
			_, _, err := v.Remount(t.Context(), "/", image("x"), true, vfs.MountOptions{})
			return err
		},
	} {
		if err := change(); !errors.Is(err, vfs.ErrStatic) {
			t.Errorf("%s: %v, want ErrStatic", name, err)
		}
	}
	for name, tt := range map[string]struct {
		zero bool
		want syscall.Errno
	}{"with": {true, syscall.ENOSYS}, "without": {false, 0}} {
		t.Run(name+" opens of no message", func(t *testing.T) {
			s, err := fuseproto.NewServer(v, fuseproto.Config{ZeroMessageOpen: tt.zero})
			if err != nil {
				t.Fatal(err)
			}
			c := fusetest.NewClient(t, s)
			c.Init()
			e, _ := walk(c, "/etc/hostname")
			for op, node := range map[fuseproto.Opcode]uint64{fuseproto.OpOpen: e.Node, fuseproto.OpOpenDir: 1} {
				if r := c.Call(op, node, 16, uint64(0)); r.Errno != tt.want {
					t.Errorf("%v: %v, want %v", op, r.Errno, tt.want)
				}
			}
			if r := c.Call(fuseproto.OpOpen, e.Node, 16, uint32(fuseproto.OpenReadWrite), uint32(0)); r.Errno != syscall.EROFS {
				t.Errorf("OPEN to write: %v, want EROFS", r.Errno)
			}
			if r := c.Call(fuseproto.OpFlush, e.Node, 0, make([]byte, 24)); r.Errno != tt.want {
				t.Errorf("FLUSH: %v, want %v", r.Errno, tt.want)
			}
			// F20
			if r := c.Read(e.Node, 0, 9); string(r.Body) != "one" {
				t.Errorf("READ without OPEN: %v %q", r.Errno, r.Body)
			}
			if e, r := c.Lookup(1, "absent"); r.Errno != 0 || e.Node != 0 || e.ValidSec == 0 {
				t.Errorf("absent name of a root that never changes: %v %+v, want a lasting negative entry", r.Errno, e)
			}
			if a, _ := c.GetAttr(1); a.ValidSec == 0 {
				t.Error("the root's attributes are not to be kept")
			}
		})
	}
}

// F22: what one mount does not have is not switched off for the others.
func TestF22_NoENOSYSThatSticks(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	full, poor := image("full"), image("poor")
	full.Xattr(38, "user.a", "value")
	poor.Fail = func(op *fuseproto.Op) error {
		switch op.Opcode {
		case fuseproto.OpGetXattr, fuseproto.OpListXattr:
			return syscall.ENOSYS
		}
		return nil
	}
	mount(t, v, "/full", full)
	mount(t, v, "/poor", poor)
	p, _ := walk(c, "/poor/etc/hostname")
	if r := c.Call(fuseproto.OpGetXattr, p.Node, 8, uint64(0), "user.a"); r.Errno != syscall.EOPNOTSUPP {
		t.Errorf("GETXATTR: %v, want EOPNOTSUPP", r.Errno)
	}
	if r := c.Call(fuseproto.OpListXattr, p.Node, 8, uint64(0)); r.Errno != syscall.EOPNOTSUPP {
		t.Errorf("LISTXATTR: %v, want EOPNOTSUPP", r.Errno)
	}
	dir, _ := walk(c, "/full")
	for _, node := range []uint64{1, dir.Node} {
		if r := c.Call(fuseproto.OpGetXattr, node, 8, uint64(0), "user.a"); r.Errno != syscall.ENODATA {
			t.Errorf("GETXATTR of %#x: %v, want ENODATA", node, r.Errno)
		}
	}
	f, _ := walk(c, "/full/etc/hostname")
	if r := c.Call(fuseproto.OpGetXattr, f.Node, 99, uint64(99), "user.a"); string(r.Body) != "value" {
		t.Errorf("GETXATTR: %v %q", r.Errno, r.Body)
	}
}

func TestBetweenMounts(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/a", image("a"))
	mount(t, v, "/b", image("b"))
	a, _ := walk(c, "/a")
	b, _ := walk(c, "/b")
	fa, _ := walk(c, "/a/etc/hostname")
	gone := uint64(99)<<indexBits | 1
	for name, tt := range map[string]struct {
		op    fuseproto.Opcode
		node  uint64
		parts []any
		want  syscall.Errno
	}{
		"rename":              {fuseproto.OpRename2, a.Node, []any{b.Node, uint64(0), "etc", "x"}, syscall.EXDEV},
		"old rename":          {fuseproto.OpRename, a.Node, []any{b.Node, "etc", "x"}, syscall.EXDEV},
		"rename to a pseudo":  {fuseproto.OpRename, a.Node, []any{uint64(1), "etc", "x"}, syscall.EXDEV},
		"rename inside":       {fuseproto.OpRename, a.Node, []any{a.Node, "etc", "x"}, syscall.EROFS},
		"rename to the gone":  {fuseproto.OpRename, a.Node, []any{gone, "etc", "x"}, syscall.ESTALE},
		"link":                {fuseproto.OpLink, b.Node, []any{fa.Node, "x"}, syscall.EXDEV},
		"link inside":         {fuseproto.OpLink, a.Node, []any{fa.Node, "x"}, syscall.EROFS},
		"copy":                {fuseproto.OpCopyFileRange, fa.Node, []any{uint64(0), uint64(0), b.Node, uint64(0), uint64(0), uint64(9), uint64(0)}, syscall.EXDEV},
		"copy inside":         {fuseproto.OpCopyFileRange, fa.Node, []any{uint64(0), uint64(0), fa.Node, uint64(0), uint64(0), uint64(9), uint64(0)}, syscall.EROFS},
		"mkdir in the pseudo": {fuseproto.OpMkdir, 1, []any{uint32(0), uint32(0), "x"}, syscall.EROFS},
	} {
		if r := c.Call(tt.op, tt.node, 144, tt.parts...); r.Errno != tt.want {
			t.Errorf("%s: %v, want %v", name, r.Errno, tt.want)
		}
	}
}

func TestPseudoDirectory(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/a", image("a"))
	r := c.Call(fuseproto.OpStatFS, 1, 80)
	if r.Errno != 0 || len(r.Body) != 80 {
		t.Errorf("STATFS: %v, %d bytes", r.Errno, len(r.Body))
	}
	if r := c.Call(fuseproto.OpSyncFS, 1, 0, uint64(0)); r.Errno != 0 {
		t.Errorf("SYNCFS: %v", r.Errno)
	}
	if a, _ := c.GetAttr(1); a.Mode != syscall.S_IFDIR|0o755 || a.Ino != 1 || a.Nlink != 3 {
		t.Errorf("root: %+v", a)
	}
	if r := c.Call(fuseproto.OpOpen, 1, 16, uint64(0)); r.Errno != syscall.EISDIR {
		t.Errorf("OPEN: %v, want EISDIR", r.Errno)
	}
	if r := c.Read(1, 0, 100); r.Errno != syscall.EISDIR {
		t.Errorf("READ: %v, want EISDIR", r.Errno)
	}
	if r := c.Call(fuseproto.OpReadlink, 1, 100); r.Errno != syscall.EINVAL {
		t.Errorf("READLINK: %v, want EINVAL", r.Errno)
	}
	for _, d := range c.List(1, 4096, true) {
		if d.Entry.Node != 0 || d.Type != fuseproto.DTDir {
			t.Errorf("%s: node %#x type %d, want 0 and a directory", d.Name, d.Entry.Node, d.Type)
		}
	}
	if _, r := c.ReadDir(1, math.MaxUint64, 4096, false); r.Errno != 0 || len(r.Body) != 0 {
		t.Errorf("listing behind the end: %v, %d bytes", r.Errno, len(r.Body))
	}
}

// A listing goes on where it was although names come and go.
func TestListingWhileMountsComeAndGo(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	for i := range 20 {
		mount(t, v, fmt.Sprintf("/m%02d", i), image("x"))
	}
	seen := make(map[string]int)
	for off, round := uint64(0), 0; ; round++ {
		list, _ := c.ReadDir(1, off, 200, false)
		if len(list) == 0 {
			break
		}
		for _, d := range list {
			seen[d.Name]++
			off = d.Off
		}
		if round == 1 {
			unmount(t, v, "/m00") // already listed
			unmount(t, v, "/m19") // not yet
			mount(t, v, "/late", image("x"))
		}
	}
	for i := 1; i < 19; i++ {
		if name := fmt.Sprintf("m%02d", i); seen[name] != 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
	if seen["m19"] != 0 || seen["late"] != 1 {
		t.Errorf("m19 listed %d times, late %d times, want 0 and 1", seen["m19"], seen["late"])
	}
}

func TestSessionOfMounts(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	early := image("early")
	mount(t, v, "/early", early)
	if early.Inits.Load() != 1 || early.Flags.Load() == 0 {
		t.Errorf("a mount into a session: Init %d times, flags %#x", early.Inits.Load(), early.Flags.Load())
	}
	c.Call(fuseproto.OpDestroy, 0, 0)
	if early.Destroys.Load() != 1 {
		t.Errorf("Destroy %d times, want 1", early.Destroys.Load())
	}
	late := image("late")
	mount(t, v, "/late", late)
	if late.Inits.Load() != 0 {
		t.Error("Init without a session")
	}
	c.Init()
	if early.Inits.Load() != 2 || late.Inits.Load() != 1 {
		t.Errorf("Init %d and %d times, want 2 and 1", early.Inits.Load(), late.Inits.Load())
	}
}

// Requests go on while a thousand mounts come and go beside them.
func TestManyMountsUnderLoad(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/stay", image("stay"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			g := fusetest.NewClient(t, c.Server)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				e, errno := walk(g, "/stay/etc/hostname")
				if errno != 0 {
					t.Errorf("walk: %v", errno)
					return
				}
				if r := g.Read(e.Node, 0, 9); string(r.Body) != "stay" {
					t.Errorf("READ: %v %q", r.Errno, r.Body)
					return
				}
				// Others answer the right content, or that they are gone.
				e, errno = walk(g, fmt.Sprintf("/many/d/%d/etc/hostname", i%7))
				if errno == 0 {
					if r := g.Read(e.Node, 0, 9); r.Errno != syscall.ESTALE && string(r.Body) != "many" {
						t.Errorf("READ: %v %q", r.Errno, r.Body)
						return
					}
				} else if errno != syscall.ENOENT && errno != syscall.ESTALE {
					t.Errorf("walk: %v", errno)
					return
				}
			}
		})
	}
	var trees []*fusetest.Tree
	var closed []<-chan error
	for round := range 10 {
		for i := range 100 {
			tree := image("many")
			trees = append(trees, tree)
			mount(t, v, fmt.Sprintf("/many/d/%d", i), tree)
		}
		if n := len(v.List()); n != 101 {
			t.Errorf("round %d: %d mounts, want 101", round, n)
		}
		for i := range 100 {
			done, err := v.Unmount(fmt.Sprintf("/many/d/%d", i))
			if err != nil {
				t.Fatal(err)
			}
			closed = append(closed, done)
		}
	}
	for _, done := range closed {
		<-done
	}
	close(stop)
	wg.Wait()
	for i, tree := range trees {
		if !tree.Closed.Load() {
			t.Fatalf("tree %d was not closed", i)
		}
	}
	if n := c.Server.Counters().InFlight; n != 0 {
		t.Errorf("%d requests in flight after all have ended", n)
	}
}

func TestThousandMounts(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	for i := range 1000 {
		mount(t, v, fmt.Sprintf("/rafs/%d/lowerdir", i), image(fmt.Sprint(i)))
	}
	e, errno := walk(c, "/rafs/777/lowerdir/etc/hostname")
	if errno != 0 {
		t.Fatal(errno)
	}
	if r := c.Read(e.Node, 0, 9); string(r.Body) != "777" {
		t.Errorf("READ: %q, want 777", r.Body)
	}
	dir, _ := walk(c, "/rafs")
	if n := len(c.List(dir.Node, 4096, true)); n != 1002 {
		t.Errorf("%d names, want 1002", n)
	}
}

func TestClosedTree(t *testing.T) {
	v := vfs.New(0)
	tree := image("x")
	mount(t, v, "/m", tree)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if !tree.Closed.Load() {
		t.Error("Close left a mount open")
	}
	if _, err := v.Mount(t.Context(), "/m", image("x"), vfs.MountOptions{}); !errors.Is(err, vfs.ErrClosed) {
		t.Errorf("Mount: %v, want ErrClosed", err)
	}
}

// Every request on a node of a mount reaches the mount's method with the index,
// and what it answers is turned into node ids.
func TestEveryRequestReachesTheMount(t *testing.T) {
	for _, path := range []string{"/a/b", "/"} {
		v, c := guest(t, fuseproto.Config{Flags: math.MaxUint64 &^ fuseproto.FlagSetXattrExt})
		r := &fusetest.Recorder{
			RootIndex: 36, Data: []byte("data"), Count: 5,
			Entry: fuseproto.Entry{
				Node: 41, EntryTimeout: fuseproto.Forever, AttrTimeout: fuseproto.Forever,
				Attr: fuseproto.Attr{Ino: 41, Flags: fuseproto.AttrSubmount},
			},
		}
		base := uint64(mount(t, v, path, r).ID) << indexBits
		r.Take()
		for _, call := range fusetest.Calls() {
			reply := c.Call(call.Opcode, base|40, call.Room, call.Request(base|40)...)
			if got := strings.Join(r.Take(), "; "); reply.Errno != 0 || got != call.Want {
				t.Errorf("%s: %v: %v, called %q, want %q", path, call.Opcode, reply.Errno, got, call.Want)
				continue
			}
			switch {
			case call.Entry:
				e := fusetest.DecodeEntry(t, reply.Body[:128])
				if e.Node != base|41 || e.Attr.Ino != base|41 || e.ValidSec != 1<<32 || e.AttrValidSec != 1<<32 || e.Attr.Flags != 0 {
					t.Errorf("%s: %v: entry %+v", path, call.Opcode, e)
				}
			case call.Opcode == fuseproto.OpGetAttr || call.Opcode == fuseproto.OpSetAttr:
				if ino := le.Uint64(reply.Body[16:]); ino != base|41 {
					t.Errorf("%s: %v: ino %#x, want %#x", path, call.Opcode, ino, base|41)
				}
			case call.Opcode == fuseproto.OpReadDirPlus:
				if d := fusetest.DecodeDirents(t, reply.Body, true)[0]; d.Entry.Node != base|41 || d.Ino != base|41 {
					t.Errorf("%s: %v: %+v", path, call.Opcode, d)
				}
			}
		}
		// The root of the session stands for all mounts when it is synced.
		c.Call(fuseproto.OpSyncFS, 1, 0, uint64(0))
		if got := r.Take(); len(got) == 0 || got[0] != "SyncFS 36" {
			t.Errorf("%s: SYNCFS of the root: called %q", path, got)
		}
		// Roots are not forgotten.
		c.Call(fuseproto.OpForget, base|36, 0, uint64(1))
		c.Call(fuseproto.OpForget, 1, 0, uint64(1))
		if got := r.Take(); len(got) != 0 {
			t.Errorf("%s: FORGET of the root: called %q", path, got)
		}
		// And none of it reaches a mount that is gone.
		unmount(t, v, path)
		r.Take()
		for _, call := range fusetest.Calls() {
			reply := c.Call(call.Opcode, base|40, call.Room, call.Request(base|40)...)
			want := syscall.ESTALE
			switch call.Opcode {
			case fuseproto.OpForget, fuseproto.OpFlush, fuseproto.OpRelease, fuseproto.OpReleaseDir:
				want = 0
			}
			if got := r.Take(); reply.Errno != want || len(got) != 0 {
				t.Errorf("%s: %v after the unmount: %v, called %q, want %v", path, call.Opcode, reply.Errno, got, want)
			}
		}
	}
}

// Where another file system begins is told if the mount wants it, and never of the
// mount itself.
func TestSubmounts(t *testing.T) {
	for _, want := range []bool{false, true} {
		v, c := guest(t, fuseproto.Config{Flags: fuseproto.FlagsShared | fuseproto.FlagSubmounts})
		r := &fusetest.Recorder{RootIndex: 36, Entry: fuseproto.Entry{
			Node: 41, Attr: fuseproto.Attr{Ino: 41, Mode: syscall.S_IFDIR | 0o755, Flags: fuseproto.AttrSubmount},
		}}
		info, err := v.Mount(t.Context(), "/m", r, vfs.MountOptions{Submounts: want})
		if err != nil {
			t.Fatal(err)
		}
		base := uint64(info.ID) << indexBits
		if e, _ := c.Lookup(base|36, "sub"); e.Attr.Flags&fuseproto.AttrSubmount != 0 != want {
			t.Errorf("submounts %v: LOOKUP has flags %#x", want, e.Attr.Flags)
		}
		if list, _ := c.ReadDir(base|36, 0, 4096, true); list[0].Entry.Attr.Flags&fuseproto.AttrSubmount != 0 != want {
			t.Errorf("submounts %v: READDIRPLUS has flags %#x", want, list[0].Entry.Attr.Flags)
		}
		r.Entry.Node = 36
		for _, name := range []string{"m", "."} {
			dir := uint64(1)
			if name == "." {
				dir = base | 36
			}
			if e, reply := c.Lookup(dir, name); reply.Errno != 0 || e.Attr.Flags != 0 {
				t.Errorf("submounts %v: the mount itself, as %q: %v, flags %#x", want, name, reply.Errno, e.Attr.Flags)
			}
		}
	}
}

// farCookies is a file system whose root has cookies as ext4's.
type farCookies struct {
	fusetest.Recorder
	n uint64
}

func (f *farCookies) ReadDir(_ *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	for i := in.Offset >> 40; i < f.n; i++ {
		e := fuseproto.DirEntry{Name: fmt.Appendf(nil, "name-%03d", i), Ino: i + 1, Off: (i + 1) << 40, Type: fuseproto.DTReg}
		if !out.Add(e) {
			break
		}
	}
	return nil
}

// What is laid over a root follows the root's own names, whatever cookies those have.
func TestOverlayBehindFarCookies(t *testing.T) {
	v, c := guest(t, fuseproto.Config{Flags: fuseproto.FlagsShared})
	mount(t, v, "/", &farCookies{Recorder: fusetest.Recorder{RootIndex: 36}, n: 50})
	for i := range 20 {
		mount(t, v, fmt.Sprintf("/over-%02d", i), &fusetest.Recorder{RootIndex: 36})
	}
	for _, size := range []uint32{100, 333, 4096} {
		var got []string
		for _, d := range c.List(1, size, false) {
			got = append(got, d.Name)
		}
		if len(got) != 70 || got[0] != "name-000" || got[49] != "name-049" || got[50] != "over-00" || got[69] != "over-19" {
			t.Errorf("listing by %d bytes: %d names: %v", size, len(got), got)
		}
	}
}

// An index that does not fit would name a node of another mount.
func TestIndexesThatDoNotFit(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	r := &fusetest.Recorder{RootIndex: 36, Entry: fuseproto.Entry{Node: 1 << indexBits}}
	base := uint64(mount(t, v, "/m", r).ID) << indexBits
	if _, reply := c.Lookup(base|40, "name"); reply.Errno != syscall.EIO {
		t.Errorf("LOOKUP: %v, want EIO", reply.Errno)
	}
	if list, _ := c.ReadDir(base|40, 0, 4096, true); len(list) != 1 || list[0].Entry.Node>>indexBits != 0 {
		t.Errorf("READDIRPLUS: %+v, want an entry without a node", list)
	}
}

// oneByOne lists one entry a request.
type oneByOne struct{ *fusetest.Tree }

func (o oneByOne) ReadDir(op *fuseproto.Op, index uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	buf := make([]byte, 32) // room for one short name
	one := fuseproto.NewDirWriter(buf, false)
	if err := o.Tree.ReadDir(op, index, in, one); err != nil || one.Len() == 0 {
		return err
	}
	n := le.Uint32(buf[16:])
	out.Add(fuseproto.DirEntry{Name: buf[24 : 24+n], Ino: le.Uint64(buf), Off: le.Uint64(buf[8:]), Type: buf[20]})
	return nil
}

// What is laid over a root follows its last entry, even if the file system gives
// less than there is room for.
func TestOverlayFollowsTheLastEntry(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	mount(t, v, "/", oneByOne{image("x")})
	mount(t, v, "/run/a", image("a"))
	mount(t, v, "/var", image("b"))
	if got := names(c.List(1, 4096, false)); got != ". .. etc bin run var" {
		t.Errorf("root: %q", got)
	}
}

func TestWhatIsLaidOverCannotBeChanged(t *testing.T) {
	v, c := guest(t, fuseproto.Config{})
	r := &fusetest.Recorder{RootIndex: 36}
	base := uint64(mount(t, v, "/", r).ID) << indexBits
	// The recorder says of every name that it is not there: see Entry.
	mount(t, v, "/run/a", image("a"))
	r.Take()
	for name, tt := range map[string]struct {
		op    fuseproto.Opcode
		parts []any
		want  syscall.Errno
	}{
		"rename it":    {fuseproto.OpRename, []any{uint64(1), "run", "x"}, syscall.EBUSY},
		"rename to it": {fuseproto.OpRename2, []any{base | 36, uint64(0), "x", "run"}, syscall.EBUSY},
		"link as it":   {fuseproto.OpLink, []any{base | 40, "run"}, syscall.EEXIST},
		"make it":      {fuseproto.OpMknod, []any{make([]byte, 16), "run"}, syscall.EEXIST},
		"create it":    {fuseproto.OpCreate, []any{make([]byte, 16), "run"}, syscall.EEXIST},
		"point from":   {fuseproto.OpSymlink, []any{"run", "x"}, syscall.EEXIST},
		"unlink it":    {fuseproto.OpUnlink, []any{"run"}, syscall.EISDIR},
		"remove it":    {fuseproto.OpRmdir, []any{"run"}, syscall.EBUSY},
		"other names":  {fuseproto.OpRename, []any{uint64(1), "x", "y"}, 0},
	} {
		if reply := c.Call(tt.op, 1, 144, tt.parts...); reply.Errno != tt.want {
			t.Errorf("%s: %v, want %v", name, reply.Errno, tt.want)
		}
	}
	if got := r.Take(); len(got) != 1 || got[0] != "Rename 36 x to 36 y flags 0" {
		t.Errorf("called %q, want the last alone", got)
	}
}
