package passthrough

import (
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the hot path, without the copies to the heap that the ones
// of x/sys make of names and vectors. All of them go on after EINTR.

// cname is the name of a directory entry as the kernel takes it: NUL at the end.
type cname [maxName + 1]byte

const maxName = 255

// set takes name over, if it is one component and neither "." nor "..". Every
// name that a guest sends goes through here, whatever the server checked before.
func (c *cname) set(name []byte) error {
	switch n := len(name); {
	case n == 0, n == 1 && name[0] == '.', n == 2 && name[0] == '.' && name[1] == '.':
		return unix.EINVAL
	case n > maxName:
		return unix.ENAMETOOLONG
	}
	for _, b := range name {
		if b == '/' || b == 0 {
			return unix.EINVAL
		}
	}
	clear(c[copy(c[:], name):])
	return nil
}

// bytes returns the name without its NUL.
func (c *cname) bytes() []byte {
	for i, b := range c {
		if b == 0 {
			return c[:i]
		}
	}
	return nil
}

// number makes c the decimal name of a descriptor, as found in /proc/self/fd.
func (c *cname) number(n int) {
	var digits [20]byte
	i := len(digits)
	for {
		i--
		digits[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			break
		}
	}
	c[copy(c[:], digits[i:])] = 0
}

// empty is the path that stands for a descriptor itself with AT_EMPTY_PATH.
var empty cname

func openat(dir int, name *cname, flags int, mode uint32) (int, error) {
	for {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(flags|unix.O_CLOEXEC), uintptr(mode), 0, 0)
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, e
		}
	}
}

// statMask asks for what makes an identity: the mount's number, one that is never
// used again where the kernel (6.8) knows such.
const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID | statMountUnique

const statMountUnique = 0x4000

func statx(dir int, name *cname, flags int, st *unix.Statx_t) error {
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT), statMask, uintptr(unsafe.Pointer(st)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// statName describes a directory's entry, and not what a link there leads to.
func statName(dir int, name *cname, st *unix.Statx_t) error { return statx(dir, name, 0, st) }

// statFD describes what a descriptor stands for.
func statFD(fd int, st *unix.Statx_t) error { return statx(fd, &empty, unix.AT_EMPTY_PATH, st) }

// statOpen is statFD for a file of a local file system, whose inode is in memory as
// long as it is open: nothing is waited for, and so the Go scheduler is not told.
// Telling it costs more than the call: it wakes the scheduler's monitor, which sleeps
// while this daemon has nothing to do, as between two requests.
func statOpen(fd int, st *unix.Statx_t) error {
	_, _, e := unix.RawSyscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, uintptr(unsafe.Pointer(st)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// resolveCached is RESOLVE_CACHED of openat2(2).
const resolveCached = 0x20

// openCached opens a directory's entry (O_PATH, and no link is followed) if it is in
// the kernel's cache of names, for which nothing is waited for; if it is not, or the
// kernel cannot tell (before 5.12), or another mount begins there, it returns EAGAIN or
// another error that says nothing of the entry. ENOENT is the truth.
func openCached(dir int, name *cname) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolveCached | unix.RESOLVE_NO_XDEV}
	fd, _, e := unix.RawSyscall6(unix.SYS_OPENAT2, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&how)), unix.SizeofOpenHow, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// closeNow closes what openCached opened: a descriptor of a name alone, for which
// nothing has to be written or waited for.
func closeNow(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// maxHandle is MAX_HANDLE_SZ.
const maxHandle = 128

// rawHandle is struct file_handle.
type rawHandle struct {
	size uint32
	kind int32
	data [maxHandle]byte
}

// nameToHandle fills h with the file handle of a directory's entry (no link is
// followed), or of dir itself with AT_EMPTY_PATH.
func nameToHandle(dir int, name *cname, flags int, h *rawHandle) error {
	h.size = maxHandle
	var mount int32
	_, _, e := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(&mount)), uintptr(flags), 0)
	if e != 0 {
		return e
	}
	return nil
}

// pack returns h as bytes: its type, then its data.
func (h *rawHandle) pack() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&h.kind)), 4+h.size)
}

