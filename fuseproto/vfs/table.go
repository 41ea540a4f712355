package vfs

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
)

// table is the whole tree at one moment. It is immutable once published.
type table struct {
	pages []*page         // mounts by id; nil where all are gone
	root  *mount          // the mount at "/", if any
	dirs  map[uint64]*dir // pseudo directories by index; always has RootID
}

const pageBits = 8

type page [1 << pageBits]*mount

// dir is a pseudo directory. It is immutable once published.
type dir struct {
	index   uint64
	parent  uint64 // index; its own for the root
	path    string
	entries []entry // by cookie
	names   map[string]int
	mtime   time.Time
}

// entry is what a name in a pseudo directory stands for: a mount, or a pseudo
// directory.
type entry struct {
	name   []byte
	cookie uint64
	mount  *mount
	dir    uint64 // index, if mount is nil
}

// Cookies 1 and 2 are those of "." and "..". That of a name is the id of the mount
// that brought it, further on: ids only grow, and a mount brings one name at most to a
// directory. So the process that takes over finds the same.
const firstCookie = 2

// maxCookie keeps cookies below 1<<31 for 32-bit programs, with room for
// overlayCookie.
const maxCookie = 1<<24 - 1

func newTable(pseudo *mount) *table {
	root := &dir{index: fuseproto.RootID, parent: fuseproto.RootID, path: "/", names: make(map[string]int), mtime: time.Now()}
	t := &table{dirs: map[uint64]*dir{fuseproto.RootID: root}}
	t.setMount(0, pseudo)
	return t
}

// clone returns a table that may be changed by the methods below.
func (t *table) clone() *table {
	return &table{pages: slices.Clone(t.pages), root: t.root, dirs: maps.Clone(t.dirs)}
}

// mount returns the mount of that id, or nil.
func (t *table) mount(id uint64) *mount {
	if p := id >> pageBits; p < uint64(len(t.pages)) && t.pages[p] != nil {
		return t.pages[p][id%(1<<pageBits)]
	}
	return nil
}

// find returns the mount that a node id belongs to, or nil, and the index in it.
func (t *table) find(node uint64) (*mount, uint64) {
	if node == fuseproto.RootID && t.root != nil {
		return t.root, t.root.root
	}
	return t.mount(node >> indexBits), node & indexMask
}

// setMount sets or, with nil, removes the mount of that id.
func (t *table) setMount(id uint32, m *mount) {
	p := int(id >> pageBits)
	for len(t.pages) <= p {
		t.pages = append(t.pages, nil)
	}
	fresh := new(page)
	if t.pages[p] != nil {
		*fresh = *t.pages[p]
	}
	fresh[id%(1<<pageBits)] = m
	if *fresh == (page{}) {
		fresh = nil
	}
	t.pages[p] = fresh
}

// change replaces the pseudo directory index by a copy and returns that.
func (t *table) change(index uint64, when time.Time) *dir {
	d := *t.dirs[index]
	if len(d.entries) == 0 || when.After(d.mtime) {
		d.mtime = when
	}
	d.entries, d.names = slices.Clone(d.entries), maps.Clone(d.names)
	t.dirs[index] = &d
	return &d
}

func (d *dir) lookup(name []byte) *entry {
	if i, ok := d.names[string(name)]; ok {
		return &d.entries[i]
	}
	return nil
}

// add adds an entry to a directory that was made by change.
func (d *dir) add(e entry) error {
	i, used := slices.BinarySearchFunc(d.entries, e.cookie, func(o entry, c uint64) int { return cmp.Compare(o.cookie, c) })
	if used || e.cookie <= firstCookie || e.cookie > maxCookie {
		return fmt.Errorf("directory %s: cookie %d is taken or none: %w", d.path, e.cookie, ErrExhausted)
	}
	d.entries = slices.Insert(d.entries, i, e)
	for ; i < len(d.entries); i++ {
		d.names[string(d.entries[i].name)] = i
	}
	return nil
}

