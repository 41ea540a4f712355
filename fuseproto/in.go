package fuseproto

import "encoding/binary"

// The bodies of requests: what stands behind the header and before names and
// data. Every decode method takes a private copy of guest memory that holds at
// least the body's size in bytes (the dispatch table sees to it), keeps no part
// of it and does not allocate. Values are as the guest sent them.
//
// Layouts: Linux, include/uapi/linux/fuse.h; always little endian here.

var le = binary.LittleEndian

// Sizes of headers and bodies in bytes.
const (
	inHeaderSize  = 40
	outHeaderSize = 16

	forgetInSize        = 8
	getAttrInSize       = 16
	setAttrInSize       = 88
	openInSize          = 8
	readInSize          = 40
	writeInSize         = 40
	releaseInSize       = 24
	fsyncInSize         = 16
	fallocateInSize     = 32
	lseekInSize         = 24
	copyFileRangeInSize = 56
	ioctlInSize         = 32
	lkInSize            = 48
	setXattrInSize      = 8
	setXattrExtInSize   = 16
	getXattrInSize      = 8
	mknodInSize         = 16
	mkdirInSize         = 8
	createInSize        = 16
	renameInSize        = 8
	rename2InSize       = 16
	linkInSize          = 8
	syncFSInSize        = 8
	interruptInSize     = 8
	initInSize          = 16 // until 7.35; 64 since
	initInExtSize       = 20 // what must be there for flags2
	batchForgetInSize   = 8
	forgetOneSize       = 16
)

// inHeader is struct fuse_in_header.
type inHeader struct {
	len           uint32 // of header, body, names, data and extensions
	opcode        Opcode
	unique        uint64
	nodeID        uint64
	uid, gid, pid uint32
	extLen        uint16 // of the extensions, in units of 8 bytes
}

func (h *inHeader) decode(b []byte) {
	_ = b[inHeaderSize-1]
	h.len, h.opcode = le.Uint32(b), Opcode(le.Uint32(b[4:]))
	h.unique, h.nodeID = le.Uint64(b[8:]), le.Uint64(b[16:])
	h.uid, h.gid, h.pid = le.Uint32(b[24:]), le.Uint32(b[28:]), le.Uint32(b[32:])
	h.extLen = le.Uint16(b[36:])
}

// InitIn is the body of INIT (struct fuse_init_in).
type InitIn struct {
	Major, Minor uint32
	MaxReadahead uint32
	Flags        uint64 // both words joined; the second only counts with FlagInitExt
}

func (in *InitIn) decode(b []byte) {
	in.Major, in.Minor = le.Uint32(b), le.Uint32(b[4:])
	in.MaxReadahead, in.Flags = le.Uint32(b[8:]), uint64(le.Uint32(b[12:]))
	if in.Flags&FlagInitExt != 0 && len(b) >= initInExtSize {
		in.Flags |= uint64(le.Uint32(b[16:])) << 32
	}
}

// GetAttrIn is the body of GETATTR. Fh counts only with GetAttrFh.
type GetAttrIn struct {
	Flags uint32
	_     uint32
	Fh    uint64
}

func (in *GetAttrIn) decode(b []byte) {
	in.Flags, in.Fh = le.Uint32(b), le.Uint64(b[8:])
}

// SetAttrIn is the body of SETATTR. Only the fields named by Valid count.
type SetAttrIn struct {
	Valid                           uint32
	_                               uint32
	Fh                              uint64
	Size                            uint64
	LockOwner                       uint64
	Atime, Mtime, Ctime             int64
	AtimeNsec, MtimeNsec, CtimeNsec uint32
	Mode                            uint32
	_                               uint32
	UID, GID                        uint32
	_                               uint32
}

