package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNames(t *testing.T) {
	d := dir(t)
	long := strings.Repeat("n", 255)
	for _, name := range []string{"a", long, "sp ace", "new\nline", "\xff\xfe", "..data", "...", "ü", "-", "*"} {
		file(t, filepath.Join(d, name), name)
		text(t, filepath.Join(d, name), name)
	}
	_, err := os.Stat(d + "/" + long + "n")
	want(t, "stat of a name of 256 bytes", err, syscall.ENAMETOOLONG)
	want(t, "mkdir of a name of 256 bytes", unix.Mkdir(d+"/"+long+"n", 0o755), syscall.ENAMETOOLONG)
	_, err = os.Stat(d + "/a/b")
	want(t, "stat below a file", err, syscall.ENOTDIR)
	_, err = os.Stat(d + "/none/b")
	want(t, "stat below nothing", err, syscall.ENOENT)
	want(t, "unlink .", unix.Unlink(d+"/."), syscall.EISDIR)
	want(t, "rmdir .", unix.Rmdir(d+"/."), syscall.EINVAL)
	must(t, os.Mkdir(d+"/deep", 0o755))
	want(t, "rmdir ..", unix.Rmdir(d+"/deep/.."), syscall.ENOTEMPTY)
	if a, b := lstat(t, d), lstat(t, d+"/deep/.."); a.Ino != b.Ino || a.Dev != b.Dev {
		t.Errorf("deep/.. is inode %d of %d, want %d of %d", b.Ino, b.Dev, a.Ino, a.Dev)
	}
}

func TestLookupAfterChange(t *testing.T) {
	d := dir(t)
	name := d + "/x"
	for range 20 {
		if exists(name) {
			t.Fatal("x is there before it was made")
		}
		file(t, name, "1")
		if !exists(name) {
			t.Fatal("x is not there after it was made")
		}
		must(t, os.Remove(name))
		must(t, os.Mkdir(name, 0o755))
		if st := lstat(t, name); st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Fatalf("x has mode %#o, want a directory", st.Mode)
		}
		must(t, os.Remove(name))
	}
}

