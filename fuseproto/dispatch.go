package fuseproto

import (
	"bytes"
	"math"
	"syscall"
)

// opDef is what the Server knows of an opcode before it runs it.
type opDef struct {
	args    int  // bytes of the fixed part of the body; fewer are EINVAL
	most    int  // most bytes of body copied, names and small data included
	reply   int  // bytes of the fixed part of the reply; with less room it is EIO
	noReply bool // the protocol has no reply to it
	entry   bool // success gives the guest a reference to Op.entry.Node
	run     func(*Server, *Op) error
}

// Limits of what follows the fixed part. A guest of today may send names up to
// 4095 bytes, only to be told that they are too long.
const (
	namesMax  = 2 * 4096
	xattrMax  = 64 << 10 // the kernel's limit of a value
	ioctlMax  = 64 << 10
	targetMax = 4096
)

var unknownOp = opDef{run: (*Server).unknown}

// opDefs is indexed by opcode. What is missing is unknown: ENOSYS, which for
// POLL, BMAP, ACCESS and STATX is the lasting answer that is wanted.
var opDefs = [opcodeCount]opDef{
	OpLookup:      {0, namesMax, entryOutSize, false, true, (*Server).lookup},
	OpForget:      {forgetInSize, forgetInSize, 0, true, false, (*Server).forget},
	OpGetAttr:     {getAttrInSize, getAttrInSize, attrOutSize, false, false, (*Server).getAttr},
	OpSetAttr:     {setAttrInSize, setAttrInSize, attrOutSize, false, false, (*Server).setAttr},
	OpReadlink:    {0, 0, 0, false, false, (*Server).readlink},
	OpSymlink:     {0, namesMax + extensionsMax, entryOutSize, false, true, (*Server).symlink},
	OpMknod:       {mknodInSize, mknodInSize + namesMax + extensionsMax, entryOutSize, false, true, (*Server).mknod},
	OpMkdir:       {mkdirInSize, mkdirInSize + namesMax + extensionsMax, entryOutSize, false, true, (*Server).mkdir},
	OpUnlink:      {0, namesMax, 0, false, false, (*Server).unlink},
	OpRmdir:       {0, namesMax, 0, false, false, (*Server).rmdir},
	OpRename:      {renameInSize, renameInSize + namesMax, 0, false, false, (*Server).rename},
	OpLink:        {linkInSize, linkInSize + namesMax, entryOutSize, false, true, (*Server).link},
	OpOpen:        {openInSize, openInSize, openOutSize, false, false, (*Server).open},
	OpRead:        {readInSize, readInSize, 0, false, false, (*Server).read},
	OpWrite:       {writeInSize, writeInSize, writeOutSize, false, false, (*Server).write},
	OpStatFS:      {0, 0, statFSOutSize, false, false, (*Server).statFS},
	OpRelease:     {releaseInSize, releaseInSize, 0, false, false, (*Server).release},
	OpFsync:       {fsyncInSize, fsyncInSize, 0, false, false, (*Server).fsync},
	OpSetXattr:    {setXattrInSize, setXattrExtInSize + namesMax + xattrMax, 0, false, false, (*Server).setXattr},
	OpGetXattr:    {getXattrInSize, getXattrInSize + namesMax, 0, false, false, (*Server).getXattr},
	OpListXattr:   {getXattrInSize, getXattrInSize, 0, false, false, (*Server).listXattr},
	OpRemoveXattr: {0, namesMax, 0, false, false, (*Server).removeXattr},
	OpFlush:       {releaseInSize, releaseInSize, 0, false, false, (*Server).flush},
	OpInit:        {initInSize, initOutSize, initOutSize, false, false, (*Server).init},
	OpOpenDir:     {openInSize, openInSize, openOutSize, false, false, (*Server).openDir},
	OpReadDir:     {readInSize, readInSize, 0, false, false, (*Server).readDir},
	OpReleaseDir:  {releaseInSize, releaseInSize, 0, false, false, (*Server).releaseDir},
	OpFsyncDir:    {fsyncInSize, fsyncInSize, 0, false, false, (*Server).fsyncDir},
	OpGetLk:       {lkInSize, lkInSize, lkOutSize, false, false, (*Server).getLk},
	OpSetLk:       {lkInSize, lkInSize, 0, false, false, (*Server).setLk},
	OpSetLkW:      {lkInSize, lkInSize, 0, false, false, (*Server).setLk},
	OpCreate:      {createInSize, createInSize + namesMax + extensionsMax, createOutSize, false, true, (*Server).create},
	// INTERRUPT has no reply, and nothing to do: Linux never sends it here,
	// and no request waits without a limit.
	OpInterrupt:       {interruptInSize, interruptInSize, 0, true, false, (*Server).nothing},
	OpDestroy:         {0, 0, 0, false, false, (*Server).destroy},
	OpIoctl:           {ioctlInSize, ioctlInSize + ioctlMax, ioctlOutSize, false, false, (*Server).ioctl},
	OpBatchForget:     {batchForgetInSize, batchForgetInSize, 0, true, false, (*Server).batchForget},
	OpFallocate:       {fallocateInSize, fallocateInSize, 0, false, false, (*Server).fallocate},
	OpReadDirPlus:     {readInSize, readInSize, 0, false, false, (*Server).readDir},
	OpRename2:         {rename2InSize, rename2InSize + namesMax, 0, false, false, (*Server).rename},
	OpLseek:           {lseekInSize, lseekInSize, lseekOutSize, false, false, (*Server).lseek},
	OpCopyFileRange:   {copyFileRangeInSize, copyFileRangeInSize, copyRangeOutSize, false, false, (*Server).copyFileRange},
	OpCopyFileRange64: {copyFileRangeInSize, copyFileRangeInSize, copyRangeOutSize, false, false, (*Server).copyFileRange},
	OpSyncFS:          {syncFSInSize, syncFSInSize, 0, false, false, (*Server).syncFS},
	OpTmpfile:         {createInSize, createInSize + namesMax + extensionsMax, createOutSize, false, true, (*Server).tmpfile},
}