func (in *SetAttrIn) decode(b []byte) {
	_ = b[setAttrInSize-1]
	in.Valid, in.Fh = le.Uint32(b), le.Uint64(b[8:])
	in.Size, in.LockOwner = le.Uint64(b[16:]), le.Uint64(b[24:])
	in.Atime, in.Mtime, in.Ctime = int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:])), int64(le.Uint64(b[48:]))
	in.AtimeNsec, in.MtimeNsec, in.CtimeNsec = le.Uint32(b[56:]), le.Uint32(b[60:]), le.Uint32(b[64:])
	in.Mode, in.UID, in.GID = le.Uint32(b[68:]), le.Uint32(b[76:]), le.Uint32(b[80:])
}

// OpenIn is the body of OPEN and OPENDIR.
type OpenIn struct {
	Flags     uint32 // open(2) flags in the values of the guest's architecture
	OpenFlags uint32 // OpenKillSuidgid
}

func (in *OpenIn) decode(b []byte) {
	in.Flags, in.OpenFlags = le.Uint32(b), le.Uint32(b[4:])
}

// ReadIn is the body of READ, READDIR and READDIRPLUS. The server has checked
// that Offset of READ is below 1<<63 and cut Size to the room of the reply;
// Offset+Size may be beyond 1<<63.
type ReadIn struct {
	Fh        uint64 // file handle from OPEN, not a node
	Offset    uint64 // of directories: the cookie to go on behind, 0 to begin
	Size      uint32 // bytes
	ReadFlags uint32
	LockOwner uint64
	Flags     uint32 // open(2) flags of the guest's file
	_         uint32
}

func (in *ReadIn) decode(b []byte) {
	_ = b[readInSize-1]
	in.Fh, in.Offset = le.Uint64(b), le.Uint64(b[8:])
	in.Size, in.ReadFlags = le.Uint32(b[16:]), le.Uint32(b[20:])
	in.LockOwner, in.Flags = le.Uint64(b[24:]), le.Uint32(b[32:])
}

// WriteIn is the body of WRITE. The server has checked that Offset+Size is
// below 1<<63 and that Size is the length of the data.
type WriteIn struct {
	Fh         uint64
	Offset     uint64
	Size       uint32
	WriteFlags uint32
	LockOwner  uint64
	Flags      uint32
	_          uint32
}

func (in *WriteIn) decode(b []byte) {
	_ = b[writeInSize-1]
	in.Fh, in.Offset = le.Uint64(b), le.Uint64(b[8:])
	in.Size, in.WriteFlags = le.Uint32(b[16:]), le.Uint32(b[20:])
	in.LockOwner, in.Flags = le.Uint64(b[24:]), le.Uint32(b[32:])
}

// ReleaseIn is the body of RELEASE, RELEASEDIR and FLUSH (which has no flags).
type ReleaseIn struct {
	Fh           uint64
	Flags        uint32
	ReleaseFlags uint32
	LockOwner    uint64
}

func (in *ReleaseIn) decode(b []byte) {
	in.Fh, in.Flags = le.Uint64(b), le.Uint32(b[8:])
	in.ReleaseFlags, in.LockOwner = le.Uint32(b[12:]), le.Uint64(b[16:])
}

// FsyncIn is the body of FSYNC and FSYNCDIR.
type FsyncIn struct {
	Fh         uint64
	FsyncFlags uint32
	_          uint32
}

func (in *FsyncIn) decode(b []byte) {
	in.Fh, in.FsyncFlags = le.Uint64(b), le.Uint32(b[8:])
}

// FallocateIn is the body of FALLOCATE.
type FallocateIn struct {
	Fh     uint64
	Offset uint64
	Length uint64
	Mode   uint32
	_      uint32
}

func (in *FallocateIn) decode(b []byte) {
	in.Fh, in.Offset = le.Uint64(b), le.Uint64(b[8:])
	in.Length, in.Mode = le.Uint64(b[16:]), le.Uint32(b[24:])
}

// LseekIn is the body of LSEEK: Whence is SeekData or SeekHole.
type LseekIn struct {
	Fh     uint64
	Offset uint64
	Whence uint32
	_      uint32
}

