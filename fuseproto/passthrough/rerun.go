package passthrough

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// Requests that an earlier process has begun and not answered are run again by this
// one (fuseproto.Rerunner). Most may be repeated: they change nothing, or the same
// change made twice is made once. The others note what they are about to do, and what
// came of it:
//
//	what it found before ──▶ EXECUTING ──▶ system call ──▶ RESULT ──▶ reply
//
// Run again after RESULT, only the reply is made once more. Run again after EXECUTING,
// the system call may or may not have happened:
//
//	MKNOD MKDIR SYMLINK CREATE   what is there by now is ours if it is what we would
//	                             have made, and not older than the request
//	LINK                         … if it is the file that was to be linked
//	UNLINK RMDIR REMOVEXATTR     what is not there any more is removed
//	RENAME                       done if the target is what the source was
//	SETXATTR with CREATE         ours if the value is
//	WRITE that appends           done as far as the file has grown; the rest is written
//	FALLOCATE that moves data    done if the file has its new length
//	TMPFILE                      made again: the first one went with its descriptor
//
// Where that does not tell, the answer is EIO, with a line in the log. SETLK and
// SETLKW are repeated: the lock is held by a descriptor that did not go with the
// process. IOCTLs only ask. COPY_FILE_RANGE within overlapping ranges is EINVAL
// anyway.
//
// LOOKUP, and OPEN and OPENDIR, note their result too, so that the guest has one
// reference and one handle in the end. READDIRPLUS gives too many references for a
// note: run again it counts them twice, and the nodes stay until the session ends.

// run is one run of a request.
type run struct {
	op    *fuseproto.Op
	on    bool // notes are taken
	phase uint8
	errno int32
	node  uint64 // of the result
	fh    uint64 // of the result
	note  []byte // what an earlier run found before
}

// run returns what an earlier run of op has noted.
func (fs *FS) run(op *fuseproto.Op) run {
	r := run{op: op, on: fs.writing()}
	if !r.on || !op.Rerun() {
		return r
	}
	phase, errno, note := op.Note()
	r.phase, r.errno = phase, errno
	switch {
	case phase == fuseproto.PhaseResult && len(note) >= 16:
		r.node, r.fh = le.Uint64(note), le.Uint64(note[8:])
	case phase == fuseproto.PhaseExecuting:
		r.note = append([]byte(nil), note...)
	}
	return r
}

var le = binary.LittleEndian

// executing notes that the system call is next, and what was found before; a run
// before this one has found it first.
func (r *run) executing(before ...uint64) {
	if !r.on || r.phase == fuseproto.PhaseExecuting {
		return
	}
	var b [fuseproto.NoteSize]byte
	for i, v := range before {
		le.PutUint64(b[8*i:], v)
	}
	r.op.SetNote(fuseproto.PhaseExecuting, 0, b[:8*len(before)])
}

// before returns what executing noted in an earlier run.
func (r *run) before(i int) uint64 {
	if len(r.note) < 8*i+8 {
		return 0
	}
	return le.Uint64(r.note[8*i:])
}

// again tells whether an earlier run may have made the system call.
func (r *run) again() bool { return r.phase == fuseproto.PhaseExecuting }

// result notes what came of the system call and returns err.
func (r *run) result(err error, node, fh uint64) error {
	if !r.on {
		return err
	}
	errno := unix.Errno(0)
	if err != nil {
		node, fh, errno = 0, 0, unix.EIO
		if e, ok := err.(unix.Errno); ok {
			errno = e
		}
	}
	var b [16]byte
	le.PutUint64(b[:], node)
	le.PutUint64(b[8:], fh)
	r.op.SetNote(fuseproto.PhaseResult, int32(errno), b[:])
	return err
}

// done tells whether an earlier run has a result, and its error.
func (r *run) done() (bool, error) {
	if r.phase != fuseproto.PhaseResult {
		return false, nil
	}
	if r.errno != 0 {
		return true, unix.Errno(r.errno)
	}
	return true, nil
}

// looked ends a LOOKUP: the reference that an earlier run gave is one too many now.
func (fs *FS) looked(r *run, node uint64, err error) error {
	if !r.on {
		return err
	}
	if err == nil && node != 0 {
		_ = r.result(nil, node, 0)
	} else if r.phase != fuseproto.PhaseNone {
		r.op.SetNote(fuseproto.PhaseNone, 0, nil)
	}
	if r.phase == fuseproto.PhaseResult && r.node != 0 {
		fs.forget(fs.session.Load(), r.node, 1)
	}
	return err
}

// entryAgain makes the entry of a result once more: the guest has its reference.
func (fs *FS) entryAgain(r *run, out *fuseproto.Entry) error {
	_, n, err := fs.node(r.op, r.node)
	if err != nil {
		return err
	}
	h, err := fs.hold(n)
	if err != nil {
		return err
	}
	defer h.release()
	var st unix.Statx_t
	if err := statFD(h.fd, &st); err != nil {
		return err
	}
	fs.fill(n, &st, out)
	return nil
}

// opened tells whether the handle of a result is there.
func (fs *FS) openedBefore(r *run, node uint64) bool {
	if done, err := r.done(); !done || err != nil || r.fh == 0 {
		return false
	}
	s, err := fs.of(r.op)
	if err != nil {
		return false
	}
	f, err := s.file(node, r.fh)
	if err == nil {
		f.d.release()
	}
	return err == nil
}

