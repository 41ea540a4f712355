package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/hostfs"
)

// maxMapped bounds the address space that data files take in this process. What
// is beyond it is read with pread: a table that claims an address space of
// terabytes costs its readers speed and nobody else anything.
const maxMapped = 8 << 40

var mapped atomic.Int64 // bytes of data files mapped now

// View is one image's sight of an entry: it answers for the chunks that the
// image's table knows, and for no others.
//
// Ready, Data and ReadAt are safe for concurrent use, take no lock and do not
// allocate. They read mapped files: if somebody truncates those, the touch
// faults, and so does the touch of a slice that Data returned. The caller runs
// them under debug.SetPanicOnFault and takes the panic for an error.
//
// No method may run during or after the last Release.
type View struct {
	f     *file
	len   uint32
	ready uint32 // the state word of a chunk that became ready in this boot
	known []uint64
	slots []byte // the map file, shared and writable
	data  []byte // the data file, read-only; nil if it could not be mapped

	refs atomic.Int32

	mu      sync.Mutex
	pending []uint32 // chunks that are ready and wait to become durable; guarded by mu
	drops   uint64   // how often Drop ran; guarded by mu
}

func newView(f *file, s *survey) (*View, error) {
	v := &View{f: f, len: s.len, ready: f.epoch<<2 | stateReady, known: make([]uint64, (s.len+63)/64)}
	v.refs.Store(1)
	var err error
	v.slots, err = unix.Mmap(int(f.slots.Fd()), 0, headerSize+int(s.len)*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: f.slots.Name(), Err: err}
	}
	// The file grows as chunks are written; what is behind its end is mapped all
	// the same and not touched before.
	if n := int64(s.end); n > 0 {
		if mapped.Add(n) > maxMapped {
			mapped.Add(-n)
			return v, nil
		}
		if v.data, err = unix.Mmap(int(f.data.Fd()), 0, int(n), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			mapped.Add(-n)
			v.data = nil
		}
	}
	return v, nil
}

// Retain adds a reference.
func (v *View) Retain() { v.refs.Add(1) }

// Release gives a reference back; the last one unmaps the files and closes them
// if no other view has them.
func (v *View) Release() error {
	if v.refs.Add(-1) > 0 {
		return nil
	}
	v.unmap()
	return v.f.release()
}

func (v *View) unmap() {
	// munmap of a mapping that is there cannot fail.
	_ = unix.Munmap(v.slots)
	if v.data != nil {
		mapped.Add(-int64(len(v.data)))
		_ = unix.Munmap(v.data)
	}
	v.slots, v.data = nil, nil
}

// Entry is the name of the entry in the cache's folder. Views of one Cache with
// the same name share their chunks.
func (v *View) Entry() string { return v.f.name }

func (v *View) learn(i uint32) { v.known[i/64] |= 1 << (i % 64) }

// Knows reports whether the image's table described chunk i at Attach.
func (v *View) Knows(i uint32) bool {
	return i < v.len && v.known[i/64]&(1<<(i%64)) != 0
}

// state is the state word of chunk i < len. The word is in shared memory: all
// access is atomic. The load is an acquire: it orders the bytes of the chunk
// behind the mark that mark stored after it had written them.
func (v *View) state(i uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&v.slots[headerSize+uint64(i)*slotSize]))
}

// Ready reports whether chunk i can be read now.
func (v *View) Ready(i uint32) bool {
	if !v.Knows(i) {
		return false
	}
	w := atomic.LoadUint32(v.state(i))
	return w == v.ready || w == stateDurable
}

// place returns where chunk i of a known index is in the data file. It never
// changes once it is claimed.
func (v *View) place(i uint32) (off uint64, size uint32) {
	p := v.slots[headerSize+uint64(i)*slotSize:]
	return binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint32(p[16:])
}

// Data returns n bytes at off of chunk i, as they lie in the mapped data file,
// or false if the chunk is not ready, has no such bytes, or is not mapped. The
// slice must not be written to.
func (v *View) Data(i, off, n uint32) ([]byte, bool) {
	if !v.Ready(i) {
		return nil, false
	}
	at, size := v.place(i)
	if uint64(off)+uint64(n) > uint64(size) {
		return nil, false
	}
	lo := at + uint64(off)
	if lo > uint64(len(v.data)) || uint64(n) > uint64(len(v.data))-lo {
		return nil, false // not mapped, or the map's place is damaged
	}
	return v.data[lo : lo+uint64(n) : lo+uint64(n)], true
}

