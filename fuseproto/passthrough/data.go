package passthrough

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
)

// buffer is memory of a request that may wait, or that has a value to keep.
type buffer struct{ b []byte }

// smallBuffer holds the longest value of an extended attribute.
const smallBuffer = 64<<10 + 256

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, smallBuffer)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, 1<<20)} }}
)

func takeBuffer() *buffer { return smallBuffers.Get().(*buffer) }

func (b *buffer) free() { smallBuffers.Put(b) }

// Read implements fuseproto.FileSystem. What is in the host's page cache goes from
// there to the guest's memory in one system call; what is not is read by another
// goroutine.
func (fs *FS) Read(op *fuseproto.Op, id uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return err
	}
	defer f.d.release()
	size := int(min(uint64(in.Size), math.MaxInt64-in.Offset))
	if op.MayBlock() && f.reads != readPlain {
		return readCold(f.d.fd, int64(in.Offset), size, out)
	}
	flags := unix.RWF_NOWAIT
	switch {
	case f.reads == readPlain:
		flags = 0
	case f.node.mount.waits.Load():
		return fuseproto.ErrWouldBlock
	}
	segs, err := out.Segments(size)
	if err != nil {
		return err
	}
	v := vectorPool.Get().(*vectors)
	defer v.free()
	n := 0
	for n < size {
		if v.load(segs, n) == 0 {
			break
		}
		var k int
		if flags == unix.RWF_NOWAIT && size-n <= maxCached {
			k, err = v.readCached(f.d.fd, int64(in.Offset)+int64(n))
		} else {
			k, err = v.preadv(f.d.fd, int64(in.Offset)+int64(n), flags)
		}
		switch {
		case err == nil && k == 0:
			size = n // the end of the file
			continue
		case err == nil:
			n += k
			continue
		case flags != 0 && err == unix.EOPNOTSUPP:
			f.node.mount.waits.Store(true)
			return fuseproto.ErrWouldBlock
		case flags != 0 && (err == unix.EAGAIN || err == unix.EINTR):
			return fuseproto.ErrWouldBlock
		}
		return mayFault(err)
	}
	out.Advance(n)
	return nil
}

// readCold reads what is not in the page cache: to private memory first, for the
// guest's must not be held while something is waited for.
func readCold(fd int, off int64, size int, out *fuseproto.Out) error {
	buf := largeBuffers.Get().(*buffer)
	defer largeBuffers.Put(buf)
	if size > len(buf.b) {
		buf.b = make([]byte, size)
	}
	n := 0
	for n < size {
		k, err := unix.Pread(fd, buf.b[n:size], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if k == 0 {
			break
		}
		n += k
	}
	_, err := out.Write(buf.b[:n])
	return err
}

// mayFault turns EFAULT into EIO: it was the guest's memory that is gone, not an
// address of the program that asked.
func mayFault(err error) error {
	if err == unix.EFAULT {
		return unix.EIO
	}
	return err
}

// Write implements fuseproto.FileSystem. Data go from the guest's memory to the
// host's page cache in one system call. A file that is to be synced with each write
// is, by another goroutine and after the guest's memory was let go.
func (fs *FS) Write(op *fuseproto.Op, id uint64, in *fuseproto.WriteIn, data fuseproto.Payload) (uint32, error) {
	if fs.opts.ReadOnly {
		return 0, unix.EROFS
	}
	f, err := fs.regular(op, id, in.Fh)
	if err != nil {
		return 0, err
	}
	defer f.d.release()
	if done := op.Progress(); done > 0 {
		return uint32(done), syncFD(f.d.fd, f.sync == syncData)
	}
	var n uint32
	if f.appends && in.WriteFlags&fuseproto.WriteCache == 0 && fs.writing() {
		n, err = fs.appendOnce(op, f, in, data)
	} else {
		n, err = fs.write(f, in, data, 0)
	}
	if err != nil || f.sync == syncNone || n == 0 {
		return n, err
	}
	if !op.MayBlock() {
		op.SetProgress(uint64(n))
		return 0, fuseproto.ErrWouldBlock
	}
	return n, syncFD(f.d.fd, f.sync == syncData)
}

// rwfNoAppend is RWF_NOAPPEND (Linux 6.9): write at the offset although the file
// was opened for appending.
const rwfNoAppend = 0x20

// write writes what is behind the first done bytes of data, and returns how many bytes
// of it are written then.
func (fs *FS) write(f *file, in *fuseproto.WriteIn, data fuseproto.Payload, done int) (uint32, error) {
	v := vectorPool.Get().(*vectors)
	defer v.free()
	var err error
	if v.segs, err = data.Segments(v.segs[:0]); err != nil {
		return 0, err
	}
	flags := 0
	if f.appends && in.WriteFlags&fuseproto.WriteCache != 0 {
		flags = rwfNoAppend // a dirty page, whichever file it was written back by
	}
	if in.WriteFlags&fuseproto.WriteKillSuidgid == 0 || !hasSetID(f.d.fd) {
		return writeAll(v, f.d.fd, int64(in.Offset), done, data.Len(), flags)
	}
	var n uint32
	err = withoutFsetid(true, func() (err error) {
		n, err = writeAll(v, f.d.fd, int64(in.Offset), done, data.Len(), flags)
		return err
	})
	return n, err
}

// hasSetID tells whether a write has to clear bits of the mode. It is asked for
// with every write of an ordinary user, and most files have none.
func hasSetID(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return true
	}
	return st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// writeAll writes bytes n to size, or as many as it can: an error behind the first byte
// of all is for the next write to find.
func writeAll(v *vectors, fd int, off int64, n, size, flags int) (uint32, error) {
	for n < size {
		if v.load(v.segs, n) == 0 {
			break
		}
		k, err := v.pwritev(fd, off+int64(n), flags)
		if err == unix.EOPNOTSUPP && flags != 0 {
			flags = 0
			continue
		}
		if err != nil {
			if n > 0 {
				break
			}
			return 0, mayFault(err)
		}
		if k == 0 {
			break
		}
		n += k
	}
	return uint32(n), nil
}
