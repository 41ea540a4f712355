package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/vmm"
)

// secret is in every file that the guest must not see, secretName in their names.
const (
	secret     = "SECRET-OF-THE-HOST"
	secretName = "canary-of-the-host"
)

// stage is a shared directory with a tree beside it that nobody may touch.
type stage struct {
	top   string // holds share, canary and above
	share string
	was   string // what was seen outside at the start
}

func newStage(t *testing.T) *stage {
	t.Helper()
	top := t.TempDir()
	s := &stage{top: top, share: filepath.Join(top, "share")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"share/swap", "share/mover/deep", "canary/dir/" + secretName} {
		must(os.MkdirAll(filepath.Join(top, dir), 0o777))
	}
	for _, name := range []string{"above", secretName, "canary/file", "canary/" + secretName, "canary/dir/file", "canary/swap", "canary/f"} {
		must(os.WriteFile(filepath.Join(top, name), []byte(secret), 0o666))
	}
	for _, name := range []string{"share/swap/f", "share/mover/f", "share/mover/deep/f", "share/plain"} {
		must(os.WriteFile(filepath.Join(top, name), []byte("public"), 0o666))
	}
	must(os.Symlink("../canary/file", filepath.Join(top, "canary/link")))
	for name, target := range map[string]string{
		"up": "../canary", "abs": filepath.Join(top, "canary"), "dangling": "../made", "root": "/",
		"self": "/proc/self/root", "fd": "/proc/self/fd/0", "cwd": "/proc/self/cwd",
	} {
		must(os.Symlink(target, filepath.Join(s.share, name)))
	}
	must(unix.Mkfifo(filepath.Join(s.share, "fifo"), 0o666))
	must(unix.Mknod(filepath.Join(s.share, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(s.share, "socket"), unix.S_IFSOCK|0o666, 0))
	// An access time before that of the change is what makes the host note a read.
	old := []unix.Timespec{{Sec: 1000}, {Sec: 2000}}
	must(filepath.WalkDir(top, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || strings.HasPrefix(name, s.share) {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, old, unix.AT_SYMLINK_NOFOLLOW)
	}))
	s.was = s.outside(t)
	return s
}

// outside describes everything but the shared directory, without touching it.
func (s *stage) outside(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_NOATIME, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		list, err := d.ReadDir(-1)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			name := filepath.Join(dir, e.Name())
			if name == s.share {
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%s ino %d mode %#o %d:%d links %d size %d atime %v mtime %v ctime %v", name, st.Ino, st.Mode,
				st.Uid, st.Gid, st.Nlink, st.Size, st.Atim, st.Mtim, st.Ctim)
			if e.Type().IsRegular() {
				f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOATIME, 0)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(f)
				f.Close()
				fmt.Fprintf(&out, " %q %v", b, err)
			}
			out.WriteByte('\n')
			if e.IsDir() {
				walk(name)
			}
		}
	}
	walk(s.top)
	return out.String()
}

// untouched compares with the start.
func (s *stage) untouched(t *testing.T) {
	t.Helper()
	if now := s.outside(t); now != s.was {
		t.Errorf("something outside was read or changed:\n--- before\n%s--- now\n%s", s.was, now)
	}
}