// now returns the time as file systems know it, as two words of a note.
func now() (sec, nsec uint64) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) != nil {
		return 0, 0
	}
	return uint64(ts.Sec), uint64(ts.Nsec)
}

// making notes that something is about to be made.
func (r *run) making() {
	if r.on && !r.again() {
		sec, nsec := now()
		r.executing(sec, nsec)
	}
}

// isOurs tells whether what has the name is what an earlier run has made of the
// request: of that type and, for a link, with that target.
func (fs *FS) isOurs(r *run, m *making, typ uint32, rdev uint64, target []byte) bool {
	var st unix.Statx_t
	if !r.again() || statName(m.h.fd, &m.name, &st) != nil {
		return false
	}
	mode := uint32(st.Mode)
	uid, errU := fs.opts.UIDMap.toHost(r.op.UID)
	gid, errG := fs.opts.GIDMap.toHost(r.op.GID)
	if errU != nil || errG != nil || mode&unix.S_IFMT != typ {
		return false
	}
	if fs.euid != 0 && uid == 0 && gid == 0 {
		uid, gid = fs.euid, fs.egid
	}
	if st.Uid != uid || st.Gid != gid && !fs.inheritsGroup(m, &st) {
		return false
	}
	switch typ {
	case unix.S_IFLNK:
		buf := takeBuffer()
		defer buf.free()
		if n, err := readlinkat(m.h.fd, &m.name, buf.b[:unix.PathMax]); err != nil || string(buf.b[:n]) != string(target) {
			return false
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if unix.Mkdev(st.Rdev_major, st.Rdev_minor) != rdev {
			return false
		}
		fallthrough
	default:
		// umask and ACLs take permissions away, and never give any.
		if mode&0o777&^m.mode != 0 {
			return false
		}
	}
	sec, nsec := int64(r.before(0)), uint32(r.before(1))
	if st.Ctime.Nsec == 0 {
		nsec = 0 // a file system of whole seconds
	}
	return st.Ctime.Sec > sec || st.Ctime.Sec == sec && st.Ctime.Nsec >= nsec
}

// inheritsGroup tells whether what st describes has its group of the directory, or one
// that the request asked for.
func (fs *FS) inheritsGroup(m *making, st *unix.Statx_t) bool {
	if gid, err := fs.opts.GIDMap.toHost(m.ext.GID); m.ext.HasGID && err == nil && gid == st.Gid {
		return true
	}
	var dir unix.Statx_t
	return statFD(m.h.fd, &dir) == nil && dir.Gid == st.Gid
}

// unclear is the outcome of a request of which nobody can tell whether it happened.
func unclear(format string, args ...any) error {
	return fmt.Errorf("an earlier process has begun this request, and it cannot be told whether it happened: "+format, args...)
}

// appendOnce is a write to the end of a file.
func (fs *FS) appendOnce(op *fuseproto.Op, f *file, in *fuseproto.WriteIn, data fuseproto.Payload) (uint32, error) {
	r := fs.run(op)
	if done, err := r.done(); done {
		return uint32(r.node), err
	}
	var st unix.Statx_t
	if err := statFD(f.d.fd, &st); err != nil {
		return 0, err
	}
	done := 0 // a process that is killed may have written a part
	if r.again() {
		before, most := r.before(0), uint64(data.Len())
		switch {
		case st.Size == before+most:
			return uint32(most), r.result(nil, most, 0)
		case st.Size >= before && st.Size < before+most:
			done = int(st.Size - before)
		default:
			return 0, r.result(unclear("%d bytes were to be appended to %d, the file has %d", most, before, st.Size), 0, 0)
		}
	}
	r.executing(st.Size)
	n, err := fs.write(f, in, data, done)
	return n, r.result(err, uint64(n), 0)
}

// shiftOnce is a FALLOCATE that takes a range out of a file or puts one in.
func (fs *FS) shiftOnce(op *fuseproto.Op, f *file, in *fuseproto.FallocateIn) error {
	r := fs.run(op)
	if done, err := r.done(); done {
		return err
	}
	var st unix.Statx_t
	if err := statFD(f.d.fd, &st); err != nil {
		return err
	}
	if r.again() && st.Size != r.before(0) {
		want := r.before(0) + in.Length
		if in.Mode&unix.FALLOC_FL_COLLAPSE_RANGE != 0 {
			want = r.before(0) - in.Length
		}
		if st.Size == want {
			return r.result(nil, 0, 0)
		}
		return r.result(unclear("the file had %d bytes, was to have %d, and has %d", r.before(0), want, st.Size), 0, 0)
	}
	r.executing(st.Size)
	return r.result(again(func() error {
		return unix.Fallocate(f.d.fd, in.Mode, int64(in.Offset), int64(in.Length))
	}), 0, 0)
}

// inodeAt returns the inode number of a name, 0 if there is nothing.
func inodeAt(dirFD int, name *cname) uint64 {
	var st unix.Statx_t
	if statName(dirFD, name, &st) != nil {
		return 0
	}
	return st.Ino
}

// renamedBefore tells whether an earlier run has renamed.
func (r *run) renamedBefore(fromFD int, from *cname, toFD int, to *cname, exchange bool) bool {
	if !r.again() || r.before(0) == 0 {
		return false
	}
	a, b := inodeAt(fromFD, from), inodeAt(toFD, to)
	if exchange {
		return a == r.before(1) && b == r.before(0) && a != b
	}
	return a != r.before(0) && b == r.before(0)
}