// cString returns the bytes of op.body from off to the next NUL and the offset
// behind that. tooLong is the error of one longer than limit.
func (op *Op) cString(off, limit int, tooLong syscall.Errno) (s []byte, next int, err error) {
	if off > len(op.body) {
		return nil, 0, syscall.EINVAL
	}
	n := bytes.IndexByte(op.body[off:], 0)
	switch {
	case n < 0 && !op.cut:
		return nil, 0, syscall.EINVAL
	case n < 0 || n > limit:
		return nil, 0, tooLong
	case n == 0:
		return nil, 0, syscall.EINVAL
	}
	return op.body[off : off+n : off+n], off + n + 1, nil
}

// name returns the name of a directory entry at off of the body.
func (op *Op) name(off int) (name []byte, next int, err error) {
	name, next, err = op.cString(off, maxName, syscall.ENAMETOOLONG)
	if err != nil {
		return nil, 0, err
	}
	if bytes.IndexByte(name, '/') >= 0 || isDot(name) && op.Opcode != OpLookup {
		return nil, 0, syscall.EINVAL
	}
	return name, next, nil
}

// fixedReply returns the place of a fixed part of n bytes behind the header.
func (op *Op) fixedReply(n int) []byte {
	op.fixed = n
	return op.reply[outHeaderSize : outHeaderSize+n]
}

// entryReply makes the outcome of a method that fills op.entry the reply.
func (op *Op) entryReply(err error) error {
	if err != nil {
		return err
	}
	encodeEntry(op.fixedReply(entryOutSize), &op.entry, op.entry.Node, op.entry.Attr.Ino)
	return nil
}

// attrReply makes the outcome of a method that fills op.attr the reply.
func (op *Op) attrReply(err error) error {
	if err != nil {
		return err
	}
	encodeAttrOut(op.fixedReply(attrOutSize), &op.attr)
	return nil
}

func (s *Server) unknown(op *Op) error { return syscall.ENOSYS }

func (s *Server) nothing(op *Op) error { return nil }

func (s *Server) lookup(op *Op) error {
	name, _, err := op.name(0)
	if err != nil {
		return err
	}
	op.entry = Entry{}
	return op.entryReply(s.fs.Lookup(op, op.NodeID, name, &op.entry))
}

// forget, and batchForget, happen once: that they begin is noted first, and a request
// that an earlier process has begun is not begun again. What that one had not come to
// stays counted, which costs memory until the session ends; counted twice it would
// cost the guest a file.
func (s *Server) forget(op *Op) error {
	if op.begun() {
		return nil
	}
	if op.NodeID != RootID {
		s.fs.Forget(op.NodeID, le.Uint64(op.body))
	}
	return nil
}

// batchForget works on the list where it lies, one copy of one element at a
// time: it may be as long as a request.
func (s *Server) batchForget(op *Op) error {
	if op.begun() {
		return nil
	}
	count := uint64(le.Uint32(op.body))
	have := uint64(op.length-inHeaderSize-batchForgetInSize) / forgetOneSize
	at := cursor{segs: op.msg.Readable()}
	at.skip(inHeaderSize + batchForgetInSize)
	one := op.inline[:forgetOneSize]
	for range min(count, have) {
		if at.read(one) < forgetOneSize {
			break
		}
		if node := le.Uint64(one); node != RootID {
			s.fs.Forget(node, le.Uint64(one[8:]))
		}
	}
	if count > have {
		return syscall.EINVAL
	}
	return nil
}

