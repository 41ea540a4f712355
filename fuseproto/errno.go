package fuseproto

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// faultError says that memory was touched that is no longer there: a cache file
// or bootstrap that shrank under its mapping, or the guest's own memory.
type faultError struct{ addr uintptr }

func (e *faultError) Error() string { return fmt.Sprintf("memory at %#x has gone", e.addr) }

// errPanicked is the outcome of a request that panicked; it was logged where the
// stack was known.
var errPanicked = errors.New("request panicked")

// errno is the only place that turns an error into what the guest sees, and the
// one that logs what the guest cannot see. Only an errno that the FileSystem
// returned as such is passed on: one that is wrapped is some deeper cause, and a
// missing cache file is EIO to a reader although its cause is ENOENT.
func (s *Server) errno(op *Op, err error) syscall.Errno {
	switch e := err.(type) {
	case nil:
		return 0
	case syscall.Errno:
		switch {
		case e == syscall.ENOSYS:
			return op.enosys()
		case e > 0 && e <= maxErrno:
			return e
		}
	}
	switch {
	case err == errPanicked:
	case errors.Is(err, ErrNoRoom):
		// The guest asked for less than it must have known to be there.
	case errors.Is(err, context.Canceled) && op.ctx != nil && op.ctx.Err() != nil:
		// The reply goes nowhere: reset, front-end gone, or the daemon ends.
	default:
		s.logFailure(op, err)
	}
	return syscall.EIO
}

// maxErrno is the largest errno that a reply may carry.
const maxErrno = 511

// enosys replaces ENOSYS where the guest would remember it for the session, and
// so for other mounts that share it. Where ENOSYS stays, the guest does without
// for all mounts alike (POLL, BMAP, STATX, locks).
func (op *Op) enosys() syscall.Errno {
	switch op.Opcode {
	case OpOpen, OpOpenDir, OpCreate:
		if op.Opcode != OpCreate && op.SessionFlags()&flagsZeroMessageOpen != 0 {
			return syscall.ENOSYS
		}
		return syscall.EOPNOTSUPP
	case OpFlush:
		if op.SessionFlags()&flagsZeroMessageOpen != 0 {
			return syscall.ENOSYS
		}
		return 0
	case OpRelease, OpReleaseDir, OpFsync, OpFsyncDir, OpSyncFS:
		return 0
	case OpSetXattr, OpGetXattr, OpListXattr, OpRemoveXattr,
		OpFallocate, OpTmpfile, OpCopyFileRange, OpCopyFileRange64:
		return syscall.EOPNOTSUPP
	case OpRename2:
		return syscall.EINVAL
	case OpIoctl:
		return syscall.ENOTTY
	}
	return syscall.ENOSYS
}

// limiter lets through a burst of log lines and then one a second, and counts
// the rest.
type limiter struct {
	mu         sync.Mutex
	tokens     int
	last       time.Time
	suppressed uint64
}

const limiterBurst = 10

// allow tells whether a line may be written now, and how many were not since the
// last one.
func (l *limiter) allow(now time.Time) (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens, l.last = limiterBurst, now
	}
	if n := int64(now.Sub(l.last) / time.Second); n > 0 {
		l.tokens = int(min(limiterBurst, int64(l.tokens)+n))
		l.last = l.last.Add(time.Duration(n) * time.Second)
	}
	if l.tokens == 0 {
		l.suppressed++
		return 0, false
	}
	l.tokens--
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
