package posix

import (
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	d := dir(t)
	file(t, d+"/f", "f")
	for _, mode := range []uint32{0, 0o7777, 0o4755, 0o2755, 0o1755, 0o644, 0o200} {
		must(t, unix.Chmod(d+"/f", mode))
		if st := lstat(t, d+"/f"); st.Mode&0o7777 != mode {
			t.Errorf("chmod %#o made it %#o", mode, st.Mode&0o7777)
		}
	}
	umask(0o027, func() {
		must(t, unix.Mkdir(d+"/dir", 0o777))
		fd, err := unix.Open(d+"/made", unix.O_CREAT|unix.O_WRONLY, 0o6666)
		must(t, err)
		unix.Close(fd)
	})
	if st := lstat(t, d+"/dir"); st.Mode&0o7777 != 0o750 {
		t.Errorf("mkdir 0777 with umask 027 made %#o, want 0750", st.Mode&0o7777)
	}
	if st := lstat(t, d+"/made"); st.Mode&0o7777 != 0o6640 {
		t.Errorf("creat 6666 with umask 027 made %#o, want 06640", st.Mode&0o7777)
	}
	// A file made without any right can be written through the descriptor that made it.
	fd, err := unix.Open(d+"/none", unix.O_CREAT|unix.O_RDWR, 0)
	must(t, err)
	_, err = unix.Write(fd, []byte("x"))
	must(t, err)
	unix.Close(fd)
}

func TestOwners(t *testing.T) {
	d := dir(t)
	as(t, 1001, 1002, []int{1003}, func() {
		file(t, d+"/f", "f")
		must(t, os.Mkdir(d+"/dir", 0o755))
		must(t, os.Symlink("x", d+"/sym"))
		must(t, unix.Mkfifo(d+"/fifo", 0o644))
		must(t, os.Link(d+"/f", d+"/link"))
		want(t, "chown to root", os.Chown(d+"/f", 0, 0), syscall.EPERM)
		want(t, "chgrp to a foreign group", os.Chown(d+"/dir", -1, 77), syscall.EPERM)
		want(t, "chgrp to an own group", os.Chown(d+"/dir", -1, 1003), 0)
		want(t, "mknod of a device", unix.Mknod(d+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), syscall.EPERM)
	})
	for _, name := range []string{"f", "sym", "fifo", "link"} {
		if st := lstat(t, d+"/"+name); st.Uid != 1001 || st.Gid != 1002 {
			t.Errorf("%s made by 1001:1002 belongs to %d:%d", name, st.Uid, st.Gid)
		}
	}
	if st := lstat(t, d+"/dir"); st.Uid != 1001 || st.Gid != 1003 {
		t.Errorf("dir belongs to %d:%d, want 1001:1003", st.Uid, st.Gid)
	}
	as(t, 1005, 1005, nil, func() {
		want(t, "chmod of another's file", os.Chmod(d+"/f", 0o600), syscall.EPERM)
		_, err := os.OpenFile(d+"/f", os.O_WRONLY, 0)
		want(t, "writing to another's file", err, syscall.EACCES)
		want(t, "making a file in another's directory", os.WriteFile(d+"/dir/x", nil, 0o644), syscall.EACCES)
		want(t, "utimes of another's file", unix.Utimes(d+"/f", []unix.Timeval{{}, {}}), syscall.EPERM)
	})
	// In a sticky directory a file is its owner's.
	must(t, os.Mkdir(d+"/sticky", 0o777))
	must(t, unix.Chmod(d+"/sticky", 0o1777))
	as(t, 1001, 1001, nil, func() { file(t, d+"/sticky/f", "f") })
	as(t, 1005, 1005, nil, func() {
		want(t, "unlink in a sticky directory", unix.Unlink(d+"/sticky/f"), syscall.EPERM)
		want(t, "rename in a sticky directory", unix.Rename(d+"/sticky/f", d+"/sticky/g"), syscall.EPERM)
	})
	as(t, 1001, 1001, nil, func() { want(t, "unlink of one's own", unix.Unlink(d+"/sticky/f"), 0) })
}

func TestSetgidDirectory(t *testing.T) {
	d := dir(t)
	must(t, os.Mkdir(d+"/g", 0o777))
	must(t, os.Chown(d+"/g", 0, 2000))
	must(t, unix.Chmod(d+"/g", 0o2777))
	as(t, 1001, 1001, nil, func() {
		file(t, d+"/g/f", "f")
		must(t, os.Mkdir(d+"/g/sub", 0o755))
		must(t, os.Symlink("x", d+"/g/sym"))
	})
	for _, name := range []string{"f", "sub", "sym"} {
		if st := lstat(t, d+"/g/"+name); st.Gid != 2000 || st.Uid != 1001 {
			t.Errorf("%s in a set-gid directory belongs to %d:%d, want 1001:2000", name, st.Uid, st.Gid)
		}
	}
	if st := lstat(t, d+"/g/sub"); st.Mode&0o7777 != 0o2755 {
		t.Errorf("a directory made in a set-gid directory has mode %#o, want 02755", st.Mode&0o7777)
	}
	// By a member of the group, as a supplementary one, too.
	as(t, 1001, 1001, []int{2000}, func() { file(t, d+"/g/member", "") })
	if st := lstat(t, d+"/g/member"); st.Gid != 2000 {
		t.Errorf("a member's file has group %d, want 2000", st.Gid)
	}
}

