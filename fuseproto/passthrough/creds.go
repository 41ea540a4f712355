package passthrough

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// Creating requests run with the file system ids of the guest's caller, so that
// owner, setgid directories, default ACLs and quota come out as for a process of
// the host. Those ids belong to a thread: the goroutine is locked to it meanwhile.

// caps are the effective capabilities of a thread.
type caps struct{ data [2]unix.CapUserData }

func capHeader() unix.CapUserHeader {
	return unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func (c *caps) load() error {
	h := capHeader()
	return unix.Capget(&h, &c.data[0])
}

func (c *caps) store() error {
	h := capHeader()
	return unix.Capset(&h, &c.data[0])
}

// putBack is store for what was loaded before. If the process has given up
// capabilities meanwhile, those stay given up.
func (c *caps) putBack() error {
	err := c.store()
	if err != unix.EPERM {
		return err
	}
	var now caps
	if err := now.load(); err != nil {
		return err
	}
	for i := range now.data {
		now.data[i].Effective = c.data[i].Effective & now.data[i].Permitted
	}
	return now.store()
}

func (c *caps) has(n uint) bool { return c.data[n/32].Effective&(1<<(n%32)) != 0 }
func (c *caps) without(n uint)  { c.data[n/32].Effective &^= 1 << (n % 32) }

// asGuest calls f with the ids of the request's caller. With override, what the
// guest's kernel has allowed is not forbidden by the host's: changing fsuid away
// from 0 takes the file system capabilities away, and they are put back but for
// CAP_FSETID.
func (fs *FS) asGuest(op *fuseproto.Op, ext *fuseproto.CreateExt, override bool, f func() error) error {
	uid, err := fs.opts.UIDMap.toHost(op.UID)
	if err != nil {
		return err
	}
	gid, err := fs.opts.GIDMap.toHost(op.GID)
	if err != nil {
		return err
	}
	// An idmapped mount hides the caller's ids on all requests but those that
	// create something. What has none is refused, lest it become root's.
	if uid == noID || gid == noID {
		return unix.EOVERFLOW
	}
	// Where the daemon is not root, the guest's root is the daemon's user.
	if uid == fs.euid && gid == fs.egid || fs.euid != 0 && uid == 0 && gid == 0 {
		return f()
	}
	runtime.LockOSThread()
	var was caps
	if err := was.load(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if !was.has(unix.CAP_SETUID) || !was.has(unix.CAP_SETGID) {
		runtime.UnlockOSThread()
		return unix.EPERM
	}
	var groups []uint32 // ours, to be put back
	err = nil
	if ext != nil && ext.HasGID && ext.GID != gid {
		// The one group of the caller's that matters: without it a setgid
		// directory's bit would be lost on what is made there.
		var supp uint32
		if supp, err = fs.opts.GIDMap.toHost(ext.GID); err == nil && supp != noID {
			groups = fs.groups
			err = setgroups([]uint32{supp})
		}
	}
	if err == nil {
		unix.SetfsgidRetGid(int(gid))
		unix.SetfsuidRetUid(int(uid))
		if override {
			now := was
			now.without(unix.CAP_FSETID)
			err = now.store()
		}
	}
	if err == nil {
		err = f()
	}
	fs.restore(&was, groups)
	runtime.UnlockOSThread()
	return err
}

// restore makes the calling thread's ids ours again. It fails only if the kernel
// has no memory for a set of credentials. A thread with foreign ids must not
// serve anything else, so this does not return before it has succeeded; the
// goroutine stays locked to the thread until then.
func (fs *FS) restore(was *caps, groups []uint32) {
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		unix.SetfsuidRetUid(int(fs.euid))
		unix.SetfsgidRetGid(int(fs.egid))
		uid, _ := unix.SetfsuidRetUid(-1)
		gid, _ := unix.SetfsgidRetGid(-1)
		ok := uint32(uid) == fs.euid && uint32(gid) == fs.egid && was.putBack() == nil
		if ok && groups != nil {
			ok = setgroups(groups) == nil
		}
		if ok {
			return
		}
		fs.log.Error("cannot take the daemon's own ids back, trying again", "uid", fs.euid, "gid", fs.egid)
		time.Sleep(wait)
	}
}

// withoutFsetid calls f without CAP_FSETID if kill says so: the host's kernel
// then clears set-id bits as for an ordinary user.
func withoutFsetid(kill bool, f func() error) error {
	if !kill {
		return f()
	}
	runtime.LockOSThread()
	var was caps
	err := was.load()
	if err == nil && was.has(unix.CAP_FSETID) {
		now := was
		now.without(unix.CAP_FSETID)
		if err = now.store(); err == nil {
			err = f()
			for wait := time.Millisecond; was.putBack() != nil; wait = min(2*wait, time.Second) {
				time.Sleep(wait) // no memory in the kernel; as restore
			}
		}
	} else if err == nil {
		err = f()
	}
	runtime.UnlockOSThread()
	return err
}

// ids reads what asGuest has to put back, and the umask that the host's kernel
// takes from modes.
func (fs *FS) ids() error {
	fs.euid, fs.egid = uint32(os.Geteuid()), uint32(os.Getegid())
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	fs.groups = make([]uint32, len(groups)) // never nil
	for i, g := range groups {
		fs.groups[i] = uint32(g)
	}
	// Beside the descriptors: the path from "/" may be out of sight.
	fd, err := unix.Openat(fs.procFD, "../status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open status in /proc: %w", err)
	}
	f := os.NewFile(uintptr(fd), "status")
	status, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			if err != nil {
				return err
			}
			fs.umask = uint32(m)
		}
	}
	return nil
}
