package passthrough

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/record"
)

// Succession: what the process that goes on after this one must know of a session, if
// Options.Record is set.
//
//	nodes, handles    the tables (table_unsafe.go), written with every change
//	file/FH           the descriptor of an open file that could not be opened again
//	lock/NODE/OWNER   the descriptor that holds the POSIX locks of an owner
//	mount/N           where a mount of the host below the directory is (mountRecord)
//
// Any other open file is opened again by the next process, with the same flags. One is
// parked, as a duplicate of its descriptor in the record, before its last name is
// removed (without handles: before any name is removed or changed), when it never had
// one, when its mode may forbid the next open, and before its first lock: locks belong to the open file description, which the duplicate keeps.
// Opening, reading, writing and closing a file that is not parked makes no call to the
// record.
//
// Counts of references: where the process may end between two steps, the order is such
// that the guest is counted to have a reference more, never one less. The node then
// stays until the session ends, which harms nothing; the other way the guest's file
// would go stale.

// maxParked bounds the descriptors that an FS has in the record: they are open files
// of the process that keeps it. What is beyond them ends with this process.
const maxParked = 1 << 12

// succession is what an FS has of the record. All of it is nil or 0 without one.
type succession struct {
	record record.Record
	key    string
	*tables
	leftover bool         // of an earlier process, not taken over; guarded by the order of calls: New, Restore or Init
	left     atomic.Bool  // Leave was called: what is in the record is another process's
	parked   atomic.Int64 // descriptors in the record
	full     limiter
}

// limiter lets the first call through, and then every thousandth.
type limiter struct{ n atomic.Uint64 }

func (l *limiter) allow() bool { return l.n.Add(1)%1000 == 1 }

// mountRecord is a mount of the host in the record.
type mountRecord struct {
	Version int    `json:"version"`
	Number  uint64 `json:"number"`
	Dev     uint64 `json:"dev"`
	IsDir   bool   `json:"is_dir"`
	Ino     uint64 `json:"ino"`    // of its root
	Parent  uint64 `json:"parent"` // node id
	Name    string `json:"name"`
}

func (fs *FS) fileKey(fh uint64) string { return fmt.Sprintf("%sfile/%d", fs.succ.key, fh) }
func (fs *FS) lockKey(k lockKey) string {
	return fmt.Sprintf("%slock/%d/%d", fs.succ.key, k.node, k.owner)
}
func (fs *FS) mountKey(index uint32) string { return fmt.Sprintf("%smount/%d", fs.succ.key, index) }

// attach finds what an earlier process left.
func (fs *FS) attach(o *Options) error {
	if o.Record == nil {
		return nil
	}
	t, err := openTables(o.Record, o.RecordKey)
	if err != nil {
		return err
	}
	fs.succ = &succession{record: o.Record, key: o.RecordKey, tables: t, leftover: true}
	fs.nextNode, fs.nextFile = &t.head.nextNode, &t.head.nextFile
	return nil
}

// writing tells whether changes are written for another process.
func (fs *FS) writing() bool { return fs.succ != nil && !fs.succ.left.Load() }

// Leave makes this FS write no more to the record: another process goes on with what
// is there. No request runs any more; Close follows.
func (fs *FS) Leave() {
	if fs.succ != nil {
		fs.succ.left.Store(true)
	}
}

// noRoom tells, not too often, that something will not survive this process.
func (fs *FS) noRoom(what string) {
	if fs.succ.full.allow() {
		fs.log.Warn("the session record is full: this ends with the process", "what", what)
	}
}

