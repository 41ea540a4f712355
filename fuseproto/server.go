package fuseproto

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	pageSize    = 4096
	maxMaxWrite = 65535 * pageSize
)

// Config is what a Server is told once.
type Config struct {
	// Flags are the bits a session may be granted beside what this package
	// decides itself; FlagsReadOnly if 0. What the guest does not offer is never
	// granted, and neither is what does not work over virtio-fs.
	Flags uint64
	// ZeroMessageOpen grants the guest to open files without a request, once the
	// FileSystem has answered ENOSYS to an OPEN. It holds for all mounts of the
	// session for its whole life.
	ZeroMessageOpen bool
	// MaxWrite is the most bytes of one READ or WRITE: a multiple of 4096, at
	// least that; 1 MiB if 0.
	MaxWrite uint32
	// MaxBackground is how many requests the guest keeps in flight that no task
	// waits for (readahead); 65535 if 0.
	MaxBackground uint16
	// MapAlignment is log2 of what addresses in the DAX window are aligned to; 0
	// if there is none.
	MapAlignment uint16
	// Logger takes what the guest is not told; nothing is logged if nil. At debug
	// level it gets a line for each request and each reply.
	Logger *slog.Logger
	// OnSlow, if set, is told of requests that have left their queue's goroutine and
	// are older than Slow: when they become so, again each time that their age has
	// doubled, and at their end (over). It is called by goroutines of its own, not
	// often: suppressed is how many calls were left out since the last one.
	OnSlow func(w Waiting, over bool, suppressed uint64)
	Slow   time.Duration // 0 = never
}

// Server serves the FUSE session of one device from one FileSystem.
//
// Serve, ServeBlocking, Counters and Waiting are safe for any number of
// goroutines. Reset, Snapshot and Restore are called while nothing is served.
type Server struct {
	fs  FileSystem
	cfg Config
	log *slog.Logger

	session    atomic.Pointer[session] // nil before INIT and after DESTROY
	sessionMu  sync.Mutex              // orders FileSystem.Init and Destroy
	generation uint64                  // guarded by sessionMu
	onChange   []func([]byte) error    // immutable once requests are served

	nextShard atomic.Uint32
	shards    [shardCount]shard

	waiting                     waiting
	failures, panics, malformed limiter
}

