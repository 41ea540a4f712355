package passthrough

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// POSIX locks belong to a process of the guest, which the protocol names by an
// owner. Each owner of a file gets an open file description of its own, whose locks
// (F_OFD_SETLK) are the owner's: they conflict with those of all others and end
// when it is closed. flock locks belong to the guest's open file, and so to the one
// that stands for it here.

// lockKey names an owner's locks of a file.
type lockKey struct{ node, owner uint64 }

// lockTable holds the open file descriptions of a session's lock owners. They are
// counted as open files. mu is a leaf.
type lockTable struct {
	mu     sync.Mutex
	owners map[lockKey]*lockOwner // nil when the session is over
}

// lockOwner is the open file description of an owner's locks in a file.
type lockOwner struct {
	d      *descriptor
	parked atomic.Bool // in the session record too
}

func newLockOwner(d *descriptor, parked bool) *lockOwner {
	o := &lockOwner{d: d}
	o.parked.Store(parked)
	return o
}

// take returns the description of a key with a user added, or nil.
func (t *lockTable) take(k lockKey) *descriptor {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.owners[k]; o != nil && o.d.take() {
		return o.d
	}
	return nil
}

// waitList wakes whoever waits for a lock when one was given back here. Locks that
// the host's processes give back are found by looking again.
type waitList struct {
	mu      sync.Mutex
	changed chan struct{}
}

func (w *waitList) wait() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.changed
}

func (w *waitList) wake() {
	w.mu.Lock()
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
	w.mu.Unlock()
}

