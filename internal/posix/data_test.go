package posix

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenFlags(t *testing.T) {
	d := dir(t)
	name := file(t, d+"/f", "0123456789")
	must(t, os.Symlink("f", d+"/sym"))
	open := func(name string, flags int) error {
		fd, err := unix.Open(name, flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	want(t, "O_EXCL on a file", open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), syscall.EEXIST)
	want(t, "O_EXCL on a link", open(d+"/sym", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), syscall.EEXIST)
	want(t, "O_NOFOLLOW on a link", open(d+"/sym", unix.O_NOFOLLOW|unix.O_RDONLY), syscall.ELOOP)
	want(t, "O_DIRECTORY on a file", open(name, unix.O_DIRECTORY|unix.O_RDONLY), syscall.ENOTDIR)
	want(t, "writing to a directory", open(d, unix.O_WRONLY), syscall.EISDIR)
	want(t, "O_CREAT on a directory", open(d, unix.O_CREAT|unix.O_RDONLY), syscall.EISDIR)
	want(t, "a name that is not there", open(d+"/none", unix.O_RDONLY), syscall.ENOENT)
	want(t, "O_NOATIME", open(name, unix.O_RDONLY|unix.O_NOATIME), 0)
	want(t, "O_TRUNC", open(name, unix.O_WRONLY|unix.O_TRUNC), 0)
	text(t, name, "")

	// O_APPEND goes to the end, wherever the file was left.
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	g, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer g.Close()
	for i := range 10 {
		_, err = fmt.Fprintf([]io.Writer{f, g}[i%2], "%d", i)
		must(t, err)
	}
	text(t, name, "0123456789")

	r, err := os.Open(name)
	must(t, err)
	defer r.Close()
	_, err = unix.Write(int(r.Fd()), []byte("x"))
	want(t, "writing to a file opened for reading", err, syscall.EBADF)
	_, err = unix.Read(int(f.Fd()), make([]byte, 1))
	want(t, "reading a file opened for writing", err, syscall.EBADF)

	// A file without a name gets one later.
	fd, err := unix.Open(d, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err == syscall.EOPNOTSUPP && os.Getenv("RAFSD_POSIX_DIR") != "" {
		t.Log("this kernel knows no O_TMPFILE for FUSE")
		return
	}
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("named"))
	must(t, err)
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d+"/named", unix.AT_SYMLINK_FOLLOW))
	text(t, d+"/named", "named")
}

func TestTruncate(t *testing.T) {
	d := dir(t)
	name := file(t, d+"/f", "0123456789")
	must(t, os.Truncate(name, 4))
	text(t, name, "0123")
	must(t, os.Truncate(name, 8))
	text(t, name, "0123\x00\x00\x00\x00")
	must(t, os.Truncate(name, 5<<30))
	if st := lstat(t, name); st.Size != 5<<30 {
		t.Errorf("size %d after growing to 5 GiB", st.Size)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("far"), 5<<30-3)
	must(t, err)
	b := make([]byte, 8)
	if n, err := f.ReadAt(b, 5<<30-4); n != 4 || err != io.EOF || string(b[:4]) != "\x00far" {
		t.Errorf("the end of 5 GiB reads %q, %v", b[:n], err)
	}
	must(t, f.Truncate(0))
	r, err := os.Open(name)
	must(t, err)
	defer r.Close()
	want(t, "ftruncate of a file opened for reading", r.Truncate(1), syscall.EINVAL)
	want(t, "truncate of a directory", unix.Truncate(d, 0), syscall.EISDIR)
	want(t, "truncate below zero", unix.Truncate(name, -1), syscall.EINVAL)
}