func (in *LseekIn) decode(b []byte) {
	in.Fh, in.Offset, in.Whence = le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[16:])
}

// CopyFileRangeIn is the body of COPY_FILE_RANGE and COPY_FILE_RANGE_64. The
// server cuts Len to what the reply of the first can tell.
type CopyFileRangeIn struct {
	FhIn    uint64
	OffIn   uint64
	NodeOut uint64
	FhOut   uint64
	OffOut  uint64
	Len     uint64
	Flags   uint64
}

func (in *CopyFileRangeIn) decode(b []byte) {
	_ = b[copyFileRangeInSize-1]
	in.FhIn, in.OffIn, in.NodeOut = le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	in.FhOut, in.OffOut = le.Uint64(b[24:]), le.Uint64(b[32:])
	in.Len, in.Flags = le.Uint64(b[40:]), le.Uint64(b[48:])
}

// IoctlIn is the body of IOCTL. The server has checked InSize against the data
// and cut OutSize to the room of the reply.
type IoctlIn struct {
	Fh      uint64
	Flags   uint32
	Cmd     uint32
	Arg     uint64
	InSize  uint32
	OutSize uint32
}

func (in *IoctlIn) decode(b []byte) {
	_ = b[ioctlInSize-1]
	in.Fh, in.Flags, in.Cmd = le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	in.Arg, in.InSize, in.OutSize = le.Uint64(b[16:]), le.Uint32(b[24:]), le.Uint32(b[28:])
}

// FileLock is struct fuse_file_lock: a range with both ends in it.
type FileLock struct {
	Start, End uint64
	Type       uint32 // F_RDLCK, F_WRLCK or F_UNLCK
	PID        uint32
}

// LkIn is the body of GETLK, SETLK and SETLKW.
type LkIn struct {
	Fh      uint64
	Owner   uint64
	Lock    FileLock
	LkFlags uint32
	_       uint32
}

func (in *LkIn) decode(b []byte) {
	_ = b[lkInSize-1]
	in.Fh, in.Owner = le.Uint64(b), le.Uint64(b[8:])
	in.Lock = FileLock{
		Start: le.Uint64(b[16:]), End: le.Uint64(b[24:]),
		Type: le.Uint32(b[32:]), PID: le.Uint32(b[36:]),
	}
	in.LkFlags = le.Uint32(b[40:])
}

// SetXattrIn is the body of SETXATTR. SetXattrFlags is 0 unless the session
// has FlagSetXattrExt.
type SetXattrIn struct {
	Size          uint32 // of the value; checked against the data
	Flags         uint32 // XATTR_CREATE, XATTR_REPLACE
	SetXattrFlags uint32
}

func (in *SetXattrIn) decode(b []byte, extended bool) {
	in.Size, in.Flags, in.SetXattrFlags = le.Uint32(b), le.Uint32(b[4:]), 0
	if extended {
		in.SetXattrFlags = le.Uint32(b[8:])
	}
}

// MknodIn is the body of MKNOD.
type MknodIn struct {
	Mode  uint32
	Rdev  uint32 // new_encode_dev form
	Umask uint32
	_     uint32
}

func (in *MknodIn) decode(b []byte) {
	in.Mode, in.Rdev, in.Umask = le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
}

// MkdirIn is the body of MKDIR.
type MkdirIn struct {
	Mode  uint32
	Umask uint32
}

func (in *MkdirIn) decode(b []byte) {
	in.Mode, in.Umask = le.Uint32(b), le.Uint32(b[4:])
}

// CreateIn is the body of CREATE and TMPFILE.
type CreateIn struct {
	Flags     uint32 // as OpenIn.Flags
	Mode      uint32
	Umask     uint32
	OpenFlags uint32
}

func (in *CreateIn) decode(b []byte) {
	in.Flags, in.Mode = le.Uint32(b), le.Uint32(b[4:])
	in.Umask, in.OpenFlags = le.Uint32(b[8:]), le.Uint32(b[12:])
}
