package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// CallKind is what the back-end gets to signal used entries with.
type CallKind int

// The kinds seen: QEMU and Cloud Hypervisor give eventfds, UML a blocking
// stream socket, and the protocol does not exclude a pipe.
const (
	CallEventfd CallKind = iota
	CallSocket
	CallPipe
)

// handed is a descriptor that was given to the back-end, with its status flags
// at that time. The flags belong to the open file description, which both sides
// share: a back-end that changes them stops a VMM that reads it in its main loop.
type handed struct {
	what  string
	fd    int
	flags int
}

// unchanged reports a back-end that changed the status flags.
func (h handed) unchanged() error {
	now, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("%s: read status flags: %w", h.what, err)
	}
	if now != h.flags {
		return violation("the status flags of %s changed from %#x to %#x", h.what, h.flags, now)
	}
	return nil
}

func statusFlags(fd int) int {
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return flags
}

// signal is one of our ends of a notification: what we read (call, err) or
// write (kick).
type signal struct {
	handed
	ours *os.File // what we read from or write to
	peer *os.File // what the back-end gets; nil when it is ours
	kind CallKind
	buf  [4096]byte
}

// newEventfd makes a notification of an eventfd that both sides share.
func newEventfd(what string, blocking bool) (*signal, error) {
	flags := unix.EFD_CLOEXEC
	if !blocking {
		flags |= unix.EFD_NONBLOCK
	}
	fd, err := unix.Eventfd(0, flags)
	if err != nil {
		return nil, fmt.Errorf("%s: eventfd: %w", what, err)
	}
	return &signal{
		handed: handed{what: what, fd: fd, flags: statusFlags(fd)},
		ours:   os.NewFile(uintptr(fd), what),
	}, nil
}

// newCall makes a notification of the given kind that we read.
func newCall(what string, kind CallKind) (*signal, error) {
	var fds [2]int // ours, theirs
	switch kind {
	case CallEventfd:
		return newEventfd(what, false)
	case CallSocket:
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: socket pair: %w", what, err)
		}
		fds = p
	case CallPipe:
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("%s: pipe: %w", what, err)
		}
	default:
		return nil, fmt.Errorf("%s: no such kind of descriptor: %d", what, kind)
	}
	// Two ends, two descriptions: ours may be non-blocking while theirs is not.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return &signal{
		handed: handed{what: what, fd: fds[1], flags: statusFlags(fds[1])},
		ours:   os.NewFile(uintptr(fds[0]), what),
		peer:   os.NewFile(uintptr(fds[1]), what),
		kind:   kind,
	}, nil
}

var one = [8]byte{1} // little endian, as both architectures we build for

// notify writes one to the eventfd.
func (s *signal) notify() error {
	_, err := s.ours.Write(one[:])
	return err
}

// wait reads until something is there or the file's deadline passes, and returns
// how many signals that were. One reader at a time.
func (s *signal) wait() (uint64, error) {
	b := s.buf[:]
	if s.kind == CallEventfd {
		b = b[:8]
	}
	n, err := s.ours.Read(b)
	if err != nil {
		return 0, err
	}
	if s.kind == CallEventfd {
		return binary.LittleEndian.Uint64(b), nil
	}
	if n%8 != 0 {
		return 0, violation("%s: %d bytes arrived, not a multiple of 8", s.what, n)
	}
	return uint64(n / 8), nil
}

// waitContext is wait with an end.
func (s *signal) waitContext(ctx context.Context) (uint64, error) {
	stop := context.AfterFunc(ctx, func() { s.ours.SetReadDeadline(time.Unix(1, 0)) })
	n, err := s.wait()
	if !stop() {
		s.ours.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return n, err
}

func (s *signal) close() {
	if s == nil {
		return
	}
	s.ours.Close()
	if s.peer != nil {
		s.peer.Close()
	}
}
