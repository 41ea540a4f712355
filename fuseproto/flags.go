package fuseproto

// Bits of a session's flags, as INIT negotiates them (flags and flags2 joined).
const (
	FlagAsyncRead         = 1 << 0
	FlagPosixLocks        = 1 << 1
	FlagFileOps           = 1 << 2
	FlagAtomicOTrunc      = 1 << 3
	FlagExportSupport     = 1 << 4
	FlagBigWrites         = 1 << 5
	FlagDontMask          = 1 << 6
	FlagSpliceWrite       = 1 << 7
	FlagSpliceMove        = 1 << 8
	FlagSpliceRead        = 1 << 9
	FlagFlockLocks        = 1 << 10
	FlagHasIoctlDir       = 1 << 11
	FlagAutoInvalData     = 1 << 12
	FlagDoReadDirPlus     = 1 << 13
	FlagReadDirPlusAuto   = 1 << 14
	FlagAsyncDIO          = 1 << 15
	FlagWritebackCache    = 1 << 16
	FlagNoOpenSupport     = 1 << 17
	FlagParallelDirops    = 1 << 18
	FlagHandleKillpriv    = 1 << 19
	FlagPosixACL          = 1 << 20
	FlagAbortError        = 1 << 21
	FlagMaxPages          = 1 << 22
	FlagCacheSymlinks     = 1 << 23
	FlagNoOpenDirSupport  = 1 << 24
	FlagExplicitInvalData = 1 << 25
	FlagMapAlignment      = 1 << 26
	FlagSubmounts         = 1 << 27
	FlagHandleKillprivV2  = 1 << 28
	FlagSetXattrExt       = 1 << 29
	FlagInitExt           = 1 << 30
	FlagInitReserved      = 1 << 31
	FlagSecurityCtx       = 1 << 32
	FlagHasInodeDAX       = 1 << 33
	FlagCreateSuppGroup   = 1 << 34
	FlagHasExpireOnly     = 1 << 35
	FlagDirectIOAllowMmap = 1 << 36
	FlagPassthrough       = 1 << 37
	FlagNoExportSupport   = 1 << 38
	FlagHasResend         = 1 << 39
	FlagAllowIdmap        = 1 << 40
	FlagOverIOUring       = 1 << 41
	FlagRequestTimeout    = 1 << 42
	flagsZeroMessageOpen  = FlagNoOpenSupport | FlagNoOpenDirSupport
	flagsDAX              = FlagMapAlignment | FlagHasInodeDAX
	flagsOfSecondWord     = 0xffffffff << 32
)

// flagsNever are the bits that would hang or mislead a virtio-fs guest whatever
// a file system wants: splice, /dev/fuse descriptors, notifications, and the
// io_uring transport all need a device that virtio-fs has not.
const flagsNever = FlagFileOps | FlagSpliceWrite | FlagSpliceMove | FlagSpliceRead |
	FlagHandleKillpriv | FlagAbortError | FlagInitReserved | FlagPassthrough |
	FlagHasResend | FlagOverIOUring | FlagRequestTimeout

// FlagsReadOnly is what a session grants whose files never change.
const FlagsReadOnly = FlagAsyncRead | FlagExportSupport | FlagBigWrites | FlagDoReadDirPlus |
	FlagReadDirPlusAuto | FlagAsyncDIO | FlagParallelDirops | FlagMaxPages | FlagCacheSymlinks |
	FlagExplicitInvalData | FlagInitExt | FlagAllowIdmap

// FlagsPassthrough is what a session grants that shows a host directory, before
// what its configuration adds (locks, ACLs, write-back, security contexts, …). There
// is no FlagExportSupport: a node that the guest forgot is not found again.
const FlagsPassthrough = FlagAsyncRead | FlagAtomicOTrunc | FlagBigWrites |
	FlagHasIoctlDir | FlagAutoInvalData | FlagDoReadDirPlus | FlagAsyncDIO | FlagParallelDirops |
	FlagMaxPages | FlagInitExt | FlagCreateSuppGroup | FlagAllowIdmap

// FlagsShared is what a session grants whose tree may hold images and host
// directories side by side. What one of them must not have is left out for both:
// host files change (FlagAutoInvalData, no cached links), and nodes of host files
// cannot be found again once they are forgotten (no FlagExportSupport).
const FlagsShared = FlagAsyncRead | FlagAtomicOTrunc | FlagBigWrites | FlagHasIoctlDir |
	FlagAutoInvalData | FlagDoReadDirPlus | FlagReadDirPlusAuto | FlagAsyncDIO |
	FlagParallelDirops | FlagMaxPages | FlagHandleKillprivV2 | FlagInitExt |
	FlagCreateSuppGroup | FlagAllowIdmap

// Bits of GetAttrIn.Flags.
const GetAttrFh = 1 << 0

// Bits of SetAttrIn.Valid: which fields are to be set.
const (
	SetAttrMode        = 1 << 0
	SetAttrUID         = 1 << 1
	SetAttrGID         = 1 << 2
	SetAttrSize        = 1 << 3
	SetAttrAtime       = 1 << 4
	SetAttrMtime       = 1 << 5
	SetAttrFh          = 1 << 6
	SetAttrAtimeNow    = 1 << 7
	SetAttrMtimeNow    = 1 << 8
	SetAttrLockOwner   = 1 << 9
	SetAttrCtime       = 1 << 10
	SetAttrKillSuidgid = 1 << 11
)

// Values of OpenIn.Flags and CreateIn.Flags that are the same on every
// architecture a guest of ours may have. They are the guest's, not the host's.
const (
	OpenAccessMode = 0o3
	OpenReadOnly   = 0o0
	OpenWriteOnly  = 0o1
	OpenReadWrite  = 0o2
	OpenTruncate   = 0o1000
	OpenAppend     = 0o2000
)

// OpenKillSuidgid is a bit of OpenIn.OpenFlags and CreateIn.OpenFlags.
const OpenKillSuidgid = 1 << 0

// Bits of WriteIn.WriteFlags.
const (
	WriteCache       = 1 << 0
	WriteLockOwner   = 1 << 1
	WriteKillSuidgid = 1 << 2
)

// Bits of ReleaseIn.ReleaseFlags.
const (
	ReleaseFlush       = 1 << 0
	ReleaseFlockUnlock = 1 << 1
)

// FsyncData is a bit of FsyncIn.FsyncFlags: fdatasync, not fsync.
const FsyncData = 1 << 0

// LkFlock is a bit of LkIn.LkFlags: a flock(2) lock, not a POSIX one.
const LkFlock = 1 << 0

// IoctlUnrestricted is a bit of IoctlIn.Flags.
const IoctlUnrestricted = 1 << 1

// Values of LseekIn.Whence; the guest deals with all others itself.
const (
	SeekData = 3
	SeekHole = 4
)

// Bits of the flags of Rename.
const (
	RenameNoReplace = 1 << 0
	RenameExchange  = 1 << 1
	RenameWhiteout  = 1 << 2
)

// Types of directory entries, as in struct dirent.
const (
	DTUnknown = 0
	DTFifo    = 1
	DTChr     = 2
	DTDir     = 4
	DTBlk     = 6
	DTReg     = 8
	DTLnk     = 10
	DTSock    = 12
)