func (s *Server) getAttr(op *Op) error {
	op.in.getAttr.decode(op.body)
	op.attr = AttrOut{}
	return op.attrReply(s.fs.GetAttr(op, op.NodeID, &op.in.getAttr, &op.attr))
}

func (s *Server) setAttr(op *Op) error {
	op.in.setAttr.decode(op.body)
	op.attr = AttrOut{}
	return op.attrReply(s.fs.SetAttr(op, op.NodeID, &op.in.setAttr, &op.attr))
}

func (s *Server) readlink(op *Op) error {
	op.out.start(op, outHeaderSize, math.MaxInt)
	return s.fs.Readlink(op, op.NodeID, &op.out)
}

func (s *Server) statFS(op *Op) error {
	op.statfs = StatFSOut{}
	if err := s.fs.StatFS(op, op.NodeID, &op.statfs); err != nil {
		return err
	}
	encodeStatFS(op.fixedReply(statFSOutSize), &op.statfs)
	return nil
}

func (s *Server) symlink(op *Op) error {
	name, next, err := op.name(0)
	if err != nil {
		return err
	}
	target, next, err := op.cString(next, targetMax-1, syscall.ENAMETOOLONG)
	if err != nil {
		return err
	}
	op.extensions(next)
	op.entry = Entry{}
	return op.entryReply(s.fs.Symlink(op, op.NodeID, name, target, &op.entry))
}

func (s *Server) mknod(op *Op) error {
	name, next, err := op.name(mknodInSize)
	if err != nil {
		return err
	}
	op.extensions(next)
	op.in.mknod.decode(op.body)
	op.entry = Entry{}
	return op.entryReply(s.fs.Mknod(op, op.NodeID, &op.in.mknod, name, &op.entry))
}

func (s *Server) mkdir(op *Op) error {
	name, next, err := op.name(mkdirInSize)
	if err != nil {
		return err
	}
	op.extensions(next)
	op.in.mkdir.decode(op.body)
	op.entry = Entry{}
	return op.entryReply(s.fs.Mkdir(op, op.NodeID, &op.in.mkdir, name, &op.entry))
}

func (s *Server) link(op *Op) error {
	name, _, err := op.name(linkInSize)
	if err != nil {
		return err
	}
	op.entry = Entry{}
	return op.entryReply(s.fs.Link(op, le.Uint64(op.body), op.NodeID, name, &op.entry))
}

func (s *Server) unlink(op *Op) error {
	name, _, err := op.name(0)
	if err != nil {
		return err
	}
	return s.fs.Unlink(op, op.NodeID, name)
}

func (s *Server) rmdir(op *Op) error {
	name, _, err := op.name(0)
	if err != nil {
		return err
	}
	return s.fs.Rmdir(op, op.NodeID, name)
}

func (s *Server) rename(op *Op) error {
	names, flags := renameInSize, uint32(0)
	if op.Opcode == OpRename2 {
		names, flags = rename2InSize, le.Uint32(op.body[8:])
	}
	name, next, err := op.name(names)
	if err != nil {
		return err
	}
	newName, _, err := op.name(next)
	if err != nil {
		return err
	}
	return s.fs.Rename(op, op.NodeID, name, le.Uint64(op.body), newName, flags)
}

func (s *Server) open(op *Op) error {
	op.in.open.decode(op.body)
	op.opened = OpenOut{}
	if err := s.fs.Open(op, op.NodeID, &op.in.open, &op.opened); err != nil {
		return err
	}
	encodeOpenOut(op.fixedReply(openOutSize), &op.opened)
	return nil
}

func (s *Server) openDir(op *Op) error {
	op.in.open.decode(op.body)
	op.opened = OpenOut{}
	if err := s.fs.OpenDir(op, op.NodeID, &op.in.open, &op.opened); err != nil {
		return err
	}
	encodeOpenOut(op.fixedReply(openOutSize), &op.opened)
	return nil
}

func (s *Server) create(op *Op) error {
	name, next, err := op.name(createInSize)
	if err != nil {
		return err
	}
	op.extensions(next)
	op.in.create.decode(op.body)
	op.entry, op.opened = Entry{}, OpenOut{}
	return op.createReply(s.fs.Create(op, op.NodeID, &op.in.create, name, &op.entry, &op.opened))
}

