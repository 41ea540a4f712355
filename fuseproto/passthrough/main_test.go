package passthrough_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/internal/hostfs"
)

var le = binary.LittleEndian

// inside says that the process is in a mount namespace of its own.
const inside = "RAFSD_TEST_OWN_MOUNTS"

// TestMain moves the whole test program to a mount namespace of its own, where
// that is allowed, so that tests may mount what they like.
func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		runtime.LockOSThread()
		if unix.Unshare(unix.CLONE_NEWNS) == nil &&
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") == nil {
			err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inside+"=1"))
			panic(err)
		}
		runtime.UnlockOSThread()
	}
	goleak.VerifyTestMain(m)
}

// mounts skips a test where nothing can be mounted.
func mounts(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root and CAP_SYS_ADMIN: tests of mounts did not run")
	}
}

// mount mounts something until the test ends.
func mount(t testing.TB, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s at %s: %v", source, target, err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) }) // some tests have done so
}

const overlayMagic = 0x794c7630

// source returns a fresh directory of the host. The tests mean nothing on an
// overlay: it has no handles and other inode numbers.
func source(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == overlayMagic {
		t.Fatalf("%s is on an overlay: set TMPDIR to a folder on ext4, xfs or tmpfs", dir)
	}
	return dir
}

// guest is a guest that has a session of an FS.
type guest struct {
	*fusetest.Client
	t   testing.TB
	fs  *passthrough.FS
	dir string
	srv *fuseproto.Server
}

func serve(t testing.TB, dir string, o passthrough.Options) *guest {
	t.Helper()
	root, err := hostfs.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := passthrough.New(root, o)
	if err != nil {
		root.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	srv, err := fuseproto.NewServer(fs, fuseproto.Config{Flags: o.SessionFlags()})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{newClient(t, srv), t, fs, dir, srv}
	g.Init()
	return g
}

func newClient(t testing.TB, srv *fuseproto.Server) *fusetest.Client {
	c := fusetest.NewClient(t, srv)
	c.Scribbles = true
	return c
}

// as sends a request with the ids of a caller.
func (g *guest) as(uid, gid uint32, opcode fuseproto.Opcode, node uint64, room int, parts ...any) fusetest.Reply {
	g.t.Helper()
	g.Unique += 2
	b := fusetest.Request(opcode, g.Unique, node, parts...)
	le.PutUint32(b[24:], uid)
	le.PutUint32(b[28:], gid)
	m := fusetest.NewMessage(b, 16+room)
	m.Slot = g.Slot
	return g.Send(m, g.Unique)
}

// root sends a request as the guest's root.
func (g *guest) root(opcode fuseproto.Opcode, node uint64, room int, parts ...any) fusetest.Reply {
	g.t.Helper()
	return g.as(0, 0, opcode, node, room, parts...)
}

func (g *guest) ok(r fusetest.Reply) fusetest.Reply {
	g.t.Helper()
	if r.Errno != 0 {
		g.t.Fatalf("errno %v", r.Errno)
	}
	return r
}

func (g *guest) want(r fusetest.Reply, errno syscall.Errno) {
	g.t.Helper()
	if r.Errno != errno {
		g.t.Errorf("errno %v, want %v", r.Errno, errno)
	}
}

// look looks up a path of names, one request each.
func (g *guest) look(names ...string) fusetest.Entry {
	g.t.Helper()
	node := fusetest.Entry{Node: 1}
	for _, name := range names {
		e, r := g.Lookup(node.Node, name)
		if r.Errno != 0 {
			g.t.Fatalf("LOOKUP %q: %v", name, r.Errno)
		}
		node = e
	}
	return node
}

func (g *guest) open(node uint64, flags uint32) uint64 {
	g.t.Helper()
	return le.Uint64(g.ok(g.root(fuseproto.OpOpen, node, 16, flags, uint32(0))).Body)
}

func (g *guest) opendir(node uint64) uint64 {
	g.t.Helper()
	return le.Uint64(g.ok(g.root(fuseproto.OpOpenDir, node, 16, uint32(unix.O_DIRECTORY), uint32(0))).Body)
}

func (g *guest) create(dir uint64, name string, flags, mode uint32) (fusetest.Entry, uint64) {
	g.t.Helper()
	r := g.ok(g.root(fuseproto.OpCreate, dir, 144, flags, mode, uint32(0), uint32(0), name))
	return fusetest.DecodeEntry(g.t, r.Body[:128]), le.Uint64(r.Body[128:])
}

func (g *guest) read(node, fh, off uint64, size uint32) []byte {
	g.t.Helper()
	return g.ok(g.root(fuseproto.OpRead, node, int(size), fusetest.ReadBody(fh, off, size))).Body
}

func (g *guest) writeReq(node, fh, off uint64, data []byte, writeFlags uint32) fusetest.Reply {
	g.t.Helper()
	return g.root(fuseproto.OpWrite, node, 8, fh, off, uint32(len(data)), writeFlags, uint64(0), uint32(0), uint32(0), data)
}

func (g *guest) write(node, fh, off uint64, data string) {
	g.t.Helper()
	if n := le.Uint32(g.ok(g.writeReq(node, fh, off, []byte(data), 0)).Body); int(n) != len(data) {
		g.t.Fatalf("WRITE of %d bytes wrote %d", len(data), n)
	}
}

func releaseBody(fh uint64) []byte { return append(le.AppendUint64(nil, fh), make([]byte, 16)...) }

func (g *guest) release(node, fh uint64) {
	g.t.Helper()
	g.ok(g.root(fuseproto.OpRelease, node, 0, releaseBody(fh)))
}

func (g *guest) releasedir(node, fh uint64) {
	g.t.Helper()
	g.ok(g.root(fuseproto.OpReleaseDir, node, 0, releaseBody(fh)))
}

func (g *guest) forget(node, n uint64) { g.t.Helper(); g.root(fuseproto.OpForget, node, 0, n) }

// list lists a directory whole, with requests of size bytes.
func (g *guest) list(node uint64, size uint32, plus bool) []fusetest.Dirent {
	g.t.Helper()
	fh := g.opendir(node)
	defer g.releasedir(node, fh)
	opcode := fuseproto.OpReadDir
	if plus {
		opcode = fuseproto.OpReadDirPlus
	}
	var all []fusetest.Dirent
	for off := uint64(0); ; {
		part := fusetest.DecodeDirents(g.t, g.ok(g.root(opcode, node, int(size), fusetest.ReadBody(fh, off, size))).Body, plus)
		if len(part) == 0 {
			return all
		}
		all = append(all, part...)
		off = part[len(part)-1].Off
	}
}

// stat describes a file of the source on the host's side.
func (g *guest) stat(path string) unix.Stat_t {
	g.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(g.dir, path), &st); err != nil {
		g.t.Fatalf("host's lstat %s: %v", path, err)
	}
	return st
}

func (g *guest) hostWrite(path, data string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, path), []byte(data), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) hostRead(path string) string {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, path))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// needRoot skips a test of what only root may do on the host.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: what the host allows root alone was not tested")
	}
}

// handleModes runs a test with nodes known by handle and by place.
func handleModes(t *testing.T, f func(t *testing.T, o passthrough.Options)) {
	for name, mode := range map[string]passthrough.HandleMode{"handles": passthrough.HandlesMandatory, "places": passthrough.HandlesNever} {
		t.Run(name, func(t *testing.T) {
			if mode == passthrough.HandlesMandatory {
				needRoot(t)
			}
			f(t, passthrough.Options{FileHandles: mode})
		})
	}
}