func TestHolesAndRanges(t *testing.T) {
	d := dir(t)
	f, err := os.Create(d + "/f")
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	want(t, "fallocate", unix.Fallocate(fd, 0, 0, 1<<20), 0)
	want(t, "fallocate and keep the size", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20), 0)
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Size != 1<<20 || st.Blocks*512 < 2<<20 {
		t.Errorf("after fallocate: size %d, %d bytes held", st.Size, st.Blocks*512)
	}
	data := bytes.Repeat([]byte("x"), 1<<20)
	_, err = f.WriteAt(data, 0)
	must(t, err)
	want(t, "punch a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 64<<10, 128<<10), 0)
	clear(data[64<<10 : 192<<10])
	got := make([]byte, 1<<20)
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, data) {
		t.Error("a punched hole is not what reads as zero")
	}
	must(t, f.Sync())
	hole, err := unix.Seek(fd, 0, unix.SEEK_HOLE)
	if err != nil || hole != 64<<10 {
		t.Errorf("SEEK_HOLE: %d, %v, want %d", hole, err, 64<<10)
	}
	if off, err := unix.Seek(fd, hole, unix.SEEK_DATA); err != nil || off != 192<<10 {
		t.Errorf("SEEK_DATA: %d, %v, want %d", off, err, 192<<10)
	}
	_, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA)
	want(t, "SEEK_DATA beyond the end", err, syscall.ENXIO)

	g, err := os.Create(d + "/g")
	must(t, err)
	defer g.Close()
	from, to := int64(100), int64(5000)
	n, err := unix.CopyFileRange(fd, &from, int(g.Fd()), &to, 300000, 0)
	if err != nil || n != 300000 {
		t.Fatalf("copy_file_range: %d, %v", n, err)
	}
	_, err = g.ReadAt(got[:300000], 5000)
	must(t, err)
	if !bytes.Equal(got[:300000], data[100:300100]) {
		t.Error("copy_file_range copied something else")
	}
}

func TestXattrs(t *testing.T) {
	d := dir(t)
	file(t, d+"/f", "f")
	must(t, os.Mkdir(d+"/dir", 0o755))
	must(t, os.Symlink("f", d+"/sym"))
	must(t, unix.Mknod(d+"/dev", unix.S_IFCHR|0o600, 0))
	trusted := os.Getenv("RAFSD_POSIX_NO_TRUSTED") == ""
	for _, tt := range []struct {
		file, name string
		errno      syscall.Errno
	}{
		{"f", "user.a", 0}, {"f", "security.x", 0}, {"f", "trusted.overlay.opaque", 0},
		{"dir", "user.a", 0}, {"dir", "trusted.overlay.opaque", 0},
		{"sym", "trusted.overlay.origin", 0}, {"sym", "user.a", syscall.EPERM},
		{"dev", "trusted.overlay.origin", 0}, {"dev", "user.a", syscall.EPERM},
		{"f", "none.of.all", syscall.EOPNOTSUPP},
	} {
		if !trusted && tt.name[0] == 't' {
			continue
		}
		at := d + "/" + tt.file
		what := tt.name + " of " + tt.file
		want(t, "set "+what, unix.Lsetxattr(at, tt.name, []byte("value"), 0), tt.errno)
		if tt.errno != 0 {
			continue
		}
		b := make([]byte, 64)
		if n, err := unix.Lgetxattr(at, tt.name, b); err != nil || string(b[:n]) != "value" {
			t.Errorf("get %s: %q, %v", what, b[:max(n, 0)], err)
		}
		if n, err := unix.Lgetxattr(at, tt.name, nil); err != nil || n != 5 {
			t.Errorf("size of %s: %d, %v", what, n, err)
		}
		_, err := unix.Lgetxattr(at, tt.name, b[:2])
		want(t, "get "+what+" into 2 bytes", err, syscall.ERANGE)
		if n, err := unix.Llistxattr(at, b); err != nil || !bytes.Contains(b[:n], []byte(tt.name+"\x00")) {
			t.Errorf("list %s: %q, %v", what, b[:max(n, 0)], err)
		}
		want(t, "create "+what+" again", unix.Lsetxattr(at, tt.name, nil, unix.XATTR_CREATE), syscall.EEXIST)
		want(t, "replace "+what, unix.Lsetxattr(at, tt.name, []byte(""), unix.XATTR_REPLACE), 0)
		want(t, "remove "+what, unix.Lremovexattr(at, tt.name), 0)
		want(t, "remove "+what+" again", unix.Lremovexattr(at, tt.name), syscall.ENODATA)
		want(t, "replace "+what+", which is gone", unix.Lsetxattr(at, tt.name, nil, unix.XATTR_REPLACE), syscall.ENODATA)
	}
	want(t, "a value of 64 KiB and 1", unix.Setxattr(d+"/f", "user.big", make([]byte, 65537), 0), syscall.E2BIG)
}

