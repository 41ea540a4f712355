// Command workload changes the tree in a directory, the root of an overlay, as the
// programs of a container do. Which files it changes depends on the tree alone, so
// that two overlays over one tree must look alike afterwards.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: workload DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

// lower is what the tree held before, by kind, in order of path.
type lower struct {
	files, links []string
	dirs         []string // with something in them, none below another
}

func look(root string) (l lower, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != root:
			below, err := os.ReadDir(path)
			if err != nil || len(below) == 0 {
				return err
			}
			if len(l.dirs) == 0 || filepath.Dir(path) == root {
				l.dirs = append(l.dirs, path)
			}
		case e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return err
			}
			if info.Size() == 0 {
				return nil
			}
			l.files = append(l.files, path)
		case e.Type() == fs.ModeSymlink:
			l.links = append(l.links, path)
		}
		return nil
	})
	if err == nil && (len(l.files) < 12 || len(l.dirs) < 2 || len(l.links) < 1) {
		err = fmt.Errorf("a tree of %d files, %d folders and %d links is too small", len(l.files), len(l.dirs), len(l.links))
	}
	return l, err
}

// step is one thing that programs do.
type step struct {
	what string
	do   func() error
}

func run(root string) error {
	l, err := look(root)
	if err != nil {
		return err
	}
	// No step finds what another one has removed: files are apart, and none is in the
	// folder that goes.
	last := l.dirs[len(l.dirs)-1]
	files := slices.DeleteFunc(l.files, func(name string) bool { return strings.HasPrefix(name, last+"/") })
	if len(files) < 12 {
		return fmt.Errorf("%d files outside of %s are too few", len(files), last)
	}
	file := func(i int) string { return files[i*len(files)/12] }
	at := func(name string) string { return filepath.Join(root, name) }
	for _, s := range []step{
		{"make a file", func() error { return os.WriteFile(at("created"), []byte("new\n"), 0o640) }},
		{"make folders", func() error { return os.MkdirAll(at("made/deep/er"), 0o751) }},
		{"overwrite a file of the image", func() error { return os.WriteFile(file(0), []byte("over\n"), 0) }},
		{"append to a file of the image", func() error { return appendTo(file(1), "more\n") }},
		{"change the beginning of a file of the image", func() error { return writeAt(file(2), "X") }},
		{"cut a file of the image", func() error { return os.Truncate(file(3), 1) }},
		{"delete a file of the image", func() error { return os.Remove(file(4)) }},
		{"delete and make again", func() error {
			return errors.Join(os.Remove(file(5)), os.WriteFile(file(5), []byte("again\n"), 0o600))
		}},
		{"delete a folder of the image", func() error { return os.RemoveAll(last) }},
		{"make it again", func() error { return os.Mkdir(last, 0o700) }},
		{"put something in it", func() error { return os.WriteFile(last+"/inside", []byte("inside\n"), 0o644) }},
		{"rename a new file", func() error { return os.Rename(at("created"), at("renamed")) }},
		{"rename a file of the image", func() error { return os.Rename(file(6), file(6)+".moved") }},
		{"rename a folder", func() error { return os.Rename(at("made/deep"), at("made/shallow")) }},
		{"rename over a file of the image", func() error { return os.Rename(at("renamed"), file(7)) }},
		{"link a file of the image", func() error { return os.Link(file(8), at("hard")) }},
		{"make a symbolic link", func() error { return os.Symlink("made/shallow", at("soft")) }},
		{"replace a symbolic link of the image", func() error {
			return errors.Join(os.Remove(l.links[0]), os.Symlink("elsewhere", l.links[0]))
		}},
		{"change mode", func() error { return unix.Chmod(file(9), 0o4755) }},
		{"change owner", func() error { return os.Lchown(file(9), 1000, 1001) }},
		{"change times", func() error { return unix.Utimes(file(10), []unix.Timeval{{Sec: 1}, {Sec: 2}}) }},
		{"user attribute", func() error { return unix.Setxattr(file(10), "user.test", []byte("value"), 0) }},
		{"file capability", func() error {
			return unix.Setxattr(file(11), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		}},
		{"fifo, socket and device", func() error {
			return errors.Join(unix.Mkfifo(at("fifo"), 0o600), unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0),
				unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		}},
		{"a file without a name that gets one", func() error { return nameless(root, at("named")) }},
		{"room for a file", func() error { return onFile(at("room"), func(fd int) error { return unix.Fallocate(fd, 0, 0, 1<<16) }) }},
		{"copy a range", func() error { return copyRange(file(8), at("copy")) }},
		{"locks", func() error { return locks(at("lock")) }},
		{"sync", func() error { return onFile(at("synced"), unix.Fsync) }},
		{"many small files", func() error { return many(at("many"), 200) }},
	} {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	// A deleted name is gone, and so it stays.
	if _, err := os.Lstat(file(4)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a deleted file: %w", err)
	}
	names, err := os.ReadDir(last)
	if err != nil || len(names) != 1 {
		return fmt.Errorf("a folder that was made again has %d names: %w", len(names), err)
	}
	return nil
}

func appendTo(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func writeAt(name, text string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	return errors.Join(err, f.Close())
}

func onFile(name string, do func(fd int) error) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString("text\n")
	return errors.Join(err, do(int(f.Fd())), f.Close())
}

func nameless(dir, name string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err == unix.EOPNOTSUPP { // not every kernel has it on every overlay
		return os.WriteFile(name, []byte("text\n"), 0o600)
	}
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte("text\n"))
	return errors.Join(err, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW), unix.Close(fd))
}

func copyRange(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	info, err := in.Stat()
	if err != nil {
		return errors.Join(err, out.Close())
	}
	for left := int(info.Size()); left > 0 && err == nil; {
		var n int
		n, err = unix.CopyFileRange(int(in.Fd()), nil, int(out.Fd()), nil, left, 0)
		if n == 0 && err == nil {
			err = errors.New("it ended early")
		}
		left -= n
	}
	return errors.Join(err, out.Close())
}

func locks(name string) error {
	return onFile(name, func(fd int) error {
		other, err := unix.Open(name, unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer unix.Close(other)
		if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
			return err
		}
		if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			return fmt.Errorf("a second lock: %w", err)
		}
		return unix.Flock(fd, unix.LOCK_UN)
	})
}

func many(dir string, n int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var names []string
	for i := range n {
		name := fmt.Sprintf("%03d", i)
		names = append(names, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		return fmt.Errorf("%d names are listed, want %d", len(got), n)
	}
	for _, name := range names[n/2:] {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
