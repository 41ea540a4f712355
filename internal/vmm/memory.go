package vmm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// PageSize is the guest's page size: the unit in which Linux hands out buffers
// for file data.
const PageSize = 4096

const hugePageSize = 2 << 20

// userBase is added to a guest address to get the address that the VMM claims to
// have mapped it at. No back-end may use that number as anything but a key, so it
// need not be the true address of our mapping; being unlike it finds those that do.
const userBase = 0x7e10_0000_0000

// Backing is what a region of guest memory is made of.
type Backing int

// The kinds of memory that the VMMs use.
const (
	Memfd    Backing = iota // QEMU's memory-backend-memfd: sealed against shrinking and growing
	Unsealed                // a memfd that a test may truncate under the back-end
	File                    // an unlinked file: Kata's memory in /dev/shm, UML's
	HugeTLB                 // 2 MiB pages
)

// Region describes one region of guest memory: where the guest sees it, under
// which address the VMM announces it, and which part of its file it is.
type Region struct {
	GPA     uint64
	UVA     uint64
	Size    uint64
	Offset  uint64 // in the file
	Backing Backing
}

// The layouts of guest memory that tests choose from; size is all of the memory.

// Flat is one region at 0, as QEMU gives a small guest.
func Flat(size uint64) []Region {
	return []Region{{GPA: 0, UVA: userBase, Size: size}}
}

// Hole is two regions with the gap below 4 GiB between them, as QEMU gives a
// large guest.
func Hole(size uint64) []Region {
	half := size / 2
	return []Region{
		{GPA: 0, UVA: userBase, Size: half},
		{GPA: 4 << 30, UVA: userBase + 1<<40, Size: size - half, Offset: half},
	}
}

// Adjacent is two regions that touch in guest addresses and nowhere else, as
// memory hot-plug makes them: buffers may lie across the border.
func Adjacent(size uint64) []Region {
	half := size / 2
	return []Region{
		{GPA: 0, UVA: userBase + 1<<40, Size: half},
		{GPA: half, UVA: userBase, Size: size - half, Offset: 16 * PageSize},
	}
}

// UMLMemory is user-mode Linux's: user address, guest address and offset in the
// file are one number far beyond the memory's size, so the file is sparse.
func UMLMemory(size uint64) []Region {
	const start = 0x6f00000
	return []Region{{GPA: start, UVA: start, Size: size, Offset: start, Backing: File}}
}

// GuestAddressed has user addresses equal to guest addresses from 0, as a VMM
// announces memory that negotiated GPA_ADDRESSES or simply maps it so.
func GuestAddressed(size uint64) []Region {
	return []Region{{GPA: 0, UVA: 0, Size: size}}
}

// Huge is one region of 2 MiB pages that starts in the middle of its file.
func Huge(size uint64) []Region {
	return []Region{{GPA: 0, UVA: userBase, Size: (size + hugePageSize - 1) &^ (hugePageSize - 1), Offset: hugePageSize, Backing: HugeTLB}}
}

// Buffer is a piece of guest memory: its guest address and our view of it.
type Buffer struct {
	GPA   uint64
	Bytes []byte
}

// region is a Region with its file and our mapping of it.
type region struct {
	Region
	file  *os.File
	bytes []byte
}

// Memory is the guest's memory: its regions, and an allocator for the driver's
// rings and buffers. Methods may be called from several goroutines.
type Memory struct {
	mu      sync.Mutex
	regions []*region
	next    uint64              // bump pointer of contiguous memory in regions[0]
	limit   uint64              // end of contiguous memory
	free    map[uint64][]Buffer // contiguous buffers by size class
	pages   []Buffer            // free pages, scattered
}

