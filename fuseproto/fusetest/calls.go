package fusetest

import "github.com/rafsd/rafsd/fuseproto"

// Call is a request and the call of a Recorder that it ends in.
type Call struct {
	Opcode fuseproto.Opcode
	Room   int // for the body of the reply
	// Request returns the parts of the body; node is the node of the request,
	// which those name that have two.
	Request func(node uint64) []any
	Want    string // with the node's index as 40
	Entry   bool   // the reply begins with an entry
}

// Calls returns a request of every opcode that has a method, on a node whose
// index is 40.
func Calls() []Call {
	u32s := func(n ...uint32) []byte {
		var b []byte
		for _, n := range n {
			b = le.AppendUint32(b, n)
		}
		return b
	}
	u64s := func(n ...uint64) []byte {
		var b []byte
		for _, n := range n {
			b = le.AppendUint64(b, n)
		}
		return b
	}
	body := func(parts ...any) func(uint64) []any { return func(uint64) []any { return parts } }
	release := append(u64s(3), append(u32s(4, 5), u64s(6)...)...)
	lock := append(u64s(3, 4, 5, 6), u32s(1, 8, 0, 0)...)
	return []Call{
		{fuseproto.OpLookup, 128, body("name"), "Lookup 40 name", true},
		{fuseproto.OpForget, 0, body(uint64(7)), "Forget 40 7", false},
		{fuseproto.OpGetAttr, 104, body(u32s(1, 0), u64s(9)), "GetAttr 40 {Flags:1 _:0 Fh:9}", false},
		{fuseproto.OpSetAttr, 104, body(u32s(8, 0), u64s(0, 12), make([]byte, 64)), "SetAttr 40 valid 0x8 size 12", false},
		{fuseproto.OpReadlink, 100, body(), "Readlink 40", false},
		{fuseproto.OpStatFS, 80, body(), "StatFS 40", false},
		{fuseproto.OpOpen, 16, body(u32s(0o100002, 1)), "Open 40 0100002 1", false},
		{fuseproto.OpRead, 30, body(ReadBody(5, 6, 30)), "Read 40 fh 5 at 6 size 30", false},
		{fuseproto.OpWrite, 8, body(u64s(5, 6), u32s(4, 0), u64s(0), u32s(0, 0), []byte("data")), "Write 40 fh 5 at 6 [data]", false},
		{fuseproto.OpFlush, 0, body(release), "Flush 40 fh 3 owner 6", false},
		{fuseproto.OpRelease, 0, body(release), "Release 40 {Fh:3 Flags:4 ReleaseFlags:5 LockOwner:6}", false},
		{fuseproto.OpFsync, 0, body(u64s(3), u32s(1, 0)), "Fsync 40 fh 3 1", false},
		{fuseproto.OpFallocate, 0, body(u64s(3, 4, 5), u32s(3, 0)), "Fallocate 40 fh 3 [4,+5) 0x3", false},
		{fuseproto.OpLseek, 8, body(u64s(3, 4), u32s(3, 0)), "Lseek 40 fh 3 at 4 3", false},
		{fuseproto.OpCopyFileRange, 8, func(node uint64) []any { return []any{u64s(1, 2, node, 3, 4, 5, 0)} },
			"CopyFileRange 40 at 2 to 40 at 4 len 5", false},
		{fuseproto.OpCopyFileRange64, 8, func(node uint64) []any { return []any{u64s(1, 2, node, 3, 4, 1<<40, 0)} },
			"CopyFileRange 40 at 2 to 40 at 4 len 1099511627776", false},
		{fuseproto.OpIoctl, 16 + 20, body(u64s(3), u32s(0, 0x8008), u64s(0), u32s(4, 100), []byte("data")),
			"Ioctl 40 fh 3 cmd 0x8008 data out 20", false},
		{fuseproto.OpGetLk, 24, body(lock), "GetLk 40 fh 3 {Start:5 End:6 Type:1 PID:8}", false},
		{fuseproto.OpSetLk, 0, body(lock), "SetLk 40 fh 3 {Start:5 End:6 Type:1 PID:8} wait false", false},
		{fuseproto.OpSetLkW, 0, body(lock), "SetLk 40 fh 3 {Start:5 End:6 Type:1 PID:8} wait true", false},
		{fuseproto.OpOpenDir, 16, body(u32s(0o304000, 0)), "OpenDir 40 0304000", false},
		{fuseproto.OpReadDir, 4096, body(ReadBody(5, 0, 4096)), "ReadDir 40 fh 5 at 0 plus false", false},
		{fuseproto.OpReadDirPlus, 4096, body(ReadBody(5, 0, 4096)), "ReadDir 40 fh 5 at 0 plus true", false},
		{fuseproto.OpReleaseDir, 0, body(release), "ReleaseDir 40 fh 3", false},
		{fuseproto.OpFsyncDir, 0, body(u64s(3), u32s(1, 0)), "FsyncDir 40 fh 3", false},
		{fuseproto.OpSyncFS, 0, body(uint64(0)), "SyncFS 40", false},
		{fuseproto.OpGetXattr, 30, body(u32s(30, 0), "user.a"), "GetXattr 40 user.a", false},
		{fuseproto.OpListXattr, 30, body(u32s(30, 0)), "ListXattr 40", false},
		{fuseproto.OpSetXattr, 0, body(u32s(5, 1), "user.a", []byte("value")),
			"SetXattr 40 {Size:5 Flags:1 SetXattrFlags:0} user.a=value", false},
		{fuseproto.OpRemoveXattr, 0, body("user.a"), "RemoveXattr 40 user.a", false},
		{fuseproto.OpMknod, 128, body(u32s(0o20600, 259, 0o22, 0), "name"), "Mknod 40 name mode 020600 rdev 259 umask 022", true},
		{fuseproto.OpMkdir, 128, body(u32s(0o755, 0o22), "name"), "Mkdir 40 name mode 0755 umask 022", true},
		{fuseproto.OpSymlink, 128, body("name", "/tar/get"), "Symlink 40 name -> /tar/get", true},
		{fuseproto.OpLink, 128, func(node uint64) []any { return []any{node, "name"} }, "Link 40 as 40 name", true},
		{fuseproto.OpUnlink, 0, body("name"), "Unlink 40 name", false},
		{fuseproto.OpRmdir, 0, body("name"), "Rmdir 40 name", false},
		{fuseproto.OpRename, 0, func(node uint64) []any { return []any{node, "old", "new"} }, "Rename 40 old to 40 new flags 0", false},
		{fuseproto.OpRename2, 0, func(node uint64) []any { return []any{node, u32s(5, 0), "old", "new"} },
			"Rename 40 old to 40 new flags 5", false},
		{fuseproto.OpCreate, 144, body(u32s(0o101, 0o644, 0o22, 1), "name"),
			"Create 40 name {Flags:65 Mode:420 Umask:18 OpenFlags:1}", true},
		{fuseproto.OpTmpfile, 144, body(u32s(0o102, 0o600, 0o22, 0), "/"),
			"Tmpfile 40 {Flags:66 Mode:384 Umask:18 OpenFlags:0}", true},
	}
}
