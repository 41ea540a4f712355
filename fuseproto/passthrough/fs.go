package passthrough

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// FS shows a directory of the host. It serves one session at a time; its methods
// are safe for any number of goroutines.
type FS struct {
	opts   Options
	log    *slog.Logger
	xattrs bool // the kernel has the *xattrat calls

	began    time.Time
	rootFile *os.File // owned; what New was given
	rootFD   int      // the same directory, opened for reading
	procFD   int      // /proc/self/fd, opened at the start: works after pivot_root
	root     *node
	rootDev  uint64

	euid, egid uint32   // the daemon's own
	groups     []uint32 // and its supplementary groups
	umask      uint32   // at the start

	idle     *idleSet
	maxFiles int64
	files    atomic.Int64   // open, of all sessions
	nextNode *atomic.Uint64 // the last id given; in the record, if there is one
	nextFile *atomic.Uint64 // the last handle given; likewise
	session  atomic.Pointer[session]

	mountsMu sync.RWMutex // a leaf
	mounts   map[uint64]*mount

	filesMu [nodeShards]sync.Mutex // node.files of nodes by id; leaves

	lockWait waitList

	succ *succession // nil without a record
}

var _ fuseproto.FileSystem = (*FS)(nil)

// session is what one INIT began: everything that the guest may name.
type session struct {
	flags      uint64
	generation atomic.Uint64 // of Op.Session; 0 until the first request
	ended      chan struct{} // closed at its end: locks are waited for no longer
	nodes      *nodeTable
	files      [fileShards]fileShard
	locks      lockTable
}

// Stats are figures of the moment.
type Stats struct {
	Nodes     int64 // files that the guest knows, without the root
	OpenFiles int64 // handles of files and directories that the guest has open
	Idle      int   // descriptors that are kept for nodes and mounts
	Mounts    int   // mounts below the root that the guest knows files of
}

// New returns an FS of the directory root, O_PATH or not, opened by package hostfs.
// The FS owns root if there is no error.
func New(root *os.File, o Options) (*FS, error) {
	idle, files := o.limits()
	fs := &FS{began: time.Now(), opts: o, log: o.Log, maxFiles: int64(files), idle: newIdleSet(idle), mounts: make(map[uint64]*mount), rootFD: -1}
	fs.nextNode, fs.nextFile = new(atomic.Uint64), new(atomic.Uint64)
	fs.nextNode.Store(fuseproto.RootID)
	if fs.log == nil {
		fs.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if o.Proc != nil {
		fs.procFD, err = unix.FcntlInt(o.Proc.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	} else {
		fs.procFD, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("passthrough: open /proc/self/fd: %w", err)
	}
	if err := fs.ids(); err != nil {
		unix.Close(fs.procFD)
		return nil, fmt.Errorf("passthrough: own ids: %w", err)
	}
	if err := fs.openRoot(int(root.Fd())); err != nil {
		unix.Close(fs.procFD)
		if fs.rootFD >= 0 {
			unix.Close(fs.rootFD)
		}
		return nil, fmt.Errorf("passthrough: directory %s: %w", root.Name(), err)
	}
	if err := fs.attach(&o); err != nil {
		unix.Close(fs.procFD)
		unix.Close(fs.rootFD)
		return nil, fmt.Errorf("passthrough: directory %s: session record: %w", root.Name(), err)
	}
	fs.rootFile = root
	fs.xattrs = fs.probeXattrat()
	fs.session.Store(fs.newSession(0))
	return fs, nil
}

func (fs *FS) openRoot(fd int) error {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return err
	}
	if st.Mask&(unix.STATX_MNT_ID|statMountUnique) == 0 {
		return fmt.Errorf("the kernel tells no mount ids: Linux 5.8 or newer is needed")
	}
	var err error
	if fs.rootFD, err = fs.reopenFD(fd, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return err
	}
	fs.rootDev = devOf(&st)
	m := &mount{number: st.Mnt_id, dev: fs.rootDev, isDir: true}
	if err := fs.describe(m, fd); err != nil {
		return err
	}
	m.refs.Store(1)
	fs.root = &node{id: fuseproto.RootID, mount: m, dev: fs.rootDev, ino: st.Ino, typ: unix.S_IFDIR, count: 1}
	fs.root.flags.Store(nodeProven)
	return nil
}

func (fs *FS) newSession(flags uint64) *session {
	s := &session{flags: flags, nodes: newNodeTable(), ended: make(chan struct{})}
	for i := range s.files {
		s.files[i].files = make(map[uint64]*file)
	}
	s.locks.owners = make(map[lockKey]*lockOwner)
	return s
}

// Root implements fuseproto.FileSystem.
func (fs *FS) Root() uint64 { return fuseproto.RootID }

// Init begins a session with nothing in it.
func (fs *FS) Init(flags uint64) { fs.begin(flags) }

// Destroy ends the session.
func (fs *FS) Destroy() { fs.begin(0) }

// begin replaces the session and gives back what the old one held. Requests of
// the old one that still run keep their descriptors to their end, and add nothing
// to its tables.
func (fs *FS) begin(flags uint64) {
	fs.wipe()
	old := fs.session.Swap(fs.newSession(flags))
	fs.end(old)
}

func (fs *FS) end(s *session) {
	close(s.ended)
	fs.lockWait.wake()
	fs.endFiles(s)
	fs.endLocks(s)
	fs.endNodes(s.nodes)
	fs.mountsMu.Lock()
	clear(fs.mounts)
	fs.mountsMu.Unlock()
}

// of returns the session that op belongs to. A request of one that is over is
// ESTALE.
func (fs *FS) of(op *fuseproto.Op) (*session, error) {
	s, g := fs.session.Load(), op.Session()
	for {
		switch now := s.generation.Load(); {
		case now == g:
			return s, nil
		case g < now:
			return nil, unix.ESTALE
		case s.generation.CompareAndSwap(now, g):
			return s, nil
		}
	}
}

// node returns the node of that id, or ESTALE, upon which the guest looks its
// path up again.
func (fs *FS) node(op *fuseproto.Op, id uint64) (*session, *node, error) {
	s, err := fs.of(op)
	if err != nil {
		return nil, nil, err
	}
	if id == fuseproto.RootID {
		return s, fs.root, nil
	}
	if n := s.nodes.get(id); n != nil {
		return s, n, nil
	}
	return nil, nil, unix.ESTALE
}

// dir is node for a directory.
func (fs *FS) dir(op *fuseproto.Op, id uint64) (*session, *node, error) {
	s, n, err := fs.node(op, id)
	if err == nil && n.typ != unix.S_IFDIR {
		return nil, nil, unix.ENOTDIR
	}
	return s, n, err
}

// ReleaseIdle closes every descriptor that no open file, running request or lock
// needs, those that keep mounts busy included.
func (fs *FS) ReleaseIdle() { fs.idle.empty() }

// Stats returns figures of the moment.
func (fs *FS) Stats() Stats {
	fs.mountsMu.RLock()
	mounts := len(fs.mounts)
	fs.mountsMu.RUnlock()
	return Stats{Nodes: fs.session.Load().nodes.live.Load(), OpenFiles: fs.files.Load(), Idle: fs.idle.len(), Mounts: mounts}
}

// Close gives everything back. No request may run any more.
func (fs *FS) Close() error {
	fs.end(fs.session.Swap(fs.newSession(0)))
	fs.idle.close()
	unix.Close(fs.rootFD)
	unix.Close(fs.procFD)
	return errors.Join(fs.closeSuccession(), fs.rootFile.Close())
}
