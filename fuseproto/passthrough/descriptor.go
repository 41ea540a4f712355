package passthrough

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor is an open descriptor that several requests use at once and that is
// closed when the last of them and whoever keeps it have let go.
type descriptor struct {
	fd   int
	refs atomic.Int32 // whoever keeps it counts as one; 0 is closed
	used atomic.Bool  // since the sweeper came by
	seen atomic.Int64 // when it was last seen to be inside, of a directory; FS.clock
}

func newDescriptor(fd int) *descriptor {
	d := &descriptor{fd: fd}
	d.refs.Store(1)
	d.used.Store(true)
	return d
}

// take adds a user, unless d was closed meanwhile.
func (d *descriptor) take() bool {
	for {
		n := d.refs.Load()
		if n <= 0 {
			return false
		}
		if d.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (d *descriptor) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// slot is where a descriptor is kept while nobody uses it: of a node, or of a
// mount.
type slot = atomic.Pointer[descriptor]

// takeFrom returns the descriptor in s with a user added, or nil.
func takeFrom(s *slot) *descriptor {
	d := s.Load()
	if d == nil || !d.take() {
		return nil
	}
	if !d.used.Load() {
		d.used.Store(true)
	}
	return d
}

// sweepEvery is how long a descriptor that could keep the host from unmounting
// something, or a removed file from giving its blocks back, stays open unused: at
// most twice that.
const sweepEvery = 200 * time.Millisecond

// idleSet bounds and sweeps the descriptors that are kept for later. It is a clock:
// entries in a ring, a hand that goes round and takes what was not used since it
// came by last. A timer runs only while there is something for it to close.
//
// mu is a leaf. Descriptors are closed outside of it.
type idleSet struct {
	mu      sync.Mutex
	ring    []idleEntry
	at      map[*slot]int
	hand    int
	limit   int
	timer   *time.Timer
	ticking bool
	sweep   int // entries that the timer may close
	closed  bool
}

type idleEntry struct {
	slot *slot
	d    *descriptor
	stay bool // not closed by the timer: reopening it could fail
}

func newIdleSet(limit int) *idleSet {
	return &idleSet{limit: limit, at: make(map[*slot]int)}
}

// keep stores a fresh descriptor in its slot and hands it out with a user added.
// If another request was quicker, its descriptor is handed out instead.
func (s *idleSet) keep(sl *slot, fd int, stay bool) *descriptor {
	d := newDescriptor(fd)
	d.refs.Store(2)
	s.mu.Lock()
	if s.closed || s.limit == 0 {
		s.mu.Unlock()
		d.refs.Store(1) // for this request alone
		return d
	}
	if old := takeFrom(sl); old != nil {
		s.mu.Unlock()
		unix.Close(fd)
		return old
	}
	var out *descriptor
	if len(s.ring) >= s.limit {
		out = s.evictLocked()
	}
	sl.Store(d)
	s.at[sl] = len(s.ring)
	s.ring = append(s.ring, idleEntry{sl, d, stay})
	if !stay {
		s.sweep++
		if !s.ticking {
			s.ticking = true
			if s.timer == nil {
				s.timer = time.AfterFunc(sweepEvery, s.tick)
			} else {
				s.timer.Reset(sweepEvery)
			}
		}
	}
	s.mu.Unlock()
	if out != nil {
		out.release()
	}
	return d
}

// evictLocked takes the first entry out that was not used since the hand passed it
// last, and returns its descriptor.
func (s *idleSet) evictLocked() *descriptor {
	for {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		e := &s.ring[s.hand]
		if e.d.used.Swap(false) {
			s.hand++
			continue
		}
		return s.takeOutLocked(s.hand)
	}
}

// takeOutLocked takes the entry at i out of ring and slot.
func (s *idleSet) takeOutLocked(i int) *descriptor {
	e := s.ring[i]
	e.slot.Store(nil)
	delete(s.at, e.slot)
	if !e.stay {
		s.sweep--
	}
	last := len(s.ring) - 1
	if i != last {
		s.ring[i] = s.ring[last]
		s.at[s.ring[i].slot] = i
	}
	s.ring[last] = idleEntry{}
	s.ring = s.ring[:last]
	return e.d
}

// remove closes what is kept in a slot, once no request uses it.
func (s *idleSet) remove(sl *slot) {
	if sl.Load() == nil {
		return
	}
	s.mu.Lock()
	var d *descriptor
	if i, ok := s.at[sl]; ok {
		d = s.takeOutLocked(i)
	}
	s.mu.Unlock()
	if d != nil {
		d.release()
	}
}

// tick closes what was not used since the last tick.
func (s *idleSet) tick() {
	s.mu.Lock()
	var out []*descriptor
	for i := 0; i < len(s.ring); {
		if e := &s.ring[i]; !e.stay && !e.d.used.Swap(false) {
			out = append(out, s.takeOutLocked(i))
			continue
		}
		i++
	}
	s.ticking = s.sweep > 0 && !s.closed
	if s.ticking {
		s.timer.Reset(sweepEvery)
	}
	s.mu.Unlock()
	for _, d := range out {
		d.release()
	}
}

// empty closes everything that no request uses.
func (s *idleSet) empty() {
	s.mu.Lock()
	out := make([]*descriptor, 0, len(s.ring))
	for len(s.ring) > 0 {
		out = append(out, s.takeOutLocked(len(s.ring)-1))
	}
	s.mu.Unlock()
	for _, d := range out {
		d.release()
	}
}

// close empties s and keeps nothing from then on.
func (s *idleSet) close() {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.empty()
}

func (s *idleSet) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ring)
}