// ownerOf returns the description for an owner's locks of a file, with a user
// added. It is opened for what the file's mode on the host allows: whether the
// guest may lock was decided by its kernel.
func (fs *FS) ownerOf(s *session, n *node, owner uint64) (*descriptor, error) {
	k := lockKey{n.id, owner}
	if d := s.locks.take(k); d != nil {
		return d, nil
	}
	if err := fs.openOne(); err != nil {
		return nil, err
	}
	fd, err := fs.openFile(n, unix.O_RDWR|unix.O_NONBLOCK)
	if err == unix.EROFS || err == unix.EACCES || err == unix.ETXTBSY || err == unix.EPERM {
		fd, err = fs.openFile(n, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	if err != nil {
		fs.files.Add(-1)
		return nil, err
	}
	d := newDescriptor(fd)
	d.refs.Store(2)
	s.locks.mu.Lock()
	other, ended := s.locks.owners[k], s.locks.owners == nil
	if other == nil && !ended {
		s.locks.owners[k] = newLockOwner(d, false)
	}
	s.locks.mu.Unlock()
	switch {
	case other == nil && !ended:
		return d, nil
	case other != nil:
		err = unix.EAGAIN // made by another request of the owner's just now
	default:
		err = unix.ESTALE
	}
	unix.Close(fd)
	fs.files.Add(-1)
	if err == unix.EAGAIN && other.d.take() {
		return other.d, nil
	}
	return nil, err
}

// parkOwner makes the locks that an owner is about to take survive this process.
func (fs *FS) parkOwner(s *session, n *node, owner uint64, d *descriptor) {
	if !fs.writing() {
		return
	}
	k := lockKey{n.id, owner}
	s.locks.mu.Lock()
	o := s.locks.owners[k]
	s.locks.mu.Unlock()
	if o == nil || o.d != d || o.parked.Swap(true) {
		return
	}
	if !fs.park(fs.lockKey(k), d.fd) {
		o.parked.Store(false)
		return
	}
	s.locks.mu.Lock()
	gone := s.locks.owners[k] != o
	s.locks.mu.Unlock()
	if gone {
		fs.unrecord(fs.lockKey(k))
	}
}

// freeOwner gives an owner's locks back.
func (fs *FS) freeOwner(k lockKey, o *lockOwner) {
	if o.parked.Load() {
		fs.unpark(fs.lockKey(k))
	}
	o.d.release()
	fs.files.Add(-1)
}

// endLocks gives all locks of a session back that is over.
func (fs *FS) endLocks(s *session) {
	s.locks.mu.Lock()
	all := s.locks.owners
	s.locks.owners = nil
	s.locks.mu.Unlock()
	for k, o := range all {
		fs.freeOwner(k, o)
	}
}

// unlockOwner gives back all locks of an owner in a file: its process has closed
// the file.
func (fs *FS) unlockOwner(op *fuseproto.Op, n *node, owner uint64) {
	s, err := fs.of(op)
	if err != nil {
		return
	}
	k := lockKey{n.id, owner}
	s.locks.mu.Lock()
	o := s.locks.owners[k]
	delete(s.locks.owners, k)
	s.locks.mu.Unlock()
	if o != nil {
		fs.freeOwner(k, o)
		fs.lockWait.wake()
	}
}

// hostLock turns the guest's range into struct flock. Both ends are in it; the
// largest end means "to the end of the file".
func hostLock(in *fuseproto.FileLock) (unix.Flock_t, error) {
	l := unix.Flock_t{Type: int16(in.Type), Whence: unix.SEEK_SET}
	if in.Start > math.MaxInt64 || in.End < in.Start || in.Type > unix.F_UNLCK {
		return l, unix.EINVAL
	}
	l.Start = int64(in.Start)
	if in.End < math.MaxInt64 {
		l.Len = int64(in.End-in.Start) + 1
	}
	return l, nil
}

// GetLk implements fuseproto.FileSystem. A lock of the host's processes is shown
// without a process: the guest does not know it.
func (fs *FS) GetLk(op *fuseproto.Op, id uint64, in *fuseproto.LkIn, out *fuseproto.FileLock) error {
	if !fs.opts.PosixLocks {
		return unix.ENOSYS
	}
	s, f, err := fs.lockFile(op, id, in)
	if err != nil {
		return err
	}
	defer f.d.release()
	l, err := hostLock(&in.Lock)
	if err != nil {
		return err
	}
	d, err := fs.ownerOf(s, f.node, in.Owner)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.FcntlFlock(uintptr(d.fd), unix.F_OFD_GETLK, &l); err != nil {
		return err
	}
	*out = fuseproto.FileLock{Type: uint32(l.Type)}
	if l.Type != unix.F_UNLCK {
		out.Start, out.End = uint64(l.Start), math.MaxInt64
		if l.Len > 0 {
			out.End = uint64(l.Start + l.Len - 1)
		}
	}
	return nil
}

func (fs *FS) lockFile(op *fuseproto.Op, id uint64, in *fuseproto.LkIn) (*session, *file, error) {
	s, err := fs.of(op)
	if err != nil {
		return nil, nil, err
	}
	f, err := s.file(id, in.Fh)
	return s, f, err
}

// SetLk implements fuseproto.FileSystem. Who waits for a lock does so on another
// goroutine, and until the request or the session ends.
func (fs *FS) SetLk(op *fuseproto.Op, id uint64, in *fuseproto.LkIn, wait bool) error {
	flock := in.LkFlags&fuseproto.LkFlock != 0
	if flock && !fs.opts.Flock || !flock && !fs.opts.PosixLocks {
		return unix.ENOSYS
	}
	s, f, err := fs.lockFile(op, id, in)
	if err != nil {
		return err
	}
	defer f.d.release()
	try, err := fs.locker(s, f, in, flock)
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		changed := fs.lockWait.wait()
		err := try()
		switch {
		case err == nil:
			if in.Lock.Type != unix.F_WRLCK {
				fs.lockWait.wake()
			}
			return nil
		case err != unix.EAGAIN && err != unix.EACCES:
			return err
		case !wait:
			return unix.EAGAIN
		case !op.MayBlock():
			return fuseproto.ErrWouldBlock
		}
		if err := pauseFor(op.Context(), s.ended, changed, pause); err != nil {
			return err
		}
	}
}

// locker returns a function that tries to set the lock once.
func (fs *FS) locker(s *session, f *file, in *fuseproto.LkIn, flock bool) (func() error, error) {
	if flock {
		how := unix.LOCK_NB
		switch in.Lock.Type {
		case unix.F_RDLCK:
			how |= unix.LOCK_SH
		case unix.F_WRLCK:
			how |= unix.LOCK_EX
		case unix.F_UNLCK:
			how |= unix.LOCK_UN
		default:
			return nil, unix.EINVAL
		}
		if how&unix.LOCK_UN == 0 {
			fs.parkFile(f)
		}
		return func() error { return again(func() error { return unix.Flock(f.d.fd, how) }) }, nil
	}
	if f.dir != nil {
		return nil, unix.EBADF
	}
	l, err := hostLock(&in.Lock)
	if err != nil {
		return nil, err
	}
	return func() error {
		d, err := fs.ownerOf(s, f.node, in.Owner)
		if err != nil {
			return err
		}
		defer d.release()
		if l.Type != unix.F_UNLCK {
			fs.parkOwner(s, f.node, in.Owner, d)
		}
		this := l
		return unix.FcntlFlock(uintptr(d.fd), unix.F_OFD_SETLK, &this)
	}, nil
}

// pauseFor waits until a lock was given back here, for a moment at most.
func pauseFor(ctx context.Context, ended, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return unix.EINTR
	case <-ended:
		return unix.EINTR
	case <-changed:
	case <-t.C:
	}
	return nil
}
