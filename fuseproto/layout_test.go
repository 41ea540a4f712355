package fuseproto

import (
	"reflect"
	"strings"
	"testing"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// The layouts are checked against another implementation's, which lays Go
// structs over the bytes: every field is filled with bytes of its own, and must
// come out of ours as the field of the same name.

// distinct fills all integer fields of v, headers of requests excepted, with
// bytes that are all different.
func distinct(v reflect.Value, next *byte) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case v.Type().Field(i).Name == "InHeader":
		case f.Kind() == reflect.Struct:
			distinct(f, next)
		case f.CanSet() && (f.CanUint() || f.CanInt()):
			var n uint64
			for range f.Type().Size() {
				n = n<<8 | uint64(*next)
				*next++
			}
			if f.CanInt() {
				f.SetInt(int64(n))
			} else {
				f.SetUint(n)
			}
		}
	}
}

// fields returns all integer fields of v by lower-case name.
func fields(v reflect.Value, m map[string]uint64) map[string]uint64 {
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch {
		case name == "InHeader" || name == "_":
		case f.Kind() == reflect.Struct:
			fields(f, m)
		case f.CanUint():
			m[strings.ToLower(strings.Trim(name, "_"))] = f.Uint()
		case f.CanInt():
			m[strings.ToLower(strings.Trim(name, "_"))] = uint64(f.Int())
		}
	}
	return m
}

// otherName maps names of ours to theirs.
var otherName = map[string]string{
	"nodeout": "nodeidout", "type": "typ",
	"OpenIn.openflags": "mode", // theirs is misnamed
}

func bytesOf[T any](p *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p)) }

// checkIn fills theirs, decodes its bytes behind the header, and compares.
func checkIn[Theirs, Ours any](t *testing.T, size int, decode func(*Ours, []byte)) {
	t.Helper()
	var theirs Theirs
	var ours Ours
	next := byte(1)
	distinct(reflect.ValueOf(&theirs).Elem(), &next)
	b := bytesOf(&theirs)
	if len(b) != inHeaderSize+size {
		t.Errorf("%T is %d bytes behind the header, want %d", theirs, len(b)-inHeaderSize, size)
	}
	decode(&ours, b[inHeaderSize:])
	want := fields(reflect.ValueOf(theirs), map[string]uint64{})
	kind := reflect.TypeFor[Ours]().Name()
	for name, got := range fields(reflect.ValueOf(ours), map[string]uint64{}) {
		other := name
		if n, ok := otherName[name]; ok {
			other = n
		}
		if n, ok := otherName[kind+"."+name]; ok {
			other = n
		}
		w, ok := want[other]
		if !ok {
			t.Errorf("%T has no field %s", theirs, other)
		} else if w != got {
			t.Errorf("%T.%s = %#x, want %#x", ours, name, got, w)
		}
	}
}

func TestLayoutOfBodies(t *testing.T) {
	checkIn[gofuse.GetAttrIn](t, getAttrInSize, (*GetAttrIn).decode)
	checkIn[gofuse.SetAttrIn](t, setAttrInSize, (*SetAttrIn).decode)
	checkIn[gofuse.OpenIn](t, openInSize, (*OpenIn).decode)
	checkIn[gofuse.ReadIn](t, readInSize, (*ReadIn).decode)
	checkIn[gofuse.WriteIn](t, writeInSize, (*WriteIn).decode)
	checkIn[gofuse.ReleaseIn](t, releaseInSize, (*ReleaseIn).decode)
	checkIn[gofuse.FsyncIn](t, fsyncInSize, (*FsyncIn).decode)
	checkIn[gofuse.FallocateIn](t, fallocateInSize, (*FallocateIn).decode)
	checkIn[gofuse.LseekIn](t, lseekInSize, (*LseekIn).decode)
	checkIn[gofuse.CopyFileRangeIn](t, copyFileRangeInSize, (*CopyFileRangeIn).decode)
	checkIn[gofuse.IoctlIn](t, ioctlInSize, (*IoctlIn).decode)
	checkIn[gofuse.LkIn](t, lkInSize, (*LkIn).decode)
	checkIn[gofuse.MknodIn](t, mknodInSize, (*MknodIn).decode)
	checkIn[gofuse.MkdirIn](t, mkdirInSize, (*MkdirIn).decode)
	checkIn[gofuse.CreateIn](t, createInSize, (*CreateIn).decode)
	checkIn[gofuse.SetXAttrIn](t, setXattrExtInSize, func(in *SetXattrIn, b []byte) { in.decode(b, true) })

	var short SetXattrIn
	short.decode([]byte{1, 0, 0, 0, 2, 0, 0, 0}, false)
	if short != (SetXattrIn{Size: 1, Flags: 2}) {
		t.Errorf("short SETXATTR = %+v", short)
	}
}

