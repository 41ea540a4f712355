package passthrough

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// node is a file of the host that the guest knows. On 64-bit machines it takes
// 96 bytes, its handle 16 to 24 more, and its places in the two tables some 55
// (TestNodeSize, docs/passthrough.md).
//
// id, mount, dev, ino, handle and typ are immutable. A node is named either by
// handle or, where there are none, by where it was last seen (place).
type node struct {
	id     uint64
	mount  *mount
	dev    uint64
	ino    uint64
	handle string                // packed file handle: type, then bytes; "" if by place
	place  atomic.Pointer[place] // nil if by handle
	path   atomic.Pointer[descriptor]
	files  atomic.Pointer[file] // open files of it, linked by file.sibling; changed under FS.filesMu
	count  uint64               // references of the guest; guarded by its keyShard
	next   *node                // others of the same hash; guarded by its keyShard
	typ    uint32               // S_IFMT bits
	flags  atomic.Uint32
}

// Bits of node.flags.
const (
	nodeProven   = 1 << iota // a descriptor was seen to have this identity
	nodeGone                 // in no table any more
	nodeUnlinked             // its last name was removed, or is about to be: opened, it is parked

	// nodeSlotShift and what is above: its slot in the table of the session record, 0
	// if it has none; set before anybody else sees the node.
	nodeSlotShift = iota
)

// slot returns the node's place in the table of the session record, 0 if it has none.
func (n *node) slot() uint32 { return n.flags.Load() >> nodeSlotShift }

// same tells whether n and o are one file, maybe known twice: the guest forgot it
// in between.
func (n *node) same(o *node) bool {
	return n == o || n != nil && o != nil &&
		n.mount == o.mount && n.dev == o.dev && n.ino == o.ino && n.handle == o.handle
}

// place is where a node is looked for that has no handle: one component below
// its parent. It is immutable and replaced when the node is seen elsewhere.
type place struct {
	parent *node
	name   string
	btime  unix.StatxTimestamp // of the node; zero where the host does not know
}

// identity is what a look-up found out about a file.
type identity struct {
	mount  *mount
	dev    uint64
	ino    uint64
	typ    uint32
	handle []byte // packed; nil if by place
	btime  unix.StatxTimestamp
}