// held is a descriptor that a request uses: of a node's own, or of a file of it
// that the guest has open. The zero value holds nothing.
type held struct {
	fd   int
	d    *descriptor // nil for the root's own
	open bool        // not O_PATH: fd can be read, or synced, as it is
}

func (h *held) release() {
	if h.d != nil {
		h.d.release()
		h.d = nil
	}
}

// maxClimb bounds how many components are opened for a node that has no handle
// and none of whose parents is open any more.
const maxClimb = 1024

// hold returns a descriptor of n for the length of a request: O_PATH, or that of
// an open file. ESTALE says that the file is no longer there.
func (fs *FS) hold(n *node) (held, error) {
	if n == fs.root {
		return held{fd: fs.rootFD, open: true}, nil
	}
	d, open := takeFrom(&n.path), false
	if d == nil {
		d = fs.borrow(n)
		open = d != nil
	}
	if d == nil {
		var err error
		if d, err = fs.reopen(n); err != nil {
			return held{}, err
		}
	}
	if n.typ == unix.S_IFDIR && !fs.inside(d) {
		d.release()
		fs.idle.remove(&n.path)
		return held{}, unix.ESTALE
	}
	return held{fd: d.fd, d: d, open: open}, nil
}

// borrow returns the descriptor of a file of n that is open, or nil. It is what
// keeps a removed file at hand by its node.
func (fs *FS) borrow(n *node) *descriptor {
	if n.files.Load() == nil {
		return nil
	}
	mu := &fs.filesMu[n.id%nodeShards]
	mu.Lock()
	defer mu.Unlock()
	for f := n.files.Load(); f != nil; f = f.sibling {
		if f.d.take() {
			return f.d
		}
	}
	return nil
}

// reopen opens n again and keeps the descriptor.
func (fs *FS) reopen(n *node) (*descriptor, error) {
	if n.handle != "" {
		fd, err := fs.openByHandle(n, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return nil, err
		}
		if err := n.prove(fd); err != nil {
			unix.Close(fd)
			return nil, err
		}
		return fs.keep(n, fd, false), nil
	}
	// By place: from the nearest parent that is open, down again.
	var way []*node
	var from held
	for at := n; ; {
		way = append(way, at)
		p := at.place.Load()
		if p == nil || len(way) > maxClimb {
			return nil, unix.ESTALE
		}
		at = p.parent
		if at == fs.root {
			from = held{fd: fs.rootFD}
			break
		}
		if d := takeFrom(&at.path); d != nil {
			from = held{fd: d.fd, d: d}
			break
		}
		if d := fs.borrow(at); d != nil {
			from = held{fd: d.fd, d: d}
			break
		}
		if at.handle != "" {
			d, err := fs.reopen(at)
			if err != nil {
				return nil, err
			}
			from = held{fd: d.fd, d: d}
			break
		}
	}
	for i := len(way) - 1; i >= 0; i-- {
		d, err := fs.reopenBelow(from.fd, way[i])
		from.release()
		if err != nil {
			return nil, err
		}
		from = held{fd: d.fd, d: d}
	}
	return from.d, nil
}

// keep keeps a descriptor of n for later, unless the guest has forgotten n by now,
// and hands it out with a user added.
func (fs *FS) keep(n *node, fd int, stay bool) *descriptor {
	d := fs.idle.keep(&n.path, fd, stay)
	if n.flags.Load()&nodeGone != 0 {
		fs.idle.remove(&n.path)
	}
	return d
}

// reopenBelow opens n by its name in the directory dir. What is there now must
// be the same file.
func (fs *FS) reopenBelow(dir int, n *node) (*descriptor, error) {
	p := n.place.Load()
	var name cname
	if p == nil || name.set([]byte(p.name)) != nil {
		return nil, unix.ESTALE
	}
	fd, err := fs.openPath(dir, &name)
	if err != nil {
		return nil, stale(err)
	}
	if err := n.prove(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Below the first mount nothing is closed for being idle: reopening it could
	// fail, and there is nothing for the host to unmount.
	return fs.keep(n, fd, n.mount == fs.root.mount), nil
}

// prove checks that a descriptor stands for n.
func (n *node) prove(fd int) error {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return err
	}
	if !n.sameFile(&st) {
		return unix.ESTALE
	}
	n.flags.Or(nodeProven)
	return nil
}

// stale turns "no such file" into ESTALE, upon which the guest looks the path up
// again, once.
func stale(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return unix.ESTALE
	}
	return err
}

// openPath opens the entry of a directory as O_PATH: nothing is opened for use, and
// no link is followed.
func (fs *FS) openPath(dir int, name *cname) (int, error) {
	return fs.withRoom(func() (int, error) {
		return openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	})
}

// withRoom opens something, and if there are no descriptors left tries again
// without those that are idle.
func (fs *FS) withRoom(open func() (int, error)) (int, error) {
	fd, err := open()
	if err == unix.EMFILE || err == unix.ENFILE {
		fs.idle.empty()
		fd, err = open()
	}
	return fd, err
}

// openByHandle opens n by its handle in its own mount, so that the mount's rules
// (read-only, noexec) hold.
func (fs *FS) openByHandle(n *node, flags int) (int, error) {
	m, err := fs.holdMount(n.mount)
	if err != nil {
		return -1, err
	}
	defer m.release()
	fd, err := fs.withRoom(func() (int, error) { return openHandle(m.fd, n.handle, flags) })
	return fd, stale(err)
}
