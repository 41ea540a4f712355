package passthrough_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// pair is two servers of two directories that begin alike. Each request goes to
// both; what may differ in a request are numbers that the servers themselves gave
// out, and so every such number is kept twice.
type pair struct {
	t      testing.TB
	rng    *rand.Rand
	g      *guest
	theirs func(*fusetest.Message) []byte
	unique uint64
	trace  []string

	nodes   []*pairNode
	byOurs  map[uint64]*pairNode
	byOther map[uint64]*pairNode
	inos    map[uint64]uint64 // of ours to theirs
	files   []*pairFile
	synced  bool
	places  bool // ours knows nodes by place
}

// pairNode is a node by its numbers on both sides.
type pairNode struct {
	id   [2]uint64
	mode uint32
	ino  uint64 // of ours
	refs uint64
}

// pairFile is an open file or directory.
type pairFile struct {
	node *pairNode
	fh   [2]uint64
	dir  bool
	rw   bool // opened to be read and written
}

// both stands in a request's body for a number that each side has its own of.
type both [2]uint64

const ours, other = 0, 1

// send sends a request to both sides and returns both replies.
func (p *pair) send(op fuseproto.Opcode, node *pairNode, uid uint32, room int, parts ...any) (r [2]fusetest.Reply) {
	p.t.Helper()
	p.unique += 2
	for side := range r {
		own := slices.Clone(parts)
		for i, v := range own {
			if v, ok := v.(both); ok {
				own[i] = v[side]
			}
		}
		b := fusetest.Request(op, p.unique, node.id[side], own...)
		le.PutUint32(b[24:], uid)
		le.PutUint32(b[28:], uid)
		m := fusetest.NewMessage(b, 16+room)
		if side == ours {
			r[side] = p.g.Send(m, p.unique)
			continue
		}
		out := p.theirs(m)
		if len(out) > 0 {
			r[side] = fusetest.Reply{Errno: syscall.Errno(-int32(le.Uint32(out[4:]))), Body: out[16:]}
		}
	}
	p.trace = append(p.trace, fmt.Sprintf("%v node %v uid %d %s: %v | %v", op, node.id, uid, brief(parts), r[ours].Errno, r[other].Errno))
	if want := known(op, r); want != "" {
		p.trace[len(p.trace)-1] += " (" + want + ")"
	} else if r[ours].Errno != r[other].Errno {
		p.fail("errno %v, theirs %v", r[ours].Errno, r[other].Errno)
	}
	return r
}

// brief prints a request's parts.
func brief(parts []any) string {
	var out strings.Builder
	for _, v := range parts {
		switch v := v.(type) {
		case both:
			fmt.Fprintf(&out, " %d|%d", v[ours], v[other])
		case uint64:
			fmt.Fprintf(&out, " %d", v)
		case []byte:
			fmt.Fprintf(&out, " %.44x", v)
		case uint32:
			fmt.Fprintf(&out, " %#o", v)
		default:
			fmt.Fprintf(&out, " %.60s", v)
		}
	}
	return out.String()
}

// differences are the replies in which both are right, or theirs is not. Others of
// that kind change what is there afterwards, and so are not sent at all:
//
//	CREATE of a name that exists      theirs makes a new node and gives the file to the caller
//	creation in a setgid directory    theirs gives the group of the caller
//	creation by others than root      theirs asks for no permission of the host: only in the root
//	MKDIR with a sticky bit           theirs loses it
//	a mode's bits under a umask       theirs loses them: the process has none here
//	mode of a symbolic link           theirs changes what the link leads to
//	READ of no bytes, lock or not     a guest's kernel sees itself what a handle's mode allows
//	a name that nobody has looked up  theirs knows paths only
//	one of several names forgotten    the same
//	LINK, with nodes known by place   ours loses a file with the name it was last seen by
var differences = []struct {
	op   fuseproto.Opcode
	ours syscall.Errno
	them syscall.Errno
	why  string
}{
	{fuseproto.OpIoctl, 0, syscall.ENOTTY, "their loopback knows no attribute flags; ours has those that overlayfs copies"},
	{fuseproto.OpStatx, syscall.ENOSYS, 0, "ours leaves STATX to GETATTR: a guest asks for it only to learn the time of birth"},
	{fuseproto.OpSyncFS, 0, syscall.ENOSYS, "their library does not serve SYNCFS"},
}

