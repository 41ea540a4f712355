package vmm

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The FUSE protocol as the Linux client speaks it, from include/uapi/linux/fuse.h.
// These definitions are the driver side's own on purpose: the product has its own,
// and each is a check of the other.

// Opcode is the kind of a FUSE request.
type Opcode uint32

// The opcodes.
const (
	OpLookup        Opcode = 1
	OpForget        Opcode = 2
	OpGetattr       Opcode = 3
	OpSetattr       Opcode = 4
	OpReadlink      Opcode = 5
	OpSymlink       Opcode = 6
	OpMknod         Opcode = 8
	OpMkdir         Opcode = 9
	OpUnlink        Opcode = 10
	OpRmdir         Opcode = 11
	OpRename        Opcode = 12
	OpLink          Opcode = 13
	OpOpen          Opcode = 14
	OpRead          Opcode = 15
	OpWrite         Opcode = 16
	OpStatfs        Opcode = 17
	OpRelease       Opcode = 18
	OpFsync         Opcode = 20
	OpSetxattr      Opcode = 21
	OpGetxattr      Opcode = 22
	OpListxattr     Opcode = 23
	OpRemovexattr   Opcode = 24
	OpFlush         Opcode = 25
	OpInit          Opcode = 26
	OpOpendir       Opcode = 27
	OpReaddir       Opcode = 28
	OpReleasedir    Opcode = 29
	OpFsyncdir      Opcode = 30
	OpGetlk         Opcode = 31
	OpSetlk         Opcode = 32
	OpSetlkw        Opcode = 33
	OpAccess        Opcode = 34
	OpCreate        Opcode = 35
	OpInterrupt     Opcode = 36
	OpBmap          Opcode = 37
	OpDestroy       Opcode = 38
	OpIoctl         Opcode = 39
	OpPoll          Opcode = 40
	OpNotifyReply   Opcode = 41
	OpBatchForget   Opcode = 42
	OpFallocate     Opcode = 43
	OpReaddirplus   Opcode = 44
	OpRename2       Opcode = 45
	OpLseek         Opcode = 46
	OpCopyFileRange Opcode = 47
	OpSetupmapping  Opcode = 48
	OpRemovemapping Opcode = 49
	OpSyncfs        Opcode = 50
	OpTmpfile       Opcode = 51
	OpStatx         Opcode = 52
)

var opcodeNames = map[Opcode]string{
	OpLookup: "LOOKUP", OpForget: "FORGET", OpGetattr: "GETATTR", OpSetattr: "SETATTR", OpReadlink: "READLINK",
	OpSymlink: "SYMLINK", OpMknod: "MKNOD", OpMkdir: "MKDIR", OpUnlink: "UNLINK", OpRmdir: "RMDIR", OpRename: "RENAME",
	OpLink: "LINK", OpOpen: "OPEN", OpRead: "READ", OpWrite: "WRITE", OpStatfs: "STATFS", OpRelease: "RELEASE",
	OpFsync: "FSYNC", OpSetxattr: "SETXATTR", OpGetxattr: "GETXATTR", OpListxattr: "LISTXATTR",
	OpRemovexattr: "REMOVEXATTR", OpFlush: "FLUSH", OpInit: "INIT", OpOpendir: "OPENDIR", OpReaddir: "READDIR",
	OpReleasedir: "RELEASEDIR", OpFsyncdir: "FSYNCDIR", OpGetlk: "GETLK", OpSetlk: "SETLK", OpSetlkw: "SETLKW",
	OpAccess: "ACCESS", OpCreate: "CREATE", OpInterrupt: "INTERRUPT", OpBmap: "BMAP", OpDestroy: "DESTROY",
	OpIoctl: "IOCTL", OpPoll: "POLL", OpNotifyReply: "NOTIFY_REPLY", OpBatchForget: "BATCH_FORGET",
	OpFallocate: "FALLOCATE", OpReaddirplus: "READDIRPLUS", OpRename2: "RENAME2", OpLseek: "LSEEK",
	OpCopyFileRange: "COPY_FILE_RANGE", OpSetupmapping: "SETUPMAPPING", OpRemovemapping: "REMOVEMAPPING",
	OpSyncfs: "SYNCFS", OpTmpfile: "TMPFILE", OpStatx: "STATX",
}

func (op Opcode) String() string {
	if s, ok := opcodeNames[op]; ok {
		return s
	}
	return fmt.Sprintf("opcode %d", uint32(op))
}

// RootID is the nodeid of the root.
const RootID = 1

// Sizes of the protocol's structures.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	attrSize      = 88
	entrySize     = 128
	attrOutSize   = 104
	openOutSize   = 16
	initOutSize   = 64
	statfsSize    = 80
	direntSize    = 24
	ioctlOutSize  = 16
	fileLockSize  = 24
	statxSize     = 256
	statxOutSize  = 32 + statxSize
)