// tmpfile has a name that says nothing: "/" or none at all.
func (s *Server) tmpfile(op *Op) error {
	if n := bytes.IndexByte(op.body[createInSize:], 0); n >= 0 {
		op.extensions(createInSize + n + 1)
	}
	op.in.create.decode(op.body)
	op.entry, op.opened = Entry{}, OpenOut{}
	return op.createReply(s.fs.Tmpfile(op, op.NodeID, &op.in.create, &op.entry, &op.opened))
}

func (op *Op) createReply(err error) error {
	if err != nil {
		return err
	}
	b := op.fixedReply(createOutSize)
	encodeEntry(b, &op.entry, op.entry.Node, op.entry.Attr.Ino)
	encodeOpenOut(b[entryOutSize:], &op.opened)
	return nil
}

func (s *Server) read(op *Op) error {
	in := &op.in.read
	in.decode(op.body)
	if in.Offset > math.MaxInt64 {
		return syscall.EINVAL
	}
	op.out.start(op, outHeaderSize, int(in.Size))
	in.Size = uint32(op.out.limit)
	return s.fs.Read(op, op.NodeID, in, &op.out)
}

func (s *Server) write(op *Op) error {
	in := &op.in.write
	in.decode(op.body)
	// What is not the size of the data that came is no request of a kernel.
	if int(in.Size) > op.length-inHeaderSize-writeInSize || in.Size > op.session.maxWrite ||
		in.Offset > math.MaxInt64-uint64(in.Size) {
		return syscall.EINVAL
	}
	data := Payload{op: op, offset: inHeaderSize + writeInSize, n: int(in.Size)}
	n, err := s.fs.Write(op, op.NodeID, in, data)
	if err != nil {
		return err
	}
	encodeCount(op.fixedReply(writeOutSize), n)
	return nil
}

func (s *Server) flush(op *Op) error {
	op.in.release.decode(op.body)
	return s.fs.Flush(op, op.NodeID, &op.in.release)
}

func (s *Server) release(op *Op) error {
	op.in.release.decode(op.body)
	return s.fs.Release(op, op.NodeID, &op.in.release)
}

func (s *Server) releaseDir(op *Op) error {
	op.in.release.decode(op.body)
	return s.fs.ReleaseDir(op, op.NodeID, &op.in.release)
}

func (s *Server) fsync(op *Op) error {
	op.in.fsync.decode(op.body)
	return s.fs.Fsync(op, op.NodeID, &op.in.fsync)
}

func (s *Server) fsyncDir(op *Op) error {
	op.in.fsync.decode(op.body)
	return s.fs.FsyncDir(op, op.NodeID, &op.in.fsync)
}

func (s *Server) syncFS(op *Op) error { return s.fs.SyncFS(op, op.NodeID) }

func (s *Server) destroy(op *Op) error {
	s.end(op.session)
	return nil
}

func (s *Server) fallocate(op *Op) error {
	op.in.fallocate.decode(op.body)
	return s.fs.Fallocate(op, op.NodeID, &op.in.fallocate)
}

// lseek answers for a FileSystem that does not know holes: all of a file is data
// then. ENOSYS would tell the guest that no file of the session has holes.
func (s *Server) lseek(op *Op) error {
	in := &op.in.lseek
	in.decode(op.body)
	off, err := s.fs.Lseek(op, op.NodeID, in)
	if err == syscall.ENOSYS {
		off, err = s.lseekBySize(op, in)
	}
	if err != nil {
		return err
	}
	le.PutUint64(op.fixedReply(lseekOutSize), off)
	return nil
}

func (s *Server) lseekBySize(op *Op, in *LseekIn) (uint64, error) {
	if in.Whence != SeekData && in.Whence != SeekHole {
		return 0, syscall.EINVAL
	}
	op.in.getAttr, op.attr = GetAttrIn{}, AttrOut{}
	if err := s.fs.GetAttr(op, op.NodeID, &op.in.getAttr, &op.attr); err != nil {
		return 0, err
	}
	size := op.attr.Attr.Size
	switch {
	case in.Offset >= size:
		return 0, syscall.ENXIO
	case in.Whence == SeekHole:
		return size, nil
	}
	return in.Offset, nil
}

// copyFileRange serves both forms. The older one tells the length in 32 bits, so
// no more than that is copied.
func (s *Server) copyFileRange(op *Op) error {
	in := &op.in.copyRange
	in.decode(op.body)
	if in.OffIn > math.MaxInt64 || in.OffOut > math.MaxInt64 {
		return syscall.EINVAL
	}
	in.Len = min(in.Len, math.MaxInt64-max(in.OffIn, in.OffOut))
	if op.Opcode == OpCopyFileRange {
		in.Len = min(in.Len, math.MaxUint32&^(pageSize-1))
	}
	n, err := s.fs.CopyFileRange(op, op.NodeID, in)
	if err != nil {
		return err
	}
	le.PutUint64(op.fixedReply(copyRangeOutSize), min(n, in.Len))
	return nil
}