func known(op fuseproto.Opcode, r [2]fusetest.Reply) string {
	for _, d := range differences {
		if d.op == op && d.ours == r[ours].Errno && d.them == r[other].Errno {
			return d.why
		}
	}
	return ""
}

func (p *pair) fail(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("%s\nlast requests:\n%s", fmt.Sprintf(format, args...), strings.Join(p.trace[max(0, len(p.trace)-25):], "\n"))
}

// attr compares attributes. Times are compared where the request set them.
func (p *pair) attr(a, b fusetest.Attr, times bool) {
	p.t.Helper()
	if have, ok := p.inos[a.Ino]; ok && have != b.Ino && b.Ino != 0 { // theirs has none for the root
		p.fail("inode %d of ours was %d there, now %d", a.Ino, have, b.Ino)
	}
	if b.Ino != 0 {
		p.inos[a.Ino] = b.Ino
	}
	for _, x := range []*fusetest.Attr{&a, &b} {
		x.Ino, x.Blocks, x.Blksize = 0, 0, 0 // allocation is the host's affair, later
		x.ValidSec, x.ValidNsec = 0, 0
		x.Ctime, x.CtimeNsec = 0, 0
		if !times {
			x.Atime, x.Mtime, x.AtimeNsec, x.MtimeNsec = 0, 0, 0, 0
		}
		if x.Mode&unix.S_IFMT == unix.S_IFDIR {
			x.Size = 0
		}
	}
	if a != b {
		p.fail("attributes\n ours %+v\ntheir %+v", a, b)
	}
}

// entry compares entries and takes the node in.
func (p *pair) entry(r [2]fusetest.Reply) *pairNode {
	p.t.Helper()
	if r[ours].Errno != 0 || r[other].Errno != 0 {
		return nil
	}
	a, b := fusetest.DecodeEntry(p.t, r[ours].Body[:128]), fusetest.DecodeEntry(p.t, r[other].Body[:128])
	p.attr(a.Attr, b.Attr, false)
	return p.grant(a, b)
}

// look looks a name up, as a guest does before it sends anything else with it.
func (p *pair) look(dir *pairNode, name string) *pairNode {
	p.t.Helper()
	return p.entry(p.send(fuseproto.OpLookup, dir, 0, 128, name))
}

// grant counts a node that both sides gave out.
func (p *pair) grant(a, b fusetest.Entry) *pairNode {
	p.t.Helper()
	n := p.byOurs[a.Node]
	if n == nil && p.byOther[b.Node] == nil {
		n = &pairNode{id: [2]uint64{a.Node, b.Node}, mode: a.Attr.Mode, ino: a.Attr.Ino}
		p.byOurs[a.Node], p.byOther[b.Node] = n, n
		p.nodes = append(p.nodes, n)
	}
	if n == nil || n.id[other] != b.Node {
		p.fail("node %d of ours is known as %v, node %d there as %v", a.Node, p.byOurs[a.Node], b.Node, p.byOther[b.Node])
	}
	n.refs++
	p.trace[len(p.trace)-1] += fmt.Sprintf(" -> %d|%d", a.Node, b.Node)
	return n
}

// drop closes what is open of a node and forgets it.
func (p *pair) drop(n *pairNode) {
	p.t.Helper()
	for _, f := range slices.Clone(p.files) {
		if f.node == n {
			p.close(f)
		}
	}
	p.send(fuseproto.OpForget, n, 0, 0, n.refs)
	delete(p.byOurs, n.id[ours])
	delete(p.byOther, n.id[other])
	delete(p.inos, n.ino) // which another file may get
	p.nodes = slices.DeleteFunc(p.nodes, func(x *pairNode) bool { return x == n })
}

func (p *pair) close(f *pairFile) {
	p.t.Helper()
	op := fuseproto.OpRelease
	if f.dir {
		op = fuseproto.OpReleaseDir
	} else {
		p.send(fuseproto.OpFlush, f.node, 0, 0, both(f.fh), uint64(0), f.fh[ours])
	}
	p.send(op, f.node, 0, 0, both(f.fh), make([]byte, 16))
	p.files = slices.DeleteFunc(p.files, func(x *pairFile) bool { return x == f })
}