func devOf(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// sameFile tells whether st describes n, as far as a description can.
func (n *node) sameFile(st *unix.Statx_t) bool {
	if n.ino != st.Ino || n.dev != devOf(st) || n.typ != uint32(st.Mode)&unix.S_IFMT || n.mount.number != st.Mnt_id {
		return false
	}
	p := n.place.Load()
	return p == nil || p.btime == st.Btime
}

// The tables of nodes are cut into shards, so that look-ups of different files
// seldom meet.
const nodeShards = 32

// nodeTable holds the nodes of a session by id and by identity. A node is in
// both or in none, and in them as long as the guest has a reference.
type nodeTable struct {
	seed  maphash.Seed
	byKey [nodeShards]keyShard
	byID  [nodeShards]idShard
	live  atomic.Int64
}

// keyShard orders everything that counts references. Lock order: a keyShard, then
// an idShard; no system call is made under either.
type keyShard struct {
	mu    sync.Mutex
	nodes map[uint64]*node // first of the hash of (mount, dev, ino)
	ended bool             // the session is over: nothing is added any more
	_     [40]byte
}

type idShard struct {
	mu    sync.RWMutex
	nodes map[uint64]*node
	_     [32]byte
}

func newNodeTable() *nodeTable {
	t := &nodeTable{seed: maphash.MakeSeed()}
	for i := range nodeShards {
		t.byKey[i].nodes = make(map[uint64]*node)
		t.byID[i].nodes = make(map[uint64]*node)
	}
	return t
}

func (t *nodeTable) hash(m *mount, dev, ino uint64) uint64 {
	return maphash.Comparable(t.seed, [3]uint64{m.number, dev, ino})
}

func (t *nodeTable) shardOf(n *node) *keyShard {
	return &t.byKey[t.hash(n.mount, n.dev, n.ino)%nodeShards]
}

// get returns the node of that id, or nil.
func (t *nodeTable) get(id uint64) *node {
	s := &t.byID[id%nodeShards]
	s.mu.RLock()
	n := s.nodes[id]
	s.mu.RUnlock()
	return n
}

// refer looks for a node that st describes and that cannot be another file of the
// same number, because a descriptor of ours keeps the inode alive. It gives the
// guest a reference to it.
func (fs *FS) refer(s *session, m *mount, st *unix.Statx_t) *node {
	t := s.nodes
	h := t.hash(m, devOf(st), st.Ino)
	sh := &t.byKey[h%nodeShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for n := sh.nodes[h]; n != nil; n = n.next {
		if n.mount == m && n.sameFile(st) && n.pinned() {
			n.count++
			fs.countedLocked(n)
			return n
		}
	}
	return nil
}

// pinned tells whether a descriptor of ours keeps the inode from being used for
// another file.
func (n *node) pinned() bool { return n.files.Load() != nil || n.path.Load() != nil }

// publish gives the guest a reference to the file of that identity, making its
// node if there is none. It returns nil if the session is over.
func (fs *FS) publish(s *session, id *identity, parent *node, name []byte) *node {
	t := s.nodes
	h := t.hash(id.mount, id.dev, id.ino)
	sh := &t.byKey[h%nodeShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.ended {
		return nil
	}
	for n := sh.nodes[h]; n != nil; n = n.next {
		if n.mount != id.mount || n.dev != id.dev || n.ino != id.ino || n.typ != id.typ || n.handle != string(id.handle) {
			continue
		}
		if p := n.place.Load(); p != nil {
			if p.btime != id.btime {
				continue
			}
			if p.parent != parent || p.name != string(name) {
				fs.placeLocked(n, &place{parent, string(name), id.btime})
			}
		}
		n.count++
		fs.countedLocked(n)
		return n
	}
	n := &node{
		id: fs.nextNode.Add(1), mount: id.mount, dev: id.dev, ino: id.ino,
		handle: string(id.handle), typ: id.typ, count: 1, next: sh.nodes[h],
	}
	if id.handle == nil {
		n.place.Store(&place{parent, string(name), id.btime})
	}
	fs.addedLocked(n)
	id.mount.refs.Add(1)
	sh.nodes[h] = n
	ids := &t.byID[n.id%nodeShards]
	ids.mu.Lock()
	ids.nodes[n.id] = n
	ids.mu.Unlock()
	t.live.Add(1)
	return n
}

// forget takes references back. A guest that gives back more than it was given
// loses the node, and nothing else happens.
func (fs *FS) forget(s *session, id, nlookup uint64) {
	n := s.nodes.get(id)
	if n == nil || n == fs.root || nlookup == 0 {
		return
	}
	sh := s.nodes.shardOf(n)
	sh.mu.Lock()
	if n.count > nlookup {
		n.count -= nlookup
		fs.countedLocked(n)
		sh.mu.Unlock()
		return
	}
	gone := n.count > 0
	n.count = 0
	if gone {
		fs.removedLocked(n)
		s.nodes.removeLocked(sh, n)
	}
	sh.mu.Unlock()
	if gone {
		fs.drop(n)
	}
}

// removeLocked takes n out of both tables.
func (t *nodeTable) removeLocked(sh *keyShard, n *node) {
	h := t.hash(n.mount, n.dev, n.ino)
	if first := sh.nodes[h]; first == n {
		if n.next == nil {
			delete(sh.nodes, h)
		} else {
			sh.nodes[h] = n.next
		}
	} else {
		for p := first; p != nil; p = p.next {
			if p.next == n {
				p.next = n.next
				break
			}
		}
	}
	n.next = nil
	ids := &t.byID[n.id%nodeShards]
	ids.mu.Lock()
	delete(ids.nodes, n.id)
	ids.mu.Unlock()
	t.live.Add(-1)
}

// drop gives back what a node held that is in no table any more.
func (fs *FS) drop(n *node) {
	n.flags.Or(nodeGone)
	fs.idle.remove(&n.path)
	fs.leaveMount(n.mount)
}

// end empties the tables for good.
func (fs *FS) endNodes(t *nodeTable) {
	for i := range t.byKey {
		sh := &t.byKey[i]
		sh.mu.Lock()
		sh.ended = true
		var gone []*node
		for _, n := range sh.nodes {
			for ; n != nil; n = n.next {
				gone = append(gone, n)
			}
		}
		for _, n := range gone {
			n.count = 0
			fs.removedLocked(n)
			t.removeLocked(sh, n)
		}
		sh.mu.Unlock()
		for _, n := range gone {
			fs.drop(n)
		}
	}
}

// fileType returns the d_type of a mode.
func fileType(mode uint32) uint8 { return uint8(mode & unix.S_IFMT >> 12) }

// attr turns what the host says of a file into what the guest is told.
func (fs *FS) attr(m *mount, st *unix.Statx_t, isMountRoot bool, a *fuseproto.Attr) {
	*a = fuseproto.Attr{
		Ino: fs.ino(m, devOf(st), st.Ino), Size: st.Size, Blocks: st.Blocks,
		Atime: st.Atime.Sec, Mtime: st.Mtime.Sec, Ctime: st.Ctime.Sec,
		AtimeNsec: st.Atime.Nsec, MtimeNsec: st.Mtime.Nsec, CtimeNsec: st.Ctime.Nsec,
		Mode: uint32(st.Mode), Nlink: st.Nlink,
		UID: fs.opts.UIDMap.toGuest(st.Uid), GID: fs.opts.GIDMap.toGuest(st.Gid),
		Rdev: encodeDev(st.Rdev_major, st.Rdev_minor), Blksize: st.Blksize,
	}
	if isMountRoot && fs.opts.Submounts && uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
		a.Flags |= fuseproto.AttrSubmount
	}
}

// ino returns the inode number to show. The guest has one device number for all
// that is not announced as a submount: numbers of other host file systems are then
// replaced by a hash, so that they do not meet those of the first.
func (fs *FS) ino(m *mount, dev, ino uint64) uint64 {
	own := fs.rootDev
	if fs.opts.Submounts && m.isDir {
		own = m.dev
	}
	if dev == own {
		return ino
	}
	x := ino ^ dev*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return max(x^x>>31, 2)
}

// encodeDev is the kernel's new_encode_dev.
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// decodeDev returns the host's device number for a guest's.
func decodeDev(rdev uint32) uint64 {
	return unix.Mkdev(rdev>>8&0xfff, rdev&0xff|rdev>>12&0xfff00)
}