// openHandle opens what a packed handle stands for, in the mount of mountFD.
func openHandle(mountFD int, packed string, flags int) (int, error) {
	var h rawHandle
	if len(packed) < 4 || len(packed) > 4+maxHandle {
		return -1, unix.ESTALE
	}
	h.size = uint32(len(packed) - 4)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&h.kind)), 4+maxHandle), packed)
	for {
		fd, _, e := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mountFD), uintptr(unsafe.Pointer(&h)), uintptr(flags|unix.O_CLOEXEC))
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, e
		}
	}
}

func mkdirat(dir int, name *cname, mode uint32) error {
	_, _, e := unix.Syscall(unix.SYS_MKDIRAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(mode))
	return errOf(e)
}

func mknodat(dir int, name *cname, mode uint32, dev uint64) error {
	_, _, e := unix.Syscall6(unix.SYS_MKNODAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(mode), uintptr(dev), 0, 0)
	return errOf(e)
}

// symlinkat makes a link; target ends with a NUL.
func symlinkat(target []byte, dir int, name *cname) error {
	_, _, e := unix.Syscall(unix.SYS_SYMLINKAT, uintptr(unsafe.Pointer(&target[0])), uintptr(dir), uintptr(unsafe.Pointer(name)))
	return errOf(e)
}

func linkat(oldDir int, oldName *cname, dir int, name *cname, flags int) error {
	_, _, e := unix.Syscall6(unix.SYS_LINKAT, uintptr(oldDir), uintptr(unsafe.Pointer(oldName)), uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(flags), 0)
	return errOf(e)
}

func unlinkat(dir int, name *cname, flags int) error {
	_, _, e := unix.Syscall(unix.SYS_UNLINKAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(flags))
	return errOf(e)
}

func renameat2(oldDir int, oldName *cname, dir int, name *cname, flags uint32) error {
	_, _, e := unix.Syscall6(unix.SYS_RENAMEAT2, uintptr(oldDir), uintptr(unsafe.Pointer(oldName)), uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(flags), 0)
	return errOf(e)
}

// readlinkFD reads the target of the link that an O_PATH descriptor stands for.
func readlinkFD(fd int, buf []byte) (int, error) { return readlinkat(fd, &empty, buf) }

func readlinkat(dir int, name *cname, buf []byte) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	return int(n), errOf(e)
}

func fchmodat(dir int, name *cname, mode uint32) error {
	_, _, e := unix.Syscall(unix.SYS_FCHMODAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(mode))
	return errOf(e)
}

func fchownFD(fd int, uid, gid uint32) error {
	_, _, e := unix.Syscall6(unix.SYS_FCHOWNAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)), uintptr(uid), uintptr(gid), unix.AT_EMPTY_PATH, 0)
	return errOf(e)
}

func utimensat(dir int, name *cname, ts *[2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	return errOf(e)
}

// errOf makes no error of 0.
func errOf(e syscall.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// vectors is what a read or write of a guest's segments needs.
type vectors struct {
	segs [][]byte
	iov  []unix.Iovec
	high int // how much of iov was ever used since it was taken
}

// maxVectors is the kernel's UIO_MAXIOV: what is behind it is a transfer of its
// own.
const maxVectors = 1024

var vectorPool = sync.Pool{New: func() any {
	return &vectors{segs: make([][]byte, 0, 264), iov: make([]unix.Iovec, 0, 264)}
}}

// free gives v back, with no pointer to the guest's memory left in it.
func (v *vectors) free() {
	clear(v.segs)
	clear(v.iov[:v.high])
	v.segs, v.iov, v.high = v.segs[:0], v.iov[:0], 0
	vectorPool.Put(v)
}

// load makes the vectors of at most maxVectors segments, leaving out skip bytes in
// front, and returns how many bytes they have.
func (v *vectors) load(segs [][]byte, skip int) (n int) {
	v.iov = v.iov[:0]
	for _, s := range segs {
		if skip >= len(s) {
			skip -= len(s)
			continue
		}
		s = s[skip:]
		skip = 0
		if len(v.iov) == maxVectors {
			break
		}
		v.iov = append(v.iov, unix.Iovec{Base: &s[0], Len: uint64(len(s))})
		n += len(s)
	}
	v.high = max(v.high, len(v.iov))
	return n
}

func (v *vectors) transfer(trap uintptr, fd int, off int64, flags int) (int, error) {
	if len(v.iov) == 0 {
		return 0, nil
	}
	for {
		n, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)), uintptr(off), 0, uintptr(flags))
		runtime.KeepAlive(v)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// readCached reads at off what is in the page cache, up to maxCached bytes: with
// RWF_NOWAIT the kernel waits for no disk, and so the Go scheduler is not told, as in
// statOpen.
func (v *vectors) readCached(fd int, off int64) (int, error) {
	if len(v.iov) == 0 {
		return 0, nil
	}
	n, _, e := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)), uintptr(off), 0, unix.RWF_NOWAIT)
	runtime.KeepAlive(v)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// maxCached bounds readCached: the processor is not given up for longer than it takes