// INIT flags by which the client itself behaves differently.
const (
	InitDoReaddirplus uint64 = 1 << 13
	InitMaxPages      uint64 = 1 << 22
	InitExt           uint64 = 1 << 30
	InitSetxattrExt   uint64 = 1 << 29
)

// Attr is fuse_attr.
type Attr struct {
	Ino, Size, Blocks   uint64
	Atime, Mtime, Ctime uint64 // seconds, signed
	AtimeNsec           uint32
	MtimeNsec           uint32
	CtimeNsec           uint32
	Mode, Nlink         uint32
	UID, GID            uint32
	Rdev, Blksize       uint32
	Flags               uint32
}

// Entry is fuse_entry_out.
type Entry struct {
	NodeID, Generation            uint64
	EntryValid, AttrValid         uint64 // seconds
	EntryValidNsec, AttrValidNsec uint32
	Attr                          Attr
}

// AttrOut is fuse_attr_out.
type AttrOut struct {
	Valid     uint64 // seconds
	ValidNsec uint32
	_         uint32
	Attr      Attr
}

// OpenOut is fuse_open_out.
type OpenOut struct {
	Fh        uint64
	Flags     uint32
	BackingID int32
}

// Statfs is fuse_kstatfs.
type Statfs struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Bsize, Namelen, Frsize              uint32
	_                                   uint32
	_                                   [6]uint32
}

// InitOut is fuse_init_out.
type InitOut struct {
	Major, Minor, MaxReadahead         uint32
	Flags                              uint32
	MaxBackground, CongestionThreshold uint16
	MaxWrite, TimeGran                 uint32
	MaxPages, MapAlignment             uint16
	Flags2, MaxStackDepth              uint32
	RequestTimeout                     uint16
	_                                  [11]uint16
}

// AllFlags are the 64 flag bits; the upper half counts only with INIT_EXT.
func (o InitOut) AllFlags() uint64 {
	f := uint64(o.Flags)
	if f&InitExt != 0 {
		f |= uint64(o.Flags2) << 32
	}
	return f
}

// SetattrIn is fuse_setattr_in.
type SetattrIn struct {
	Valid, _                        uint32
	Fh, Size, LockOwner             uint64
	Atime, Mtime, Ctime             uint64
	AtimeNsec, MtimeNsec, CtimeNsec uint32
	Mode, _, UID, GID, _            uint32
}

// header is fuse_in_header.
type header struct {
	Len         uint32
	Opcode      Opcode
	Unique      uint64
	NodeID      uint64
	UID, GID    uint32
	PID         uint32
	TotalExtlen uint16
	_           uint16
}

// outHeader is fuse_out_header.
type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

// Dirent is an entry of a directory listing. Entry is the zero value in a plain
// READDIR and for names whose attributes the back-end did not give.
type Dirent struct {
	Entry Entry
	Ino   uint64
	Off   uint64 // cookie: where to go on after this entry
	Type  uint32 // DT_*
	Name  string
}

// pack lays fixed-size values out as the protocol has them on the wire.
func pack(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		switch v := v.(type) {
		case []byte:
			b.Write(v)
		case string: // names and targets end in a NUL
			b.WriteString(v)
			b.WriteByte(0)
		default:
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err) // a type without a fixed size: our own mistake
			}
		}
	}
	return b.Bytes()
}

// unpack reads a fixed-size value from the front of b, which is long enough.
func unpack[T any](b []byte) T {
	var v T
	if err := binary.Read(bytes.NewReader(b), binary.LittleEndian, &v); err != nil {
		panic(err) // sizes were verified before
	}
	return v
}

// parseDirents cuts a READDIR or READDIRPLUS reply into its records, which must
// be whole and well-formed.
func parseDirents(b []byte, plus bool) ([]Dirent, error) {
	var out []Dirent
	fixed := direntSize
	if plus {
		fixed += entrySize
	}
	for len(b) > 0 {
		if len(b) < fixed {
			return out, violation("a listing ends in %d bytes of a record of %d", len(b), fixed)
		}
		var d Dirent
		rest := b
		if plus {
			d.Entry = unpack[Entry](b)
			rest = b[entrySize:]
		}
		le := binary.LittleEndian
		d.Ino, d.Off, d.Type = le.Uint64(rest), le.Uint64(rest[8:]), le.Uint32(rest[20:])
		n := int(le.Uint32(rest[16:]))
		if n == 0 || n > 1024 {
			return out, violation("a listing has a name of %d bytes", n)
		}
		record := (fixed + n + 7) &^ 7
		if record > len(b) {
			return out, violation("a listing ends in %d bytes of a record of %d", len(b), record)
		}
		d.Name = string(rest[direntSize : direntSize+n])
		if bytes.ContainsAny([]byte(d.Name), "/\x00") {
			return out, violation("a listing has the name %q", d.Name)
		}
		for _, pad := range b[fixed+n : record] {
			if pad != 0 {
				return out, violation("the padding behind %q is not zero", d.Name)
			}
		}
		out = append(out, d)
		b = b[record:]
	}
	return out, nil
}
