package vhostuser

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileType is a kind of descriptor that notifies.
type fileType int

const (
	kindNone    fileType = iota
	kindEventfd          // QEMU, Cloud Hypervisor
	kindSocket           // user-mode Linux: one end of a blocking stream pair
	kindPipe
)

var errKind = errors.New("neither eventfd, stream socket nor pipe")

// fileKind tells what fd is.
func fileKind(fd int) (fileType, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return kindNone, fmt.Errorf("descriptor %d: fstat: %w", fd, err)
	}
	switch st.Mode & unix.S_IFMT {
	case 0: // anonymous inode
		return kindEventfd, nil
	case unix.S_IFIFO:
		return kindPipe, nil
	case unix.S_IFSOCK:
		t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return kindNone, fmt.Errorf("descriptor %d: socket type: %w", fd, err)
		}
		if t == unix.SOCK_STREAM {
			return kindSocket, nil
		}
	}
	return kindNone, fmt.Errorf("descriptor %d with mode %#o: %w", fd, st.Mode, errKind)
}

// notifier is a call or error descriptor. The zero value notifies nobody. It
// must never block, whatever it is and whoever holds its other end.
type notifier struct {
	kind     fileType
	fd       int
	blocking bool
}

// newNotifier makes a notifier of a duplicate of fd, which stays the caller's; -1
// gives one that notifies nobody.
func newNotifier(fd int) (notifier, error) {
	if fd < 0 {
		return notifier{}, nil
	}
	kind, err := fileKind(fd)
	if err != nil {
		return notifier{}, err
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return notifier{}, fmt.Errorf("descriptor %d: flags: %w", fd, err)
	}
	dup, err := duplicate(fd)
	if err != nil {
		return notifier{}, err
	}
	return notifier{kind: kind, fd: dup, blocking: flags&unix.O_NONBLOCK == 0}, nil
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// signal notifies the other side and reports whether there is one. Errors are
// ignored: what is full has a signal pending, and of a peer that is gone the
// connection tells.
func (n notifier) signal() bool {
	switch n.kind {
	case kindNone:
		return false
	case kindEventfd:
		if !n.blocking {
			writeUnseen(n.fd)
			return true
		}
		// A write blocks if the front-end has filled the counter, which only a
		// malicious one does; nobody but it can fill it.
		p := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLOUT}}
		if ready, err := unix.Poll(p, 0); err != nil || ready == 0 {
			return true
		}
		_, _ = unix.Write(n.fd, one)
	case kindSocket:
		_ = unix.Send(n.fd, one, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	case kindPipe:
		_, _ = unix.Pwritev2(n.fd, [][]byte{one}, -1, unix.RWF_NOWAIT)
	}
	return true
}

// writeUnseen signals a non-blocking eventfd without a word to the Go scheduler.
// With one request in flight at a time, telling it costs more than serving the
// request: it wakes the scheduler's monitor, which sleeps whenever we do, and
// which then looks around every 20 µs for a while. A write to a non-blocking
// eventfd takes less than that, so there is nothing to look after; that the
// monitor is not forgotten altogether is the caller's part (vring.beSeen).
//
// The status flags are shared with the front-end: one that makes its eventfd
// blocking later on and fills it stops the process that serves it.
func writeUnseen(fd int) {
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one[0])), uintptr(len(one)))
}

func (n *notifier) close() {
	if n.kind != kindNone {
		_ = unix.Close(n.fd)
	}
	*n = notifier{}
}
