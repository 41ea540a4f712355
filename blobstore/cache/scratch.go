package cache

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Scratch is memory in a file of the cache's folder that has no name any more. It
// is nobody else's, so it faults only if the disk does.
type Scratch struct{ b []byte }

var scratches atomic.Uint64 // made by this process

// NewScratch returns n bytes, n > 0. The caller closes it.
func (c *Cache) NewScratch(n int64) (_ *Scratch, err error) {
	name := fmt.Sprintf("scratch-%d-%d", os.Getpid(), scratches.Add(1))
	f, err := c.dir.Open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = errors.Join(c.dir.Remove(name))
	if err == nil {
		// Room is taken now: a full disk is an error here and not a fault later.
		err = unix.Fallocate(int(f.Fd()), 0, 0, n)
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = f.Truncate(n)
		}
		if err != nil {
			err = &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
		}
	}
	var b []byte
	if err == nil {
		b, err = unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		if b != nil {
			err = errors.Join(err, unix.Munmap(b))
		}
		return nil, err
	}
	return &Scratch{b}, nil
}

// Bytes is the memory, zero at first.
func (s *Scratch) Bytes() []byte { return s.b }

// Close gives the memory back. Nothing may use it any more.
func (s *Scratch) Close() error {
	b := s.b
	s.b = nil
	return unix.Munmap(b)
}
