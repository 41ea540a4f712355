package v5

import (
	"bytes"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
)

// nextXattr reads the pair at off (size 0:4; name, NUL, value) and reports
// whether there is one. name is the full name.
func (im *Image) nextXattr(n *inode, off uint64, name, value *[]byte) (next uint64, more bool, err error) {
	left := n.xattrs.end() - off
	if left == 0 {
		return off, false, nil
	}
	if left < 4 {
		return off, false, rafs.Damaged("xattrs", off, "%d bytes behind the last pair", left)
	}
	size := uint64(le.Uint32(im.data[off:]))
	if size > left-4 {
		return off, false, rafs.Damaged("xattrs", off, "a pair of %d bytes, %d are left", size, left-4)
	}
	pair := im.data[off+4 : off+4+size]
	end := bytes.IndexByte(pair, 0)
	if end <= 0 || end > rafs.MaxName {
		return off, false, rafs.Damaged("xattrs", off, "a pair without a name of 1 to %d bytes", rafs.MaxName)
	}
	*name, *value = pair[:end], pair[end+1:]
	return off + 4 + size, true, nil
}

// XattrNames implements rafs.Image.
func (im *Image) XattrNames(ino uint64, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.first(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	kept := len(dst)
	var name, value []byte
	for off := n.xattrs.off; ; {
		next, more, err := im.nextXattr(&n, off, &name, &value)
		if err != nil {
			return dst[:kept], im.wrap(ino, err)
		}
		if !more {
			return dst, nil
		}
		dst = append(append(dst, name...), 0)
		if len(dst)-kept > rafs.MaxXattr {
			return dst[:kept], rafs.ErrTooLong
		}
		off = next
	}
}

// Xattr implements rafs.Image.
func (im *Image) Xattr(ino uint64, want, dst []byte) (_ []byte, err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	if err := im.first(ino, &n); err != nil {
		return dst, im.wrap(ino, err)
	}
	var name, value []byte
	for off := n.xattrs.off; ; {
		next, more, err := im.nextXattr(&n, off, &name, &value)
		if err != nil {
			return dst, im.wrap(ino, err)
		}
		if !more {
			return dst, rafs.ErrNoXattr
		}
		if bytes.Equal(name, want) {
			if len(value) > rafs.MaxXattr {
				return dst, rafs.ErrTooLong
			}
			return append(dst, value...), nil
		}
		off = next
	}
}
