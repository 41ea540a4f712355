package v6

import (
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

// xattrPrefixes are the beginnings of names by name index; index 5 (Lustre) and
// the long prefixes of later EROFS (bit 7) do not occur in RAFS.
var xattrPrefixes = [...]string{
	1: "user.",
	2: "system.posix_acl_access",
	3: "system.posix_acl_default",
	4: "trusted.",
	5: "",
	6: "security.",
}

const (
	xattrEntryHeader = 4
	sharedIDSize     = 4
	xattrACLAccess   = 2
	xattrACLDefault  = 3
)

// xattr is one extended attribute: the name is prefix and suffix.
type xattr struct {
	prefix        string
	suffix, value []byte
	off, next     uint64 // where it is, and what is behind it
}

// xattrList is a walk over the attributes of an inode: first those in its own
// area, then those that it shares with others.
type xattrList struct {
	off, end uint64 // of the entries in the area that are left
	ids      uint64 // offset of the next id of a shared one
	shared   uint64 // ids that are left
}

// xattrsOf begins at the first attribute of an inode. Area: name filter 0:4,
// number of shared attributes 4:1, at 12 their ids of 4 bytes, then entries. The
// id of a shared one is its distance from the shared area in units of 4 bytes.
func (im *Image) xattrsOf(n *inode) (l xattrList, err error) {
	if n.body == n.xattrs {
		return l, nil
	}
	l.ids, l.end = n.xattrs+xattrHeaderSize, n.body
	l.shared = uint64(im.data[n.xattrs+4])
	l.off = l.ids + l.shared*sharedIDSize
	switch {
	case l.shared != 0 && im.xattrs == 0:
		return l, rafs.Damaged("xattrs", n.xattrs, "%d shared attributes in an image that shares none", l.shared)
	case l.off > l.end:
		return l, rafs.Damaged("xattrs", n.xattrs, "%d shared attributes in an area of %d bytes", l.shared, n.body-n.xattrs)
	}
	return l, nil
}

// nextXattr moves on to the next attribute and reports whether there is one.
func (im *Image) nextXattr(l *xattrList, x *xattr) (bool, error) {
	if more, err := im.readXattr(l.off, l.end, x); more || err != nil {
		l.off = x.next
		return more, err
	}
	l.off = l.end
	if l.shared == 0 {
		return false, nil
	}
	at, size := l.ids, uint64(len(im.data))
	id := uint64(le.Uint32(im.data[at:]))
	l.shared, l.ids = l.shared-1, at+sharedIDSize
	off := im.xattrs + id*sharedIDSize
	if off >= size {
		return false, rafs.Damaged("xattrs", at, "shared attribute %d at %#x lies behind the end", id, off)
	}
	more, err := im.readXattr(off, size, x)
	if err == nil && !more {
		err = rafs.Damaged("xattrs", at, "shared attribute %d at %#x is none", id, off)
	}
	return more, err
}

// readXattr reads the entry at off (name length 0:1, name index 1:1, value size
// 2:2, suffix, value, padding to 4), which ends before end, and reports whether
// there is one.
func (im *Image) readXattr(off, end uint64, x *xattr) (bool, error) {
	if end-off < xattrEntryHeader {
		return false, nil
	}
	area := im.data[off:end]
	nameLen, index := uint64(area[0]), int(area[1])
	valueLen := uint64(le.Uint16(area[2:]))
	if nameLen == 0 && index == 0 && valueLen == 0 {
		return false, nil // padding of the area
	}
	if index >= len(xattrPrefixes) || xattrPrefixes[index] == "" {
		return false, rafs.Damaged("xattrs", off, "name index %d", index)
	}
	if acl := index == xattrACLAccess || index == xattrACLDefault; acl != (nameLen == 0) {
		return false, rafs.Damaged("xattrs", off, "name index %d with %d bytes of name", index, nameLen)
	}
	if xattrEntryHeader+nameLen+valueLen > uint64(len(area)) {
		return false, rafs.Damaged("xattrs", off, "%d bytes of name and %d of value in an area of %d", nameLen, valueLen, len(area))
	}
	x.off = off
	x.prefix = xattrPrefixes[index]
	x.suffix = area[xattrEntryHeader : xattrEntryHeader+nameLen]
	x.value = area[xattrEntryHeader+nameLen : xattrEntryHeader+nameLen+valueLen]
	x.next = min(off+(xattrEntryHeader+nameLen+valueLen+3)&^3, end)
	for _, c := range x.suffix {
		if c == 0 {
			return false, rafs.Damaged("xattrs", off, "a NUL in a name")
		}
	}
	return true, nil
}

// XattrNames implements rafs.Image.
func (im *Image) XattrNames(ino uint64, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.inode(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	kept := len(dst)
	l, err := im.xattrsOf(&n)
	var x xattr
	for err == nil {
		var more bool
		if more, err = im.nextXattr(&l, &x); !more || err != nil {
			break
		}
		dst = append(append(append(dst, x.prefix...), x.suffix...), 0)
		if len(dst)-kept > rafs.MaxXattr {
			return dst[:kept], rafs.ErrTooLong
		}
	}
	if err != nil {
		return dst[:kept], im.wrap(ino, err)
	}
	return dst, nil
}

// Xattr implements rafs.Image.
func (im *Image) Xattr(ino uint64, name, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.inode(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	l, err := im.xattrsOf(&n)
	var x xattr
	for err == nil {
		var more bool
		if more, err = im.nextXattr(&l, &x); !more || err != nil {
			break
		}
		if p := len(x.prefix); len(name) == p+len(x.suffix) && string(name[:p]) == x.prefix && string(name[p:]) == string(x.suffix) {
			return append(dst, x.value...), nil
		}
	}
	if err != nil {
		return dst, im.wrap(ino, err)
	}
	return dst, rafs.ErrNoXattr
}
