package vhostuser

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
)

// maxDeaths is how many ends of a process a request may be in flight in before it is
// refused: the others that were may be innocent, so the last time it was alone.
const maxDeaths = 3

// maxUnknownDeaths is the same where nobody knows what the processes have died of.
const maxUnknownDeaths = 10

// inflightMemory is the mapped table of requests in flight.
type inflightMemory struct {
	mem   []byte
	table *virtqueue.InflightTable
}

// InflightSize returns how much memory SetInflight needs for a device of so many
// vrings.
func InflightSize(queues int) int64 {
	return virtqueue.InflightSize(queues, session.MaxQueueSize)
}

// SetInflight implements session.Device. If another process has left its state in
// the memory, the Handler takes that up.
func (d *Device) SetInflight(fd int, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	if err := d.setInflightLocked(fd, size); err != nil {
		return err
	}
	state := d.inflight.Load().table.State()
	if state == nil {
		return nil
	}
	d.suspect = maxUnknownDeaths
	d.used = true
	if err := d.handler.Restore(state); err != nil {
		return fmt.Errorf("in-flight table: state of the handler: %w", err)
	}
	return nil
}

// saveState keeps a new state of the Handler's. It is called while requests are
// served, and takes no lock.
func (d *Device) saveState(b []byte) error {
	if m := d.inflight.Load(); m != nil {
		return m.table.SetState(b)
	}
	return nil
}

func (d *Device) setInflightLocked(fd int, size int64) error {
	for _, v := range d.vrings {
		if v.running {
			return fmt.Errorf("in-flight table while vring %d runs: %w", v.index, session.ErrState)
		}
	}
	m, err := mapInflight(fd, size, len(d.vrings))
	if err != nil {
		return err
	}
	old := d.inflight.Swap(m)
	for i, v := range d.vrings {
		v.forget()
		v.inflight, v.adopt = m.table.Queue(i), true
	}
	if old != nil {
		old.unmap()
	}
	return nil
}

func mapInflight(fd int, size int64, queues int) (*inflightMemory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("in-flight table: %w", err)
	}
	if need := InflightSize(queues); size < need || st.Size < size {
		return nil, fmt.Errorf("in-flight table: %d bytes in a file of %d, want %d: %w", size, st.Size, need, session.ErrState)
	}
	mem, err := unix.Mmap(fd, 0, int(InflightSize(queues)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("in-flight table: mmap: %w", err)
	}
	m := &inflightMemory{mem: mem}
	if m.table, err = virtqueue.NewInflightTable(mem, queues, session.MaxQueueSize); err != nil {
		m.unmap()
		return nil, err
	}
	return m, nil
}

func (m *inflightMemory) unmap() {
	// It fails for no mapping of ours.
	_ = unix.Munmap(m.mem)
}

// fault turns a panic over the table, whose file somebody has truncated, into an
// error.
func (m *inflightMemory) fault(recovered any) error {
	p, ok := recovered.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok || m == nil {
		return nil
	}
	if off := p.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(m.mem))); off < uintptr(len(m.mem)) {
		return fmt.Errorf("in-flight table, byte %d: %w", off, guestmem.ErrGone)
	}
	return nil
}

// NewInflight returns memory for SetInflight of a device of so many vrings, which
// nobody can make smaller. The descriptor is the caller's.
func NewInflight(queues int) (fd int, size int64, err error) {
	size = InflightSize(queues)
	fd, err = unix.MemfdCreate("rafsd-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, 0, fmt.Errorf("in-flight table: memfd_create: %w", err)
	}
	err = unix.Ftruncate(fd, size)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, fmt.Errorf("in-flight table of %d bytes: %w", size, err)
	}
	return fd, size, nil
}
