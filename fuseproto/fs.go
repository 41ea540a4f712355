package fuseproto

import "errors"

// RootID is the node id of the root of a session's tree (FUSE_ROOT_ID).
const RootID = 1

// IndexBits is how many bits the nodes of a FileSystem may have that is mounted
// in a tree.
const IndexBits = 44

// ErrWouldBlock is what a FileSystem method returns when it cannot go on without
// waiting and Op.MayBlock is false. It must then have written nothing to the
// reply; places it got from Out.Segments and did not count by Advance may be
// filled, as by a read that got no further. The server calls the same method again, with the same arguments, on a
// goroutine where Op.MayBlock is true.
var ErrWouldBlock = errors.New("operation would block")

// FileSystem is what the requests of a session are made of, one method an
// opcode, free of any transport's terms.
//
// Nodes are named by 64-bit numbers that the FileSystem chooses; 0 is never one.
// A FileSystem that is served alone has its root at RootID. One that is mounted
// in a tree (fuseproto/vfs) uses indexes below 1<<IndexBits and tells its root's index
// by Root; the tree turns them into node ids, both in requests and in replies
// (Entry.Node, Attr.Ino, DirEntry.Ino).
//
// Errors: a syscall.Errno reaches the guest as it is. Any other error is logged
// once by the server, with the request, and reaches the guest as EIO. A nil
// error means the reply is what out holds. Methods that write answer EROFS on a
// file system that cannot be written; ENOSYS is remembered by the guest for the
// whole session and is therefore never used for a passing condition.
//
// Concurrency: every method may be called by many goroutines at once. op, in,
// out, names and sources are the caller's and valid only during the call; names
// and bodies are private copies (the guest cannot change them any more), Payload
// is not.
//
// Look-up counts: a successful Lookup, Mknod, Mkdir, Symlink, Link, Create,
// Tmpfile and each DirWriter.AddPlus with Entry.Node != 0 gives the guest one
// reference, given back by Forget. If a reply turns out to be undeliverable, the
// server calls Forget itself. The root is given by "." and ".." too, but is never
// forgotten: its references mean nothing. A FileSystem whose nodes are pure
// functions (an image) ignores all of it.
//
// Lookup is asked for "." (the directory itself, and any node at all) and ".."
// when FlagExportSupport is granted.
type FileSystem interface {
	// Root returns the node of the root directory.
	Root() uint64
	// Init tells what a session has negotiated (flags of 64 bits as granted);
	// a further Init begins a new session: all references and handles of the
	// old one are gone. Destroy tells that a session ended without a new one.
	Init(flags uint64)
	Destroy()

	Lookup(op *Op, dir uint64, name []byte, out *Entry) error
	Forget(node, nlookup uint64)
	GetAttr(op *Op, node uint64, in *GetAttrIn, out *AttrOut) error
	SetAttr(op *Op, node uint64, in *SetAttrIn, out *AttrOut) error
	Readlink(op *Op, node uint64, out *Out) error
	StatFS(op *Op, node uint64, out *StatFSOut) error

	Open(op *Op, node uint64, in *OpenIn, out *OpenOut) error
	Read(op *Op, node uint64, in *ReadIn, out *Out) error
	Write(op *Op, node uint64, in *WriteIn, data Payload) (written uint32, err error)
	Flush(op *Op, node uint64, in *ReleaseIn) error
	Release(op *Op, node uint64, in *ReleaseIn) error
	Fsync(op *Op, node uint64, in *FsyncIn) error
	Fallocate(op *Op, node uint64, in *FallocateIn) error
	Lseek(op *Op, node uint64, in *LseekIn) (offset uint64, err error)
	CopyFileRange(op *Op, node uint64, in *CopyFileRangeIn) (copied uint64, err error)
	Ioctl(op *Op, node uint64, in *IoctlIn, data []byte, out *Out) (result int32, err error)
	GetLk(op *Op, node uint64, in *LkIn, out *FileLock) error
	SetLk(op *Op, node uint64, in *LkIn, wait bool) error

	OpenDir(op *Op, node uint64, in *OpenIn, out *OpenOut) error
	ReadDir(op *Op, node uint64, in *ReadIn, out *DirWriter) error
	ReleaseDir(op *Op, node uint64, in *ReleaseIn) error
	FsyncDir(op *Op, node uint64, in *FsyncIn) error
	SyncFS(op *Op, node uint64) error

	// GetXattr and ListXattr write the value, or the names each ended by a NUL,
	// whole to out. The server deals with the size probe and ERANGE.
	GetXattr(op *Op, node uint64, name []byte, out *Out) error
	ListXattr(op *Op, node uint64, out *Out) error
	SetXattr(op *Op, node uint64, in *SetXattrIn, name, value []byte) error
	RemoveXattr(op *Op, node uint64, name []byte) error

	Mknod(op *Op, dir uint64, in *MknodIn, name []byte, out *Entry) error
	Mkdir(op *Op, dir uint64, in *MkdirIn, name []byte, out *Entry) error
	Symlink(op *Op, dir uint64, name, target []byte, out *Entry) error
	Link(op *Op, node, newDir uint64, newName []byte, out *Entry) error
	Unlink(op *Op, dir uint64, name []byte) error
	Rmdir(op *Op, dir uint64, name []byte) error
	Rename(op *Op, dir uint64, name []byte, newDir uint64, newName []byte, flags uint32) error
	Create(op *Op, dir uint64, in *CreateIn, name []byte, entry *Entry, out *OpenOut) error
	Tmpfile(op *Op, dir uint64, in *CreateIn, entry *Entry, out *OpenOut) error
}

