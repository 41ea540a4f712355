package vfs

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
)

// A node id is mount id << indexBits | index.
const (
	indexBits = fuseproto.IndexBits
	indexMask = 1<<indexBits - 1
	maxID     = 1<<20 - 1
)

// mount is a file system in the tree. All but the gate is immutable.
type mount struct {
	id     uint32 // 0: the pseudo directories
	path   string // clean, "/" or "/a/b"
	fs     fuseproto.FileSystem
	root   uint64 // index of its root
	node   uint64 // node id of its root
	parent uint64 // node id of the directory that holds it; 1 for "/"
	static bool   // MountOptions.Static
	nodes  fuseproto.NodeMap
	opts   MountOptions
	since  time.Time
	// cookies are those of the names of path.
	cookies []uint64
	gate    gate
}

func newMount(id uint32, path string, fs fuseproto.FileSystem, opts MountOptions) (*mount, error) {
	m := &mount{id: id, path: path, fs: fs, root: fs.Root(), parent: fuseproto.RootID, static: opts.Static, opts: opts, since: opts.Since}
	if m.since.IsZero() {
		m.since = time.Now()
	}
	if m.root == 0 || m.root > indexMask {
		return nil, fmt.Errorf("mount %s: root has index %#x, want 1 to %#x", path, m.root, uint64(indexMask))
	}
	m.node = uint64(id)<<indexBits | m.root
	if path == "/" {
		m.node = fuseproto.RootID
	}
	m.nodes = fuseproto.NodeMap{Base: uint64(id) << indexBits, Root: m.root, RootNode: m.node, KeepIno: opts.KeepIno, Submounts: opts.Submounts}
	m.gate.init()
	return m, nil
}

// overlaid tells whether pseudo directories may be laid over the directory index.
func (m *mount) overlaid(index uint64) bool {
	return m.id != 0 && index == m.root && m.node == fuseproto.RootID && !m.static
}

// volatile tells whether the guest may not keep the way to a node: it is a mount's
// root, and by that name there may be another one next.
func (m *mount) volatile(index uint64) bool { return index == m.root && !m.static }

// shortly is how long the guest may keep attributes of directories that come and go
// with mounts. With no time at all it would ask for those of its root, to see whether
// it may pass through, at every path that it walks.
var shortly = fuseproto.Timeout{Sec: 1}

// attrTimeout is how long the guest may keep attributes for which the file system
// allows t.
func (m *mount) attrTimeout(index uint64, t fuseproto.Timeout) fuseproto.Timeout {
	if m.volatile(index) && t.Sec >= shortly.Sec {
		return shortly
	}
	return t
}

// attr turns attributes of the node index into the tree's.
func (m *mount) attr(index uint64, a *fuseproto.Attr) {
	a.Ino = m.nodes.Ino(a.Ino)
	if !m.opts.Submounts || index == m.root {
		a.Flags &^= fuseproto.AttrSubmount // overlayfs refuses a layer that is an automount
	}
}

// entry turns an entry of the file system's into the tree's.
func (m *mount) entry(e *fuseproto.Entry) error {
	if e.Node == 0 || m.id == 0 {
		return nil
	}
	if e.Node > indexMask {
		return fmt.Errorf("mount %s: index %#x has more than %d bits", m.path, e.Node, indexBits)
	}
	if m.volatile(e.Node) {
		e.EntryTimeout = fuseproto.Timeout{}
		e.AttrTimeout = m.attrTimeout(e.Node, e.AttrTimeout)
	}
	m.attr(e.Node, &e.Attr)
	e.Node = m.nodes.Node(e.Node)
	return nil
}

// gateShards is how many counters a gate has, so that queues served at the same
// time seldom write the same cache line.
const gateShards = 8

// gate counts the requests in a mount, and those that ever were, and is shut once.
//
// A request enters before it uses the mount and leaves after. shut returns when
// no request is in it and none can enter any more. A request adds itself first
// and looks at shut then; shut is stored first and the counters are looked at
// then: whichever comes second sees the other.
type gate struct {
	isShut atomic.Bool
	left   chan struct{} // a request has left a shut gate; 1 buffered
	in     [gateShards]struct {
		// The lower gateInBits are the requests that are in, the others those that
		// have come, modulo what there is room for: one addition counts both.
		n atomic.Uint64
		_ [56]byte
	}
}

const (
	gateInBits = 24 // no device has that many requests in flight
	gateInMask = 1<<gateInBits - 1
)

func (g *gate) init() { g.left = make(chan struct{}, 1) }

// enter counts a request, or returns false if the gate is shut. One that comes again,
// having had to wait, is not counted anew among those that ever were.
func (g *gate) enter(shard uint32, again bool) bool {
	one := uint64(1<<gateInBits | 1)
	if again {
		one = 1
	}
	g.in[shard%gateShards].n.Add(one)
	if g.isShut.Load() {
		g.leave(shard)
		return false
	}
	return true
}

// leave ends what enter with the same shard began.
func (g *gate) leave(shard uint32) {
	if g.in[shard%gateShards].n.Add(^uint64(0))&gateInMask == 0 && g.isShut.Load() {
		select {
		case g.left <- struct{}{}:
		default:
		}
	}
}

// came returns how many requests have come.
func (g *gate) came() (n uint64) {
	for i := range g.in {
		n += g.in[i].n.Load() >> gateInBits
	}
	return n
}

// shut lets nobody in any more and waits until all have left.
func (g *gate) shut() {
	g.isShut.Store(true)
	for i := range g.in {
		for g.in[i].n.Load()&gateInMask != 0 {
			<-g.left
		}
	}
}
