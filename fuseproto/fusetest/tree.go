package fusetest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rafsd/rafsd/fuseproto"
)

// Tree is a small read-only file system in memory. It counts the references it
// has given, as one would whose nodes are not pure functions.
//
// It is filled before it is served; the counters may be read at any time.
type Tree struct {
	fuseproto.ReadOnly

	// MustBlock, if set, tells for which requests a method must be allowed to
	// wait. Wait, if set, is called by those then.
	MustBlock func(op *fuseproto.Op) bool
	Wait      func(op *fuseproto.Op) error
	// Fail, if set, is asked for an error before any method does its work.
	Fail func(op *fuseproto.Op) error

	Inits, Destroys atomic.Int64
	Flags           atomic.Uint64 // of the last Init
	Closed          atomic.Bool

	mu    sync.Mutex
	refs  map[uint64]int64
	calls map[fuseproto.Opcode]int

	root  uint64
	next  uint64
	nodes map[uint64]*node
}

type node struct {
	attr    fuseproto.Attr
	parent  uint64
	names   [][]byte // of a directory: in order of their cookies, from 3 on
	inos    []uint64
	byName  map[string]uint64
	data    []byte
	xattrs  map[string]string
	listing []byte // of xattrs' names
}

// NewTree returns a Tree that has only a root, with the given index.
func NewTree(root uint64) *Tree {
	t := &Tree{root: root, next: root, nodes: make(map[uint64]*node), refs: make(map[uint64]int64), calls: make(map[fuseproto.Opcode]int)}
	t.add(syscall.S_IFDIR|0o755, root)
	return t
}

func (t *Tree) add(mode uint32, parent uint64) uint64 {
	index := t.next
	t.next++
	n := &node{parent: parent, attr: fuseproto.Attr{
		Ino: index, Mode: mode, Nlink: 1, Blksize: 4096, UID: 7, GID: 8,
		Mtime: -5, MtimeNsec: 999_999_999, Ctime: 1 << 40, Atime: 3,
	}}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		n.byName = make(map[string]uint64)
	}
	t.nodes[index] = n
	return index
}

func (t *Tree) enter(parent uint64, name string, index uint64) uint64 {
	p := t.nodes[parent]
	p.byName[name] = index
	p.names = append(p.names, []byte(name))
	p.inos = append(p.inos, index)
	return index
}

// Dir adds a directory.
func (t *Tree) Dir(parent uint64, name string) uint64 {
	return t.enter(parent, name, t.add(syscall.S_IFDIR|0o755, parent))
}

// File adds a regular file.
func (t *Tree) File(parent uint64, name string, data []byte) uint64 {
	i := t.enter(parent, name, t.add(syscall.S_IFREG|0o644, parent))
	t.nodes[i].data = data
	t.nodes[i].attr.Size = uint64(len(data))
	return i
}

// LinkTo adds a symbolic link.
func (t *Tree) LinkTo(parent uint64, name, target string) uint64 {
	i := t.enter(parent, name, t.add(syscall.S_IFLNK|0o777, parent))
	t.nodes[i].data = []byte(target)
	t.nodes[i].attr.Size = uint64(len(target))
	return i
}

// Xattr gives a node an extended attribute.
func (t *Tree) Xattr(index uint64, name, value string) {
	n := t.nodes[index]
	if n.xattrs == nil {
		n.xattrs = make(map[string]string)
	}
	n.xattrs[name] = value
	n.listing = nil
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		n.listing = append(append(n.listing, name...), 0)
	}
}

// Change changes what GETATTR says of a node.
func (t *Tree) Change(index uint64, f func(*fuseproto.Attr)) { f(&t.nodes[index].attr) }

// Refs returns the references that the guest holds, by node; those of 0 are left
// out.
func (t *Tree) Refs() map[uint64]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	refs := maps.Clone(t.refs)
	maps.DeleteFunc(refs, func(_ uint64, n int64) bool { return n == 0 })
	return refs
}

// Calls returns how often methods were called for an opcode.
func (t *Tree) Calls(op fuseproto.Opcode) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls[op]
}

func (t *Tree) ref(index uint64, n int64) {
	t.mu.Lock()
	t.refs[index] += n
	t.mu.Unlock()
}

