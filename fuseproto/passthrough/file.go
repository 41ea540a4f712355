package passthrough

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// file is what the guest has open. All but sibling and dir's insides is immutable.
type file struct {
	id      uint64
	node    *node
	d       *descriptor // the table's own use of it
	sibling *file       // next of node.files; guarded by FS.filesMu
	dir     *listing    // nil unless a directory
	reads   readMode
	sync    syncMode // what each write is followed by
	appends bool
	flags   int    // that it was opened with
	slot    uint32 // in the table of the session record; 0 if it has none
}

// readMode says how the queue's goroutine reads a file without waiting.
type readMode uint8

const (
	readNowait readMode = iota // RWF_NOWAIT, unless the mount refuses it
	readPlain                  // the file is memory, or past the page cache
)

type syncMode uint8

const (
	syncNone syncMode = iota
	syncData
	syncAll
)

const fileShards = 16

type fileShard struct {
	mu    sync.RWMutex // then nothing
	files map[uint64]*file
	ended bool
	_     [32]byte
}

// addFile puts an open descriptor into the tables and returns its handle. On error
// the caller still owns fd. The caller has counted it by openOne.
func (fs *FS) addFile(s *session, n *node, fd int, f *file) (uint64, error) {
	f.id, f.node, f.d = fs.nextFile.Add(1), n, newDescriptor(fd)
	if fs.writing() {
		if f.slot = fs.succ.addFile(f); f.slot == 0 {
			fs.noRoom("an open file")
		}
	}
	sh := &s.files[f.id%fileShards]
	sh.mu.Lock()
	if sh.ended {
		sh.mu.Unlock()
		fs.dropSlot(f)
		return 0, unix.ESTALE
	}
	sh.files[f.id] = f
	sh.mu.Unlock()
	mu := &fs.filesMu[n.id%nodeShards]
	mu.Lock()
	f.sibling = n.files.Load()
	n.files.Store(f)
	mu.Unlock()
	return f.id, nil
}

// openOne counts one more open file, or answers ENFILE if the guest has its share.
func (fs *FS) openOne() error {
	if fs.files.Add(1) > fs.maxFiles {
		fs.files.Add(-1)
		return unix.ENFILE
	}
	return nil
}

// file returns the open file of that handle, with a user added to its descriptor.
// It must be one of the node.
func (s *session) file(node, fh uint64) (*file, error) {
	sh := &s.files[fh%fileShards]
	sh.mu.RLock()
	f := sh.files[fh]
	sh.mu.RUnlock()
	if f == nil || f.node.id != node || !f.d.take() {
		return nil, unix.EBADF
	}
	return f, nil
}

// regular is file for a file, listed for a directory.
func (fs *FS) regular(op *fuseproto.Op, node, fh uint64) (*file, error) {
	s, err := fs.of(op)
	if err != nil {
		return nil, err
	}
	f, err := s.file(node, fh)
	if err == nil && f.dir != nil {
		f.d.release()
		return nil, unix.EBADF
	}
	return f, err
}

func (fs *FS) listed(op *fuseproto.Op, node, fh uint64) (*file, error) {
	s, err := fs.of(op)
	if err != nil {
		return nil, err
	}
	f, err := s.file(node, fh)
	if err == nil && f.dir == nil {
		f.d.release()
		return nil, unix.EBADF
	}
	return f, err
}

// closeFile takes a handle out of the tables.
func (fs *FS) closeFile(op *fuseproto.Op, node, fh uint64, dir bool) error {
	s, err := fs.of(op)
	if err != nil {
		return nil // of a session that is over: closed already
	}
	sh := &s.files[fh%fileShards]
	sh.mu.Lock()
	f := sh.files[fh]
	if f == nil || f.node.id != node || (f.dir != nil) != dir {
		sh.mu.Unlock()
		if op.Rerun() {
			return nil // an earlier process has closed it
		}
		return unix.EBADF
	}
	delete(sh.files, fh)
	sh.mu.Unlock()
	fs.dropFile(f)
	return nil
}

