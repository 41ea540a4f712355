package testimage

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMtime is the modification time of everything that was given none,
// except the root: its default is 0, as in the images of the reference builder.
var DefaultMtime = time.Unix(1_700_000_000, 123_456_789)

// Tree is a file system tree in the making. Paths are absolute, components are
// separated by '/', and missing parents are made on the way (0755, root's).
type Tree struct {
	root *node
	err  error // the first mistake; Write reports it
}

// NewTree returns a tree of an empty root directory: 0755, owner 0:0, mtime 0.
func NewTree() *Tree {
	root := newDir()
	root.mtime, root.mtimeNsec = 0, 0
	return &Tree{root: root}
}

// node is an inode. Several names may share one (nlink says how many).
type node struct {
	mode      uint32 // st_mode with the type
	uid, gid  uint32
	nlink     uint32 // names; not used for directories, whose children the plan counts
	rdev      uint32 // devices: as st_rdev of the kernel, 12:20 bits
	mtimeNsec uint32
	mtime     int64
	xattrs    []xattr // sorted by name
	content   Content // regular files
	target    string  // symbolic links
	dir       *directory
}

type xattr struct{ name, value string }

type dirent struct {
	name string
	node *node
}

// directory keeps its entries in the order in which they came; index is there
// from indexFrom entries on.
type directory struct {
	entries []dirent
	index   map[string]*node
}

const indexFrom = 16

func (d *directory) find(name string) *node {
	if d.index != nil {
		return d.index[name]
	}
	for i := range d.entries {
		if d.entries[i].name == name {
			return d.entries[i].node
		}
	}
	return nil
}

func (d *directory) add(name string, n *node) {
	d.entries = append(d.entries, dirent{name, n})
	switch {
	case d.index != nil:
		d.index[name] = n
	case len(d.entries) == indexFrom:
		d.index = make(map[string]*node, 2*indexFrom)
		for _, e := range d.entries {
			d.index[e.name] = e.node
		}
	}
}

// sorted returns the entries by name as unsigned bytes. It does not change d.
func (d *directory) sorted() []dirent {
	byName := func(a, b dirent) int { return strings.Compare(a.name, b.name) }
	if slices.IsSortedFunc(d.entries, byName) {
		return d.entries
	}
	s := slices.Clone(d.entries)
	slices.SortFunc(s, byName)
	return s
}

func newNode(mode uint32) *node {
	return &node{
		mode: mode, nlink: 1,
		mtime: DefaultMtime.Unix(), mtimeNsec: uint32(DefaultMtime.Nanosecond()),
	}
}

func newDir() *node {
	n := newNode(unix.S_IFDIR | 0o755)
	n.dir = &directory{}
	return n
}

func (n *node) kind() uint32 { return n.mode & unix.S_IFMT }

// Attr sets an attribute of a file that is being added.
type Attr func(*node) error

// Mode sets the permission bits, set-id and sticky included (07777). The
// default is 0755 for directories, 0777 for symbolic links, 0644 for the rest.
func Mode(perm uint32) Attr {
	return func(n *node) error {
		if perm&^0o7777 != 0 {
			return fmt.Errorf("mode %#o has more than permission bits", perm)
		}
		n.mode = n.kind() | perm
		return nil
	}
}

// Owner sets uid and gid.
func Owner(uid, gid uint32) Attr {
	return func(n *node) error {
		n.uid, n.gid = uid, gid
		return nil
	}
}

// Mtime sets the modification time, to the nanosecond; times before 1970 are fine.
func Mtime(t time.Time) Attr {
	return func(n *node) error {
		n.mtime, n.mtimeNsec = t.Unix(), uint32(t.Nanosecond())
		return nil
	}
}

// Xattr adds one extended attribute, with its full name ("user.x").
func Xattr(name, value string) Attr {
	return func(n *node) error {
		if _, _, err := splitXattr(name); err != nil {
			return err
		}
		if len(value) > 65535 {
			return fmt.Errorf("xattr %q: value of %d bytes, more than 65535", name, len(value))
		}
		at, found := slices.BinarySearchFunc(n.xattrs, name,
			func(x xattr, name string) int { return strings.Compare(x.name, name) })
		if found {
			return fmt.Errorf("xattr %q is given twice", name)
		}
		n.xattrs = slices.Insert(n.xattrs, at, xattr{name, value})
		return nil
	}
}

// File adds a regular file with the given content, which is not copied.
func (t *Tree) File(path string, content []byte, attrs ...Attr) {
	t.FileOf(path, Bytes(content), attrs...)
}

// SizedFile adds a regular file of size bytes of Pattern(size, seed): its
// content is made when it is needed, repeats, and compresses well.
func (t *Tree) SizedFile(path string, size int64, seed uint64, attrs ...Attr) {
	t.FileOf(path, Pattern(size, seed), attrs...)
}

// FileOf adds a regular file whose content comes from c.
func (t *Tree) FileOf(path string, c Content, attrs ...Attr) {
	n := newNode(unix.S_IFREG | 0o644)
	n.content = c
	t.add(path, n, attrs)
}

