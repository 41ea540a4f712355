package testimage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FromDir returns the tree of the host directory dir, as the reference builder
// takes it: all attributes and xattrs as they are, the root's mtime 0, hard
// links only of regular files. Content is read when the tree is written.
func FromDir(dir string) (*Tree, error) {
	t := NewTree()
	links := map[[2]uint64]*node{}
	if err := copyHostDir(dir, t.root, links); err != nil {
		return nil, fmt.Errorf("test image tree from %s: %w", dir, err)
	}
	if err := hostAttrs(dir, t.root, new(unix.Stat_t)); err != nil {
		return nil, fmt.Errorf("test image tree from %s: %w", dir, err)
	}
	t.root.mtime, t.root.mtimeNsec = 0, 0
	return t, nil
}

func copyHostDir(path string, into *node, links map[[2]uint64]*node) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := filepath.Join(path, e.Name())
		n := &node{nlink: 1}
		var st unix.Stat_t
		if err := hostAttrs(child, n, &st); err != nil {
			return err
		}
		switch n.kind() {
		case unix.S_IFDIR:
			n.dir = &directory{}
			if err := copyHostDir(child, n, links); err != nil {
				return err
			}
		case unix.S_IFLNK:
			if n.target, err = os.Readlink(child); err != nil {
				return err
			}
		case unix.S_IFREG:
			id := [2]uint64{uint64(st.Dev), st.Ino}
			if first := links[id]; first != nil {
				first.nlink++
				into.dir.add(e.Name(), first)
				continue
			}
			if st.Nlink > 1 {
				links[id] = n
			}
			n.content = hostFile{child, st.Size}
		}
		into.dir.add(e.Name(), n)
	}
	return nil
}

// hostAttrs fills what lstat and the xattrs of path say into n, and st.
func hostAttrs(path string, n *node, st *unix.Stat_t) error {
	if err := unix.Lstat(path, st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	n.mode, n.uid, n.gid = st.Mode, st.Uid, st.Gid
	n.mtime, n.mtimeNsec = int64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	if k := n.kind(); k == unix.S_IFCHR || k == unix.S_IFBLK {
		n.rdev = encodeDev(unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	names := make([]byte, 65536)
	size, err := unix.Llistxattr(path, names)
	if err == unix.ENOTSUP {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 65536)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		if err := Xattr(name, string(value[:size]))(n); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