// TestDirectories: big listings are whole, each name once and of the right type,
// and a listing that is cut by changes loses nothing that stays.
func TestDirectories(t *testing.T) {
	const count = 3000
	d := dir(t)
	for i := range count {
		name := fmt.Sprintf("%s/%04d-a-name-that-takes-some-room", d, i)
		if i%50 == 0 {
			must(t, os.Mkdir(name, 0o755))
		} else {
			must(t, os.Symlink("x", name))
		}
	}
	seen := map[string]int{}
	f, err := os.Open(d)
	must(t, err)
	defer f.Close()
	for {
		list, err := f.ReadDir(100)
		if err == io.EOF {
			break
		}
		must(t, err)
		for i, e := range list {
			seen[e.Name()]++
			if e.IsDir() != (e.Name()[2:4] == "00" || e.Name()[2:4] == "50") {
				t.Errorf("%s has type %v", e.Name(), e.Type())
			}
			if i%10 == 5 && !e.IsDir() { // what was listed may go meanwhile
				must(t, os.Remove(d+"/"+e.Name()))
			}
		}
	}
	if len(seen) != count {
		t.Errorf("%d names were listed, want %d", len(seen), count)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s was listed %d times", name, n)
		}
	}
}

// TestConcurrent: many work in one directory at the same time.
func TestConcurrent(t *testing.T) {
	d := dir(t)
	const workers, rounds = 8, 40
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			errs <- func() error {
				for i := range rounds {
					a, b := fmt.Sprintf("%s/%d-%d", d, w, i), fmt.Sprintf("%s/%d-%d.done", d, w, i)
					if err := os.WriteFile(a, []byte(a), 0o644); err != nil {
						return err
					}
					if err := os.Rename(a, b); err != nil {
						return err
					}
					if got, err := os.ReadFile(b); err != nil || string(got) != a {
						return fmt.Errorf("%s holds %q: %w", b, got, err)
					}
					if i%2 == 0 {
						if err := os.Remove(b); err != nil {
							return err
						}
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		must(t, <-errs)
	}
	list, err := os.ReadDir(d)
	if err != nil || len(list) != workers*rounds/2 {
		t.Errorf("%d names are left (%v), want %d", len(list), err, workers*rounds/2)
	}
}

// TestLocks: locks of two programs of one machine exclude each other.
func TestLocks(t *testing.T) {
	d := dir(t)
	f, err := os.Create(d + "/f")
	must(t, err)
	defer f.Close()
	g, err := os.OpenFile(d+"/f", os.O_RDWR, 0)
	must(t, err)
	defer g.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	want(t, "flock of a locked file", unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB), syscall.EWOULDBLOCK)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	want(t, "flock of a free file", unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB), 0)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk))
	over := unix.Flock_t{Type: unix.F_RDLCK, Start: 15, Len: 1}
	want(t, "a lock over another", unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &over), syscall.EAGAIN)
	beside := unix.Flock_t{Type: unix.F_RDLCK, Start: 20, Len: 1}
	want(t, "a lock beside another", unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &beside), 0)
}