// Dir adds a directory, or sets the attributes of one that is there (also "/").
func (t *Tree) Dir(path string, attrs ...Attr) {
	if t.err != nil {
		return
	}
	n, err := t.walk(path, true)
	if err != nil {
		t.fail(path, err)
		return
	}
	t.apply(path, n, attrs)
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(path, target string, attrs ...Attr) {
	n := newNode(unix.S_IFLNK | 0o777)
	n.target = target
	if target == "" || strings.IndexByte(target, 0) >= 0 {
		t.fail(path, fmt.Errorf("link target %q is empty or holds a NUL", target))
		return
	}
	t.add(path, n, attrs)
}

// Device adds a character device, or a block device when block is set.
func (t *Tree) Device(path string, block bool, major, minor uint32, attrs ...Attr) {
	mode := uint32(unix.S_IFCHR)
	if block {
		mode = unix.S_IFBLK
	}
	n := newNode(mode | 0o644)
	n.rdev = encodeDev(major, minor)
	if major > 0xFFF || minor > 0xFFFFF {
		t.fail(path, fmt.Errorf("device %d:%d does not fit in 12:20 bits", major, minor))
		return
	}
	t.add(path, n, attrs)
}

// Fifo adds a named pipe.
func (t *Tree) Fifo(path string, attrs ...Attr) { t.add(path, newNode(unix.S_IFIFO|0o644), attrs) }

// Socket adds a socket.
func (t *Tree) Socket(path string, attrs ...Attr) { t.add(path, newNode(unix.S_IFSOCK|0o644), attrs) }

// Link makes newPath another name of the regular file oldPath. The format keeps
// hard links of regular files only.
func (t *Tree) Link(newPath, oldPath string) {
	if t.err != nil {
		return
	}
	n, err := t.walk(oldPath, false)
	switch {
	case err != nil:
		t.fail(oldPath, err)
	case n.kind() != unix.S_IFREG:
		t.fail(newPath, fmt.Errorf("hard link to %s, which is not a regular file", oldPath))
	default:
		if t.add(newPath, n, nil); t.err == nil {
			n.nlink++
		}
	}
}

// Err returns the first mistake made with the tree, nil if there was none.
func (t *Tree) Err() error { return t.err }

func (t *Tree) fail(path string, err error) {
	if t.err == nil {
		t.err = fmt.Errorf("test image tree, %q: %w", path, err)
	}
}

func (t *Tree) apply(path string, n *node, attrs []Attr) {
	for _, set := range attrs {
		if err := set(n); err != nil {
			t.fail(path, err)
		}
	}
}

// add gives n the name path and applies attrs to it.
func (t *Tree) add(path string, n *node, attrs []Attr) {
	if t.err != nil {
		return
	}
	parentPath, name := cutLast(path)
	if err := checkName(name); err != nil {
		t.fail(path, err)
		return
	}
	parent, err := t.walk(parentPath, true)
	if err != nil {
		t.fail(path, err)
		return
	}
	if parent.dir.find(name) != nil {
		t.fail(path, fs.ErrExist)
		return
	}
	t.apply(path, n, attrs)
	parent.dir.add(name, n)
}

// walk returns the node at path. With makeDirs, what is missing becomes
// directories and the result is a directory or an error.
func (t *Tree) walk(path string, makeDirs bool) (*node, error) {
	n := t.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" {
			continue
		}
		if n.dir == nil {
			return nil, fmt.Errorf("%w: not a directory before %q", fs.ErrInvalid, name)
		}
		next := n.dir.find(name)
		if next == nil {
			if !makeDirs {
				return nil, fs.ErrNotExist
			}
			if err := checkName(name); err != nil {
				return nil, err
			}
			next = newDir()
			n.dir.add(name, next)
		}
		n = next
	}
	if makeDirs && n.dir == nil {
		return nil, fmt.Errorf("%w: not a directory", fs.ErrInvalid)
	}
	return n, nil
}

// cutLast splits path into the part before its last component, and that.
func cutLast(path string) (parent, name string) {
	path = strings.TrimRight(path, "/")
	i := strings.LastIndexByte(path, '/')
	return path[:i+1], path[i+1:]
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is no file name", name)
	case len(name) > 255:
		return fmt.Errorf("name of %d bytes, more than 255", len(name))
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("name %q holds a NUL", name)
	}
	return nil
}

// encodeDev packs a device number as the kernel does in 32 bits.
func encodeDev(major, minor uint32) uint32 {
	return minor&0xFF | major<<8 | minor&^0xFF<<12
}

// splitXattr cuts the prefix off an xattr name and returns its EROFS index.
func splitXattr(name string) (index uint8, suffix string, err error) {
	for _, p := range []struct {
		index  uint8
		prefix string
		whole  bool // the prefix is the name
	}{
		{1, "user.", false},
		{2, "system.posix_acl_access", true},
		{3, "system.posix_acl_default", true},
		{4, "trusted.", false},
		{6, "security.", false},
	} {
		rest, ok := strings.CutPrefix(name, p.prefix)
		if !ok || p.whole != (rest == "") {
			continue
		}
		if len(name) > 255 || strings.IndexByte(name, 0) >= 0 {
			break
		}
		return p.index, rest, nil
	}
	return 0, "", fmt.Errorf("xattr %q: no name that RAFS can hold", name)
}