func TestUnlinkRmdir(t *testing.T) {
	d := dir(t)
	must(t, os.MkdirAll(d+"/full/sub", 0o755))
	file(t, d+"/f", "f")
	want(t, "unlink a directory", unix.Unlink(d+"/full"), syscall.EISDIR)
	want(t, "rmdir a file", unix.Rmdir(d+"/f"), syscall.ENOTDIR)
	want(t, "rmdir a full directory", unix.Rmdir(d+"/full"), syscall.ENOTEMPTY)
	want(t, "unlink nothing", unix.Unlink(d+"/none"), syscall.ENOENT)
	want(t, "rmdir nothing", unix.Rmdir(d+"/none"), syscall.ENOENT)
	want(t, "rmdir", unix.Rmdir(d+"/full/sub"), 0)
	want(t, "rmdir emptied", unix.Rmdir(d+"/full"), 0)
	want(t, "unlink", unix.Unlink(d+"/f"), 0)

	// A file that was unlinked while it was open goes on.
	f, err := os.Create(d + "/gone")
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("before")
	must(t, err)
	must(t, os.Remove(d+"/gone"))
	_, err = f.WriteAt([]byte("after"), 6)
	must(t, err)
	b := make([]byte, 11)
	if n, err := f.ReadAt(b, 0); err != nil || string(b[:n]) != "beforeafter" {
		t.Errorf("an unlinked file reads %q, %v", b[:n], err)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 || st.Size != 11 {
		t.Errorf("an unlinked file has nlink %d and size %d, want 0 and 11", st.Nlink, st.Size)
	}
	want(t, "fchmod of an unlinked file", f.Chmod(0o600), 0)
	want(t, "ftruncate of an unlinked file", f.Truncate(3), 0)
	want(t, "fchown of an unlinked file", f.Chown(1, 2), 0)
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Mode&0o7777 != 0o600 || st.Size != 3 || st.Uid != 1 || st.Gid != 2 {
		t.Errorf("an unlinked file has mode %#o, size %d, owner %d:%d", st.Mode, st.Size, st.Uid, st.Gid)
	}
	// The name is free for another file.
	file(t, d+"/gone", "another")
	if _, err := f.ReadAt(b[:3], 0); err != nil || string(b[:3]) != "bef" {
		t.Errorf("the old file reads %q, %v", b[:3], err)
	}
	text(t, d+"/gone", "another")
}

func TestLink(t *testing.T) {
	d := dir(t)
	file(t, d+"/a", "text")
	must(t, os.Link(d+"/a", d+"/b"))
	if a, b := lstat(t, d+"/a"), lstat(t, d+"/b"); a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
		t.Errorf("links have inodes %d and %d, nlink %d and %d", a.Ino, b.Ino, a.Nlink, b.Nlink)
	}
	want(t, "link over a file", os.Link(d+"/a", d+"/b"), syscall.EEXIST)
	want(t, "link nothing", os.Link(d+"/none", d+"/c"), syscall.ENOENT)
	must(t, os.Mkdir(d+"/dir", 0o755))
	want(t, "link a directory", os.Link(d+"/dir", d+"/c"), syscall.EPERM)
	must(t, os.Symlink("a", d+"/sym"))
	must(t, unix.Linkat(unix.AT_FDCWD, d+"/sym", unix.AT_FDCWD, d+"/sym2", 0))
	if st := lstat(t, d+"/sym2"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Nlink != 2 {
		t.Errorf("a link to a symbolic link has mode %#o, nlink %d", st.Mode, st.Nlink)
	}
	must(t, unix.Mknod(d+"/null", unix.S_IFCHR|0o600, 0))
	must(t, os.Link(d+"/null", d+"/null2")) // as overlayfs does with its whiteouts
	if st := lstat(t, d+"/null"); st.Nlink != 2 {
		t.Errorf("a linked device has nlink %d, want 2", st.Nlink)
	}
	must(t, os.Remove(d+"/a"))
	text(t, d+"/b", "text")
	if st := lstat(t, d+"/b"); st.Nlink != 1 {
		t.Errorf("nlink %d after one of two links went, want 1", st.Nlink)
	}
}

func TestSymlink(t *testing.T) {
	d := dir(t)
	for _, target := range []string{"x", "/absolute/and/dangling", "../../..", strings.Repeat("t/", 500) + "t", "\xff"} {
		name := d + "/link"
		must(t, os.Symlink(target, name))
		if got, err := os.Readlink(name); err != nil || got != target {
			t.Errorf("readlink: %.40q, %v, want %.40q", got, err, target)
		}
		if st := lstat(t, name); st.Size != int64(len(target)) || st.Mode != unix.S_IFLNK|0o777 {
			t.Errorf("a link to %.20q has size %d and mode %#o", target, st.Size, st.Mode)
		}
		must(t, os.Remove(name))
	}
	want(t, "symlink with an empty target", unix.Symlink("", d+"/e"), syscall.ENOENT)
	want(t, "symlink with a target of 4096 bytes", unix.Symlink(strings.Repeat("t", 4096), d+"/e"), syscall.ENAMETOOLONG)
	file(t, d+"/e", "")
	want(t, "symlink over a file", unix.Symlink("x", d+"/e"), syscall.EEXIST)
	_, err := os.Readlink(d + "/e")
	want(t, "readlink of a file", err, syscall.EINVAL)
	must(t, os.Symlink("loop", d+"/loop"))
	_, err = os.Stat(d + "/loop")
	want(t, "stat through a loop", err, syscall.ELOOP)
	// A link's own owner and times.
	must(t, os.Lchown(d+"/loop", 3, 4))
	ts := []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 7, Nsec: 8}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, d+"/loop", ts, unix.AT_SYMLINK_NOFOLLOW))
	if st := lstat(t, d+"/loop"); st.Uid != 3 || st.Gid != 4 || st.Mtim.Sec != 7 || st.Mtim.Nsec != 8 {
		t.Errorf("the link has owner %d:%d and mtime %v", st.Uid, st.Gid, st.Mtim)
	}
}