func TestSync(t *testing.T) {
	d := dir(t)
	f, err := os.Create(d + "/f")
	must(t, err)
	defer f.Close()
	want(t, "fsync", f.Sync(), 0)
	want(t, "fdatasync", unix.Fdatasync(int(f.Fd())), 0)
	want(t, "syncfs", unix.Syncfs(int(f.Fd())), 0)
	dir, err := os.Open(d)
	must(t, err)
	defer dir.Close()
	want(t, "fsync of a directory", dir.Sync(), 0)
	var st unix.Statfs_t
	must(t, unix.Statfs(d, &st))
	if st.Blocks == 0 || st.Namelen < 255 || st.Bsize == 0 {
		t.Errorf("statfs: %+v", st)
	}
}

// TestExec runs a program from the directory.
func TestExec(t *testing.T) {
	d := dir(t)
	program, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(d+"/program", program, 0o755))
	out, err := exec.Command(d+"/program", "-test.run=^$").CombinedOutput()
	if err != nil {
		t.Errorf("a program run from the directory: %v\n%s", err, out)
	}
	must(t, os.Chmod(d+"/program", 0o644))
	want(t, "a program without the right to be one", exec.Command(d+"/program", "-test.run=^$").Run(), syscall.EACCES)
}

// TestModel does random things to a file and to a model of it in memory, by calls and
// through maps, and compares: what fsx made famous.
func TestModel(t *testing.T) {
	const most = 1 << 20
	d := dir(t)
	rounds := 600
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds = 100_000
	}
	seed := uint64(1)
	rnd := rand.New(rand.NewPCG(seed, 0))
	f, err := os.OpenFile(d+"/f", os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer func() { f.Close() }()
	var model []byte
	resize := func(n int) {
		if n < len(model) {
			model = model[:n]
		}
		for len(model) < n {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	span := func() (off, n int) { return rnd.IntN(most / 2), 1 + rnd.IntN(128<<10) }
	fill := func(n int) []byte {
		b := make([]byte, n)
		x := byte(rnd.Uint32())
		for i := range b {
			b[i] = x + byte(i/7)
		}
		return b
	}
	for i := range rounds {
		off, n := span()
		what := rnd.IntN(10)
		switch what {
		case 0, 1, 2:
			b := fill(n)
			_, err = f.WriteAt(b, int64(off))
			resize(max(len(model), off+n))
			copy(model[off:], b)
		case 3:
			resize(off)
			err = f.Truncate(int64(off))
		case 4: // through a map
			n = min(n, len(model)-off)
			if n <= 0 {
				continue
			}
			from := off &^ 4095
			m, merr := unix.Mmap(int(f.Fd()), int64(from), off+n-from, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, merr)
			b := fill(n)
			copy(m[off-from:], b)
			copy(model[off:], b)
			if rnd.IntN(2) == 0 {
				must(t, unix.Msync(m, unix.MS_SYNC))
			}
			must(t, unix.Munmap(m))
		case 5:
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
			if off < len(model) {
				clear(model[off:min(off+n, len(model))])
			}
		case 6:
			to := rnd.IntN(most/2) + most/2
			n = min(n, len(model)-off, to-off)
			if n <= 0 {
				continue
			}
			a, b := int64(off), int64(to)
			var copied int
			copied, err = unix.CopyFileRange(int(f.Fd()), &a, int(f.Fd()), &b, n, 0)
			resize(max(len(model), to+copied))
			copy(model[to:], model[off:off+copied])
		case 7:
			must(t, f.Close())
			f, err = os.OpenFile(d+"/f", os.O_RDWR, 0)
		case 8:
			err = f.Sync()
		}
		if err != nil {
			t.Fatalf("seed %d round %d: operation %d at %d+%d: %v", seed, i, what, off, n, err)
		}
		if i%20 != 19 && what != 9 {
			continue
		}
		got, rerr := io.ReadAll(io.NewSectionReader(f, 0, most*4))
		must(t, rerr)
		if !bytes.Equal(got, model) {
			at := 0
			for at < min(len(got), len(model)) && got[at] == model[at] {
				at++
			}
			t.Fatalf("seed %d round %d: the file has %d bytes, the model %d; they differ from %d on", seed, i, len(got), len(model), at)
		}
	}
}