// TestPrivilegesAreLost: set-id bits and file capabilities do not outlive a change
// of the file by somebody who may not set them.
func TestPrivilegesAreLost(t *testing.T) {
	d := dir(t)
	name := d + "/f"
	fresh := func() {
		t.Helper()
		os.Remove(name)
		file(t, name, "text")
		must(t, os.Chown(name, 1001, 1001))
		must(t, unix.Chmod(name, 0o6777))
	}
	mode := func(what string, wanted uint32) {
		t.Helper()
		if st := lstat(t, name); st.Mode&0o7777 != wanted {
			t.Errorf("after %s the mode is %#o, want %#o", what, st.Mode&0o7777, wanted)
		}
	}
	fresh()
	as(t, 1005, 1005, nil, func() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString("x")
		must(t, err)
		must(t, f.Close())
	})
	mode("another user's write", 0o777)
	fresh()
	as(t, 1005, 1005, nil, func() { must(t, unix.Truncate(name, 1)) })
	mode("another user's truncate", 0o777)
	fresh()
	as(t, 1005, 1005, nil, func() {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
		must(t, err)
		must(t, f.Close())
	})
	mode("another user's open with O_TRUNC", 0o777)
	fresh()
	as(t, 1001, 1001, nil, func() { must(t, os.Chown(name, 1001, 1001)) })
	mode("the owner's chown", 0o777)
	fresh()
	must(t, os.Chown(name, 1001, 1001))
	mode("root's chown", 0o777)
	fresh()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("x")
	must(t, err)
	must(t, f.Close())
	mode("root's write", 0o6777)

	// File capabilities go with any change.
	caps := []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for what, change := range map[string]func() error{
		"write":    func() error { return os.WriteFile(name, []byte("y"), 0) },
		"truncate": func() error { return unix.Truncate(name, 0) },
		"chown":    func() error { return os.Chown(name, 5, 5) },
	} {
		fresh()
		must(t, unix.Setxattr(name, "security.capability", caps, 0))
		must(t, change())
		b := make([]byte, 64)
		_, err := unix.Lgetxattr(name, "security.capability", b)
		want(t, "security.capability after "+what, err, syscall.ENODATA)
	}
}

func TestTimes(t *testing.T) {
	d := dir(t)
	name := file(t, d+"/f", "f")
	set := func(a, m unix.Timespec) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{a, m}, 0))
	}
	set(unix.Timespec{Sec: 1, Nsec: 123456789}, unix.Timespec{Sec: -1, Nsec: 999999999})
	if st := lstat(t, name); st.Atim != (unix.Timespec{Sec: 1, Nsec: 123456789}) || st.Mtim != (unix.Timespec{Sec: -1, Nsec: 999999999}) {
		t.Errorf("times are %v and %v", st.Atim, st.Mtim)
	}
	set(unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Sec: 42})
	if st := lstat(t, name); st.Atim.Sec != 1 || st.Mtim != (unix.Timespec{Sec: 42}) {
		t.Errorf("UTIME_OMIT: times are %v and %v", st.Atim, st.Mtim)
	}
	before := time.Now().Add(-2 * time.Second).Unix()
	set(unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT})
	if st := lstat(t, name); st.Atim.Sec < before || st.Mtim.Sec != 42 {
		t.Errorf("UTIME_NOW: times are %v and %v", st.Atim, st.Mtim)
	}
	set(unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1})
	must(t, os.WriteFile(name, []byte("changed"), 0))
	if st := lstat(t, name); st.Mtim.Sec < before {
		t.Errorf("a write left mtime at %v", st.Mtim)
	}
	ctime := lstat(t, name).Ctim
	time.Sleep(20 * time.Millisecond)
	must(t, os.Chmod(name, 0o600))
	if now := lstat(t, name).Ctim; now.Nano() <= ctime.Nano() {
		t.Errorf("chmod left ctime at %v, was %v", now, ctime)
	}
	// A directory's own time tells of names that come and go.
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, d, []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0))
	file(t, d+"/new", "")
	if st := lstat(t, d); st.Mtim.Sec < before {
		t.Errorf("a new name left the directory's mtime at %v", st.Mtim)
	}
}