// sweep drops the nodes whose last name has gone. Theirs finds nodes by path only
// and would answer anything about them from then on.
func (p *pair) sweep() {
	p.t.Helper()
	for _, n := range slices.Clone(p.nodes) {
		if n.id[ours] == 1 {
			continue
		}
		a, r := p.g.GetAttr(n.id[ours])
		if r.Errno == 0 && a.Nlink > 0 {
			continue
		}
		p.unique += 2
		out := p.theirs(fusetest.NewMessage(fusetest.Request(fuseproto.OpGetAttr, p.unique, n.id[other], make([]byte, 16)), 120))
		if le.Uint32(out[4:]) == 0 && le.Uint32(out[16+16+64:]) != 0 {
			p.fail("node %d of ours is gone (%v), and theirs still has it as %d", n.id[ours], r.Errno, n.id[other])
		}
		p.drop(n)
	}
}

// pick returns a node that fits, or nil.
func (p *pair) pick(fits func(mode uint32) bool) *pairNode {
	for range 20 {
		if n := p.nodes[p.rng.IntN(len(p.nodes))]; fits(n.mode & unix.S_IFMT) {
			return n
		}
	}
	return nil
}

func isDir(m uint32) bool   { return m == unix.S_IFDIR }
func isFile(m uint32) bool  { return m == unix.S_IFREG }
func isLink(m uint32) bool  { return m == unix.S_IFLNK }
func notLink(m uint32) bool { return m != unix.S_IFLNK }
func anyType(uint32) bool   { return true }

func (p *pair) file(dir bool) *pairFile {
	for range 20 {
		if len(p.files) == 0 {
			return nil
		}
		if f := p.files[p.rng.IntN(len(p.files))]; f.dir == dir {
			return f
		}
	}
	return nil
}

func one[T any](p *pair, of ...T) T { return of[p.rng.IntN(len(of))] }

func (p *pair) name() string { return string(rune('a' + p.rng.IntN(7))) }