func TestRename(t *testing.T) {
	const noReplace, exchange, whiteout = unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT
	for _, tt := range []struct {
		name     string
		from, to string
		flags    uint
		errno    syscall.Errno
		left     string // what the tree looks like after it
	}{
		{"file", "f", "new", 0, 0, "dir/ empty/ full/ full/x g new=f"},
		{"file over file", "f", "g", 0, 0, "dir/ empty/ full/ full/x g=f"},
		{"file over directory", "f", "empty", 0, syscall.EISDIR, ""},
		{"file over full directory", "f", "full", 0, syscall.EISDIR, ""},
		{"directory over file", "dir", "f", 0, syscall.ENOTDIR, ""},
		{"directory over empty", "full", "empty", 0, 0, "dir/ empty/ empty/x f g"},
		{"directory over full", "dir", "full", 0, syscall.ENOTEMPTY, ""}, // EEXIST on xfs
		{"directory into itself", "full", "full/y", 0, syscall.EINVAL, ""},
		{"into another directory", "f", "dir/f", 0, 0, "dir/ dir/f empty/ full/ full/x g"},
		{"nothing", "none", "new", 0, syscall.ENOENT, ""},
		{"to a directory that is not there", "f", "none/f", 0, syscall.ENOENT, ""},
		{"below a file", "f", "g/f", 0, syscall.ENOTDIR, ""},
		{"onto itself", "f", "f", 0, 0, "dir/ empty/ f full/ full/x g"},
		{"no replace", "f", "g", noReplace, syscall.EEXIST, ""},
		{"no replace, free", "f", "new", noReplace, 0, "dir/ empty/ full/ full/x g new=f"},
		{"exchange files", "f", "g", exchange, 0, "dir/ empty/ f=g full/ full/x g=f"},
		{"exchange file and directory", "f", "full", exchange, 0, "dir/ empty/ f/ f/x full=f g"},
		{"exchange with nothing", "f", "none", exchange, syscall.ENOENT, ""},
		{"whiteout", "f", "new", whiteout, 0, "dir/ empty/ f! full/ full/x g new=f"},
		{"whiteout over file", "f", "g", whiteout, 0, "dir/ empty/ f! full/ full/x g=f"},
		{"whiteout and exchange", "f", "g", whiteout | exchange, syscall.EINVAL, ""},
		{"no replace and exchange", "f", "g", noReplace | exchange, syscall.EINVAL, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := dir(t)
			for _, name := range []string{"dir", "empty", "full"} {
				must(t, os.Mkdir(d+"/"+name, 0o755))
			}
			file(t, d+"/f", "f")
			file(t, d+"/g", "g")
			file(t, d+"/full/x", "x")
			before := lstat(t, d+"/f")
			err := unix.Renameat2(unix.AT_FDCWD, d+"/"+tt.from, unix.AT_FDCWD, d+"/"+tt.to, tt.flags)
			if tt.errno != syscall.ENOTEMPTY || err != syscall.EEXIST {
				want(t, "rename", err, tt.errno)
			}
			left := tt.left
			if tt.errno != 0 {
				left = "dir/ empty/ f full/ full/x g"
			}
			if got := tree(t, d); got != left {
				t.Errorf("left is\n%s, want\n%s", got, left)
			}
			if tt.errno == 0 && tt.from == "f" {
				if after := lstat(t, d+"/"+tt.to); after.Ino != before.Ino {
					t.Errorf("the file has inode %d at its new name, had %d", after.Ino, before.Ino)
				}
			}
		})
	}
}

