package guestmem

import (
	"fmt"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// granule is what all addresses and sizes of a region are multiples of. It is
// the smallest page size of any guest, whatever the host's is.
const granule = 4096

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

// mapping is one mapped region, shared by all Tables that have it.
type mapping struct {
	Region
	file  fileID
	mem   []byte // the region
	whole []byte // what was mapped: mem and what alignment put before and behind it
	refs  atomic.Int64
}

// check tests what can be tested without looking at other regions or the file.
func (r Region) check() error {
	switch {
	case r.Size == 0:
		return fmt.Errorf("%v: empty: %w", r, ErrRegion)
	case r.Size%granule != 0 || uint64(r.GPA)%granule != 0 || uint64(r.UVA)%granule != 0 || uint64(r.Offset)%granule != 0:
		return fmt.Errorf("%v: not in multiples of %d: %w", r, granule, ErrRegion)
	case uint64(r.GPA) > math.MaxUint64-(r.Size-1):
		return fmt.Errorf("%v: guest addresses wrap: %w", r, ErrRegion)
	case uint64(r.UVA) > math.MaxUint64-(r.Size-1):
		return fmt.Errorf("%v: user addresses wrap: %w", r, ErrRegion)
	case uint64(r.Offset) > math.MaxInt64-r.Size || r.Size > math.MaxInt64:
		return fmt.Errorf("%v: file offsets overflow: %w", r, ErrRegion)
	}
	return nil
}

// overlaps reports whether r and s share a guest address. Both were checked.
func (r Region) overlaps(s Region) bool {
	return uint64(r.GPA)-uint64(s.GPA) < s.Size || uint64(s.GPA)-uint64(r.GPA) < r.Size
}

// identify checks that the descriptor's file can hold the region.
func identify(s Source) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(s.FD, &st); err != nil {
		return fileID{}, fmt.Errorf("%v: fstat: %w", s.Region, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, fmt.Errorf("%v: file mode %#o is not a regular file's: %w", s.Region, st.Mode, ErrRegion)
	}
	// Beyond the end of the file every access would fault.
	if end := uint64(s.Offset) + s.Size; end > uint64(st.Size) {
		return fileID{}, fmt.Errorf("%v: file has %#x bytes, region ends at %#x: %w", s.Region, st.Size, end, ErrRegion)
	}
	return fileID{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// alignment returns what the offset and length of a mapping of fd must be
// multiples of: the size of a huge page on hugetlbfs, else that of a page.
func alignment(fd int) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	if fs.Type == unix.HUGETLBFS_MAGIC && fs.Bsize > 0 {
		return uint64(fs.Bsize), nil
	}
	return uint64(os.Getpagesize()), nil
}

// newMapping maps s, whose region and file were checked.
func newMapping(s Source, file fileID) (*mapping, error) {
	align, err := alignment(s.FD)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", s.Region, err)
	}
	lead := uint64(s.Offset) % align
	length := s.Size + lead
	if tail := length % align; tail != 0 {
		length += align - tail
	}
	whole, err := unix.Mmap(s.FD, int64(uint64(s.Offset)-lead), int(length),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("%v: mmap of %#x bytes: %w", s.Region, length, err)
	}
	// A core dump without the guest's memory is a wish, not a need.
	_ = unix.Madvise(whole, unix.MADV_DONTDUMP)
	m := &mapping{Region: s.Region, file: file, mem: whole[lead : lead+s.Size : lead+s.Size], whole: whole}
	m.refs.Store(1)
	return m, nil
}

// release gives up one reference; the last one unmaps.
func (m *mapping) release() {
	if m.refs.Add(-1) != 0 {
		return
	}
	if err := unix.Munmap(m.whole); err != nil {
		// Only our own mistake can cause this, and going on would hand the
		// front-end an acknowledgement that is not true.
		panic(fmt.Sprintf("guestmem: munmap of %v: %v", m.Region, err))
	}
}