// step sends one random request.
func (p *pair) step() {
	p.t.Helper()
	dir := p.pick(isDir)
	if dir == nil {
		dir = p.byOurs[1]
	}
	// The host's directories are the host's business to protect, and theirs changes
	// the owner afterwards: another caller than root creates in the root only.
	uid := uint32(0)
	if dir.id[ours] == 1 {
		uid = one(p, uint32(0), 1000)
	}
	name := p.name()
	switch p.rng.IntN(31) {
	case 0, 1:
		p.entry(p.send(fuseproto.OpLookup, dir, 0, 128, one(p, name, name, name, strings.Repeat("n", 255), strings.Repeat("n", 256))))
	case 2:
		// A guest forgets a directory after what is in it, and so not at random.
		// Theirs finds a file by the names that were looked up only, so one of many
		// names is not forgotten here either.
		if n := p.pick(func(m uint32) bool { return !isDir(m) }); n != nil && len(p.nodes) > 20 {
			if a, _ := p.g.GetAttr(n.id[ours]); a.Nlink == 1 {
				p.drop(n)
			}
		}
	case 3:
		if n := p.pick(anyType); n != nil {
			p.attrReply(p.send(fuseproto.OpGetAttr, n, 0, 104, uint32(0), uint32(0), uint64(0)), false)
		}
	case 4, 5:
		p.setattr()
	case 6:
		if n := p.pick(isLink); n != nil {
			p.same(p.send(fuseproto.OpReadlink, n, 0, 4095))
		}
	case 7:
		p.entry(p.send(fuseproto.OpSymlink, dir, uid, 128, name, one(p, "nowhere", "../nowhere/at/all", strings.Repeat("t", 4000))))
	case 8:
		mode := one[uint32](p, unix.S_IFREG|0o640, unix.S_IFIFO|0o600, unix.S_IFSOCK|0o755)
		rdev := uint32(0)
		if uid == 0 && p.rng.IntN(3) == 0 {
			mode, rdev = one[uint32](p, unix.S_IFCHR|0o600, unix.S_IFBLK|0o644), one[uint32](p, 0, 1<<8|3, 300<<20&0xfff00000|0xfff<<8|7)
		}
		p.entry(p.send(fuseproto.OpMknod, dir, uid, 128, mode, rdev, uint32(0), uint32(0), name))
	case 9:
		p.entry(p.send(fuseproto.OpMkdir, dir, uid, 128, one[uint32](p, 0o755, 0o777, 0o700), uint32(0), name)) // theirs loses a sticky bit
	case 10:
		p.look(dir, name)
		p.send(fuseproto.OpUnlink, dir, 0, 0, name)
		p.sweep()
	case 11:
		p.look(dir, name)
		p.send(fuseproto.OpRmdir, dir, 0, 0, name)
		p.sweep()
	case 12, 13:
		to := p.pick(isDir)
		if to == nil {
			return
		}
		toName := p.name()
		p.look(dir, name)
		p.look(to, toName)
		if p.rng.IntN(2) == 0 {
			p.send(fuseproto.OpRename, dir, 0, 0, both(to.id), name, toName)
		} else {
			p.send(fuseproto.OpRename2, dir, 0, 0, both(to.id), one[uint32](p, 0, 1, 2, 2, 3), uint32(0), name, toName)
		}
		p.sweep()
	case 14:
		// Without handles ours loses a file of several names with the one that it was
		// last seen by, unless it is open: ESTALE makes the guest look it up by another.
		if n := p.pick(func(m uint32) bool { return !isDir(m) }); n != nil && !p.places {
			p.entry(p.send(fuseproto.OpLink, dir, 0, 128, both(n.id), name))
		}
	case 15, 16:
		if n := p.pick(isFile); n != nil && len(p.files) < 20 {
			flags := one[uint32](p, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR|unix.O_TRUNC)
			p.opened(n, false, flags&unix.O_RDWR != 0, p.send(fuseproto.OpOpen, n, 0, 16, flags, uint32(0)), 0)
		}
	case 17, 18:
		if len(p.files) < 20 {
			flags := one[uint32](p, unix.O_RDWR, unix.O_RDWR|unix.O_EXCL, unix.O_RDWR|unix.O_TRUNC) | unix.O_CREAT
			// A guest sends CREATE for names that it has not found. Theirs makes a new
			// node even for an old file, and gives it to the caller.
			if p.look(dir, name) != nil {
				flags |= unix.O_EXCL
			}
			r := p.send(fuseproto.OpCreate, dir, uid, 144, flags, one[uint32](p, 0o100644, 0o100600, 0o100000), uint32(0), uint32(0), name)
			if n := p.entry(r); n != nil {
				p.opened(n, false, true, r, 128)
			}
		}
	case 19, 20:
		if f := p.file(false); f != nil {
			size := one(p, 1, 100, 4096, 10000)
			p.same(p.send(fuseproto.OpRead, f.node, 0, size, both(f.fh), uint64(p.rng.IntN(20000)), uint32(size), uint32(0), uint64(0), uint64(0)))
		}
	case 21, 22:
		if f := p.file(false); f != nil {
			data := bytes.Repeat([]byte{byte(p.rng.Uint32())}, one(p, 1, 100, 4096, 10000))
			p.same(p.send(fuseproto.OpWrite, f.node, 0, 8, both(f.fh), uint64(p.rng.IntN(20000)), uint32(len(data)), uint32(0), uint64(0), uint64(0), data))
		}
	case 23:
		if f := p.file(p.rng.IntN(4) == 0); f != nil {
			p.close(f)
		}
	case 24:
		p.xattr()
	case 25:
		if len(p.files) < 20 {
			p.opened(dir, true, false, p.send(fuseproto.OpOpenDir, dir, 0, 16, uint32(unix.O_DIRECTORY), uint32(0)), 0)
		}
	case 26:
		if f := p.file(true); f != nil {
			p.list(f)
		}
	case 27:
		if f := p.file(false); f != nil {
			p.same(p.send(fuseproto.OpLseek, f.node, 0, 8, both(f.fh), uint64(p.rng.IntN(40000)), one[uint32](p, unix.SEEK_DATA, unix.SEEK_HOLE), uint32(0)))
		}
	case 28:
		if f := p.file(false); f != nil {
			mode := one[uint32](p, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE)
			p.send(fuseproto.OpFallocate, f.node, 0, 0, both(f.fh), uint64(p.rng.IntN(10000)), uint64(p.rng.IntN(10000)), mode, uint32(0))
		}
	case 29:
		if from, to := p.file(false), p.file(false); from != nil && to != nil && from.node != to.node {
			p.same(p.send(fuseproto.OpCopyFileRange, from.node, 0, 8, both(from.fh), uint64(p.rng.IntN(5000)), both(to.node.id), both(to.fh), uint64(p.rng.IntN(5000)), uint64(1+p.rng.IntN(9000)), uint64(0)))
		}
	case 30:
		p.rare(dir)
	}
}