// NewMemory makes and maps the regions. The first quarter of the first region
// holds what must be contiguous (rings, indirect tables, request structures);
// the rest is handed out page by page in scattered order, so that two pages of
// one buffer are hardly ever neighbours, as in a guest that has run for a while.
func NewMemory(layout []Region) (*Memory, error) {
	if len(layout) == 0 {
		return nil, errors.New("guest memory: no regions")
	}
	m := &Memory{free: map[uint64][]Buffer{}}
	for _, spec := range layout {
		r, err := mapRegion(spec)
		if err != nil {
			m.Close()
			return nil, err
		}
		m.regions = append(m.regions, r)
	}
	first := m.regions[0]
	m.limit = first.Size / 4 &^ (PageSize - 1)
	for i, r := range m.regions {
		start := uint64(0)
		if i == 0 {
			start = m.limit
		}
		for off := start; off+PageSize <= r.Size; off += PageSize {
			m.pages = append(m.pages, Buffer{GPA: r.GPA + off, Bytes: r.bytes[off : off+PageSize : off+PageSize]})
		}
	}
	rng := rand.New(rand.NewPCG(1, 2)) // always the same scatter: runs compare
	rng.Shuffle(len(m.pages), func(i, j int) { m.pages[i], m.pages[j] = m.pages[j], m.pages[i] })
	return m, nil
}

func mapRegion(spec Region) (*region, error) {
	if spec.Size == 0 || spec.Size%PageSize != 0 {
		return nil, fmt.Errorf("guest memory: region of %d bytes at %#x is not whole pages", spec.Size, spec.GPA)
	}
	f, err := openBacking(spec.Backing)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(spec.Offset + spec.Size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("guest memory: size the file of region %#x: %w", spec.GPA, err)
	}
	if spec.Backing == Memfd {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
			f.Close()
			return nil, fmt.Errorf("guest memory: seal region %#x: %w", spec.GPA, err)
		}
	}
	b, err := unix.Mmap(int(f.Fd()), int64(spec.Offset), int(spec.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("guest memory: map region %#x of %d bytes: %w", spec.GPA, spec.Size, err)
	}
	return &region{Region: spec, file: f, bytes: b}, nil
}

func openBacking(kind Backing) (*os.File, error) {
	if kind == File {
		dir := "/dev/shm"
		if unix.Access(dir, unix.W_OK) != nil {
			dir = ""
		}
		f, err := os.CreateTemp(dir, "vmm-memory-")
		if err != nil {
			return nil, fmt.Errorf("guest memory: %w", err)
		}
		os.Remove(f.Name())
		return f, nil
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if kind == HugeTLB {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("guest-memory", flags)
	if err != nil {
		return nil, fmt.Errorf("guest memory: memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "guest-memory"), nil
}

func (r *region) unmap() {
	unix.Munmap(r.bytes)
	r.file.Close()
}

// Close unmaps everything. No Buffer may be used afterwards.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.regions {
		r.unmap()
	}
	m.regions, m.pages, m.free = nil, nil, nil
}

// Regions returns the regions as the guest has them now.
func (m *Memory) Regions() []Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Region, len(m.regions))
	for i, r := range m.regions {
		out[i] = r.Region
	}
	return out
}

// Truncate shrinks the file of region i to size bytes behind the back-end's back
// (File and Unsealed only). Our own accesses beyond it fault as well.
func (m *Memory) Truncate(i int, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.regions[i].file.Truncate(size)
}

// add maps one more region; its pages join the free pages.
func (m *Memory) add(spec Region) (*region, error) {
	r, err := mapRegion(spec)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.regions = append(m.regions, r)
	for off := uint64(0); off+PageSize <= r.Size; off += PageSize {
		m.pages = append(m.pages, Buffer{GPA: r.GPA + off, Bytes: r.bytes[off : off+PageSize : off+PageSize]})
	}
	return r, nil
}

// take removes the region at gpa and its free pages. The caller unmaps it once
// the back-end has let go; pages in use there must have come back before.
func (m *Memory) take(gpa uint64) (*region, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range m.regions {
		if r.GPA != gpa {
			continue
		}
		if i == 0 {
			return nil, fmt.Errorf("guest memory: region %#x holds the rings", gpa)
		}
		m.regions = append(m.regions[:i:i], m.regions[i+1:]...)
		kept := m.pages[:0]
		for _, p := range m.pages {
			if p.GPA < r.GPA || p.GPA >= r.GPA+r.Size {
				kept = append(kept, p)
			}
		}
		m.pages = kept
		return r, nil
	}
	return nil, fmt.Errorf("guest memory: no region at %#x", gpa)
}