func TestLayoutOfHeaders(t *testing.T) {
	theirs := gofuse.InHeader{
		Length: 0x01020304, Opcode: 0x05060708, Unique: 0x090a0b0c0d0e0f10, NodeId: 0x1112131415161718,
		Caller: gofuse.Caller{Owner: gofuse.Owner{Uid: 0x191a1b1c, Gid: 0x1d1e1f20}, Pid: 0x21222324},
	}
	if n := len(bytesOf(&theirs)); n != inHeaderSize {
		t.Fatalf("request header has %d bytes, want %d", n, inHeaderSize)
	}
	var h inHeader
	h.decode(bytesOf(&theirs))
	want := inHeader{theirs.Length, Opcode(theirs.Opcode), theirs.Unique, theirs.NodeId, theirs.Uid, theirs.Gid, theirs.Pid, theirs.TotalExtlen}
	if h != want {
		t.Errorf("header = %+v, want %+v", h, want)
	}
	var out gofuse.OutHeader
	encodeOutHeader(bytesOf(&out), 16, 5, 42)
	if out != (gofuse.OutHeader{Length: 16, Status: -5, Unique: 42}) {
		t.Errorf("reply header = %+v", out)
	}
}

func TestLayoutOfInit(t *testing.T) {
	theirs := gofuse.InitIn{Major: 7, Minor: 45, MaxReadAhead: 0x11223344, Flags: FlagInitExt | 5, Flags2: 6}
	var in InitIn
	in.decode(bytesOf(&theirs)[inHeaderSize:])
	if want := (InitIn{7, 45, 0x11223344, 6<<32 | FlagInitExt | 5}); in != want {
		t.Errorf("INIT = %+v, want %+v", in, want)
	}
	var out gofuse.InitOut
	ours := initOut{7, 45, 0x11223344, 0x0708090a<<32 | 0x01020304, 0x1112, 0x1314, 0x21222324, 0x3132, 0x3334}
	ours.encode(bytesOf(&out))
	want := gofuse.InitOut{
		Major: 7, Minor: 45, MaxReadAhead: 0x11223344, Flags: 0x01020304, Flags2: 0x0708090a,
		MaxBackground: 0x1112, CongestionThreshold: 0x1314, MaxWrite: 0x21222324, TimeGran: 1,
		MaxPages: 0x3132, MapAlignment: 0x3334,
	}
	if out != want || len(bytesOf(&out)) != initOutSize {
		t.Errorf("INIT reply = %+v, want %+v", out, want)
	}
}

