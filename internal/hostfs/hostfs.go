package hostfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrName reports a file name that is not a single path component.
var ErrName = errors.New("not a plain file name")

// Open opens a path of the host with the flags of open(2); O_CLOEXEC is added.
// Symbolic links are followed: the path is the operator's. Errors are
// *os.PathError.
func Open(path string, flags int, perm fs.FileMode) (*os.File, error) {
	return openat(unix.AT_FDCWD, path, path, flags, perm)
}

// OpenRegular opens a path of the host for reading and refuses whatever is not
// a regular file. It never waits for the other end of a fifo.
func OpenRegular(path string) (*os.File, error) {
	f, err := openat(unix.AT_FDCWD, path, path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := mustBeRegular(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Dir is an open folder. Its methods are safe for concurrent use, except Close.
type Dir struct {
	f *os.File
}

// OpenDir opens the folder at path, following symbolic links.
func OpenDir(path string) (*Dir, error) {
	f, err := openat(unix.AT_FDCWD, path, path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f}, nil
}

// MkdirAll makes the folder at path and its parents where they are missing,
// with mode perm less the process's umask.
func MkdirAll(path string, perm fs.FileMode) error {
	return os.MkdirAll(path, perm)
}

// Path is the path under which the folder was opened, for messages.
func (d *Dir) Path() string { return d.f.Name() }

// Subdir opens the folder name inside d, making it with mode perm if it is
// missing. A symbolic link in its place is refused.
func (d *Dir) Subdir(name string, perm fs.FileMode) (*Dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(d.f.Fd()), name, uint32(perm.Perm())); err != nil && err != unix.EEXIST {
		return nil, &fs.PathError{Op: "mkdir", Path: d.join(name), Err: err}
	}
	f, err := openat(int(d.f.Fd()), name, d.join(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f}, nil
}

// Open opens the file name inside d with the flags of open(2). It refuses
// symbolic links and whatever is not a regular file, and never waits for the
// other end of a fifo.
func (d *Dir) Open(name string, flags int, perm fs.FileMode) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := openat(int(d.f.Fd()), name, d.join(name), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	if err := mustBeRegular(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Remove removes the file name from d. A file that is not there is no error.
func (d *Dir) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(d.f.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: d.join(name), Err: err}
	}
	return nil
}

// Stat describes the folder itself.
func (d *Dir) Stat() (unix.Stat_t, error) { return Stat(d.f) }

// File is the open folder itself, for what wants a descriptor, such as a sync of
// the names in it. It stays the Dir's.
func (d *Dir) File() *os.File { return d.f }

// Close gives the descriptor back.
func (d *Dir) Close() error { return d.f.Close() }

func (d *Dir) join(name string) string { return d.f.Name() + "/" + name }

// Stat describes an open file.
func Stat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

// openat is the seam: what is behind it may one day be another process.
func openat(dir int, name, shown string, flags int, perm fs.FileMode) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, uint32(perm.Perm()))
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), shown), nil
		case unix.EINTR:
		default:
			return nil, &fs.PathError{Op: "open", Path: shown, Err: err}
		}
	}
}

func mustBeRegular(f *os.File) error {
	st, err := Stat(f)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &fs.PathError{Op: "open", Path: f.Name(), Err: fmt.Errorf("not a regular file (mode %#o)", st.Mode)}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%q: %w", name, ErrName)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return fmt.Errorf("%q: %w", name, ErrName)
		}
	}
	return nil
}