// class rounds a size up to what the allocator keeps lists of.
func class(n int) uint64 {
	c := uint64(64)
	for c < uint64(n) {
		c *= 2
	}
	return c
}

// Alloc returns n contiguous bytes of guest memory, aligned to at least 64 bytes,
// and to a page when n is a page or more. The bytes hold whatever was there.
func (m *Memory) Alloc(n int) (Buffer, error) {
	c := class(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.free[c]; len(l) > 0 {
		b := l[len(l)-1]
		m.free[c] = l[:len(l)-1]
		b.Bytes = b.Bytes[:n]
		return b, nil
	}
	align := min(c, PageSize)
	off := (m.next + align - 1) &^ (align - 1)
	if len(m.regions) == 0 || off+c > m.limit {
		return Buffer{}, fmt.Errorf("guest memory: no %d contiguous bytes left of %d", n, m.limit)
	}
	m.next = off + c
	r := m.regions[0]
	return Buffer{GPA: r.GPA + off, Bytes: r.bytes[off : off+uint64(n) : off+c]}, nil
}

// Free gives back a buffer from Alloc.
func (m *Memory) Free(b Buffer) {
	if b.Bytes == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free == nil {
		return
	}
	c := uint64(cap(b.Bytes))
	m.free[c] = append(m.free[c], b)
}

// Pages appends n pages to dst.
func (m *Memory) Pages(dst []Buffer, n int) ([]Buffer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > len(m.pages) {
		return dst, fmt.Errorf("guest memory: %d pages wanted, %d free", n, len(m.pages))
	}
	at := len(m.pages) - n
	dst = append(dst, m.pages[at:]...)
	m.pages = m.pages[:at]
	return dst, nil
}

// FreePages gives back pages.
func (m *Memory) FreePages(pages []Buffer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free == nil {
		return
	}
	m.pages = append(m.pages, pages...)
}

// at returns the longest piece at gpa of at most n bytes that lies in one region.
func (m *Memory) at(gpa uint64, n int) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.regions {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			off := gpa - r.GPA
			return r.bytes[off:min(r.Size, off+uint64(n))], true
		}
	}
	return nil, false
}

// View returns n bytes at gpa, which must lie in one region.
func (m *Memory) View(gpa uint64, n int) ([]byte, error) {
	b, ok := m.at(gpa, n)
	if !ok || len(b) < n {
		return nil, fmt.Errorf("guest memory: [%#x,+%d) is not in one region", gpa, n)
	}
	return b, nil
}

// WriteAt copies b to gpa, across regions that touch.
func (m *Memory) WriteAt(gpa uint64, b []byte) error {
	for len(b) > 0 {
		p, ok := m.at(gpa, len(b))
		if !ok {
			return fmt.Errorf("guest memory: nothing at %#x", gpa)
		}
		n := copy(p, b)
		gpa, b = gpa+uint64(n), b[n:]
	}
	return nil
}

// ReadAt copies from gpa into b, across regions that touch.
func (m *Memory) ReadAt(gpa uint64, b []byte) error {
	for len(b) > 0 {
		p, ok := m.at(gpa, len(b))
		if !ok {
			return fmt.Errorf("guest memory: nothing at %#x", gpa)
		}
		n := copy(b, p)
		gpa, b = gpa+uint64(n), b[n:]
	}
	return nil
}

// userAddress translates a guest address to the VMM's.
func (m *Memory) userAddress(gpa uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.regions {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			return r.UVA + (gpa - r.GPA), nil
		}
	}
	return 0, fmt.Errorf("guest memory: nothing at %#x", gpa)
}