func (s *Server) ioctl(op *Op) error {
	in := &op.in.ioctl
	in.decode(op.body)
	if in.Flags&IoctlUnrestricted != 0 || int64(in.InSize) > int64(len(op.body)-ioctlInSize) {
		return syscall.EINVAL
	}
	op.out.start(op, outHeaderSize+ioctlOutSize, int(in.OutSize))
	in.OutSize = uint32(op.out.limit)
	data := op.body[ioctlInSize : ioctlInSize+in.InSize]
	result, err := s.fs.Ioctl(op, op.NodeID, in, data, &op.out)
	if err != nil {
		return err
	}
	encodeIoctlOut(op.fixedReply(ioctlOutSize), result)
	return nil
}

func (s *Server) getLk(op *Op) error {
	op.in.lk.decode(op.body)
	op.lock = FileLock{}
	if err := s.fs.GetLk(op, op.NodeID, &op.in.lk, &op.lock); err != nil {
		return err
	}
	encodeFileLock(op.fixedReply(lkOutSize), &op.lock)
	return nil
}

func (s *Server) setLk(op *Op) error {
	op.in.lk.decode(op.body)
	return s.fs.SetLk(op, op.NodeID, &op.in.lk, op.Opcode == OpSetLkW)
}

// readDir serves READDIR and READDIRPLUS. Once there are entries, an error
// behind them waits for the next call: the guest would lose the entries.
func (s *Server) readDir(op *Op) error {
	in := &op.in.read
	in.decode(op.body)
	op.out.start(op, outHeaderSize, int(in.Size))
	in.Size = uint32(op.out.limit)
	w := &op.dir
	w.start(op, op.Opcode == OpReadDirPlus)
	if err := s.fs.ReadDir(op, op.NodeID, in, w); err != nil && w.Len() == 0 {
		return err
	}
	if op.gone != nil {
		return op.gone
	}
	return w.publish(op)
}

// getXattr and listXattr answer three questions with one method: how long the
// value is (size 0), the value, and that it is longer than the guest thought.

func (s *Server) getXattr(op *Op) error {
	name, _, err := op.xattrName(getXattrInSize)
	if err != nil {
		return err
	}
	size := le.Uint32(op.body)
	op.startXattr(size)
	return op.xattrReply(size, s.fs.GetXattr(op, op.NodeID, name, &op.out))
}

func (s *Server) listXattr(op *Op) error {
	size := le.Uint32(op.body)
	op.startXattr(size)
	return op.xattrReply(size, s.fs.ListXattr(op, op.NodeID, &op.out))
}

// xattrName returns the name of an extended attribute at off of the body.
func (op *Op) xattrName(off int) (name []byte, next int, err error) {
	return op.cString(off, maxName, syscall.ERANGE)
}

func (op *Op) startXattr(size uint32) {
	op.out.start(op, outHeaderSize, int(size))
	op.out.measure = true
}

func (op *Op) xattrReply(size uint32, err error) error {
	if err != nil {
		return err
	}
	needed := op.out.needed
	if size > 0 {
		if needed > op.out.limit {
			return syscall.ERANGE
		}
		return nil
	}
	if op.room < outHeaderSize+getXattrOutSize {
		return syscall.EIO
	}
	encodeCount(op.fixedReply(getXattrOutSize), uint32(needed))
	return nil
}

func (s *Server) setXattr(op *Op) error {
	size := setXattrInSize
	if op.session.flags&FlagSetXattrExt != 0 {
		size = setXattrExtInSize
	}
	if len(op.body) < size {
		return syscall.EINVAL
	}
	in := &op.in.setXattr
	in.decode(op.body, size == setXattrExtInSize)
	name, next, err := op.xattrName(size)
	switch {
	case err != nil:
		return err
	case in.Size > xattrMax:
		return syscall.E2BIG
	case int(in.Size) > len(op.body)-next:
		return syscall.EINVAL
	}
	return s.fs.SetXattr(op, op.NodeID, in, name, op.body[next:next+int(in.Size)])
}

func (s *Server) removeXattr(op *Op) error {
	name, _, err := op.xattrName(0)
	if err != nil {
		return err
	}
	return s.fs.RemoveXattr(op, op.NodeID, name)
}