// ErrNotReady reports a read of a chunk that is not ready or has no such bytes.
var ErrNotReady = errors.New("not in the cache")

// ReadAt reads len(p) bytes at off of chunk i with pread: the way that needs no
// mapping.
func (v *View) ReadAt(i uint32, p []byte, off uint32) error {
	if !v.Ready(i) {
		return ErrNotReady
	}
	at, size := v.place(i)
	if uint64(off)+uint64(len(p)) > uint64(size) {
		return ErrNotReady
	}
	_, err := v.f.data.ReadAt(p, int64(at)+int64(off))
	return err
}

// Matches reports whether chunk i is claimed as d, which it is unless the table
// changed since Attach.
func (v *View) Matches(i uint32, d *Desc) (ok bool, err error) {
	if !v.Knows(i) {
		return false, nil
	}
	err = Guard(func() error {
		var have Desc
		at := headerSize + uint64(i)*slotSize
		kind, _ := decodeSlot(v.slots[at:at+slotSize], &have)
		ok = kind == kindHere && have == *d
		return nil
	})
	return ok, err
}

// Store writes the verified bytes of chunk i, whole, and marks it ready. It
// waits for the disk.
func (v *View) Store(i uint32, p []byte) error {
	if !v.Knows(i) {
		return ErrNotReady
	}
	return Guard(func() error {
		at, size := v.place(i)
		if int(size) != len(p) {
			return fmt.Errorf("chunk %d has %d bytes, not %d", i, size, len(p))
		}
		if _, err := v.f.data.WriteAt(p, int64(at)); err != nil {
			return err
		}
		v.mark(i)
		return nil
	})
}

// mark makes chunk i, whose bytes are in the data file, visible to all. The
// exchange is a release: whoever sees the mark sees the bytes.
func (v *View) mark(i uint32) {
	for w := v.state(i); ; {
		switch old := atomic.LoadUint32(w); {
		case old == stateDurable || old == v.ready:
			return // another process was faster; the bytes are the same
		case atomic.CompareAndSwapUint32(w, old, v.ready):
			v.f.c.stats.stored.Add(1)
			v.toSync(i)
			return
		}
	}
}

// Drop makes chunk i absent, so that the next reader fetches it anew: for a
// chunk whose bytes turned out not to be readable. If the data file was
// truncated, all chunks go that it lost, before the file grows over them again.
func (v *View) Drop(i uint32) error {
	if !v.Knows(i) {
		return nil
	}
	v.mu.Lock()
	v.drops++
	v.mu.Unlock()
	st, err := hostfs.Stat(v.f.data)
	if err != nil {
		return err
	}
	return Guard(func() error {
		atomic.StoreUint32(v.state(i), stateAbsent)
		if off, size := v.place(i); off+uint64(size) <= uint64(st.Size) {
			return nil
		}
		for k := range v.len {
			if off, size := v.place(k); v.Knows(k) && off+uint64(size) > uint64(st.Size) {
				atomic.StoreUint32(v.state(k), stateAbsent)
			}
		}
		return nil
	})
}

// settle looks at the state in which Attach found chunk i. A mark over bytes
// that are not there cannot be true; a ready mark may have lost the process that
// was to make it durable.
func (v *View) settle(i uint32, d *Desc, state uint32) error {
	if state != v.ready && state != stateDurable {
		return nil
	}
	// The size is asked for after the state was read: whoever set it had written
	// the bytes before.
	st, err := hostfs.Stat(v.f.data)
	if err != nil {
		return err
	}
	if uint64(st.Size) < d.end() {
		return Guard(func() error {
			atomic.CompareAndSwapUint32(v.state(i), state, stateAbsent)
			return nil
		})
	}
	if state == v.ready {
		v.toSync(i)
	}
	return nil
}

// Guard runs fn and turns a fault of memory in it, such as the touch of a mapped
// file that was truncated, into an error.
func Guard(fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err = fmt.Errorf("mapped cache file faults at %#x: it was truncated or its disk fails", r.Addr())
		default:
			panic(r)
		}
	}()
	return fn()
}
