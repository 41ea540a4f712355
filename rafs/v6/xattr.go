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
	xattrACLAccess   = 2
	xattrACLDefault  = 3
)

// xattr is one extended attribute: the name is prefix and suffix.
type xattr struct {
	prefix        string
	suffix, value []byte
	next          uint64 // offset behind it
}

// xattrStart checks the header of a non-empty xattr area (name filter 0:4,
// shared count 4:1) and returns where the entries begin.
func (im *Image) xattrStart(n *inode) (uint64, error) {
	if shared := im.data[n.xattrs+4]; shared != 0 {
		return 0, rafs.Damaged("xattrs", n.xattrs, "%d shared attributes, want none", shared)
	}
	return n.xattrs + xattrHeaderSize, nil
}

// nextXattr reads the entry at off (name length 0:1, name index 1:1, value size
// 2:2, suffix, value, padding to 4) and reports whether there is one.
func (im *Image) nextXattr(n *inode, off uint64, x *xattr) (bool, error) {
	if n.body-off < xattrEntryHeader {
		return false, nil
	}
	area := im.data[off:n.body]
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
	x.prefix = xattrPrefixes[index]
	x.suffix = area[xattrEntryHeader : xattrEntryHeader+nameLen]
	x.value = area[xattrEntryHeader+nameLen : xattrEntryHeader+nameLen+valueLen]
	x.next = min(off+(xattrEntryHeader+nameLen+valueLen+3)&^3, n.body)
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
	if n.body == n.xattrs {
		return dst, nil
	}
	kept := len(dst)
	off, err := im.xattrStart(&n)
	var x xattr
	for err == nil {
		var more bool
		if more, err = im.nextXattr(&n, off, &x); !more || err != nil {
			break
		}
		dst = append(append(append(dst, x.prefix...), x.suffix...), 0)
		if len(dst)-kept > rafs.MaxXattr {
			return dst[:kept], rafs.ErrTooLong
		}
		off = x.next
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
	if n.body == n.xattrs {
		return dst, rafs.ErrNoXattr
	}
	off, err := im.xattrStart(&n)
	var x xattr
	for err == nil {
		var more bool
		if more, err = im.nextXattr(&n, off, &x); !more || err != nil {
			break
		}
		if p := len(x.prefix); len(name) == p+len(x.suffix) && string(name[:p]) == x.prefix && string(name[p:]) == string(x.suffix) {
			return append(dst, x.value...), nil
		}
		off = x.next
	}
	if err != nil {
		return dst, im.wrap(ino, err)
	}
	return dst, rafs.ErrNoXattr
}
