package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
)

// Error says which step failed at which path of a tree.
type Error struct {
	Op   string // the system call or check
	Path string // as in the manifest: "/" is the tree's root
	Err  error  // an unix.Errno where a system call failed
}

func (e *Error) Error() string {
	return manifest.Escape(e.Path) + ": " + e.Op + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Manifest walks the tree below dir, mounts inside it included, and returns an
// entry for each path, sorted. Symbolic links are not followed, except where dir
// itself is one. Every regular file is read whole.
//
// With failed nil the walk ends at the first error and returns it. Else failed is
// told each *Error and the walk goes on without that path (for a directory that
// cannot be listed: without what is in it).
//
// It holds one descriptor for each level of the tree. /proc must be mounted.
func Manifest(dir string, failed func(error)) ([]manifest.Entry, error) {
	w := walker{failed: failed, sum: sha256.New(), buf: make([]byte, 1<<20), xbuf: make([]byte, 64<<10)}
	root, err := openat(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", manifest.Escape(dir), err)
	}
	defer unix.Close(root)
	if err := w.directory(root, "/"); err != nil {
		return nil, err
	}
	return w.tree.Entries(), nil
}

type walker struct {
	tree   manifest.Collector
	failed func(error)
	sum    hash.Hash
	buf    []byte // file content and directory entries
	xbuf   []byte // one xattr value or list, the longest that Linux has
}

// fail decides whether the walk goes on after an error: nil means it does.
func (w *walker) fail(op, path string, err error) error {
	e := &Error{Op: op, Path: path, Err: err}
	if w.failed == nil {
		return e
	}
	w.failed(e)
	return nil
}

// directory adds the open directory fd, whose place in the tree is path, and all
// that is below it.
func (w *walker) directory(fd int, path string) error {
	var st unix.Stat_t
	if err := ignoreEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return w.fail("fstat", path, err)
	}
	e, err := newEntry(path, &st)
	if err == nil && e.Type != manifest.Directory {
		err = errChanged
	}
	if err != nil {
		return w.fail("fstat", path, err)
	}
	if op, err := w.xattrs(&e, fdPath(fd, ".")); err != nil {
		return w.fail(op, path, err)
	}
	w.tree.Add(e, inodeKey(&st))

	names, err := w.list(fd)
	if err != nil {
		return w.fail("getdents", path, err)
	}
	below := path + "/"
	if path == "/" {
		below = path
	}
	for _, name := range names {
		if err := w.entry(fd, name, below+name); err != nil {
			return err
		}
	}
	return nil
}

// list returns the names in a directory without "." and "..". It reads struct
// linux_dirent64 (getdents64(2)) itself, because the library's reader leaves out
// entries whose inode number is 0, which the tree would then hide.
func (w *walker) list(fd int) ([]string, error) {
	const reclenAt, nameAt = 16, 19
	var names []string
	for {
		var n int
		err := ignoreEINTR(func() (err error) { n, err = unix.Getdents(fd, w.buf); return })
		if err != nil || n <= 0 {
			return names, err
		}
		for b := w.buf[:n]; len(b) > nameAt; {
			size := int(binary.NativeEndian.Uint16(b[reclenAt:]))
			if size <= nameAt || size > len(b) {
				return names, fmt.Errorf("record of %d bytes in %d", size, len(b))
			}
			name, _, _ := bytes.Cut(b[nameAt:size], []byte{0})
			if s := string(name); s != "." && s != ".." {
				names = append(names, s)
			}
			b = b[size:]
		}
	}
}

// entry adds the path that is called name in the open directory fd.
func (w *walker) entry(fd int, name, path string) error {
	var st unix.Stat_t
	err := ignoreEINTR(func() error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return w.fail("lstat", path, err)
	}
	e, err := newEntry(path, &st)
	if err != nil {
		return w.fail("lstat", path, err)
	}
	switch e.Type {
	case manifest.Directory:
		sub, err := openat(fd, name, unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return w.fail("open", path, err)
		}
		defer unix.Close(sub)
		return w.directory(sub, path)
	case manifest.Regular:
		if op, err := w.content(&e, fd, name, inodeKey(&st)); err != nil {
			return w.fail(op, path, err)
		}
	case manifest.Symlink:
		if e.Target, err = readlinkat(fd, name); err != nil {
			return w.fail("readlink", path, err)
		}
	}
	if op, err := w.xattrs(&e, fdPath(fd, name)); err != nil {
		return w.fail(op, path, err)
	}
	w.tree.Add(e, inodeKey(&st))
	return nil
}