// notes tells whether the host notes reads in access times, as the test relies on.
func (s *stage) notes(t *testing.T) bool {
	t.Helper()
	name := filepath.Join(s.share, "probe")
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(name)
	if err := os.Chtimes(name, time.Unix(1000, 0), time.Unix(2000, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Atim.Sec != 1000
}

// leaks fails if the daemon holds a descriptor of anything outside.
func (s *stage) leaks(t *testing.T, d *rafsd) {
	t.Helper()
	for _, pid := range vmm.Processes(d.cmd.Process.Pid) {
		s.leaksOf(t, pid)
	}
}

func (s *stage) leaksOf(t *testing.T, pid int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if strings.HasPrefix(target, s.top) && target != s.share && !strings.HasPrefix(target, s.share+"/") {
			t.Errorf("descriptor %s is of %s", e.Name(), target)
		}
	}
}

// restless changes the shared directory on the host until stop is called: links
// take the place of directories, and a directory leaves the tree and comes back.
func (s *stage) restless() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	in := func(name string) string { return filepath.Join(s.share, name) }
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			with := []string{"up", "abs", "dangling", "root", "self", "fifo", "null"}[i%7]
			for range 2 { // there and back
				_ = unix.Renameat2(unix.AT_FDCWD, in("swap"), unix.AT_FDCWD, in(with), unix.RENAME_EXCHANGE)
				time.Sleep(time.Duration(i%3) * 50 * time.Microsecond)
			}
			if i%20 == 0 && os.Rename(in("mover"), filepath.Join(s.top, "away")) == nil {
				time.Sleep(200 * time.Microsecond)
				for os.Rename(filepath.Join(s.top, "away"), in("mover")) != nil {
					_ = os.RemoveAll(in("mover")) // which the guest has made meanwhile
				}
			}
		}
	}()
	return func() { close(quit); <-done }
}

// burglar is a guest that tries everything.
type burglar struct {
	c     *vmm.Client
	rng   *rand.Rand
	top   string
	nodes []uint64
	files []openFile
	at    openFile           // that the request which is being made up is about
	kinds map[vmm.Opcode]int // of requests that succeeded
}

// openFile is a handle and the node that it is of.
type openFile struct{ node, fh uint64 }

func choose[T any](b *burglar, of ...T) T { return of[b.rng.IntN(len(of))] }

// node is one that the guest was given, or one that it was not.
func (b *burglar) node() uint64 {
	switch b.rng.IntN(20) {
	case 0:
		return choose(b, 0, 2, b.rng.Uint64(), b.rng.Uint64N(1<<44), b.rng.Uint64N(10_000), ^uint64(0))
	case 1, 2, 3, 4, 5:
		return vmm.RootID
	}
	return b.nodes[b.rng.IntN(len(b.nodes))]
}

// file is the handle of the open file that the request is about, or another.
func (b *burglar) file() uint64 {
	if b.rng.IntN(10) == 0 {
		return choose(b, 0, 1, b.rng.Uint64(), b.rng.Uint64N(1000), ^uint64(0), b.pick().fh)
	}
	return b.at.fh
}

func (b *burglar) pick() openFile {
	if len(b.files) == 0 {
		return openFile{}
	}
	return b.files[b.rng.IntN(len(b.files))]
}

// usesFile tells whether requests of that kind carry a handle.
func usesFile(op vmm.Opcode) bool {
	switch op {
	case vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus, vmm.OpWrite, vmm.OpRelease, vmm.OpReleasedir, vmm.OpFlush, vmm.OpFallocate,
		vmm.OpLseek, vmm.OpCopyFileRange, vmm.OpIoctl:
		return true
	}
	return false
}

func (b *burglar) name() string {
	if b.rng.IntN(3) == 0 {
		return choose(b, "..", ".", "", "/", "../canary/file", "../above", b.top+"/above", "swap/f", "up/file", "a/../..",
			"/proc/self/root", "/proc/self/fd/0", "a\x00b", "\xff\xfe", strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("n", 4000))
	}
	return choose(b, "a", "b", "c", "d", "e", "swap", "f", "up", "abs", "dangling", "root", "self", "fd", "cwd", "fifo", "null",
		"socket", "mover", "deep", "plain", "file", "canary", "above", "share")
}

func (b *burglar) target() string {
	return choose(b, "..", "../canary", "../canary/file", "../above", "/", b.top+"/canary", b.top+"/above", "/proc/self/root", "/proc/self/fd/3", "../made", "a")
}

func (b *burglar) flags() uint32 {
	f := uint32(0)
	for range b.rng.IntN(4) * b.rng.IntN(2) {
		f |= 1 << b.rng.IntN(25)
	}
	return f | b.rng.Uint32N(4)
}

// size is small or absurd: what lies between would fill the host's disk.
func (b *burglar) size() uint64 {
	return choose(b, 0, 1, b.rng.Uint64N(1<<20), b.rng.Uint64N(1<<20), 1<<63, ^uint64(0))
}