// wipe forgets what an earlier process left of a session that is over.
func (fs *FS) wipe() {
	s := fs.succ
	if s == nil || !s.leftover {
		return
	}
	s.leftover = false
	s.clear()
	if err := s.record.Each(s.key, func(key string, _ []byte, fds []int) error {
		closeAll(fds)
		return s.record.Delete(key)
	}); err != nil {
		fs.log.Error("the session record keeps what nobody needs", "err", err)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Restore implements fuseproto.Restorer: it takes the nodes, handles and locks over
// that an earlier process left. What cannot be taken over is logged, and stale to the
// guest.
func (fs *FS) Restore(flags, number uint64) {
	if fs.succ == nil || !fs.succ.leftover {
		fs.Init(flags)
		return
	}
	fs.succ.leftover = false
	s := fs.newSession(flags)
	s.generation.Store(number)
	old := fs.session.Swap(s)
	fs.end(old)
	mounts, parked, locks, err := fs.takeRecord()
	if err != nil {
		fs.log.Error("session record", "err", err)
	}
	fs.restoreNodes(s, mounts)
	fs.restoreFiles(s, parked)
	fs.restoreLocks(s, locks)
	for fh, fd := range parked { // nobody's: the process ended in the middle
		_ = unix.Close(fd)
		fs.unpark(fs.fileKey(fh))
	}
}

// takeRecord reads the entries: mounts, and descriptors by handle and by owner.
func (fs *FS) takeRecord() (mounts []oldMount, files map[uint64]int, locks map[lockKey]int, err error) {
	files, locks = make(map[uint64]int), make(map[lockKey]int)
	key := fs.succ.key
	err = fs.succ.record.Each(key, func(k string, value []byte, fds []int) error {
		kind, rest, _ := strings.Cut(k[len(key):], "/")
		a, b, two := strings.Cut(rest, "/")
		n, errA := strconv.ParseUint(a, 10, 64)
		switch {
		case kind == "file" && errA == nil && len(fds) == 1:
			files[n] = fds[0]
			fs.succ.parked.Add(1)
			return nil
		case kind == "lock" && errA == nil && two && len(fds) == 1:
			if owner, err := strconv.ParseUint(b, 10, 64); err == nil {
				locks[lockKey{n, owner}] = fds[0]
				fs.succ.parked.Add(1)
				return nil
			}
		case kind == "mount" && errA == nil:
			var m mountRecord
			if err := json.Unmarshal(value, &m); err == nil && m.Version == 1 {
				mounts = append(mounts, oldMount{uint32(n), m})
			}
		}
		closeAll(fds)
		return nil
	})
	slices.SortFunc(mounts, func(a, b oldMount) int { return cmp.Compare(a.index, b.index) }) // parents first
	return mounts, files, locks, err
}

// oldMount is a mount that an earlier process knew.
type oldMount struct {
	index uint32
	mountRecord
}

// restoreNodes makes the nodes of the table.
func (fs *FS) restoreNodes(s *session, old []oldMount) {
	t := fs.succ.tables
	used := t.head.nodesUsed.Load()
	mounts := map[uint32]*mount{0: fs.root.mount}
	for _, o := range old {
		mounts[o.index] = &mount{number: o.Number, dev: o.Dev, isDir: o.IsDir, index: o.index, name: o.Name}
	}
	inUse := make([]uint64, used/64+1)
	mark := func(i uint32) { inUse[i/64] |= 1 << (i % 64) }
	var all, placed []*node
	parents := make(map[*node]uint64)
	lost := 0
	for i := uint32(1); i < used; i++ {
		slot := t.node(i)
		id := slot.id.Load()
		if id == 0 || id&pieceMark != 0 {
			continue
		}
		m := mounts[slot.mount]
		n := &node{id: id, mount: m, dev: slot.dev, ino: slot.ino, typ: uint32(slot.typ), count: slot.count.Load()}
		kind, parent, b, ok := t.readPieces(slot.ext.Load(), id, mark)
		switch {
		case m == nil || !ok || id == fuseproto.RootID || slot.handle > inlineHandle || n.count == 0:
			lost++
			slot.id.Store(0)
			continue
		case slot.handle > 0:
			n.handle = string(slot.data[:slot.handle])
		case kind == pieceHandle && len(b) > 0:
			n.handle = string(b)
		case len(b) > 0:
			n.place.Store(&place{name: string(b), btime: unix.StatxTimestamp{Sec: slot.btimeSec, Nsec: slot.btimeNsec}})
			placed, parents[n] = append(placed, n), parent
		}
		mark(i)
		n.flags.Store(i << nodeSlotShift)
		m.refs.Add(1)
		all = append(all, n)
		s.nodes.byID[id%nodeShards].nodes[id] = n
		s.nodes.live.Add(1)
	}
	find := func(id uint64) *node {
		if id == fuseproto.RootID {
			return fs.root
		}
		return s.nodes.get(id)
	}
	for _, n := range placed {
		p := n.place.Load()
		if parent := find(parents[n]); parent != nil {
			n.place.Store(&place{parent, p.name, p.btime})
		} else {
			n.place.Store(nil) // stale
			lost++
		}
	}
	for _, o := range old {
		if m := mounts[o.index]; m.refs.Load() > 0 {
			m.parent = find(o.Parent)
			fs.restoreMount(m, o.Ino)
		} else {
			fs.unrecord(fs.mountKey(o.index))
		}
	}
	for _, n := range all { // when the numbers of mounts are known
		h := s.nodes.hash(n.mount, n.dev, n.ino)
		sh := &s.nodes.byKey[h%nodeShards]
		n.next = sh.nodes[h]
		sh.nodes[h] = n
	}
	t.mu.Lock()
	for i := used - 1; i > 0; i-- {
		if inUse[i/64]&(1<<(i%64)) == 0 {
			slot := t.node(i)
			slot.id.Store(0)
			slot.count.Store(uint64(t.freeNodes))
			t.freeNodes = i
		}
	}
	t.mu.Unlock()
	if lost > 0 {
		fs.log.Warn("files that the guest knows cannot be found again", "files", lost, "of", s.nodes.live.Load())
	}
}

// restoreMount finds out again what a mount can do. One that has gone stays as it was:
// its nodes are stale.
func (fs *FS) restoreMount(m *mount, ino uint64) {
	if m.parent == nil {
		m.parent = &node{id: ^uint64(0), mount: fs.root.mount} // of no handle and no place: stale
		return
	}
	h, err := fs.hold(m.parent)
	if err != nil {
		return
	}
	defer h.release()
	var name cname
	if name.set([]byte(m.name)) != nil {
		return
	}
	fd, err := fs.openPath(h.fd, &name)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if statFD(fd, &st) != nil || devOf(&st) != m.dev || st.Ino != ino || st.Mnt_id == m.parent.mount.number {
		return
	}
	m.number = st.Mnt_id // another one in another mount namespace
	fs.mounts[m.number] = m
	if err := fs.describe(m, fd); err != nil {
		fs.log.Warn("a mount of the host cannot be used any more", "name", m.name, "err", err)
	}
}

// restoreFiles makes the handles of the table. It takes out of parked what it uses.
func (fs *FS) restoreFiles(s *session, parked map[uint64]int) {
	t := fs.succ.tables
	t.mu.Lock()
	used := t.head.filesUsed.Load()
	var live []uint32
	for i := used - 1; i > 0 && i < used; i-- {
		if slot := t.file(i); slot.id.Load() != 0 {
			live = append(live, i)
		} else {
			slot.node = uint64(t.freeFiles)
			t.freeFiles = i
		}
	}
	t.mu.Unlock()
	for _, i := range live {
		slot := t.file(i)
		fh := slot.id.Load()
		fd, isParked := parked[fh]
		delete(parked, fh)
		if err := fs.restoreFile(s, i, slot, fh, fd, isParked); err != nil {
			fs.log.Error("a file that the guest has open cannot be opened again", "node", slot.node, "handle", fh, "err", err)
			t.dropFile(i)
			if isParked {
				_ = unix.Close(fd)
				fs.unpark(fs.fileKey(fh))
			}
		}
	}
}

func (fs *FS) restoreFile(s *session, i uint32, slot *fileSlot, fh uint64, fd int, parked bool) error {
	n := s.nodes.get(slot.node)
	if slot.node == fuseproto.RootID {
		n = fs.root
	}
	if n == nil {
		return unix.ESTALE
	}
	f := &file{id: fh, node: n, slot: i, flags: int(slot.flags), reads: slot.reads, sync: slot.sync, appends: slot.appends}
	if slot.dir {
		f.dir = new(listing)
	}
	if !parked {
		slot.parked.Store(0)
		var err error
		if fd, err = fs.openAgain(n, f); err != nil {
			return err
		}
	} else {
		slot.parked.Store(1)
		n.flags.Or(nodeUnlinked)
	}
	f.d = newDescriptor(fd)
	s.files[fh%fileShards].files[fh] = f
	f.sibling = n.files.Load()
	n.files.Store(f)
	fs.files.Add(1)
	return nil
}

// openAgain opens a file as the guest did.
func (fs *FS) openAgain(n *node, f *file) (int, error) {
	if f.dir == nil {
		return fs.openFile(n, f.flags&^reopenWithout)
	}
	if n.typ != unix.S_IFDIR {
		return -1, unix.ENOTDIR
	}
	h, err := fs.hold(n)
	if err != nil {
		return -1, err
	}
	defer h.release()
	return fs.reopenFD(h.fd, f.flags&unix.O_NOATIME|unix.O_RDONLY|unix.O_DIRECTORY)
}

// restoreLocks takes the descriptors of lock owners over.
func (fs *FS) restoreLocks(s *session, locks map[lockKey]int) {
	for k, fd := range locks {
		if s.nodes.get(k.node) == nil {
			_ = unix.Close(fd)
			fs.unpark(fs.lockKey(k))
			continue
		}
		s.locks.owners[k] = newLockOwner(newDescriptor(fd), true)
		fs.files.Add(1)
	}
}

// park keeps a duplicate of a descriptor in the record.
func (fs *FS) park(key string, fd int) bool {
	if !fs.writing() {
		return false
	}
	if fs.succ.parked.Add(1) > maxParked {
		fs.succ.parked.Add(-1)
		fs.noRoom("an open file or lock")
		return false
	}
	if err := fs.succ.record.Put(key, nil, fd); err != nil {
		fs.succ.parked.Add(-1)
		fs.log.Error("an open file will not survive this process", "key", key, "err", err)
		return false
	}
	return true
}

// unpark gives up what park kept.
func (fs *FS) unpark(key string) {
	fs.succ.parked.Add(-1)
	fs.unrecord(key)
}

func (fs *FS) unrecord(key string) {
	if !fs.writing() {
		return
	}
	if err := fs.succ.record.Delete(key); err != nil {
		fs.log.Error("the session record keeps what nobody needs", "key", key, "err", err)
	}
}

// parkFile parks an open file, once.
func (fs *FS) parkFile(f *file) {
	if f.slot == 0 || !fs.writing() {
		return
	}
	slot := fs.succ.file(f.slot)
	if slot.parked.Swap(1) != 0 {
		return
	}
	if !fs.park(fs.fileKey(f.id), f.d.fd) {
		slot.parked.Store(0)
	} else if slot.id.Load() != f.id {
		fs.unrecord(fs.fileKey(f.id)) // closed meanwhile
	}
}

// parkHandle is parkFile of a handle.
func (fs *FS) parkHandle(s *session, fh uint64) {
	if !fs.writing() {
		return
	}
	sh := &s.files[fh%fileShards]
	sh.mu.RLock()
	f := sh.files[fh]
	sh.mu.RUnlock()
	if f != nil && f.d.take() {
		fs.parkFile(f)
		f.d.release()
	}
}

// parkNode parks every file of n that is open.
func (fs *FS) parkNode(n *node) {
	if n.files.Load() == nil {
		return
	}
	var files []*file
	mu := &fs.filesMu[n.id%nodeShards]
	mu.Lock()
	for f := n.files.Load(); f != nil; f = f.sibling {
		if f.d.take() {
			files = append(files, f)
		}
	}
	mu.Unlock()
	for _, f := range files {
		fs.parkFile(f)
		f.d.release()
	}
}

// parkVictim parks the open files of what has a name in d that is about to be removed,
// if it is the last name, or might be the one that the file is known by.
func (fs *FS) parkVictim(s *session, d *node, dirFD int, name *cname) {
	if !fs.writing() {
		return
	}
	var st unix.Statx_t
	if statName(dirFD, name, &st) != nil {
		return
	}
	last := st.Nlink <= 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR
	if last || !d.mount.handles {
		fs.parkFound(s, d, &st, last)
	}
}

// parkMoved parks the open files of what has a name in d and is about to get another,
// if that is what they are known by.
func (fs *FS) parkMoved(s *session, d *node, dirFD int, name *cname) {
	var st unix.Statx_t
	if fs.writing() && !d.mount.handles && statName(dirFD, name, &st) == nil {
		fs.parkFound(s, d, &st, false)
	}
}

// parkFound parks the open files of what st describes; with last, those too that are
// opened from now on.
func (fs *FS) parkFound(s *session, d *node, st *unix.Statx_t, last bool) {
	var found []*node
	h := s.nodes.hash(d.mount, devOf(st), st.Ino)
	sh := &s.nodes.byKey[h%nodeShards]
	sh.mu.Lock()
	for n := sh.nodes[h]; n != nil; n = n.next {
		if n.mount == d.mount && n.sameFile(st) {
			found = append(found, n)
		}
	}
	sh.mu.Unlock()
	for _, n := range found {
		if last {
			n.flags.Or(nodeUnlinked) // first: who opens it from now on parks it himself
		}
		fs.parkNode(n)
	}
}

// recordMount makes a mount known to the next process, before a node in it is.
func (fs *FS) recordMount(m *mount, ino uint64) {
	if !fs.writing() {
		return
	}
	m.index = fs.succ.head.nextMount.Add(1)
	b, err := json.Marshal(mountRecord{1, m.number, m.dev, m.isDir, ino, m.parent.id, m.name})
	if err == nil {
		err = fs.succ.record.Put(fs.mountKey(m.index), b)
	}
	if err != nil {
		fs.log.Error("a mount of the host will not survive this process", "name", m.name, "err", err)
	}
}

// closeSuccession ends the use of the record. Without Leave, nobody goes on: it is
// emptied.
func (fs *FS) closeSuccession() error {
	s := fs.succ
	if s == nil || s.left.Load() {
		return nil
	}
	fs.wipe() // if there never was a session
	s.clear() // the memory itself stays mapped
	if err := s.record.DropMemory(s.key + "nodes"); err != nil {
		return err
	}
	return s.record.DropMemory(s.key + "files")
}

// The stores into the table of nodes. The keyShard of the node is held.

func (fs *FS) addedLocked(n *node) {
	if !fs.writing() {
		return
	}
	if i := fs.succ.addNode(n); i != 0 {
		n.flags.Or(i << nodeSlotShift)
		return
	}
	fs.noRoom("a file that the guest knows")
}

func (fs *FS) countedLocked(n *node) {
	if i := n.slot(); i != 0 && fs.writing() {
		fs.succ.node(i).count.Store(n.count)
	}
}

func (fs *FS) removedLocked(n *node) {
	if i := n.slot(); i != 0 && fs.writing() {
		fs.succ.dropNode(i)
	}
}

func (fs *FS) placeLocked(n *node, p *place) {
	n.place.Store(p)
	if i := n.slot(); i != 0 && n.count > 0 && fs.writing() {
		fs.succ.moveNode(i, n, p)
	}
}