// NewServer returns a Server of fs.
func NewServer(fs FileSystem, cfg Config) (*Server, error) {
	if cfg.Flags == 0 {
		cfg.Flags = FlagsReadOnly
	}
	if cfg.MaxWrite == 0 {
		cfg.MaxWrite = 1 << 20
	}
	if cfg.MaxWrite%pageSize != 0 || cfg.MaxWrite > maxMaxWrite {
		return nil, fmt.Errorf("max write %d is not a multiple of %d up to %d", cfg.MaxWrite, pageSize, maxMaxWrite)
	}
	if cfg.MaxBackground == 0 {
		cfg.MaxBackground = 65535
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{fs: fs, cfg: cfg, log: cfg.Logger}
	s.waiting.ops = make(map[*Op]struct{})
	if cfg.OnSlow != nil {
		s.waiting.slow, s.waiting.tell = cfg.Slow, cfg.OnSlow
	}
	return s, nil
}

// Serve serves the request in m on the goroutine of its queue and never waits.
// It returns how many bytes at the front of m.Writable are the reply, 0 if there
// is none. If the request has to wait it returns false: nothing counts as
// written, no slice of m is kept, and op holds the request for ServeBlocking.
//
// A fault on the request's own memory panics with a runtime.Error, if the
// goroutine has debug.SetPanicOnFault: it is the transport's to deal with.
func (s *Server) Serve(op *Op, m Message) (written uint32, done bool) {
	err := s.receive(op, m)
	if err == nil {
		err = s.run(op)
		if err != nil && errors.Is(err, ErrWouldBlock) {
			s.shards[op.shard].wouldBlock[op.counterIndex()].Add(1)
			op.drop()
			return 0, false
		}
	}
	return s.reply(op, err), true
}

// ServeBlocking serves a request that Serve gave back, with the same op and m,
// on a goroutine that may wait. ctx ends when nobody wants the reply any more.
// An error means that the reply cannot be delivered; it is the one of m.Attach.
func (s *Server) ServeBlocking(ctx context.Context, op *Op, m Message) (written uint32, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s.enterWaiting(op)
	defer s.leaveWaiting(op)
	op.msg, op.ctx, op.mayBlock = m, ctx, true
	err = s.run(op)
	if err != nil && errors.Is(err, ErrWouldBlock) {
		err = fmt.Errorf("%v may block and does not", op.Opcode)
	}
	if op.attach() != nil {
		return 0, s.undeliverable(op, err)
	}
	return s.reply(op, err), nil
}

// Refuse answers the request in m with EIO, without serving any of it, and returns
// the length of the reply.
func (s *Server) Refuse(op *Op, m Message) (written uint32) {
	err := s.receive(op, m)
	if err == nil {
		s.log.Error("request is refused: processes have ended of it", op.logAttrs()...)
		err = syscall.EIO
	}
	return s.reply(op, err)
}

// errDestroyed is the outcome of a DESTROY that is run again after it has done its
// work: success.
var errDestroyed = errors.New("the session has ended already")

// errNoReply is the outcome of requests whose reply has no place to go.
var errNoReply = errors.New("no room for a reply")

// receive copies the request's header and body to op and finds its method.
func (s *Server) receive(op *Op, m Message) error {
	if op.server != s {
		op.server, op.shard = s, s.nextShard.Add(1)%shardCount
	}
	op.msg, op.def = m, &unknownOp
	op.ctx, op.mayBlock, op.attached, op.gone = nil, false, false, nil
	op.fixed, op.out.n = 0, 0
	op.body, op.cut = nil, false
	op.session = s.session.Load()
	op.room = total(m.Writable())

	readable := m.Readable()
	at := cursor{segs: readable}
	head := op.inline[:inHeaderSize]
	n := at.read(head)
	clear(head[n:])
	var h inHeader
	h.decode(head)
	op.Opcode, op.Unique, op.NodeID = h.opcode, h.unique, h.nodeID
	op.UID, op.GID, op.PID = h.uid, h.gid, h.pid
	op.extLen, op.ext, op.progress = h.extLen, nil, 0
	s.shards[op.shard].requests[op.counterIndex()].Add(1)
	if n < inHeaderSize || h.len < inHeaderSize || uint64(h.len) > uint64(total(readable)) {
		return s.refuse(op, fmt.Sprintf("length %d, have %d bytes", h.len, total(readable)))
	}
	op.length = int(h.len)
	if h.opcode == opInitSwapped {
		s.refuse(op, "the guest's byte order is not ours")
		return errNoReply
	}
	if h.opcode < opcodeCount && opDefs[h.opcode].run != nil {
		op.def = &opDefs[h.opcode]
	}
	if op.def.noReply {
		if op.session == nil {
			return errNoReply
		}
	} else if op.room < outHeaderSize {
		s.refuse(op, fmt.Sprintf("room for a reply of %d bytes, want %d", op.room, outHeaderSize))
		return errNoReply
	}
	if op.session == nil && h.opcode != OpInit {
		if h.opcode == OpDestroy && op.Rerun() {
			return errDestroyed
		}
		return syscall.EIO
	}
	have := op.length - inHeaderSize
	if have < op.def.args {
		return s.refuse(op, fmt.Sprintf("body has %d bytes, want %d", have, op.def.args))
	}
	if have > op.def.most {
		have, op.cut = op.def.most, true
	}
	op.body = op.inline[:]
	if have > len(op.body) {
		op.body = make([]byte, have)
	}
	op.body = op.body[:have]
	if n := at.read(op.body); n < have {
		return s.refuse(op, "shorter than it was")
	}
	if s.tracing() {
		s.traceRequest(op)
	}
	if op.def.reply > op.room-outHeaderSize && !op.def.noReply {
		return syscall.EIO
	}
	return nil
}

// refuse logs, at a limited rate, why what came is no request, and returns its
// errno.
func (s *Server) refuse(op *Op, why string) error {
	if suppressed, ok := s.malformed.allow(time.Now()); ok {
		s.log.Warn("request is malformed", append(op.logAttrs(), "reason", why, "suppressed", suppressed)...)
	}
	return syscall.EINVAL
}

// run calls the request's method. A panic in it becomes an error of the request.
func (s *Server) run(op *Op) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.recovered(op, r)
		}
	}()
	return op.def.run(s, op)
}

