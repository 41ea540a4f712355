package manifest

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"
)

// Type is the kind of a directory entry, as its letter in a manifest.
type Type byte

// The types, by their letters.
const (
	Regular     Type = 'f'
	Directory   Type = 'd'
	Symlink     Type = 'l'
	CharDevice  Type = 'c'
	BlockDevice Type = 'b'
	Fifo        Type = 'p'
	Socket      Type = 's'
)

func (t Type) valid() bool {
	switch t {
	case Regular, Directory, Symlink, CharDevice, BlockDevice, Fifo, Socket:
		return true
	}
	return false
}

func (t Type) hasSize() bool { return t == Regular || t == Symlink }
func (t Type) hasRdev() bool { return t == CharDevice || t == BlockDevice }

// TypeOfMode is the type that the S_IFMT bits of a Unix mode name; ok is false
// for bits that mean none.
func TypeOfMode(mode uint32) (t Type, ok bool) {
	switch mode & 0o170000 {
	case 0o100000:
		return Regular, true
	case 0o040000:
		return Directory, true
	case 0o120000:
		return Symlink, true
	case 0o020000:
		return CharDevice, true
	case 0o060000:
		return BlockDevice, true
	case 0o010000:
		return Fifo, true
	case 0o140000:
		return Socket, true
	}
	return 0, false
}

// Time is a modification time: Sec seconds since 1970, rounded down, and Nsec
// (below 10^9) counted up from there. Mount stands for "the second in which the
// tree was mounted"; Sec is then 0.
type Time struct {
	Sec   int64
	Nsec  uint32
	Mount bool
}

// Xattr is one extended attribute; Name is never empty and holds no NUL.
type Xattr struct {
	Name  string
	Value string
}

// Entry is one path of a tree. Fields that a type does not have (see the package
// comment) are ignored by writing and comparing, and zero after parsing.
type Entry struct {
	Path     string // absolute, "/" is the root
	Type     Type
	Mode     uint16 // below 0o10000
	UID, GID uint32
	Size     uint64
	Major    uint32
	Minor    uint32
	Nlink    uint64
	Mtime    Time
	Target   string
	Hardlink string  // "" if alone
	Xattrs   []Xattr // sorted by name, names differ; SortXattrs makes it so
	SHA256   [sha256.Size]byte
}

// SortXattrs brings e.Xattrs into the order that a manifest has.
func (e *Entry) SortXattrs() {
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
}

// Sort sorts entries in place, bytewise by path.
func Sort(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
}

// InodeKey tells which paths of a tree share an inode.
type InodeKey struct {
	Dev, Ino uint64
}

func (k InodeKey) compare(o InodeKey) int {
	return cmp.Or(cmp.Compare(k.Dev, o.Dev), cmp.Compare(k.Ino, o.Ino))
}

// Collector takes the entries of a tree in any order and works out what only the
// whole tree tells: the order of lines and the groups of hard links. Its zero
// value is ready for use.
type Collector struct {
	entries []Entry
	keys    []inodePath
}

type inodePath struct {
	key  InodeKey
	path string
}

// Add takes one entry; what its Hardlink says is replaced in Entries. Entries with
// equal keys are one group of hard links, except directories, which have none.
func (c *Collector) Add(e Entry, key InodeKey) {
	e.Hardlink = ""
	c.entries = append(c.entries, e)
	if e.Type != Directory {
		c.keys = append(c.keys, inodePath{key, e.Path})
	}
}

// Entries returns all entries, sorted, with Hardlink filled in. The collector is
// empty afterwards.
func (c *Collector) Entries() []Entry {
	entries, keys := c.entries, c.keys
	*c = Collector{}
	slices.SortFunc(keys, func(a, b inodePath) int {
		return cmp.Or(a.key.compare(b.key), strings.Compare(a.path, b.path))
	})
	first := map[string]string{}
	for len(keys) > 0 {
		n := 1
		for n < len(keys) && keys[n].key == keys[0].key {
			n++
		}
		if n > 1 {
			for _, k := range keys[:n] {
				first[k.path] = keys[0].path
			}
		}
		keys = keys[n:]
	}
	for i := range entries {
		if e := &entries[i]; e.Type != Directory {
			e.Hardlink = first[e.Path]
		}
	}
	Sort(entries)
	return entries
}
