package passthrough

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// Path returns the path of a node in the directory that is shown, "/" for the root; or
// "" if it is not known, or no descriptor of the file is open at the moment: nothing is
// opened for it, so that nothing is waited for.
func (fs *FS) Path(node uint64) string {
	s := fs.session.Load()
	if node == fuseproto.RootID {
		return "/"
	}
	if s == nil {
		return ""
	}
	n := s.nodes.get(node)
	if n == nil {
		return ""
	}
	d := takeFrom(&n.path)
	if d == nil {
		d = fs.borrow(n)
	}
	if d == nil {
		return ""
	}
	defer d.release()
	a, b := takeBuffer(), takeBuffer()
	defer a.free()
	defer b.free()
	root, path := fs.pathOf(fs.rootFD, a.b[:unix.PathMax]), fs.pathOf(d.fd, b.b[:unix.PathMax])
	rest, ok := bytes.CutPrefix(path, bytes.TrimSuffix(root, []byte("/")))
	if !ok || len(rest) == 0 || rest[0] != '/' {
		return ""
	}
	return string(rest)
}