// to copy that much.
const maxCached = 128 << 10

// preadv reads at off with RWF_* flags. Both of our architectures have registers
// of 64 bits: the offset is one argument, and the next one is not looked at.
func (v *vectors) preadv(fd int, off int64, flags int) (int, error) {
	return v.transfer(unix.SYS_PREADV2, fd, off, flags)
}

func (v *vectors) pwritev(fd int, off int64, flags int) (int, error) {
	return v.transfer(unix.SYS_PWRITEV2, fd, off, flags)
}

func getdents(fd int, buf []byte) (int, error) {
	for {
		n, _, e := unix.Syscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		if e == unix.EINTR {
			continue
		}
		return int(n), errOf(e)
	}
}

// fgetxattr and its like take names that end with a NUL.

func fgetxattr(fd int, name, buf []byte) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_FGETXATTR, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), bufPtr(buf), uintptr(len(buf)), 0, 0)
	return int(n), errOf(e)
}

func flistxattr(fd int, buf []byte) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_FLISTXATTR, uintptr(fd), bufPtr(buf), uintptr(len(buf)))
	return int(n), errOf(e)
}

func fsetxattr(fd int, name, value []byte, flags int) error {
	_, _, e := unix.Syscall6(unix.SYS_FSETXATTR, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), bufPtr(value), uintptr(len(value)), uintptr(flags), 0)
	return errOf(e)
}

func fremovexattr(fd int, name []byte) error {
	_, _, e := unix.Syscall(unix.SYS_FREMOVEXATTR, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), 0)
	return errOf(e)
}

// bufPtr is only for the argument list of a system call on memory that the caller
// keeps alive.
func bufPtr(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	return uintptr(unsafe.Pointer(&b[0]))
}

// xattrArgs is struct xattr_args.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// The *xattrat calls (Linux 6.13) follow dir/name: with a directory of
// descriptors, the magic link that leads to what an O_PATH descriptor stands for.

func getxattrat(dir int, path *cname, name, buf []byte) (int, error) {
	a := xattrArgs{value: uint64(bufPtr(buf)), size: uint32(len(buf))}
	n, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)), 0, uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a))
	runtime.KeepAlive(buf)
	return int(n), errOf(e)
}

func listxattrat(dir int, path *cname, buf []byte) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)), 0, bufPtr(buf), uintptr(len(buf)), 0)
	return int(n), errOf(e)
}

func setxattrat(dir int, path *cname, name, value []byte, flags int) error {
	a := xattrArgs{value: uint64(bufPtr(value)), size: uint32(len(value)), flags: uint32(flags)}
	_, _, e := unix.Syscall6(unix.SYS_SETXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)), 0, uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a))
	runtime.KeepAlive(value)
	return errOf(e)
}

func removexattrat(dir int, path *cname, name []byte) error {
	_, _, e := unix.Syscall6(unix.SYS_REMOVEXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)), 0, uintptr(unsafe.Pointer(&name[0])), 0, 0)
	return errOf(e)
}

// setgroups sets the supplementary groups of the calling thread alone.
func setgroups(gids []uint32) error {
	var p unsafe.Pointer
	if len(gids) > 0 {
		p = unsafe.Pointer(&gids[0])
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(p), 0)
	return errOf(e)
}

// ioctl is for commands that fill a small structure.
func ioctl(fd int, cmd uint32, buf *[32]byte) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(buf)))
	return errOf(e)
}