// Timeout is how long the guest may believe a reply. The guest's kernel clamps
// large values; Forever is what the design uses inside an image.
type Timeout struct {
	Sec  uint64
	Nsec uint32 // < 1e9
}

// Forever is 2^32 seconds.
var Forever = Timeout{Sec: 1 << 32}

// Attr is struct fuse_attr: what stat(2) shows in the guest.
type Attr struct {
	Ino                             uint64
	Size                            uint64
	Blocks                          uint64 // of 512 bytes
	Atime, Mtime, Ctime             int64
	AtimeNsec, MtimeNsec, CtimeNsec uint32
	Mode                            uint32 // type and permissions, st_mode
	Nlink                           uint32
	UID, GID                        uint32
	Rdev                            uint32 // new_encode_dev form
	Blksize                         uint32
	Flags                           uint32 // FUSE_ATTR_SUBMOUNT 1, FUSE_ATTR_DAX 2
}

// AttrSubmount is a bit of Attr.Flags: the directory is the root of another
// file system.
const AttrSubmount = 1 << 0

// Entry is the answer to a look-up. Node 0 with no error is a negative entry
// that the guest may cache for EntryTimeout.
type Entry struct {
	Node         uint64
	Generation   uint64
	EntryTimeout Timeout
	AttrTimeout  Timeout
	Attr         Attr
}

// AttrOut is the answer to GETATTR and SETATTR.
type AttrOut struct {
	Timeout Timeout
	Attr    Attr
}

// OpenOut is the answer to OPEN, OPENDIR, CREATE and TMPFILE.
type OpenOut struct {
	Fh    uint64
	Flags uint32 // FOpen* bits
}

// Bits of OpenOut.Flags.
const (
	FOpenDirectIO  = 1 << 0
	FOpenKeepCache = 1 << 1
	FOpenCacheDir  = 1 << 3
	FOpenNoFlush   = 1 << 5
)

// StatFSOut is struct fuse_kstatfs.
type StatFSOut struct {
	Blocks, Bfree, Bavail uint64
	Files, Ffree          uint64
	Bsize, Namelen        uint32
	Frsize                uint32
}

// DirEntry is one name of a directory listing. Off is the cookie to continue
// behind this entry: opaque, not 0, below 1<<31 for images.
type DirEntry struct {
	Name []byte
	Ino  uint64
	Off  uint64
	Type uint8 // DT_*
}
