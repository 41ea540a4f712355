package fuseproto

import "strconv"

// Opcode is the kind of a request (enum fuse_opcode of Linux's uapi fuse.h).
type Opcode uint32

// The opcodes a Linux guest knows, up to protocol 7.45.
const (
	OpLookup          Opcode = 1
	OpForget          Opcode = 2
	OpGetAttr         Opcode = 3
	OpSetAttr         Opcode = 4
	OpReadlink        Opcode = 5
	OpSymlink         Opcode = 6
	OpMknod           Opcode = 8
	OpMkdir           Opcode = 9
	OpUnlink          Opcode = 10
	OpRmdir           Opcode = 11
	OpRename          Opcode = 12
	OpLink            Opcode = 13
	OpOpen            Opcode = 14
	OpRead            Opcode = 15
	OpWrite           Opcode = 16
	OpStatFS          Opcode = 17
	OpRelease         Opcode = 18
	OpFsync           Opcode = 20
	OpSetXattr        Opcode = 21
	OpGetXattr        Opcode = 22
	OpListXattr       Opcode = 23
	OpRemoveXattr     Opcode = 24
	OpFlush           Opcode = 25
	OpInit            Opcode = 26
	OpOpenDir         Opcode = 27
	OpReadDir         Opcode = 28
	OpReleaseDir      Opcode = 29
	OpFsyncDir        Opcode = 30
	OpGetLk           Opcode = 31
	OpSetLk           Opcode = 32
	OpSetLkW          Opcode = 33
	OpAccess          Opcode = 34
	OpCreate          Opcode = 35
	OpInterrupt       Opcode = 36
	OpBmap            Opcode = 37
	OpDestroy         Opcode = 38
	OpIoctl           Opcode = 39
	OpPoll            Opcode = 40
	OpNotifyReply     Opcode = 41
	OpBatchForget     Opcode = 42
	OpFallocate       Opcode = 43
	OpReadDirPlus     Opcode = 44
	OpRename2         Opcode = 45
	OpLseek           Opcode = 46
	OpCopyFileRange   Opcode = 47
	OpSetupMapping    Opcode = 48
	OpRemoveMapping   Opcode = 49
	OpSyncFS          Opcode = 50
	OpTmpfile         Opcode = 51
	OpStatx           Opcode = 52
	OpCopyFileRange64 Opcode = 53
)

// opInitSwapped is INIT from a guest of the other byte order.
const opInitSwapped Opcode = 0x1A000000

// opcodeCount is the size of tables indexed by opcode.
const opcodeCount = 54

var opcodeNames = [opcodeCount]string{
	OpLookup: "LOOKUP", OpForget: "FORGET", OpGetAttr: "GETATTR", OpSetAttr: "SETATTR",
	OpReadlink: "READLINK", OpSymlink: "SYMLINK", OpMknod: "MKNOD", OpMkdir: "MKDIR",
	OpUnlink: "UNLINK", OpRmdir: "RMDIR", OpRename: "RENAME", OpLink: "LINK",
	OpOpen: "OPEN", OpRead: "READ", OpWrite: "WRITE", OpStatFS: "STATFS",
	OpRelease: "RELEASE", OpFsync: "FSYNC", OpSetXattr: "SETXATTR", OpGetXattr: "GETXATTR",
	OpListXattr: "LISTXATTR", OpRemoveXattr: "REMOVEXATTR", OpFlush: "FLUSH", OpInit: "INIT",
	OpOpenDir: "OPENDIR", OpReadDir: "READDIR", OpReleaseDir: "RELEASEDIR", OpFsyncDir: "FSYNCDIR",
	OpGetLk: "GETLK", OpSetLk: "SETLK", OpSetLkW: "SETLKW", OpAccess: "ACCESS",
	OpCreate: "CREATE", OpInterrupt: "INTERRUPT", OpBmap: "BMAP", OpDestroy: "DESTROY",
	OpIoctl: "IOCTL", OpPoll: "POLL", OpNotifyReply: "NOTIFY_REPLY", OpBatchForget: "BATCH_FORGET",
	OpFallocate: "FALLOCATE", OpReadDirPlus: "READDIRPLUS", OpRename2: "RENAME2", OpLseek: "LSEEK",
	OpCopyFileRange: "COPY_FILE_RANGE", OpSetupMapping: "SETUPMAPPING", OpRemoveMapping: "REMOVEMAPPING",
	OpSyncFS: "SYNCFS", OpTmpfile: "TMPFILE", OpStatx: "STATX", OpCopyFileRange64: "COPY_FILE_RANGE_64",
}

// String returns the name in the kernel's spelling without its FUSE_ prefix, or
// the number of an opcode that this package does not know.
func (o Opcode) String() string {
	if o < opcodeCount && opcodeNames[o] != "" {
		return opcodeNames[o]
	}
	return "opcode " + strconv.FormatUint(uint64(o), 10)
}
