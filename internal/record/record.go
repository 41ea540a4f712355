// Package record is what a worker leaves behind for the next one: the session
// record. It lies in memory of a process that outlives the worker (the keeper) and
// never on a disk, so that it may hold secrets.
//
//	worker ── Put, Delete ──▶ entries: key, value, descriptors ──▶ Each ── next worker
//	       ── Memory ───────▶ shared memory, by key ─────────────▶ Memory ──
//
// Entries are for what changes seldom (mounts, a FUSE session) and for descriptors
// that must stay open (files that were removed, locks); memory is for tables that
// change with every request, which the worker writes itself and without a system
// call. What is in either is read back by another version of the program at times,
// so each value begins with a version of its own.
package record

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Record outlives the process that writes to it. Its methods are safe for any
// number of goroutines.
type Record interface {
	// Put keeps value, and duplicates of fds, under key, in place of what was
	// there. When it returns, the end of this process loses neither. The arguments
	// stay the caller's.
	Put(key string, value []byte, fds ...int) error

	// Delete forgets key and closes what was kept with it. There may be nothing.
	Delete(key string) error

	// Each calls f for what was there when this process began, with keys that begin
	// with prefix, in order of keys. fds are f's to keep or close.
	Each(prefix string, f func(key string, value []byte, fds []int) error) error

	// Memory returns shared memory of size bytes that is known by key: zeros if
	// there was none, else what an earlier process left, grown if that was smaller.
	// It is mapped for the life of the process, and costs no more than the pages
	// that were touched. DropMemory gives it up, for good.
	Memory(key string, size int64) ([]byte, error)
	DropMemory(key string) error
}

// Limits of a record.
const (
	MaxKey   = 256       // bytes
	MaxValue = 128 << 10 // bytes
	MaxFDs   = 16        // of one entry
)

// ErrTooLarge is wrapped by errors about what does not fit in a record.
var ErrTooLarge = errors.New("too large for the session record")

// Entry is one value of a Store.
type Entry struct {
	Key   string
	Value []byte
	FDs   []int // the Store's
}

// Store is a Record in this process: that of a keeper, and of tests, in which the
// next "process" uses the same Store.
type Store struct {
	mu      sync.Mutex
	entries map[string]*Entry // guarded by mu
	memory  map[string]int    // memfds by key; guarded by mu
	maps    [][]byte          // what Memory mapped; guarded by mu
}

var _ Record = (*Store)(nil)

// NewStore returns an empty Store. Close must be called in the end.
func NewStore() *Store {
	return &Store{entries: make(map[string]*Entry), memory: make(map[string]int)}
}

// Check tells whether an entry keeps to the limits.
func Check(key string, value []byte, fds int) error {
	if key == "" || len(key) > MaxKey || len(value) > MaxValue || fds > MaxFDs {
		return fmt.Errorf("key of %d bytes, value of %d, %d descriptors; at most %d, %d, %d: %w",
			len(key), len(value), fds, MaxKey, MaxValue, MaxFDs, ErrTooLarge)
	}
	return nil
}

// Put implements Record.
func (s *Store) Put(key string, value []byte, fds ...int) error {
	if err := Check(key, value, len(fds)); err != nil {
		return err
	}
	e := &Entry{Key: key, Value: slices.Clone(value)}
	for _, fd := range fds {
		kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			e.close()
			return fmt.Errorf("session record: keep a descriptor for %s: %w", key, err)
		}
		e.FDs = append(e.FDs, kept)
	}
	s.Take(e)
	return nil
}

// Take is Put of an entry whose value and descriptors become the Store's.
func (s *Store) Take(e *Entry) {
	s.mu.Lock()
	old := s.entries[e.Key]
	s.entries[e.Key] = e
	s.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// Delete implements Record.
func (s *Store) Delete(key string) error {
	s.mu.Lock()
	e := s.entries[key]
	delete(s.entries, key)
	s.mu.Unlock()
	if e != nil {
		e.close()
	}
	return nil
}

// Each implements Record. Unlike that of a worker it shows what is there now.
func (s *Store) Each(prefix string, f func(key string, value []byte, fds []int) error) error {
	for _, e := range s.Entries() {
		if !strings.HasPrefix(e.Key, prefix) {
			continue
		}
		own := &Entry{}
		for _, fd := range e.FDs {
			kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				own.close()
				return fmt.Errorf("session record: descriptor of %s: %w", e.Key, err)
			}
			own.FDs = append(own.FDs, kept)
		}
		if err := f(e.Key, slices.Clone(e.Value), own.FDs); err != nil {
			return err
		}
	}
	return nil
}

// Entries returns what is there, in order of keys. It stays the Store's, and is
// valid until the next change.
func (s *Store) Entries() []*Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Entry, 0, len(s.entries))
	for _, e := range s.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *Entry) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

// MemoryFD returns the memfd of the memory that is known by key, of at least size
// bytes. It stays the Store's.
func (s *Store) MemoryFD(key string, size int64) (int, error) {
	if key == "" || len(key) > MaxKey || size <= 0 {
		return -1, fmt.Errorf("session record: memory %.80q of %d bytes: %w", key, size, ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.memory[key]
	if !ok {
		var err error
		if fd, err = unix.MemfdCreate("rafsd-record", unix.MFD_CLOEXEC); err != nil {
			return -1, fmt.Errorf("session record: memfd_create: %w", err)
		}
	}
	err := grow(fd, size)
	if err != nil {
		if !ok {
			_ = unix.Close(fd)
		}
		return -1, fmt.Errorf("session record: memory %s: %w", key, err)
	}
	s.memory[key] = fd
	return fd, nil
}

func grow(fd int, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size >= size {
		return err
	}
	return unix.Ftruncate(fd, size)
}

// Memory implements Record.
func (s *Store) Memory(key string, size int64) ([]byte, error) {
	fd, err := s.MemoryFD(key, size)
	if err != nil {
		return nil, err
	}
	b, err := Map(fd, size)
	if err != nil {
		return nil, fmt.Errorf("session record: memory %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maps = append(s.maps, b)
	return b, nil
}

// Map maps the memory behind fd.
func Map(fd int, size int64) ([]byte, error) {
	return unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
}

// DropMemory implements Record. What is mapped stays so.
func (s *Store) DropMemory(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.memory[key]; ok {
		delete(s.memory, key)
		return unix.Close(fd)
	}
	return nil
}

// Close gives up everything. Memory is not to be used any more.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.entries {
		e.close()
		delete(s.entries, key)
	}
	var err error
	for key, fd := range s.memory {
		err = errors.Join(err, unix.Close(fd))
		delete(s.memory, key)
	}
	for _, b := range s.maps {
		err = errors.Join(err, unix.Munmap(b))
	}
	s.maps = nil
	return err
}

// close closes the descriptors of e, which nobody writes through.
func (e *Entry) close() {
	for _, fd := range e.FDs {
		_ = unix.Close(fd)
	}
	e.FDs = nil
}
