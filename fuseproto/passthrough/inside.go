package passthrough

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// A directory that the host moves out of the tree stays known to the guest, and
// what is put into it later is none of the guest's business. The host tells nobody
// of the move, so a directory in use is asked for its path from time to time. The
// path is only compared, never walked.
//
// Where the root is the root of our own mount namespace (virtiofsd's sandbox) no
// path tells inside from outside: nothing else can be seen from there, and a
// directory that was moved stays the guest's until it is forgotten.

// insideFor is for how long a directory that was inside is taken to be still.
const insideFor = time.Second

// clock is a time that only grows.
func (fs *FS) clock() int64 { return int64(time.Since(fs.began)) + 1 }

// inside tells whether the directory of a descriptor is in the tree.
func (fs *FS) inside(d *descriptor) bool {
	now := fs.clock()
	if seen := d.seen.Load(); seen != 0 && now-seen < int64(insideFor) {
		return true
	}
	a, b := takeBuffer(), takeBuffer()
	defer a.free()
	defer b.free()
	root := fs.pathOf(fs.rootFD, a.b[:unix.PathMax])
	path := fs.pathOf(d.fd, b.b[:unix.PathMax])
	// One that cannot be told (longer than a page, or the root was removed) is not
	// held against the directory.
	if len(root) > 1 && len(path) > 0 && !bytes.HasSuffix(root, deleted) {
		rest, ok := bytes.CutPrefix(path, root)
		if !ok || len(rest) > 0 && rest[0] != '/' {
			return false
		}
	}
	d.seen.Store(now)
	return true
}

var deleted = []byte(" (deleted)")

// pathOf returns the path of a descriptor, or nothing.
func (fs *FS) pathOf(fd int, buf []byte) []byte {
	var name cname
	name.number(fd)
	n, err := readlinkat(fs.procFD, &name, buf)
	if err != nil || n == len(buf) {
		return nil
	}
	return buf[:n]
}