func wire(values ...any) []byte {
	var out bytes.Buffer
	for _, v := range values {
		switch v := v.(type) {
		case string:
			out.WriteString(v + "\x00")
		case []byte:
			out.Write(v)
		default:
			if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return out.Bytes()
}

// request makes up one request and the room for its reply.
func (b *burglar) request() (op vmm.Opcode, body []byte, room int) {
	var zero uint32
	op = choose(b, burglary...)
	b.at = openFile{node: b.node()}
	if f := b.pick(); usesFile(op) {
		b.at = f
		if b.rng.IntN(20) == 0 {
			b.at.node = b.node()
		}
	}
	switch op {
	case vmm.OpLookup:
		return op, wire(b.name()), 128
	case vmm.OpForget:
		count := uint64(1)
		if b.rng.IntN(200) == 0 {
			count = b.rng.Uint64()
		}
		return op, wire(count), -1
	case vmm.OpGetattr:
		return op, wire(b.rng.Uint32N(3), zero, b.file()), 104
	case vmm.OpSetattr:
		return op, wire(b.rng.Uint32N(1<<12), zero, b.file(), b.size(), b.rng.Uint64(), b.rng.Uint64(), b.rng.Uint64(), b.rng.Uint64(),
			b.rng.Uint32(), b.rng.Uint32(), b.rng.Uint32(), b.rng.Uint32(), zero, b.rng.Uint32(), b.rng.Uint32(), zero), 104
	case vmm.OpReadlink:
		return op, nil, 4095
	case vmm.OpSymlink:
		return op, wire(b.name(), b.target()), 128
	case vmm.OpMknod:
		return op, wire(b.rng.Uint32N(1<<17), b.rng.Uint32N(1<<12), zero, zero, b.name()), 128
	case vmm.OpMkdir:
		return op, wire(b.rng.Uint32(), b.rng.Uint32(), b.name()), 128
	case vmm.OpUnlink, vmm.OpRmdir, vmm.OpRemovexattr:
		return op, wire(b.name()), 0
	case vmm.OpRename:
		return op, wire(b.node(), b.name(), b.name()), 0
	case vmm.OpRename2:
		return op, wire(b.node(), b.rng.Uint32N(9), zero, b.name(), b.name()), 0
	case vmm.OpLink:
		return op, wire(b.node(), b.name()), 128
	case vmm.OpOpen, vmm.OpOpendir:
		return op, wire(b.flags(), b.rng.Uint32N(3)), 16
	case vmm.OpCreate, vmm.OpTmpfile:
		return op, wire(b.flags(), b.rng.Uint32(), b.rng.Uint32(), b.rng.Uint32N(3), b.name()), 144
	case vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus:
		size := choose[uint32](b, 0, 100, 4096, 60_000)
		return op, wire(b.file(), choose(b, 0, 0, b.rng.Uint64N(5000), b.rng.Uint64()), size, b.rng.Uint32N(4), b.rng.Uint64(), b.flags(), zero), max(1, int(size))
	case vmm.OpWrite:
		data := bytes.Repeat([]byte{byte(b.rng.Uint32())}, b.rng.IntN(3000))
		return op, wire(b.file(), b.size(), uint32(len(data)), b.rng.Uint32N(8), b.rng.Uint64(), b.flags(), zero, data), 8
	case vmm.OpRelease, vmm.OpReleasedir, vmm.OpFlush:
		return op, wire(b.file(), b.flags(), b.rng.Uint32N(4), b.rng.Uint64()), 0
	case vmm.OpSetxattr:
		value := make([]byte, b.rng.IntN(300))
		return op, wire(uint32(len(value)), b.rng.Uint32N(4), b.xattr(), value), 0
	case vmm.OpGetxattr:
		return op, wire(uint32(1000), zero, b.xattr()), 1000
	case vmm.OpListxattr:
		return op, wire(uint32(1000), zero), 1000
	case vmm.OpFallocate:
		return op, wire(b.file(), b.size(), b.size(), b.rng.Uint32N(128), zero), 0
	case vmm.OpLseek:
		return op, wire(b.file(), b.size(), b.rng.Uint32N(6), zero), 8
	case vmm.OpCopyFileRange:
		return op, wire(b.file(), b.size(), b.node(), b.file(), b.size(), b.rng.Uint64N(1<<20), b.rng.Uint64N(3)), 8
	case vmm.OpIoctl:
		return op, wire(b.file(), b.rng.Uint32N(2), choose(b, b.rng.Uint32(), 0x80086601, 0x40086602), b.rng.Uint64(), zero, uint32(8)), 24
	}
	return op, make([]byte, 48), 1000 // STATFS, ACCESS, locks that are not granted
}

func (b *burglar) xattr() string {
	return choose(b, "user.a", "trusted.overlay.opaque", "security.capability", "system.posix_acl_access", "nonsense.x", "user.", "x", "", strings.Repeat("u", 300), "user."+strings.Repeat("u", 250))
}

// burglary is what the guest sends, the more often the more may come of it.
var burglary = []vmm.Opcode{
	vmm.OpLookup, vmm.OpLookup, vmm.OpLookup, vmm.OpLookup, vmm.OpForget, vmm.OpGetattr, vmm.OpSetattr, vmm.OpReadlink, vmm.OpSymlink,
	vmm.OpMknod, vmm.OpMkdir, vmm.OpUnlink, vmm.OpRmdir, vmm.OpRename, vmm.OpRename2, vmm.OpLink, vmm.OpOpen, vmm.OpOpen, vmm.OpOpendir,
	vmm.OpCreate, vmm.OpTmpfile, vmm.OpRead, vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus, vmm.OpWrite, vmm.OpWrite, vmm.OpRelease, vmm.OpReleasedir,
	vmm.OpFlush, vmm.OpSetxattr, vmm.OpGetxattr, vmm.OpListxattr, vmm.OpRemovexattr, vmm.OpFallocate, vmm.OpLseek, vmm.OpCopyFileRange,
	vmm.OpIoctl, vmm.OpStatfs, vmm.OpAccess, vmm.OpGetlk, vmm.OpSetlk,
}

// try sends one request and looks at what came of it.
func (b *burglar) try(ctx context.Context) error {
	op, body, room := b.request()
	node := b.at.node
	p, err := b.c.Go(ctx, op, node, body, room)
	if err != nil || room < 0 {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err := p.Wait(limit)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch {
		case errno == syscall.ESTALE:
			b.nodes = slices.DeleteFunc(b.nodes, func(n uint64) bool { return n == node && n != vmm.RootID })
		case errno == syscall.EBADF && b.rng.IntN(3) == 0:
			b.files = slices.DeleteFunc(b.files, func(f openFile) bool { return f == b.at })
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%v of node %d with %.80q: %w", op, node, body, err)
	}
	b.kinds[op]++
	if bytes.Contains(reply, []byte(secret)) {
		return fmt.Errorf("%v of node %d with %.80q: the guest has read the secret", op, node, body)
	}
	if bytes.Contains(reply, []byte(secretName)) {
		return fmt.Errorf("%v of node %d: the guest has listed what is outside: %q", op, node, reply)
	}
	le := binary.LittleEndian
	switch op {
	case vmm.OpLookup, vmm.OpMknod, vmm.OpMkdir, vmm.OpSymlink, vmm.OpLink, vmm.OpCreate, vmm.OpTmpfile:
		node := le.Uint64(reply)
		b.nodes = append(b.nodes, node)
		if len(reply) == 144 {
			b.files = append(b.files, openFile{node, le.Uint64(reply[128:])})
		}
	case vmm.OpOpen, vmm.OpOpendir:
		b.files = append(b.files, openFile{node, le.Uint64(reply)})
	case vmm.OpRelease, vmm.OpReleasedir:
		b.files = slices.DeleteFunc(b.files, func(f openFile) bool { return f == b.at })
	}
	const enough = 100
	if len(b.nodes) > enough {
		b.nodes = slices.Delete(b.nodes, 1, enough/2) // the first is the root
	}
	if len(b.files) > enough {
		b.files = slices.Delete(b.files, 0, enough/2)
	}
	return nil
}

// startVirtiofsd runs rafsd as virtiofsd, waits for its socket, and ends it with the
// test.
func startVirtiofsd(t *testing.T, args ...string) *rafsd {
	t.Helper()
	return runVirtiofsd(t, exec.Command(filepath.Join(binaries, "rafsd"), args...))
}

// runVirtiofsd is startVirtiofsd for a command that ends in the arguments.
func runVirtiofsd(t *testing.T, cmd *exec.Cmd) *rafsd {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	d := &rafsd{dir: dir, Socket: filepath.Join(dir, "fs.sock"), log: new(logBuffer), exited: make(chan struct{})}
	d.cmd = cmd
	d.cmd.Args = append(d.cmd.Args, "--socket-path", d.Socket)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(cmd.Args, " "), d.log)
		}
		os.RemoveAll(dir)
	})
	d.waitFor(t, "its socket", func() bool {
		_, err := os.Stat(d.Socket)
		return err == nil
	})
	return d
}