// tree lists what is below d: directories with a slash, whiteouts with a mark, and
// files with what they hold if that is not their own name.
func tree(t *testing.T, d string) string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(d, func(name string, e os.DirEntry, err error) error {
		if err != nil || name == d {
			return err
		}
		item, _ := filepath.Rel(d, name)
		switch st := lstat(t, name); st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			item += "/"
		case unix.S_IFCHR:
			item += fmt.Sprintf("!%.0d", st.Rdev)
		default:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if string(b) != e.Name() {
				item += "=" + string(b)
			}
		}
		list = append(list, item)
		return nil
	}))
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestRenameMore(t *testing.T) {
	d := dir(t)
	// Two names of one file: nothing happens.
	file(t, d+"/a", "a")
	must(t, os.Link(d+"/a", d+"/b"))
	want(t, "rename between two links of a file", unix.Rename(d+"/a", d+"/b"), 0)
	if !exists(d+"/a") || !exists(d+"/b") {
		t.Error("a rename between two links of a file removed one")
	}
	// A directory's parents count their children.
	must(t, os.MkdirAll(d+"/p/child", 0o755))
	must(t, os.Mkdir(d+"/q", 0o755))
	links := lstat(t, d+"/q").Nlink
	must(t, os.Rename(d+"/p/child", d+"/q/child"))
	if p, q := lstat(t, d+"/p").Nlink, lstat(t, d+"/q").Nlink; links > 1 && (p != 2 || q != 3) {
		t.Errorf("after a move p has nlink %d and q %d, want 2 and 3", p, q)
	}
	if a, b := lstat(t, d+"/q"), lstat(t, d+"/q/child/.."); a.Ino != b.Ino {
		t.Error(".. of a moved directory is not its new parent")
	}
	// An open file moves on.
	f, err := os.OpenFile(d+"/open", os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer f.Close()
	must(t, os.Rename(d+"/open", d+"/q/moved"))
	_, err = f.WriteString("still")
	must(t, err)
	text(t, d+"/q/moved", "still")
	// A replaced open file lives until it is closed.
	g, err := os.Open(file(t, d+"/victim", "victim"))
	must(t, err)
	defer g.Close()
	must(t, os.Rename(file(t, d+"/winner", "winner"), d+"/victim"))
	b := make([]byte, 6)
	if _, err := g.ReadAt(b, 0); err != nil || string(b) != "victim" {
		t.Errorf("the replaced file reads %q, %v", b, err)
	}
	text(t, d+"/victim", "winner")
}

func TestSpecialFiles(t *testing.T) {
	d := dir(t)
	for _, tt := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"fifo", unix.S_IFIFO | 0o640, 0},
		{"sock", unix.S_IFSOCK | 0o755, 0},
		{"null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)},
		{"whiteout", unix.S_IFCHR, unix.Mkdev(0, 0)},
		{"block", unix.S_IFBLK | 0o660, unix.Mkdev(7, 300)},
		{"big", unix.S_IFCHR | 0o600, unix.Mkdev(0x1ab, 0x2bcde)},
		{"file", unix.S_IFREG | 0o600, 0},
	} {
		umask(0, func() { must(t, unix.Mknod(d+"/"+tt.name, tt.mode, int(tt.dev))) })
		if st := lstat(t, d+"/"+tt.name); st.Mode != tt.mode || st.Rdev != tt.dev {
			t.Errorf("%s: mode %#o and device %#x, want %#o and %#x", tt.name, st.Mode, st.Rdev, tt.mode, tt.dev)
		}
		want(t, "mknod over "+tt.name, unix.Mknod(d+"/"+tt.name, tt.mode, int(tt.dev)), syscall.EEXIST)
	}
	// A fifo joins two programs of the same machine.
	w := make(chan error, 1)
	go func() { w <- os.WriteFile(d+"/fifo", []byte("through"), 0) }()
	text(t, d+"/fifo", "through")
	must(t, <-w)
}
