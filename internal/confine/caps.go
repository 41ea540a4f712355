package confine

import (
	"errors"
	"fmt"
	"math/bits"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities: bit n is the capability of that number in
// linux/capability.h.
type Set uint64

// The capabilities that some part of rafsd has a use for.
const (
	Chown         Set = 1 << unix.CAP_CHOWN           // give files the guest's owners
	DACOverride   Set = 1 << unix.CAP_DAC_OVERRIDE    // the guest's kernel has checked permissions already
	DACReadSearch Set = 1 << unix.CAP_DAC_READ_SEARCH // open_by_handle_at; files that others own
	Fowner        Set = 1 << unix.CAP_FOWNER          // chmod, utimes and sticky folders of other owners
	Fsetid        Set = 1 << unix.CAP_FSETID          // keep set-id bits as the guest's kernel decided
	Setgid        Set = 1 << unix.CAP_SETGID          // create files as the guest's group
	Setuid        Set = 1 << unix.CAP_SETUID          // create files as the guest's user
	Mknod         Set = 1 << unix.CAP_MKNOD           // device nodes
	Setfcap       Set = 1 << unix.CAP_SETFCAP         // security.capability
	SysAdmin      Set = 1 << unix.CAP_SYS_ADMIN       // trusted.* attributes
	setpcap       Set = 1 << unix.CAP_SETPCAP
)

// For the personalities.
const (
	// Images is for a daemon that never shows more than images: they and their
	// blobs may belong to others.
	Images = DACReadSearch
	// HostDirectory is for showing a directory of the host as virtiofsd does.
	HostDirectory = Chown | DACOverride | DACReadSearch | Fowner | Fsetid | Setgid | Setuid | Mknod | Setfcap
	// OverlayUpper adds what an overlay's upper layer in the guest needs.
	OverlayUpper = HostDirectory | SysAdmin
)

// ErrThreads is what NoNewPrivs and Limit return in a program with cgo, where not
// every thread can be reached.
var ErrThreads = errors.New("cannot change all threads of a program that was built with cgo")

// NoNewPrivs promises the kernel for all threads that no exec ever gains a
// privilege.
func NoNewPrivs() error {
	return allThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
}

// Permitted returns the capabilities that the calling thread may use.
func Permitted() (Set, error) {
	var data [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return Set(data[0].Permitted) | Set(data[1].Permitted)<<32, nil
}

// Limit leaves all threads with the capabilities in keep that they have already:
// permitted and effective, none inheritable, none ambient, and no other in the
// bounding set. A process that may not change its bounding set keeps that; with
// NoNewPrivs it is of no use to it.
func Limit(keep Set) error {
	have, err := Permitted()
	if err != nil {
		return err
	}
	keep &= have
	if have&setpcap != 0 {
		if err := limitBounding(keep); err != nil {
			return err
		}
	}
	const ambient = "clear ambient capabilities"
	if err := allThreads(ambient, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // pid 0: the calling thread
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	return allThreads("drop capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])))
}

// limitBounding drops all but keep from the bounding sets.
func limitBounding(keep Set) error {
	for c := range uintptr(bits.UintSize) {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == unix.EINVAL {
			return nil // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("read bounding set: %w", err)
		}
		if in == 0 || keep&(1<<c) != 0 {
			continue
		}
		if err := allThreads("drop from bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c); err != nil {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return nil
}

// allThreads makes a system call on every thread. Pointers in a and b stay valid
// until it returns: the caller's variables are alive that long.
func allThreads(what string, trap, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a, b, 0, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return fmt.Errorf("%s: %w", what, ErrThreads)
	}
	return fmt.Errorf("%s: %w", what, errno)
}