var errChanged = errors.New("another file took its place")

// content reads the regular file e and sets its digest. The file is opened without
// blocking, for the case that a fifo took its place.
func (w *walker) content(e *manifest.Entry, dir int, name string, want manifest.InodeKey) (op string, err error) {
	fd, err := openat(dir, name, unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return "open", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := ignoreEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return "fstat", err
	}
	if inodeKey(&st) != want {
		return "fstat", errChanged
	}
	w.sum.Reset()
	total := uint64(0)
	for {
		var n int
		err := ignoreEINTR(func() (err error) { n, err = unix.Read(fd, w.buf); return })
		if err != nil {
			return fmt.Sprintf("read at %d", total), err
		}
		if n == 0 {
			break
		}
		w.sum.Write(w.buf[:n])
		total += uint64(n)
	}
	if total != e.Size {
		return "read", fmt.Errorf("ended after %d bytes, its size is %d", total, e.Size)
	}
	w.sum.Sum(e.SHA256[:0])
	return "", nil
}

// xattrs sets the extended attributes of e, which is reached by name. A file
// system without them has none.
func (w *walker) xattrs(e *manifest.Entry, name string) (op string, err error) {
	list, err := w.sized(func(b []byte) (int, error) { return unix.Llistxattr(name, b) })
	if err == unix.ENOTSUP {
		return "", nil
	}
	if err != nil {
		return "listxattr", err
	}
	for _, attr := range bytes.Split([]byte(list), []byte{0}) {
		if len(attr) == 0 { // after the last NUL
			continue
		}
		value, err := w.sized(func(b []byte) (int, error) { return unix.Lgetxattr(name, string(attr), b) })
		if err != nil {
			return "getxattr " + manifest.Escape(string(attr)), err
		}
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: string(attr), Value: value})
	}
	e.SortXattrs()
	return "", nil
}

// sized calls one of the xattr calls with the largest buffer that any may need.
func (w *walker) sized(call func([]byte) (int, error)) (string, error) {
	var n int
	err := ignoreEINTR(func() (err error) { n, err = call(w.xbuf); return })
	if err != nil {
		return "", err
	}
	return string(w.xbuf[:n]), nil
}

func newEntry(path string, st *unix.Stat_t) (manifest.Entry, error) {
	typ, ok := manifest.TypeOfMode(st.Mode)
	if !ok {
		return manifest.Entry{}, fmt.Errorf("mode %o has no known type", st.Mode)
	}
	if st.Size < 0 {
		return manifest.Entry{}, fmt.Errorf("size %d is negative", st.Size)
	}
	return manifest.Entry{
		Path:  path,
		Type:  typ,
		Mode:  uint16(st.Mode & 0o7777),
		UID:   st.Uid,
		GID:   st.Gid,
		Size:  uint64(st.Size),
		Major: unix.Major(st.Rdev),
		Minor: unix.Minor(st.Rdev),
		Nlink: uint64(st.Nlink), // 32 bits on arm64
		Mtime: manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}, nil
}

func inodeKey(st *unix.Stat_t) manifest.InodeKey {
	return manifest.InodeKey{Dev: st.Dev, Ino: st.Ino}
}

// fdPath names an entry of the open directory fd by way of /proc, for system calls
// that take a path only. The last part is not followed by the l* calls.
func fdPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = ignoreEINTR(func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return
	})
	return fd, err
}

// readlinkat reads a target whole: one that fills the buffer may have been cut.
func readlinkat(dir int, name string) (string, error) {
	for size := 4096; ; size *= 2 {
		b := make([]byte, size)
		var n int
		err := ignoreEINTR(func() (err error) { n, err = unix.Readlinkat(dir, name, b); return })
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// ignoreEINTR calls again what a signal interrupted: the Go runtime sends them to
// its own threads, and FUSE waits are interruptible.
func ignoreEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