// take takes a handle out of the table, and returns its file.
func (s *session) take(fh uint64) *file {
	sh := &s.files[fh%fileShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f := sh.files[fh]
	delete(sh.files, fh)
	return f
}

// dropFile gives back what a file held that is in the table no more.
func (fs *FS) dropFile(f *file) {
	mu := &fs.filesMu[f.node.id%nodeShards]
	mu.Lock()
	if first := f.node.files.Load(); first == f {
		f.node.files.Store(f.sibling)
	} else {
		for p := first; p != nil; p = p.sibling {
			if p.sibling == f {
				p.sibling = f.sibling
				break
			}
		}
	}
	mu.Unlock()
	if f.dir != nil {
		f.dir.drop()
	}
	fs.files.Add(-1)
	fs.dropSlot(f)
	f.d.release()
}

// dropSlot makes the next process know nothing of a file.
func (fs *FS) dropSlot(f *file) {
	if f.slot == 0 || !fs.writing() {
		return
	}
	parked := fs.succ.file(f.slot).parked.Load() != 0
	fs.succ.dropFile(f.slot)
	if parked {
		fs.unpark(fs.fileKey(f.id))
	}
}

// endFiles closes every file of a session that is over.
func (fs *FS) endFiles(s *session) {
	for i := range s.files {
		sh := &s.files[i]
		sh.mu.Lock()
		sh.ended = true
		all := sh.files
		sh.files = nil
		sh.mu.Unlock()
		for _, f := range all {
			fs.dropFile(f)
		}
	}
}

// openFlags turns the guest's flags of open(2) into ours. Both have one
// architecture, so the values of uapi/asm/fcntl.h are the same; what is not named
// here is left out.
func (fs *FS) openFlags(in uint32) (flags int, f file) {
	flags = int(in) & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_APPEND)
	if fs.opts.PreserveNoatime {
		flags |= int(in) & unix.O_NOATIME
	}
	if fs.opts.AllowDirectIO && in&unix.O_DIRECT != 0 {
		flags |= unix.O_DIRECT
		f.reads = readPlain
	}
	if fs.session.Load().flags&fuseproto.FlagWritebackCache != 0 {
		// The guest's kernel knows where a file ends, and reads parts of pages
		// that it is about to write.
		flags &^= unix.O_APPEND
		if flags&unix.O_ACCMODE == unix.O_WRONLY {
			flags = flags&^unix.O_ACCMODE | unix.O_RDWR
		}
	}
	// Writes that the guest wants synced are, but not on the queue's goroutine.
	switch {
	case in&unix.O_SYNC == unix.O_SYNC:
		f.sync = syncAll
	case in&unix.O_DSYNC != 0:
		f.sync = syncData
	}
	f.appends, f.flags = flags&unix.O_APPEND != 0, flags
	return flags, f
}

// writes tells whether flags of open(2) would change something.
func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// openFile opens a regular file. Nothing else is ever opened for use: the type of
// n was seen when it was looked up, and whatever descriptor or handle is used here
// was seen to stand for n, whose type cannot change.
func (fs *FS) openFile(n *node, flags int) (int, error) {
	switch n.typ {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return -1, unix.EISDIR
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	default:
		return -1, unix.ENXIO
	}
	if n.handle != "" && n.flags.Load()&nodeProven != 0 && n.path.Load() == nil && n.files.Load() == nil {
		fd, err := fs.openByHandle(n, flags|unix.O_NOFOLLOW)
		if err != unix.ESTALE {
			return fd, err
		}
	}
	h, err := fs.hold(n)
	if err != nil {
		return -1, err
	}
	defer h.release()
	return fs.reopenFD(h.fd, flags)
}

// Open implements fuseproto.FileSystem.
func (fs *FS) Open(op *fuseproto.Op, id uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	s, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	if fs.opts.ReadOnly && writes(in.Flags) {
		return unix.EROFS
	}
	r := fs.run(op)
	if fs.openedBefore(&r, id) {
		out.Fh, out.Flags = r.fh, fs.cacheFlags(in.Flags)
		return nil
	}
	if err := fs.openOne(); err != nil {
		return err
	}
	flags, f := fs.openFlags(in.Flags)
	// Somebody on the host may have a lease on the file: giving it up takes time.
	if !op.MayBlock() {
		flags |= unix.O_NONBLOCK
	}
	var fd int
	err = withoutFsetid(in.OpenFlags&fuseproto.OpenKillSuidgid != 0 && flags&unix.O_TRUNC != 0, func() (err error) {
		fd, err = fs.openFile(n, flags)
		return err
	})
	if err == nil {
		out.Fh, err = fs.opened(s, n, fd, &f)
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		fs.files.Add(-1)
		if err == unix.EAGAIN && !op.MayBlock() {
			return fuseproto.ErrWouldBlock
		}
		return err
	}
	out.Flags = fs.cacheFlags(in.Flags)
	return r.result(nil, 0, out.Fh)
}

