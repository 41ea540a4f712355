package rafs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxBootstrapSize is the largest file that Map accepts: 2 GiB, the limit of the
// v5 format and more than any v6 image in practice.
const MaxBootstrapSize = 0x8000_0000

// Bootstrap is a bootstrap mapped read-only: a file, a part of one (a blob that
// holds its own bootstrap), or what such a part was decompressed to. It may be shared: Retain adds
// a holder, Close removes one, and the last one unmaps.
//
// The bytes belong to whoever can write the file. They are read once, into a
// local, before they are checked and used, and only inside a function that has
// Guard deferred.
type Bootstrap struct {
	data    []byte // the bootstrap; immutable slice, mutable content
	memory  []byte // what is mapped and holds it: the whole file; nil = not mapped
	path    string
	id      FileID
	holders atomic.Int32
	onLast  func() // called once, when the last holder left
}

// FileID tells one state of one file from another.
type FileID struct {
	Dev, Ino     uint64
	Size         int64
	Mtime, Ctime syscall.Timespec
}

// StatFile returns the identity of an open file, which must be a regular one.
func StatFile(f *os.File) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return FileID{}, fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return FileID{}, fmt.Errorf("%w: not a regular file", ErrNotRAFS)
	}
	return FileID{
		Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size,
		Mtime: syscall.Timespec(st.Mtim), Ctime: syscall.Timespec(st.Ctim),
	}, nil
}

// Map maps the whole of f, which the caller may close afterwards. The result
// has one holder. Errors do not repeat the name of the file.
func Map(f *os.File) (*Bootstrap, error) {
	id, err := StatFile(f)
	if err != nil {
		return nil, err
	}
	switch {
	case id.Size == 0:
		return nil, fmt.Errorf("%w: the file is empty", ErrNotRAFS)
	case id.Size > MaxBootstrapSize:
		return nil, fmt.Errorf("%w: %d bytes, a bootstrap has at most %d",
			ErrNotRAFS, id.Size, MaxBootstrapSize)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(id.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	b := &Bootstrap{data: data, memory: data, path: f.Name(), id: id}
	b.holders.Store(1)
	return b, nil
}

// NewBootstrap makes a Bootstrap of bytes in memory, for bootstraps that are not
// files. name is for messages. The result has one holder.
func NewBootstrap(name string, data []byte) *Bootstrap {
	b := &Bootstrap{data: data, path: name, id: FileID{Size: int64(len(data))}}
	b.holders.Store(1)
	return b
}

// Narrow makes the bootstrap a part of the file, [off, off+n), which lies in it.
// It must be called before the Bootstrap is shared.
func (b *Bootstrap) Narrow(off, n uint64) { b.data = b.data[off : off+n : off+n] }

// Replace makes the bootstrap size bytes of memory of its own, outside of the
// heap, which fill fills, and unmaps the file. It must be called before the
// Bootstrap is shared. On failure nothing is changed.
func (b *Bootstrap) Replace(size uint64, fill func(dst []byte) error) error {
	if size == 0 || size > MaxBootstrapSize {
		return fmt.Errorf("%w: %d bytes, a bootstrap has at most %d", ErrNotRAFS, size, MaxBootstrapSize)
	}
	fresh, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("memory for a bootstrap of %d bytes: %w", size, err)
	}
	if err := fill(fresh); err != nil {
		return errors.Join(err, unix.Munmap(fresh))
	}
	old := b.memory
	b.data, b.memory = fresh, fresh
	if old == nil {
		return nil
	}
	return unix.Munmap(old)
}

// Data returns the bytes of the bootstrap. See the type's comment for how to read
// them.
func (b *Bootstrap) Data() []byte { return b.data }

// Path returns the name under which the file was opened.
func (b *Bootstrap) Path() string { return b.path }

// ID returns the identity that the file had when it was mapped.
func (b *Bootstrap) ID() FileID { return b.id }

// Retain adds a holder, unless the last one has left already: then it returns
// false.
func (b *Bootstrap) Retain() bool {
	for {
		n := b.holders.Load()
		if n <= 0 {
			return false
		}
		if b.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// OnLastClose sets what is called when the last holder leaves. It must be set
// before the Bootstrap is shared.
func (b *Bootstrap) OnLastClose(f func()) { b.onLast = f }

// Close removes a holder; the last one unmaps the file.
func (b *Bootstrap) Close() error {
	switch n := b.holders.Add(-1); {
	case n > 0:
		return nil
	case n < 0:
		return errors.New("bootstrap closed more often than opened")
	}
	if b.onLast != nil {
		b.onLast()
	}
	memory := b.memory
	b.data, b.memory = nil, nil
	if memory == nil {
		return nil
	}
	if err := unix.Munmap(memory); err != nil {
		return fmt.Errorf("unmap %s: %w", b.path, err)
	}
	return nil
}

// SHA256 returns the digest of the mapped bytes.
func (b *Bootstrap) SHA256() (sum [32]byte, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	return sha256.Sum256(b.data), nil
}

// Guard ends a function that reads the mapped bytes:
//
//	defer b.Guard(debug.SetPanicOnFault(true), &err)
//
// A fault inside the mapping, which is what reading a page of a truncated file
// is, becomes ErrFault in *err. Every other panic goes on, faults of memory that
// is not this mapping included. It allocates nothing unless there was a fault.
func (b *Bootstrap) Guard(panicOnFault bool, err *error) {
	debug.SetPanicOnFault(panicOnFault)
	r := recover()
	if r == nil {
		return
	}
	if fault, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok && b.contains(fault.Addr()) {
		*err = fmt.Errorf("%s: %w", b.path, ErrFault)
		return
	}
	panic(r)
}

func (b *Bootstrap) contains(addr uintptr) bool {
	if len(b.memory) == 0 {
		return false
	}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(b.memory)))
	return addr >= base && addr-base < uintptr(len(b.memory))
}