// TestNothingOutside lets a hostile guest loose on a shared directory, on a host
// that is busy in it.
func TestNothingOutside(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: devices")
	}
	count := 20_000
	if os.Getenv("RAFSD_LONG") == "1" {
		count = 1_000_000
	}
	for _, handles := range []string{"prefer", "never"} {
		t.Run("file handles "+handles, func(t *testing.T) {
			s := newStage(t)
			if !s.notes(t) {
				t.Log("the file system notes no reads: only changes and the secret itself are looked for")
			}
			d := startVirtiofsd(t, "--shared-dir", s.share, "--xattr", "--sandbox", "none", "--inode-file-handles", handles)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Duration(count)*time.Millisecond)
			defer cancel()
			vm, err := vmm.Dial(ctx, d.Socket, vmm.Options{Patient: true, Wait: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Kill()
			c, err := vm.Mount(ctx, vmm.Linux72)
			if err != nil {
				t.Fatal(err)
			}
			idle := d.rssAnon(t)
			b := &burglar{c: c, rng: rand.New(rand.NewPCG(10, 4)), top: s.top, nodes: []uint64{vmm.RootID}, kinds: map[vmm.Opcode]int{}}
			stop := s.restless()
			for i := range count {
				if err := b.try(ctx); err != nil {
					stop()
					t.Fatalf("request %d: %v", i, err)
				}
			}
			stop()
			if err := c.Bad(); err != nil {
				t.Error(err)
			}
			for _, op := range []vmm.Opcode{vmm.OpLookup, vmm.OpCreate, vmm.OpOpen, vmm.OpRead, vmm.OpWrite, vmm.OpRename, vmm.OpSymlink, vmm.OpReaddirplus} {
				if b.kinds[op] == 0 {
					t.Errorf("no %v has succeeded: the test has lost its teeth", op)
				}
			}
			s.untouched(t)
			s.leaks(t, d)
			if now := d.rssAnon(t); now > idle+growth {
				t.Errorf("RssAnon grew from %d to %d KiB", idle>>10, now>>10)
			}
			if err := c.Destroy(ctx); err != nil {
				t.Error(err)
			}
			if _, err := c.Init(ctx); err != nil {
				t.Error(err)
			}
			if _, err := c.Resolve(ctx, "/"); err != nil {
				t.Errorf("an honest guest afterwards: %v", err)
			}
			s.untouched(t)
			t.Logf("%d requests, succeeded: %v", count, b.kinds)
		})
	}
}