// recovered turns a panic into an error. A fault is what memory did to us; all
// else is our own broken invariant, whose stack is logged.
func (s *Server) recovered(op *Op, r any) error {
	if e, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		s.shards[op.shard].faults.Add(1)
		return &faultError{e.Addr()}
	}
	s.shards[op.shard].panics.Add(1)
	if op.Opcode == OpReadDirPlus {
		op.dir.forget(op, s.fs)
	}
	if suppressed, ok := s.panics.allow(time.Now()); ok {
		s.log.Error("request panicked", append(op.logAttrs(),
			"panic", clip(fmt.Sprint(r)), "stack", clip(string(debug.Stack())), "suppressed", suppressed)...)
	}
	return errPanicked
}

// reply writes the reply of a request that ended with err and returns its
// length. The header is written last, so that what the guest sees of a reply
// that never ends is no reply.
func (s *Server) reply(op *Op, err error) uint32 {
	sh := &s.shards[op.shard]
	if op.def.noReply || err == errNoReply || op.room < outHeaderSize {
		if err != nil && op.def.noReply {
			sh.errors[op.counterIndex()].Add(1)
		}
		s.finish(op)
		return 0
	}
	if err == errDestroyed {
		err = nil
	}
	errno := s.errno(op, err)
	if errno != 0 {
		op.fixed, op.out.n = 0, 0
		sh.errors[op.counterIndex()].Add(1)
	}
	length := uint32(outHeaderSize + op.fixed + op.out.n)
	encodeOutHeader(op.reply[:], length, int32(errno), op.Unique)
	if s.tracing() {
		s.traceReply(op, errno, length)
	}
	segs := op.msg.Writable()
	s.finish(op) // first: what follows may fault
	if op.fixed > 0 {
		at := cursor{segs: segs}
		at.skip(outHeaderSize)
		at.write(op.reply[outHeaderSize : outHeaderSize+op.fixed])
	}
	at := cursor{segs: segs}
	at.write(op.reply[:outHeaderSize])
	return length
}

// undeliverable ends a request whose reply goes nowhere: references that the
// guest was about to get are given back.
func (s *Server) undeliverable(op *Op, err error) error {
	sh := &s.shards[op.shard]
	sh.dropped.Add(1)
	op.SetNote(PhaseNone, 0, nil) // the references are nobody's, also in another process
	if err == nil && op.def.entry && op.entry.Node != 0 {
		s.fs.Forget(op.entry.Node, 1)
	}
	if op.Opcode == OpReadDirPlus {
		op.dir.forget(op, s.fs)
	}
	gone := op.gone
	s.finish(op)
	return gone
}

// finish ends the use of op for this request.
func (s *Server) finish(op *Op) {
	s.shards[op.shard].done.Add(1)
	op.drop()
	op.session, op.ctx, op.body, op.ext = nil, nil, nil, nil
}

// drop forgets all of the guest's memory.
func (op *Op) drop() {
	op.msg = nil
	op.out.drop()
	op.dir.drop()
}

func (op *Op) logAttrs() []any {
	return []any{"op", op.Opcode.String(), "unique", op.Unique, "node", op.NodeID}
}

// logFailure logs, at a limited rate, an error that the guest sees as EIO.
func (s *Server) logFailure(op *Op, err error) {
	if suppressed, ok := s.failures.allow(time.Now()); ok {
		s.log.Error("request failed", append(op.logAttrs(), "error", clip(err.Error()), "suppressed", suppressed)...)
	}
}
