package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kick is where a vring's goroutine sleeps until its eventfd is written to: near by,
// in a system call of its own (see near), or far away, in the runtime's poller.
//
// The counter is never read. Both ways are edge triggered, and every write to an
// eventfd is an edge, whether somebody has read the counter or not; what there is
// to do, the available ring says. So a kick that the front-end takes back cannot
// hang us, and waking up costs no system call.
//
// The descriptor's file status flags are shared with the front-end and never
// changed: a front-end that finds its notifier blocking hangs when it drains it.
// So it is watched by epoll instances of ours, which are non-blocking, and is never
// itself in the poller, which would also wake somebody there for each kick that is
// waited for near by.
type kick struct {
	fd   int // the eventfd
	near int // epoll instance on fd and on stop
	stop int // eventfd, readable between interrupt and allow

	far   int // epoll instance on fd, in the poller as file
	file  *os.File
	raw   syscall.RawConn
	armed bool // whether far looks out for a kick; its waiter's alone

	events [2]unix.EpollEvent // its waiter's alone
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
	k := &kick{fd: -1, near: -1, stop: -1}
	if err := k.open(fd); err != nil {
		k.close()
		return nil, fmt.Errorf("kick descriptor: %w", err)
	}
	return k, nil
}

func (k *kick) open(fd int) (err error) {
	if k.fd, err = duplicate(fd); err != nil {
		return err
	}
	if k.stop, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if k.near, err = newEpoll(k.fd, edge); err != nil {
		return err
	}
	if err := control(k.near, unix.EPOLL_CTL_ADD, k.stop, unix.EPOLLIN); err != nil {
		return err
	}
	if k.far, err = newEpoll(k.fd, 0); err != nil {
		return err
	}
	if err := unix.SetNonblock(k.far, true); err != nil {
		_ = unix.Close(k.far)
		return err
	}
	k.file = os.NewFile(uintptr(k.far), "kick")
	if err := k.file.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("the poller does not take it: %w", err)
	}
	k.raw, err = k.file.SyscallConn()
	return err
}

// edge is what an epoll instance looks out for that tells of each edge once.
const edge = unix.EPOLLIN | unix.EPOLLET

// newEpoll returns an epoll instance that watches fd.
func newEpoll(fd int, events uint32) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := control(ep, unix.EPOLL_CTL_ADD, fd, events); err != nil {
		_ = unix.Close(ep)
		return -1, err
	}
	return ep, nil
}

func control(ep, op, fd int, events uint32) error {
	if err := unix.EpollCtl(ep, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// wait sleeps in the poller until ready, which is asked before each sleep, says true.
// It returns false if interrupt was called.
//
// No wake-up is lost: from before the first call of ready on, the poller
// remembers an edge, and ready sees what was made available before that.
func (k *kick) wait(ready func(fd uintptr) bool) bool {
	k.arm(true)
	return k.raw.Read(ready) == nil
}

// arm says whether a kick wakes who waits in the poller. That it came before is told
// too, once: the counter is not zero.
func (k *kick) arm(on bool) {
	if k.armed == on {
		return
	}
	events := uint32(0)
	if on {
		events = unix.EPOLLIN
	}
	if err := control(k.far, unix.EPOLL_CTL_MOD, k.fd, events); err != nil {
		panic(err) // it needs no memory: not ours, these descriptors
	}
	k.armed = on
}

// What waitNear found.
type nearResult int

const (
	nearWork  nearResult = iota
	nearQuiet            // no kick for so long
	nearHalt             // interrupt was called
)

// waitNear is wait in a system call, for each time that it sleeps at most for limit.
func (k *kick) waitNear(ready func(fd uintptr) bool, limit time.Duration) nearResult {
	k.arm(false)
	for !ready(0) {
		n, err := unix.EpollWait(k.near, k.events[:], int(limit.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			panic(fmt.Errorf("epoll_pwait: %w", err))
		case n == 0:
			return nearQuiet
		}
		for _, e := range k.events[:max(n, 0)] {
			if e.Fd == int32(k.stop) {
				return nearHalt
			}
		}
	}
	return nearWork
}

// interrupt ends wait and waitNear, and each one to come until allow.
func (k *kick) interrupt() {
	// Fail on a closed file only, on which nobody waits.
	_ = k.file.SetReadDeadline(time.Unix(1, 0))
	_, _ = unix.Write(k.stop, one)
}

// allow takes interrupt back.
func (k *kick) allow() {
	_ = k.file.SetReadDeadline(time.Time{})
	var count [8]byte
	_, _ = unix.Read(k.stop, count[:])
}

// close frees the descriptors. Nobody waits any more.
func (k *kick) close() {
	if k.file != nil {
		_ = k.file.Close()
	}
	for _, fd := range []int{k.near, k.stop, k.fd} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func duplicate(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return dup, nil
}