// rare sends what guests send seldom.
func (p *pair) rare(dir *pairNode) {
	p.t.Helper()
	switch p.rng.IntN(8) {
	case 0:
		r := p.send(fuseproto.OpStatFS, dir, 0, 80)
		if !bytes.Equal(r[ours].Body[40:52], r[other].Body[40:52]) { // bsize, namelen, frsize; the rest lives
			p.fail("STATFS\n ours %x\ntheir %x", r[ours].Body, r[other].Body)
		}
	case 1:
		if !p.synced { // once is enough: it takes long
			p.send(fuseproto.OpSyncFS, p.byOurs[1], 0, 0, uint64(0))
			p.synced = true
		}
	case 2:
		if f := p.file(true); f != nil {
			p.send(fuseproto.OpFsyncDir, f.node, 0, 0, both(f.fh), uint64(0))
		}
	case 3:
		if f := p.file(false); f != nil {
			p.send(fuseproto.OpFsync, f.node, 0, 0, both(f.fh), uint64(0))
		}
	case 4:
		r := p.send(fuseproto.OpTmpfile, dir, 0, 144, uint32(unix.O_RDWR), uint32(0o100600), uint32(0), uint32(0), "/")
		if n := p.entry(r); n != nil {
			p.opened(n, false, true, r, 128)
			p.drop(n)
		}
	case 5:
		if f := p.file(false); f != nil { // FS_IOC_GETFLAGS
			p.send(fuseproto.OpIoctl, f.node, 0, 20, both(f.fh), uint32(0), uint32(0x80086601), uint64(0), uint32(0), uint32(4))
		}
	case 6:
		// That a handle's mode allows a lock is for the guest's kernel to see.
		if f := p.file(false); f != nil && f.rw {
			typ := one[uint32](p, unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK)
			start := uint64(p.rng.IntN(10))
			p.send(fuseproto.OpSetLk, f.node, 0, 0, both(f.fh), f.fh[ours], start, start+uint64(p.rng.IntN(10)), typ, uint32(9), uint64(0))
		}
	case 7:
		p.send(fuseproto.OpStatx, dir, 0, 288, uint32(0), uint32(0), uint64(0), uint32(0), uint32(unix.STATX_BTIME))
	}
}

// same compares whole replies.
func (p *pair) same(r [2]fusetest.Reply) {
	p.t.Helper()
	if r[ours].Errno == 0 && !bytes.Equal(r[ours].Body, r[other].Body) {
		p.fail("replies of %d and %d bytes differ:\n ours %.200x\ntheir %.200x", len(r[ours].Body), len(r[other].Body), r[ours].Body, r[other].Body)
	}
}

func (p *pair) attrReply(r [2]fusetest.Reply, times bool) {
	p.t.Helper()
	if r[ours].Errno != 0 || r[other].Errno != 0 {
		return
	}
	entry := func(b []byte) fusetest.Attr { // an entry's attributes stand where ATTR's would
		return fusetest.DecodeEntry(p.t, append(make([]byte, 40), b[16:104]...)).Attr
	}
	p.attr(entry(r[ours].Body), entry(r[other].Body), times)
}

func (p *pair) opened(n *pairNode, dir, rw bool, r [2]fusetest.Reply, at int) {
	p.t.Helper()
	if r[ours].Errno != 0 || r[other].Errno != 0 {
		return
	}
	p.files = append(p.files, &pairFile{node: n, dir: dir, fh: [2]uint64{le.Uint64(r[ours].Body[at:]), le.Uint64(r[other].Body[at:])}, rw: rw})
}

