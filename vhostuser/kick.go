package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kick is where a vring's goroutine sleeps: an eventfd in the runtime's poller.
//
// The counter is never read. The poller is edge triggered, and every write to an
// eventfd is an edge, whether somebody has read the counter or not; what there is
// to do, the available ring says. So a kick that the front-end takes back cannot
// hang us, and waking up costs no system call.
//
// The descriptor's file status flags are shared with the front-end and never
// changed: a front-end that finds its notifier blocking hangs when it drains it.
// A descriptor that came blocking, as those of user-mode Linux do, is not one
// that the poller takes; it goes into an epoll instance of ours, which is made
// non-blocking and goes into the poller in its place.
type kick struct {
	file *os.File // in the poller: the eventfd, or the epoll instance on it
	raw  syscall.RawConn
	fd   int // the blocking eventfd, or -1
}

var errNoEventfd = errors.New("not an eventfd")

// newKick makes a kick of a duplicate of fd, which stays the caller's.
func newKick(fd int) (*kick, error) {
	kind, err := fileKind(fd)
	if err != nil {
		return nil, err
	}
	if kind != kindEventfd {
		return nil, fmt.Errorf("kick descriptor: %w", errNoEventfd)
	}
	dup, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	k := &kick{fd: -1}
	flags, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0)
	if err != nil {
		_ = unix.Close(dup)
		return nil, fmt.Errorf("kick descriptor: %w", err)
	}
	polled := dup
	if flags&unix.O_NONBLOCK == 0 {
		if polled, err = nest(dup); err != nil {
			_ = unix.Close(dup)
			return nil, err
		}
		k.fd = dup
	}
	// NewFile leaves the flags of a non-blocking descriptor alone.
	k.file = os.NewFile(uintptr(polled), "kick")
	if err := k.file.SetReadDeadline(time.Time{}); err != nil {
		k.close()
		return nil, fmt.Errorf("kick descriptor: the poller does not take it: %w", err)
	}
	if k.raw, err = k.file.SyscallConn(); err != nil {
		k.close()
		return nil, fmt.Errorf("kick descriptor: %w", err)
	}
	return k, nil
}

// nest returns a non-blocking epoll instance that watches fd.
func nest(fd int) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("kick descriptor: epoll_create1: %w", err)
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		_ = unix.Close(ep)
		return -1, fmt.Errorf("kick descriptor: epoll_ctl: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil {
		_ = unix.Close(ep)
		return -1, fmt.Errorf("kick descriptor: %w", err)
	}
	return ep, nil
}

// wait sleeps until ready, which is asked before each sleep, says true. It
// returns false if interrupt was called.
//
// No wake-up is lost: from before the first call of ready on, the poller
// remembers an edge, and ready sees what was made available before that.
func (k *kick) wait(ready func(fd uintptr) bool) bool { return k.raw.Read(ready) == nil }

// interrupt ends wait, and each one to come until allow.
func (k *kick) interrupt() {
	// Fails on a closed file only, on which nobody waits.
	_ = k.file.SetReadDeadline(time.Unix(1, 0))
}

// allow takes interrupt back.
func (k *kick) allow() { _ = k.file.SetReadDeadline(time.Time{}) }

// close frees the descriptors. Nobody waits any more.
func (k *kick) close() {
	_ = k.file.Close()
	if k.fd >= 0 {
		_ = unix.Close(k.fd)
	}
}

func duplicate(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return dup, nil
}
