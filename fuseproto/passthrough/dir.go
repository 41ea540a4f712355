package passthrough

import (
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// listing is the state of an open directory: entries that the host has told and
// the guest has not asked for yet. Cookies are the host's own, so that a listing
// can go on anywhere, with another handle too.
type listing struct {
	mu   sync.Mutex // held while a request lists; no other lock is held then
	buf  *dirBuffer // nil between listings
	rest []byte     // records of buf that are not told yet
	next uint64     // the cookie that rest goes on behind
	at   uint64     // the cookie that the descriptor stands behind
}

// dirBuffer is as much as one system call lists.
type dirBuffer [16 << 10]byte

var dirBuffers = sync.Pool{New: func() any { return new(dirBuffer) }}

func (l *listing) drop() {
	l.mu.Lock()
	l.dropLocked()
	l.mu.Unlock()
}

func (l *listing) dropLocked() {
	if l.buf != nil {
		dirBuffers.Put(l.buf)
		l.buf, l.rest = nil, nil
	}
}

// OpenDir implements fuseproto.FileSystem.
func (fs *FS) OpenDir(op *fuseproto.Op, id uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	s, n, err := fs.dir(op, id)
	if err != nil {
		return err
	}
	r := fs.run(op)
	if fs.openedBefore(&r, id) {
		out.Fh = r.fh
		fs.keepListing(out)
		return nil
	}
	if err := fs.openOne(); err != nil {
		return err
	}
	fd, err := fs.openDir(n, in.Flags)
	if err == nil {
		out.Fh, err = fs.addFile(s, n, fd, &file{dir: new(listing), flags: int(in.Flags) & unix.O_NOATIME})
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		fs.files.Add(-1)
		return err
	}
	fs.keepListing(out)
	return r.result(nil, 0, out.Fh)
}

// keepListing says whether the guest may keep the listing.
func (fs *FS) keepListing(out *fuseproto.OpenOut) {
	if fs.opts.Cache == CacheAlways {
		out.Flags = fuseproto.FOpenKeepCache | fuseproto.FOpenCacheDir
	}
}

func (fs *FS) openDir(n *node, in uint32) (int, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	if fs.opts.PreserveNoatime {
		flags |= int(in) & unix.O_NOATIME
	}
	h, err := fs.hold(n)
	if err != nil {
		return -1, err
	}
	defer h.release()
	return fs.reopenFD(h.fd, flags)
}

// ReleaseDir implements fuseproto.FileSystem.
func (fs *FS) ReleaseDir(op *fuseproto.Op, id uint64, in *fuseproto.ReleaseIn) error {
	return fs.closeFile(op, id, in.Fh, true)
}

// ReadDir implements fuseproto.FileSystem. A name that cannot be looked up is told
// without attributes: none is ever left out.
func (fs *FS) ReadDir(op *fuseproto.Op, id uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	f, err := fs.listed(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	s, err := fs.of(op)
	if err != nil {
		return err
	}
	if in.Offset > 1<<63-1 {
		return unix.EINVAL
	}
	if f.node != fs.root && !fs.inside(f.d) {
		return unix.ESTALE
	}
	l := f.dir
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf == nil || l.next != in.Offset || in.Offset == 0 {
		l.rest, l.next = nil, in.Offset
	}
	for {
		if len(l.rest) == 0 {
			more, err := l.fill(f.d.fd)
			if err != nil || !more {
				l.dropLocked()
				return err
			}
		}
		d, size, ok := decodeDirent(l.rest)
		if !ok {
			l.dropLocked()
			return unix.EIO
		}
		if !fs.tell(s, f, &d, out) {
			return nil
		}
		l.rest, l.next = l.rest[size:], d.Off
	}
}

// fill asks the host for the entries behind l.next. It returns false at the end.
func (l *listing) fill(fd int) (bool, error) {
	if l.buf == nil {
		l.buf = dirBuffers.Get().(*dirBuffer)
	}
	if l.next != l.at || l.next == 0 {
		if _, err := unix.Seek(fd, int64(l.next), unix.SEEK_SET); err != nil {
			return false, err
		}
	}
	n, err := getdents(fd, l.buf[:])
	if err != nil {
		l.at = ^uint64(0)
		return false, err
	}
	l.rest = l.buf[:n]
	l.at = l.next
	for b := l.rest; len(b) > 0; {
		d, size, ok := decodeDirent(b)
		if !ok {
			break
		}
		l.at, b = d.Off, b[size:]
	}
	return n > 0, nil
}

// decodeDirent decodes the first struct linux_dirent64 of b.
func decodeDirent(b []byte) (d fuseproto.DirEntry, size int, ok bool) {
	const head = 19
	if len(b) < head+1 {
		return d, 0, false
	}
	size = int(binary.NativeEndian.Uint16(b[16:]))
	if size < head+1 || size > len(b) {
		return d, 0, false
	}
	d.Ino, d.Off, d.Type = binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:]), b[18]
	name := b[head:size]
	for i, c := range name {
		if c == 0 {
			d.Name = name[:i]
			return d, size, true
		}
	}
	return d, 0, false
}

// tell adds one entry and says whether it fit.
func (fs *FS) tell(s *session, f *file, d *fuseproto.DirEntry, out *fuseproto.DirWriter) bool {
	d.Ino = fs.ino(f.node.mount, f.node.dev, d.Ino)
	if n := len(d.Name); n == 1 && d.Name[0] == '.' || n == 2 && d.Name[0] == '.' && d.Name[1] == '.' {
		d.Type = fuseproto.DTDir
		return out.Add(*d)
	}
	var name cname
	if name.set(d.Name) != nil {
		return true // the host's file system is broken; the guest would refuse the whole listing
	}
	if out.Plus() {
		var e fuseproto.Entry
		if fs.entry(s, f.node, f.d.fd, &name, &e) == nil {
			d.Ino, d.Type = e.Attr.Ino, fileType(e.Attr.Mode)
			if out.AddPlus(*d, &e) {
				return true
			}
			fs.forget(s, e.Node, 1)
			return false
		}
	}
	if d.Type == unix.DT_UNKNOWN {
		var st unix.Statx_t
		if statName(f.d.fd, &name, &st) == nil {
			d.Type = fileType(uint32(st.Mode))
		}
	}
	return out.Add(*d)
}