func TestLayoutOfReplies(t *testing.T) {
	attr := Attr{
		Ino: 1, Size: 1<<63 - 1, Blocks: 3, Atime: -4, Mtime: 5, Ctime: -6, AtimeNsec: 7, MtimeNsec: 8, CtimeNsec: 999_999_999,
		Mode: 0o120777, Nlink: 11, UID: 12, GID: 13, Rdev: 0xfff12345, Blksize: 15, Flags: 16,
	}
	theirAttr := gofuse.Attr{
		Ino: 1, Size: 1<<63 - 1, Blocks: 3, Atime: ^uint64(3), Mtime: 5, Ctime: ^uint64(5), Atimensec: 7, Mtimensec: 8, Ctimensec: 999_999_999,
		Mode: 0o120777, Nlink: 11, Owner: gofuse.Owner{Uid: 12, Gid: 13}, Rdev: 0xfff12345, Blksize: 15, Flags: 16,
	}
	entry := Entry{Node: 21, Generation: 22, EntryTimeout: Timeout{23, 24}, AttrTimeout: Timeout{25, 26}, Attr: attr}
	opened := OpenOut{Fh: 31, Flags: 32}

	check(t, createOutSize, gofuse.CreateOut{
		EntryOut: gofuse.EntryOut{NodeId: 21, Generation: 22, EntryValid: 23, EntryValidNsec: 24, AttrValid: 25, AttrValidNsec: 26, Attr: theirAttr},
		OpenOut:  gofuse.OpenOut{Fh: 31, OpenFlags: 32},
	}, func(b []byte) {
		encodeEntry(b, &entry, entry.Node, entry.Attr.Ino)
		encodeOpenOut(b[entryOutSize:], &opened)
	})
	check(t, attrOutSize, gofuse.AttrOut{AttrValid: 41, AttrValidNsec: 42, Attr: theirAttr},
		func(b []byte) { encodeAttrOut(b, &AttrOut{Timeout{41, 42}, attr}) })
	check(t, statFSOutSize, gofuse.StatfsOut{Blocks: 1, Bfree: 2, Bavail: 3, Files: 4, Ffree: 5, Bsize: 6, NameLen: 7, Frsize: 8},
		func(b []byte) { encodeStatFS(b, &StatFSOut{1, 2, 3, 4, 5, 6, 7, 8}) })
	check(t, lkOutSize, gofuse.LkOut{Lk: gofuse.FileLock{Start: 1, End: 2, Typ: 3, Pid: 4}},
		func(b []byte) { encodeFileLock(b, &FileLock{1, 2, 3, 4}) })
	check(t, ioctlOutSize, gofuse.IoctlOut{Result: -7}, func(b []byte) { encodeIoctlOut(b, -7) })
	check(t, writeOutSize, gofuse.WriteOut{Size: 7}, func(b []byte) { encodeCount(b, 7) })
	check(t, getXattrOutSize, gofuse.GetXAttrOut{Size: 7}, func(b []byte) { encodeCount(b, 7) })
}

// check encodes over bytes that are not zero, so that a hole shows.
func check[T comparable](t *testing.T, size int, want T, encode func([]byte)) {
	t.Helper()
	var got T
	b := bytesOf(&got)
	if len(b) != size {
		t.Errorf("%T has %d bytes, want %d", got, len(b), size)
	}
	for i := range b {
		b[i] = 0xee
	}
	encode(b)
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The sizes that the kernel's header gives, as literals.
func TestSizes(t *testing.T) {
	for name, tt := range map[string]struct{ got, want int }{
		"in header": {inHeaderSize, 40}, "out header": {outHeaderSize, 16}, "forget": {forgetInSize, 8},
		"attr": {attrSize, 88}, "entry": {entryOutSize, 128}, "attr out": {attrOutSize, 104}, "open out": {openOutSize, 16},
		"create out": {createOutSize, 144}, "statfs": {statFSOutSize, 80}, "init out": {initOutSize, 64},
		"dirent": {direntSize, 24}, "direntplus": {direntPlusSize, 152}, "rename": {renameInSize, 8}, "rename2": {rename2InSize, 16},
		"link": {linkInSize, 8}, "getxattr": {getXattrInSize, 8}, "syncfs": {syncFSInSize, 8}, "interrupt": {interruptInSize, 8},
		"lseek out": {lseekOutSize, 8}, "batch forget": {batchForgetInSize, 8}, "forget one": {forgetOneSize, 16},
		"longest fixed reply": {maxFixedReplySize, 144},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %d bytes, want %d", name, tt.got, tt.want)
		}
	}
	for op, def := range opDefs {
		if def.run == nil {
			continue
		}
		if def.reply > maxFixedReplySize || def.args > def.most || opcodeNames[op] == "" {
			t.Errorf("%v: %+v", Opcode(op), def)
		}
		if def.most <= readInSize && def.most > inlineBody {
			t.Errorf("%v: bodies of %d bytes allocate", Opcode(op), def.most)
		}
	}
}