// remove removes an entry of a directory that was made by change.
func (d *dir) remove(name string) {
	i := d.names[name]
	d.entries = slices.Delete(d.entries, i, i+1)
	delete(d.names, name)
	for ; i < len(d.entries); i++ {
		d.names[string(d.entries[i].name)] = i
	}
}

// behind returns the entries whose cookies are greater.
func (d *dir) behind(cookie uint64) []entry {
	i, _ := slices.BinarySearchFunc(d.entries, cookie, func(e entry, c uint64) int {
		if e.cookie <= c {
			return -1
		}
		return 1
	})
	return d.entries[i:]
}

func (d *dir) attr() fuseproto.Attr {
	sec, nsec := d.mtime.Unix(), uint32(d.mtime.Nanosecond())
	return fuseproto.Attr{
		Ino: d.index, Mode: syscall.S_IFDIR | 0o755, Nlink: uint32(2 + len(d.entries)), Blksize: 4096,
		Atime: sec, Mtime: sec, Ctime: sec, AtimeNsec: nsec, MtimeNsec: nsec, CtimeNsec: nsec,
	}
}

// place attaches m to the name at the end of its path, making the pseudo
// directories on the way, and tells m its parent and cookies. The path was found free
// before.
func (t *table) place(m *mount) error {
	names := split(m.path)
	at := uint64(fuseproto.RootID)
	m.cookies = make([]uint64, len(names))
	for i, name := range names {
		cookie := firstCookie + uint64(m.id)
		if i < len(m.opts.Cookies) {
			cookie = m.opts.Cookies[i]
		}
		if i == len(names)-1 {
			m.parent, m.cookies[i] = at, cookie
			return t.change(at, m.since).add(entry{name: []byte(name), cookie: cookie, mount: m})
		}
		if e := t.dirs[at].lookup([]byte(name)); e != nil {
			at, m.cookies[i] = e.dir, e.cookie
			continue
		}
		path := "/" + strings.Join(names[:i+1], "/")
		index := t.freeIndex(path)
		t.dirs[index] = &dir{index: index, parent: at, path: path, names: make(map[string]int), mtime: m.since}
		if err := t.change(at, m.since).add(entry{name: []byte(name), cookie: cookie, dir: index}); err != nil {
			return err
		}
		at, m.cookies[i] = index, cookie
	}
	return nil
}

// unplace takes the name of m away, and the pseudo directories that held nothing
// else.
func (t *table) unplace(m *mount) {
	names := split(m.path)
	at := m.parent
	for i := len(names) - 1; i >= 0; i-- {
		d := t.change(at, time.Now())
		d.remove(names[i])
		if len(d.entries) > 0 || at == fuseproto.RootID {
			return
		}
		delete(t.dirs, at)
		at = d.parent
	}
}

// freeIndex returns the index of a pseudo directory to be made at path: a hash of
// it, so that the process which takes over finds the same, and the next free one
// in the case, hardly ever to be seen, that two paths have one hash.
func (t *table) freeIndex(path string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	index := h.Sum64() & indexMask
	for index <= fuseproto.RootID || t.dirs[index] != nil {
		index = (index + 1) & indexMask
	}
	return index
}

// clean returns path in its one spelling.
func clean(path string) (string, error) {
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("mount path %q is not absolute: %w", path, ErrPath)
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("mount path of %d bytes, the most is %d: %w", len(path), maxPath, ErrPath)
	}
	names := split(path)
	for _, name := range names {
		if name == "." || name == ".." || len(name) > maxName || bytes.IndexByte([]byte(name), 0) >= 0 {
			return "", fmt.Errorf("mount path %q has a name %q: %w", path, name, ErrPath)
		}
	}
	return "/" + strings.Join(names, "/"), nil
}

const (
	maxPath = 4095
	maxName = 255
)

// split returns the names of a path.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