func (p *pair) setattr() {
	p.t.Helper()
	n := p.pick(anyType)
	if n == nil {
		return
	}
	b := make([]byte, 88)
	var valid uint32
	times := false
	choices := []int{1, 2}
	if notLink(n.mode & unix.S_IFMT) {
		choices = append(choices, 0) // theirs follows a link
	}
	if isFile(n.mode & unix.S_IFMT) {
		choices = append(choices, 3, 3)
	}
	switch one(p, choices...) {
	case 0:
		valid |= 1
		mode := one[uint32](p, 0o644, 0o600, 0o777, 0)
		if isDir(n.mode&unix.S_IFMT) && n.id[ours] != 1 {
			mode = one[uint32](p, 0o755, 0o700, 0o1777) // theirs would not hand a group down
		} else if n.id[ours] == 1 {
			mode = 0o777
		}
		le.PutUint32(b[68:], n.mode&unix.S_IFMT|mode)
	case 1:
		valid |= one[uint32](p, 2, 4, 6)
		le.PutUint32(b[76:], one[uint32](p, 0, 5, 70000))
		le.PutUint32(b[80:], one[uint32](p, 0, 5, 70000))
		if n.id[ours] == 1 {
			return
		}
	case 2:
		valid, times = valid|16|32, true
		le.PutUint64(b[32:], uint64(p.rng.IntN(1<<31)))
		le.PutUint64(b[40:], uint64(one[int64](p, int64(p.rng.IntN(1<<31)), -5, 1<<33)))
		le.PutUint32(b[56:], uint32(p.rng.IntN(1e9)))
		le.PutUint32(b[60:], uint32(p.rng.IntN(1e9)))
	case 3:
		valid |= 8
		le.PutUint64(b[16:], uint64(p.rng.IntN(20000)))
	}
	le.PutUint32(b, valid)
	p.attrReply(p.send(fuseproto.OpSetAttr, n, 0, 104, b), times)
}

func (p *pair) xattr() {
	p.t.Helper()
	n := p.pick(anyType)
	if n == nil {
		return
	}
	name := one(p, "user.a", "user.b", "trusted.overlay.opaque", "security.x", "nonsense.x", "user.")
	switch p.rng.IntN(6) {
	case 0, 1:
		value := bytes.Repeat([]byte("v"), one(p, 0, 1, 100))
		p.send(fuseproto.OpSetXattr, n, 0, 0, uint32(len(value)), one[uint32](p, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE), name, value)
	case 2:
		p.send(fuseproto.OpRemoveXattr, n, 0, 0, name)
	case 3, 4:
		size := one(p, 0, 10, 1000)
		p.same(p.send(fuseproto.OpGetXattr, n, 0, max(size, 8), uint32(size), uint32(0), name))
	case 5:
		size := one(p, 0, 3, 1000)
		r := p.send(fuseproto.OpListXattr, n, 0, max(size, 8), uint32(size), uint32(0))
		for side := range r { // the order is the host file system's
			if size > 0 {
				names := strings.Split(string(r[side].Body), "\x00")
				slices.Sort(names)
				r[side].Body = []byte(strings.Join(names, "\x00"))
			}
		}
		p.same(r)
	}
}

// list lists a directory on both sides, each with its own cookies. Names, types and
// numbers must be the same, in any order.
func (p *pair) list(f *pairFile) {
	p.t.Helper()
	plus := p.rng.IntN(2) == 0
	op := fuseproto.OpReadDir
	if plus {
		op = fuseproto.OpReadDirPlus
	}
	size := uint32(one(p, 300, 4096))
	var all [2]map[string]fusetest.Dirent
	for side := range all {
		all[side] = map[string]fusetest.Dirent{}
		for off := uint64(0); ; {
			p.unique += 2
			m := fusetest.NewMessage(fusetest.Request(op, p.unique, f.node.id[side], fusetest.ReadBody(f.fh[side], off, size)), 16+int(size))
			var body []byte
			if side == ours {
				body = p.g.ok(p.g.Send(m, p.unique)).Body
			} else if out := p.theirs(m); le.Uint32(out[4:]) == 0 {
				body = out[16:]
			} else {
				p.fail("their %v: errno %d", op, -int32(le.Uint32(out[4:])))
			}
			part := fusetest.DecodeDirents(p.t, body, plus)
			if len(part) == 0 {
				break
			}
			for _, d := range part {
				if _, twice := all[side][d.Name]; twice {
					p.fail("%q is listed twice", d.Name)
				}
				all[side][d.Name] = d
			}
			off = part[len(part)-1].Off
		}
	}
	p.trace = append(p.trace, fmt.Sprintf("%v node %v: %d names", op, f.node.id, len(all[ours])))
	for name, a := range all[ours] {
		b, ok := all[other][name]
		if !ok && (name == "." || name == "..") {
			continue
		}
		if !ok || a.Type != b.Type {
			p.fail("%q is listed with type %d, there: %v, type %d", name, a.Type, ok, b.Type)
		}
		delete(all[other], name)
		if plus && name != "." && name != ".." {
			if a.Entry.Node == 0 || b.Entry.Node == 0 {
				p.fail("%q is listed with node %d, there %d", name, a.Entry.Node, b.Entry.Node)
			}
			p.attr(a.Entry.Attr, b.Entry.Attr, false)
			p.grant(a.Entry, b.Entry)
		}
	}
	for name := range all[other] {
		p.fail("%q is listed only by theirs", name)
	}
}