// TestMovedOut: what the host takes out of the shared directory stays reachable for
// a second at most, however it is held, and what is no file is never opened.
func TestMovedOut(t *testing.T) {
	for _, handles := range []string{"prefer", "never"} {
		t.Run("file handles "+handles, func(t *testing.T) {
			s := newStage(t)
			d := startVirtiofsd(t, "--shared-dir", s.share, "--xattr", "--sandbox", "none", "--inode-file-handles", handles)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			vm, err := vmm.Dial(ctx, d.Socket, vmm.Options{Patient: true, Wait: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Kill()
			c, err := vm.Mount(ctx, vmm.Linux72)
			if err != nil {
				t.Fatal(err)
			}
			look := func(path string) uint64 {
				t.Helper()
				e, err := c.Resolve(ctx, path)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				return e.NodeID
			}
			for _, name := range []string{"fifo", "null", "socket", "up", "self", "dangling"} {
				for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_TRUNC, unix.O_NONBLOCK, unix.O_PATH} {
					if _, err := c.Open(ctx, look(name), flags); err == nil {
						t.Errorf("Open %s with flags %#o succeeded", name, flags)
					}
				}
				if _, err := c.Opendir(ctx, look(name)); err == nil {
					t.Errorf("Opendir %s succeeded", name)
				}
			}

			mover, deep, f := look("mover"), look("mover/deep"), look("mover/deep/f")
			held, err := c.Opendir(ctx, deep)
			if err != nil {
				t.Fatal(err)
			}
			away := filepath.Join(s.top, "away")
			if err := os.Rename(filepath.Join(s.share, "mover"), away); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1200 * time.Millisecond) // what was seen inside is trusted for a second
			if err := os.WriteFile(filepath.Join(away, "deep", secretName), []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			s.was = s.outside(t)
			for _, dir := range []uint64{mover, deep} {
				if _, err := c.Lookup(ctx, dir, "f"); err == nil {
					t.Error("Lookup in a directory that was moved out succeeded")
				}
				if _, _, err := c.Create(ctx, dir, "made", unix.O_RDWR, 0o100600); err == nil {
					t.Error("Create in a directory that was moved out succeeded")
				}
				if _, err := c.Mkdir(ctx, dir, "made", 0o700); err == nil {
					t.Error("Mkdir in a directory that was moved out succeeded")
				}
				if err := c.Rename(ctx, vmm.RootID, "plain", dir, "plain"); err == nil {
					t.Error("Rename into a directory that was moved out succeeded")
				}
				if _, err := c.Link(ctx, look("plain"), dir, "hard"); err == nil {
					t.Error("Link into a directory that was moved out succeeded")
				}
				if err := c.Unlink(ctx, dir, "f"); err == nil {
					t.Error("Unlink in a directory that was moved out succeeded")
				}
				if _, err := c.Opendir(ctx, dir); err == nil {
					t.Error("Opendir of a directory that was moved out succeeded")
				}
			}
			for _, list := range []func(context.Context, uint64, uint64, uint64, int) ([]vmm.Dirent, error){c.Readdir, c.ReaddirPlus} {
				entries, err := list(ctx, deep, held.Fh, 0, 4096)
				for _, e := range entries {
					if e.Name == secretName {
						t.Errorf("the listing of a directory that was moved out has what came later (%v)", err)
					}
				}
			}
			if _, _, err := c.Create(ctx, vmm.RootID, "made", unix.O_RDWR, 0o100600); err != nil {
				t.Errorf("Create where it is allowed: %v", err)
			}
			s.untouched(t)

			// Removed files: their numbers lead to no other file.
			if err := os.RemoveAll(away); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond) // idle descriptors are closed by then
			for range 50 {                     // the host may give the number of an inode to another file
				name := filepath.Join(s.top, fmt.Sprint("new", time.Now().UnixNano()))
				if err := os.WriteFile(name, []byte(secret), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if open, err := c.Open(ctx, f, unix.O_RDWR); err == nil {
				b, err := c.Read(ctx, f, open.Fh, 0, 100)
				// Without handles a descriptor of it may be kept: then it is the old file.
				if handles == "prefer" || err != nil || string(b) != "public" {
					t.Errorf("a removed file was opened and read: %q, %v", b, err)
				}
			}
			if err := c.Bad(); err != nil {
				t.Error(err)
			}
		})
	}
}