func (t *Tree) begin(op *fuseproto.Op, index uint64) (*node, error) {
	t.mu.Lock()
	t.calls[op.Opcode]++
	t.mu.Unlock()
	if t.Fail != nil {
		if err := t.Fail(op); err != nil {
			return nil, err
		}
	}
	if t.MustBlock != nil && t.MustBlock(op) {
		if !op.MayBlock() {
			return nil, fuseproto.ErrWouldBlock
		}
		if t.Wait != nil {
			if err := t.Wait(op); err != nil {
				return nil, err
			}
		}
	}
	if t.Closed.Load() {
		return nil, fmt.Errorf("node %d used after Close", index)
	}
	n := t.nodes[index]
	if n == nil {
		return nil, syscall.ESTALE
	}
	return n, nil
}

// Root implements fuseproto.FileSystem.
func (t *Tree) Root() uint64 { return t.root }

// Init counts.
func (t *Tree) Init(flags uint64) {
	t.Inits.Add(1)
	t.Flags.Store(flags)
	t.mu.Lock()
	clear(t.refs)
	t.mu.Unlock()
}

// Destroy counts.
func (t *Tree) Destroy() {
	t.Destroys.Add(1)
	t.mu.Lock()
	clear(t.refs)
	t.mu.Unlock()
}

// Close makes every further request an error.
func (t *Tree) Close() error {
	t.Closed.Store(true)
	return nil
}

// Forget gives references back.
func (t *Tree) Forget(index, n uint64) { t.ref(index, -int64(n)) }

func (t *Tree) entry(index uint64, out *fuseproto.Entry) {
	*out = fuseproto.Entry{Node: index, EntryTimeout: fuseproto.Forever, AttrTimeout: fuseproto.Forever, Attr: t.nodes[index].attr}
}

// Lookup implements fuseproto.FileSystem; absent names are negative entries.
func (t *Tree) Lookup(op *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	n, err := t.begin(op, dir)
	if err != nil {
		return err
	}
	var index uint64
	switch {
	case string(name) == ".":
		index = dir
	case string(name) == "..":
		index = n.parent
	case n.byName == nil:
		return syscall.ENOTDIR
	default:
		index = n.byName[string(name)]
	}
	if index == 0 {
		*out = fuseproto.Entry{EntryTimeout: fuseproto.Forever}
		return nil
	}
	t.entry(index, out)
	t.ref(index, 1)
	return nil
}

// GetAttr implements fuseproto.FileSystem.
func (t *Tree) GetAttr(op *fuseproto.Op, index uint64, _ *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	*out = fuseproto.AttrOut{Timeout: fuseproto.Forever, Attr: n.attr}
	return nil
}

// Readlink implements fuseproto.FileSystem.
func (t *Tree) Readlink(op *fuseproto.Op, index uint64, out *fuseproto.Out) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	_, err = out.Write(n.data)
	return err
}

// Read implements fuseproto.FileSystem.
func (t *Tree) Read(op *fuseproto.Op, index uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	size := uint64(len(n.data))
	if in.Offset >= size {
		return nil
	}
	_, err = out.Write(n.data[in.Offset:min(size, in.Offset+uint64(in.Size))])
	return err
}

// ReadDir implements fuseproto.FileSystem. Cookies are ordinals.
func (t *Tree) ReadDir(op *fuseproto.Op, index uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	if n.byName == nil {
		return syscall.ENOTDIR
	}
	if in.Offset < 1 && !out.Add(fuseproto.DirEntry{Name: dot, Ino: index, Off: 1, Type: fuseproto.DTDir}) {
		return nil
	}
	if in.Offset < 2 && !out.Add(fuseproto.DirEntry{Name: dotDot, Ino: n.parent, Off: 2, Type: fuseproto.DTDir}) {
		return nil
	}
	for i := max(in.Offset, 2) - 2; i < uint64(len(n.names)); i++ {
		child := n.inos[i]
		var e fuseproto.Entry
		t.entry(child, &e)
		d := fuseproto.DirEntry{Name: n.names[i], Ino: child, Off: i + 3, Type: uint8(e.Attr.Mode >> 12)}
		if !out.AddPlus(d, &e) {
			return nil
		}
		if out.Plus() {
			t.ref(child, 1)
		}
	}
	return nil
}

var dot, dotDot = []byte("."), []byte("..")

// GetXattr implements fuseproto.FileSystem.
func (t *Tree) GetXattr(op *fuseproto.Op, index uint64, name []byte, out *fuseproto.Out) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	value, ok := n.xattrs[string(name)]
	if !ok {
		return syscall.ENODATA
	}
	_, err = out.Write([]byte(value))
	return err
}

// ListXattr implements fuseproto.FileSystem.
func (t *Tree) ListXattr(op *fuseproto.Op, index uint64, out *fuseproto.Out) error {
	n, err := t.begin(op, index)
	if err != nil {
		return err
	}
	_, err = out.Write(n.listing)
	return err
}