// TestSameRepliesAsAnotherImplementation sends the same random requests to our
// server and to go-fuse's with its loopback file system, each with a copy of the
// same directory. The seed is fixed; RAFSD_LONG=1 tries many.
func TestSameRepliesAsAnotherImplementation(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
	seeds, steps := uint64(4), 1500
	if os.Getenv("RAFSD_LONG") == "1" {
		seeds, steps = 40, 10_000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			o := passthrough.Options{PosixLocks: true, FileHandles: []passthrough.HandleMode{passthrough.HandlesMandatory, passthrough.HandlesNever}[seed%2]}
			compareServers(t, seed, steps, o)
		})
	}
}

func compareServers(t *testing.T, seed uint64, steps int, o passthrough.Options) {
	top := source(t)
	dirs := [2]string{mkdir(t, filepath.Join(top, "ours")), mkdir(t, filepath.Join(top, "theirs"))}
	for _, d := range dirs {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	root, err := gofs.NewLoopbackRoot(dirs[other])
	if err != nil {
		t.Fatal(err)
	}
	quiet := log.New(io.Discard, "", 0)
	raw := gofs.NewNodeFS(root, &gofs.Options{NullPermissions: true, Logger: quiet, MountOptions: gofuse.MountOptions{EnableLocks: true, Logger: quiet}})
	server := gofuse.NewProtocolServer(raw, &gofuse.MountOptions{EnableLocks: true, Logger: quiet})
	p := &pair{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), g: serve(t, dirs[ours], o),
		byOurs: map[uint64]*pairNode{}, byOther: map[uint64]*pairNode{}, inos: map[uint64]uint64{}, trace: []string{"begin"},
		places: o.FileHandles == passthrough.HandlesNever,
		theirs: func(m *fusetest.Message) []byte {
			n, _ := server.HandleRequest(m.Readable(), m.Writable())
			return m.Room()[:n]
		},
	}
	// Theirs leaves modes to the process's umask.
	defer unix.Umask(unix.Umask(0))
	// SETXATTR_EXT changes what a request looks like; ours grants it with ACLs only.
	p.theirs(fusetest.NewMessage(fusetest.Request(fuseproto.OpInit, 2, 0, fusetest.InitBody(7, 45, fusetest.GuestFlags&^fuseproto.FlagSetXattrExt)), 80))
	p.grant(fusetest.Entry{Node: 1, Attr: fusetest.Attr{Mode: unix.S_IFDIR}}, fusetest.Entry{Node: 1})
	for range steps {
		p.step()
	}
	if a, b := hostTree(t, dirs[ours]), hostTree(t, dirs[other]); a != b {
		t.Errorf("the directories differ at the end:\n--- ours\n%s--- theirs\n%s", a, b)
	}
	for _, n := range slices.Clone(p.nodes)[1:] {
		p.drop(n)
	}
	for _, f := range slices.Clone(p.files) {
		p.close(f)
	}
	if s := p.g.fs.Stats(); s.Nodes != 0 || s.OpenFiles != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// hostTree describes a directory as the host sees it.
func hostTree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			st.Size = 0
		}
		rel, _ := filepath.Rel(dir, name)
		fmt.Fprintf(&out, "%s %#o %d:%d links %d size %d rdev %#x", rel, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %x", sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " -> %q", target)
		}
		names := make([]byte, 4096)
		n, err := unix.Llistxattr(name, names)
		if err != nil {
			return err
		}
		list := strings.Split(string(names[:n]), "\x00")
		slices.Sort(list)
		for _, x := range list {
			if x == "" {
				continue
			}
			v := make([]byte, 4096)
			n, err := unix.Lgetxattr(name, x, v)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s=%q", x, v[:n])
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