// opened makes a handle of a regular file's descriptor.
func (fs *FS) opened(s *session, n *node, fd int, proto *file) (uint64, error) {
	f := *proto
	if f.reads == readNowait && n.mount.quick {
		f.reads = readPlain
	}
	fh, err := fs.addFile(s, n, fd, &f)
	if err == nil && n.flags.Load()&nodeUnlinked != 0 {
		fs.parkHandle(s, fh)
	}
	return fh, err
}

// cacheFlags says what the guest may do with the pages of an open file. A file
// that was opened for reading only has nothing to flush.
func (fs *FS) cacheFlags(flags uint32) uint32 {
	var out uint32
	switch fs.opts.Cache {
	case CacheNever, CacheMetadata:
		out = fuseproto.FOpenDirectIO
	case CacheAlways:
		out = fuseproto.FOpenKeepCache
	}
	if !writes(flags) && !fs.opts.PosixLocks {
		out |= fuseproto.FOpenNoFlush
	}
	return out
}

// Flush implements fuseproto.FileSystem. Closing a file can fail only where the
// host's own file system is a remote one.
func (fs *FS) Flush(op *fuseproto.Op, id uint64, in *fuseproto.ReleaseIn) error {
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	if fs.opts.PosixLocks {
		fs.unlockOwner(op, f.node, in.LockOwner)
	}
	if !f.node.mount.remote {
		return nil
	}
	if !op.MayBlock() {
		return fuseproto.ErrWouldBlock
	}
	fd, err := unix.FcntlInt(uintptr(f.d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Release implements fuseproto.FileSystem.
func (fs *FS) Release(op *fuseproto.Op, id uint64, in *fuseproto.ReleaseIn) error {
	if fs.opts.PosixLocks && in.ReleaseFlags&fuseproto.ReleaseFlush != 0 {
		if f, err := fs.regular(op, id, in.Fh); err == nil {
			fs.unlockOwner(op, f.node, in.LockOwner)
			f.d.release()
		}
	}
	err := fs.closeFile(op, id, in.Fh, false)
	if fs.opts.Flock {
		fs.lockWait.wake()
	}
	return err
}

// Fsync implements fuseproto.FileSystem.
func (fs *FS) Fsync(op *fuseproto.Op, id uint64, in *fuseproto.FsyncIn) error {
	if !op.MayBlock() {
		return fuseproto.ErrWouldBlock
	}
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	return syncFD(f.d.fd, in.FsyncFlags&fuseproto.FsyncData != 0)
}

// FsyncDir implements fuseproto.FileSystem.
func (fs *FS) FsyncDir(op *fuseproto.Op, id uint64, in *fuseproto.FsyncIn) error {
	if !op.MayBlock() {
		return fuseproto.ErrWouldBlock
	}
	f, err := fs.listed(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	return syncFD(f.d.fd, in.FsyncFlags&fuseproto.FsyncData != 0)
}

func syncFD(fd int, data bool) error {
	if data {
		return unix.Fdatasync(fd)
	}
	return unix.Fsync(fd)
}

// SyncFS implements fuseproto.FileSystem. A guest that was not told of submounts
// means all of them by the root.
func (fs *FS) SyncFS(op *fuseproto.Op, id uint64) error {
	if fs.opts.ReadOnly {
		return nil
	}
	if !op.MayBlock() {
		return fuseproto.ErrWouldBlock
	}
	_, n, err := fs.node(op, id)
	if err != nil {
		return err
	}
	all := []*mount{n.mount}
	if n == fs.root && !fs.opts.Submounts {
		fs.mountsMu.RLock()
		for _, m := range fs.mounts {
			all = append(all, m)
		}
		fs.mountsMu.RUnlock()
	}
	var errs []error
	for _, m := range all {
		if err := fs.syncMount(m); err != nil && err != unix.ESTALE {
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func (fs *FS) syncMount(m *mount) error {
	if !m.isDir {
		return nil // a file's mount: its directory's file system is synced, or the guest has the file open
	}
	h, err := fs.holdMount(m)
	if err != nil {
		return err
	}
	defer h.release()
	return unix.Syncfs(h.fd)
}

// quickFallocate is how many bytes may be allocated on the queue's goroutine, and
// quickCopy how many may be copied.
const (
	quickFallocate = 1 << 20
	quickCopy      = 128 << 10
)

// Fallocate implements fuseproto.FileSystem.
func (fs *FS) Fallocate(op *fuseproto.Op, id uint64, in *fuseproto.FallocateIn) error {
	if fs.opts.ReadOnly {
		return unix.EROFS
	}
	if in.Offset > 1<<63-1 || in.Length > 1<<63-1 {
		return unix.EINVAL
	}
	if !op.MayBlock() && (in.Length > quickFallocate || in.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0) {
		return fuseproto.ErrWouldBlock
	}
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	if fs.writing() && in.Mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		return fs.shiftOnce(op, f, in)
	}
	return again(func() error { return unix.Fallocate(f.d.fd, in.Mode, int64(in.Offset), int64(in.Length)) })
}

// again calls f until it is not interrupted.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Lseek implements fuseproto.FileSystem. The position that it moves is nobody's.
func (fs *FS) Lseek(op *fuseproto.Op, id uint64, in *fuseproto.LseekIn) (uint64, error) {
	if in.Whence != fuseproto.SeekData && in.Whence != fuseproto.SeekHole || in.Offset > 1<<63-1 {
		return 0, unix.EINVAL
	}
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return 0, err
	}
	defer f.d.release()
	off, err := unix.Seek(f.d.fd, int64(in.Offset), int(in.Whence))
	return uint64(off), err
}

// CopyFileRange implements fuseproto.FileSystem.
func (fs *FS) CopyFileRange(op *fuseproto.Op, id uint64, in *fuseproto.CopyFileRangeIn) (uint64, error) {
	if fs.opts.ReadOnly {
		return 0, unix.EROFS
	}
	if in.Flags != 0 {
		return 0, unix.EINVAL
	}
	if !op.MayBlock() && in.Len > quickCopy {
		return 0, fuseproto.ErrWouldBlock
	}
	from, err := fs.regular(op, id, in.FhIn)
	if err != nil {
		return 0, err
	}
	defer from.d.release()
	to, err := fs.regular(op, in.NodeOut, in.FhOut)
	if err != nil {
		return 0, err
	}
	defer to.d.release()
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	var n int
	err = again(func() (err error) {
		n, err = unix.CopyFileRange(from.d.fd, &offIn, to.d.fd, &offOut, int(in.Len), 0)
		return err
	})
	if err != nil {
		return 0, err
	}
	return uint64(n), nil
}

// Commands of ioctl(2) that only tell something. Those that set flags are not
// passed on: an immutable file would be one that the host cannot remove either.
const (
	iocGetFlags  = 0x80086601
	iocGetXattrs = 0x801c581f
	xattrsSize   = 28 // struct fsxattr
)

// Ioctl implements fuseproto.FileSystem: the attribute flags that overlayfs and
// lsattr ask for. Everything else is ENOTTY.
func (fs *FS) Ioctl(op *fuseproto.Op, id uint64, in *fuseproto.IoctlIn, _ []byte, out *fuseproto.Out) (int32, error) {
	if in.Cmd != iocGetFlags && in.Cmd != iocGetXattrs {
		return 0, unix.ENOTTY
	}
	s, err := fs.of(op)
	if err != nil {
		return 0, err
	}
	f, err := s.file(id, in.Fh)
	if err != nil {
		return 0, err
	}
	defer f.d.release()
	var buf [32]byte
	n := 4
	if in.Cmd == iocGetXattrs {
		n = xattrsSize
	}
	if out.Room() < n {
		return 0, unix.EINVAL
	}
	if err := ioctl(f.d.fd, in.Cmd, &buf); err != nil {
		return 0, err
	}
	_, err = out.Write(buf[:n])
	return 0, err
}
