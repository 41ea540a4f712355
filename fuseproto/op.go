package fuseproto

import (
	"context"
	"time"
)

// inlineBody is the longest body (names included) that an Op holds without
// allocating: two names of 255 bytes behind the longest fixed part they follow.
const inlineBody = 576

// Op is one request while it is served, and all the memory that takes: the
// private copy of its header and arguments, and the parts of the reply. It is
// reused without end; the zero value is ready. A transport keeps one Op with
// each of its own request objects and hands it to the Server together with the
// Message. One Op serves one request at a time.
//
// A FileSystem may read the exported fields and call the methods during the
// call it was handed the Op in, and not after.
type Op struct {
	Opcode        Opcode
	Unique        uint64
	NodeID        uint64 // as on the wire; a mounted FileSystem's own index is its argument
	UID, GID, PID uint32 // the guest's word; ^0 where an idmapped mount hides it

	ctx      context.Context // nil unless mayBlock
	mayBlock bool

	server  *Server
	session *session
	def     *opDef
	shard   uint32

	// The request.
	msg    Message
	length int    // of header and everything behind it, checked against what there is
	room   int    // writable bytes
	body   []byte // private copy of the arguments: a part of inline or of the heap
	cut    bool   // there was more than any honest request has: body ends early
	inline [inlineBody]byte
	extLen uint16 // as the header says
	ext    []byte // extensions of a creating request; a part of body

	progress uint64
	note     [NoteSize]byte

	// The reply: header, then reply[16:16+fixed], then what out counted. The
	// fixed part is only copied to the guest once the method has succeeded.
	reply    [outHeaderSize + maxFixedReplySize]byte
	fixed    int
	out      Out
	dir      DirWriter
	attached bool
	gone     error // of Attach: the reply cannot be delivered

	wait   Waiting   // what it waits for, without the age
	since  time.Time // when it began to wait
	tellAt time.Time // when it is next told of as slow; guarded by waiting.mu

	in struct {
		getAttr   GetAttrIn
		setAttr   SetAttrIn
		open      OpenIn
		read      ReadIn
		write     WriteIn
		release   ReleaseIn
		fsync     FsyncIn
		fallocate FallocateIn
		lseek     LseekIn
		copyRange CopyFileRangeIn
		ioctl     IoctlIn
		lk        LkIn
		setXattr  SetXattrIn
		mknod     MknodIn
		mkdir     MkdirIn
		create    CreateIn
	}
	entry  Entry
	attr   AttrOut
	opened OpenOut
	statfs StatFSOut
	lock   FileLock
}

// NewOp returns an Op that belongs to no session and may block until ctx ends:
// for tools, and whoever else calls a FileSystem without a guest.
func NewOp(ctx context.Context) *Op {
	return &Op{ctx: ctx, mayBlock: true}
}

// MayBlock tells whether the method may wait. If it may not and must, it returns
// ErrWouldBlock and is called again.
func (op *Op) MayBlock() bool { return op.mayBlock }

// Context ends when the request has lost its meaning: the device was reset, the
// front-end has gone, or the daemon ends. Only an Op that may block has one that
// ever ends.
func (op *Op) Context() context.Context {
	if op.ctx == nil {
		return context.Background()
	}
	return op.ctx
}

// Session returns the number of the session that the request belongs to: it
// grows with each INIT, so a FileSystem can tell the handles of an old session.
// It is 0 outside of any.
func (op *Op) Session() uint64 {
	if op.session == nil {
		return 0
	}
	return op.session.generation
}

// SessionFlags returns what the request's session has granted.
func (op *Op) SessionFlags() uint64 {
	if op.session == nil {
		return 0
	}
	return op.session.flags
}

// Progress returns what the last call of the same request left by SetProgress, 0
// at first.
func (op *Op) Progress() uint64 { return op.progress }

// SetProgress leaves a word for the call that follows ErrWouldBlock: what has been
// done by now and must not be done twice.
func (op *Op) SetProgress(p uint64) { op.progress = p }

// Shard spreads counters that many requests touch at once: a small number that
// differs between Ops and never changes in the life of one.
func (op *Op) Shard() uint32 { return op.shard }

// attach makes the message's segments valid and checks that they are what they
// were. It does nothing on the queue's goroutine, where they are valid anyway.
func (op *Op) attach() error {
	if op.gone != nil {
		return op.gone
	}
	if !op.mayBlock || op.attached {
		return nil
	}
	if err := op.msg.Attach(); err != nil {
		op.gone = err
		return err
	}
	if total(op.msg.Writable()) != op.room {
		op.gone = errMessageChanged
		return op.gone
	}
	op.attached = true
	return nil
}

// EntryOf asks fs for the attributes of node and fills out with an entry for it whose
// name the guest may not keep. It gives no reference. It uses memory of op, and
// so is only for a FileSystem that hands op on to others (package vfs).
func (op *Op) EntryOf(fs FileSystem, node uint64, out *Entry) error {
	op.in.getAttr, op.attr = GetAttrIn{}, AttrOut{}
	if err := fs.GetAttr(op, node, &op.in.getAttr, &op.attr); err != nil {
		return err
	}
	*out = Entry{Node: node, AttrTimeout: op.attr.Timeout, Attr: op.attr.Attr}
	return nil
}