func TestFlags(t *testing.T) {
	for bit, tt := range map[int]struct {
		got  uint64
		want uint64
	}{
		0: {FlagAsyncRead, gofuse.CAP_ASYNC_READ}, 1: {FlagPosixLocks, gofuse.CAP_POSIX_LOCKS}, 2: {FlagFileOps, gofuse.CAP_FILE_OPS},
		3: {FlagAtomicOTrunc, gofuse.CAP_ATOMIC_O_TRUNC}, 4: {FlagExportSupport, gofuse.CAP_EXPORT_SUPPORT}, 5: {FlagBigWrites, gofuse.CAP_BIG_WRITES},
		6: {FlagDontMask, gofuse.CAP_DONT_MASK}, 7: {FlagSpliceWrite, gofuse.CAP_SPLICE_WRITE}, 8: {FlagSpliceMove, gofuse.CAP_SPLICE_MOVE},
		9: {FlagSpliceRead, gofuse.CAP_SPLICE_READ}, 10: {FlagFlockLocks, gofuse.CAP_FLOCK_LOCKS}, 11: {FlagHasIoctlDir, gofuse.CAP_IOCTL_DIR},
		12: {FlagAutoInvalData, gofuse.CAP_AUTO_INVAL_DATA}, 13: {FlagDoReadDirPlus, gofuse.CAP_READDIRPLUS},
		14: {FlagReadDirPlusAuto, gofuse.CAP_READDIRPLUS_AUTO}, 15: {FlagAsyncDIO, gofuse.CAP_ASYNC_DIO},
		16: {FlagWritebackCache, gofuse.CAP_WRITEBACK_CACHE}, 17: {FlagNoOpenSupport, gofuse.CAP_NO_OPEN_SUPPORT},
		18: {FlagParallelDirops, gofuse.CAP_PARALLEL_DIROPS}, 19: {FlagHandleKillpriv, gofuse.CAP_HANDLE_KILLPRIV},
		20: {FlagPosixACL, gofuse.CAP_POSIX_ACL}, 21: {FlagAbortError, gofuse.CAP_ABORT_ERROR}, 22: {FlagMaxPages, gofuse.CAP_MAX_PAGES},
		23: {FlagCacheSymlinks, gofuse.CAP_CACHE_SYMLINKS}, 24: {FlagNoOpenDirSupport, gofuse.CAP_NO_OPENDIR_SUPPORT},
		25: {FlagExplicitInvalData, gofuse.CAP_EXPLICIT_INVAL_DATA}, 26: {FlagMapAlignment, gofuse.CAP_MAP_ALIGNMENT},
		27: {FlagSubmounts, gofuse.CAP_SUBMOUNTS}, 28: {FlagHandleKillprivV2, gofuse.CAP_HANDLE_KILLPRIV_V2},
		29: {FlagSetXattrExt, gofuse.CAP_SETXATTR_EXT}, 30: {FlagInitExt, gofuse.CAP_INIT_EXT}, 31: {FlagInitReserved, gofuse.CAP_INIT_RESERVED},
		32: {FlagSecurityCtx, gofuse.CAP_SECURITY_CTX}, 33: {FlagHasInodeDAX, gofuse.CAP_HAS_INODE_DAX},
		34: {FlagCreateSuppGroup, gofuse.CAP_CREATE_SUPP_GROUP}, 35: {FlagHasExpireOnly, gofuse.CAP_HAS_EXPIRE_ONLY},
		36: {FlagDirectIOAllowMmap, gofuse.CAP_DIRECT_IO_ALLOW_MMAP}, 37: {FlagPassthrough, gofuse.CAP_PASSTHROUGH},
		38: {FlagNoExportSupport, gofuse.CAP_NO_EXPORT_SUPPORT}, 39: {FlagHasResend, gofuse.CAP_HAS_RESEND},
		40: {FlagAllowIdmap, gofuse.CAP_ALLOW_IDMAP}, 41: {FlagOverIOUring, gofuse.CAP_OVER_IO_URING},
		42: {FlagRequestTimeout, gofuse.CAP_REQUEST_TIMEOUT},
	} {
		if tt.got != tt.want || tt.got != 1<<bit {
			t.Errorf("bit %d: %#x here, %#x there", bit, tt.got, tt.want)
		}
	}
}
