package virtqueue

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// ErrBroken is wrapped by errors about rings that no sane driver would write.
var ErrBroken = errors.New("broken virtqueue")

// ErrSetup is wrapped by errors about a queue that cannot be set up as asked.
var ErrSetup = errors.New("bad virtqueue setup")

// Sizes of the parts of a split ring in bytes.
const (
	descSize     = 16
	availHeader  = 4 // flags, idx
	usedHeader   = 4 // flags, idx
	usedElemSize = 8
	eventSize    = 2 // used_event behind the available ring, avail_event behind the used ring
)

// Flags in the rings, each the suggestion of one side to the other.
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Config says where a queue lies and what was negotiated for it.
type Config struct {
	Size  uint16 // entries, a power of two
	Desc  guestmem.UVA
	Avail guestmem.UVA
	Used  guestmem.UVA

	EventIdx bool // VIRTIO_F_EVENT_IDX
	Indirect bool // VIRTIO_F_INDIRECT_DESC

	// MaxBytes bounds the length of one chain in bytes, in each direction.
	MaxBytes uint64
}

// Progress is how far a queue has come, and all that another Queue needs to go on.
type Progress struct {
	Avail    uint16   // position of the next chain to pop
	Used     uint16   // position of the next used element
	InFlight []uint16 // heads popped and not published, in the order popped
}

// Used is a finished chain: its head, and how many bytes were written to it.
type Used struct {
	Head uint16
	Len  uint32
}

// Queue is one split virtqueue in use.
type Queue struct {
	cfg  Config
	mask uint16

	// The rings in guest memory, valid while the Table last given is.
	availIdx   *uint16
	availFlags *uint16
	availRing  []uint16
	usedEvent  *uint16
	usedIdx    *uint16
	usedFlags  *uint16
	usedRing   []uint32 // two words an element: id, len
	availEvent *uint16
	desc       []uint64 // two words a descriptor

	// Owned by the goroutine that pops.
	view    guestmem.View
	popped  uint64 // chains popped since the driver started at 0, modulo 2^16 the index
	availed uint16 // avail.idx as last read and checked
	private [privateDescs * 2]uint64

	// Owned by whoever publishes.
	used      uint64 // elements published, modulo 2^16 the index
	signalled uint16 // used index at the last notification test
	tested    bool   // signalled is valid; a start makes it invalid

	heads []head // by descriptor index

	table *Inflight // what another process would go on from; nil = nothing
}

// head is what is known of a chain that starts at one descriptor.
type head struct {
	inFlight atomic.Uint32 // 1 from pop to publish
	position uint64        // value of popped when it was taken; written by the popper
}

// New sets up a queue in the memory of t, starting at available position base.
// The used position is taken from the ring, this one time: there the driver and
// an earlier device agree on it.
func New(t *guestmem.Table, cfg Config, base uint16) (*Queue, error) {
	q, err := setUp(t, cfg)
	if err != nil {
		return nil, err
	}
	q.popped, q.availed = uint64(base), base
	q.used = uint64(q.RingUsed())
	return q, nil
}

// NewTabled is New of a queue that keeps f, which is cleared first, and belongs to
// this generation from now on.
func NewTabled(t *guestmem.Table, cfg Config, base uint16, f *Inflight, generation uint64) (*Queue, error) {
	f.Clear()
	q, err := New(t, cfg, base)
	if err != nil {
		return nil, err
	}
	if len(f.heads) < int(cfg.Size) {
		return nil, fmt.Errorf("queue of %d, in-flight table of %d: %w", cfg.Size, len(f.heads), ErrSetup)
	}
	f.begin(generation, q.popped, q.used)
	q.table = f
	return q, nil
}

// Recover sets up a queue that goes on where f says that another process ended. f
// is not trusted. limit is how many ends of a process a request may have been in
// flight in; 0 says that the last one is not counted.
func Recover(t *guestmem.Table, cfg Config, f *Inflight, limit int) (*Queue, Recovered, error) {
	q, err := setUp(t, cfg)
	if err != nil {
		return nil, Recovered{}, err
	}
	if len(f.heads) < int(cfg.Size) {
		return nil, Recovered{}, fmt.Errorf("queue of %d, in-flight table of %d: %w", cfg.Size, len(f.heads), ErrSetup)
	}
	own := *f
	own.heads = f.heads[:cfg.Size]
	r := own.recover(q, limit)
	q.table = f
	return q, r, nil
}

// Inflight returns the table that q keeps, nil if it keeps none.
func (q *Queue) Inflight() *Inflight { return q.table }

// Resume sets up a queue that goes on where another one stopped. p is not
// trusted. The heads in flight are to be taken by Replay.
func Resume(t *guestmem.Table, cfg Config, p Progress) (*Queue, error) {
	q, err := setUp(t, cfg)
	if err != nil {
		return nil, err
	}
	if len(p.InFlight) > int(cfg.Size) {
		return nil, fmt.Errorf("%d chains in flight in a queue of %d: %w", len(p.InFlight), cfg.Size, ErrSetup)
	}
	q.popped, q.availed, q.used = uint64(p.Avail), p.Avail, uint64(p.Used)
	// Positions of the past only order the heads: count so that those in flight
	// come before what will be popped.
	q.popped += 1 << 16
	for i, h := range p.InFlight {
		if h >= cfg.Size || q.heads[h].inFlight.Load() != 0 {
			return nil, fmt.Errorf("head %d in flight, size %d, unknown or twice: %w", h, cfg.Size, ErrSetup)
		}
		q.heads[h].inFlight.Store(1)
		q.heads[h].position = q.popped - uint64(len(p.InFlight)-i)
	}
	return q, nil
}

func setUp(t *guestmem.Table, cfg Config) (*Queue, error) {
	if cfg.Size == 0 || cfg.Size&(cfg.Size-1) != 0 {
		return nil, fmt.Errorf("size %d is not a power of two: %w", cfg.Size, ErrSetup)
	}
	q := &Queue{cfg: cfg, mask: cfg.Size - 1, heads: make([]head, cfg.Size)}
	if err := q.Rebind(t); err != nil {
		return nil, err
	}
	return q, nil
}

// Rebind makes q use the memory of t instead of what it used before; positions
// and heads in flight stay. On an error q keeps the old memory. Afterwards the
// next Publish asks for a signal in any case: a signal more is harmless, and what
// the driver was told before is not known here.
func (q *Queue) Rebind(t *guestmem.Table) error {
	n := uint64(q.cfg.Size)
	desc, err := part(t, "descriptor table", q.cfg.Desc, n*descSize, 16)
	if err != nil {
		return err
	}
	avail, err := part(t, "available ring", q.cfg.Avail, availHeader+2*n+eventSize, 2)
	if err != nil {
		return err
	}
	used, err := part(t, "used ring", q.cfg.Used, usedHeader+usedElemSize*n+eventSize, 4)
	if err != nil {
		return err
	}
	q.desc = unsafe.Slice((*uint64)(unsafe.Pointer(&desc[0])), 2*n)
	q.availFlags = word(avail, 0)
	q.availIdx = word(avail, 2)
	q.availRing = unsafe.Slice(word(avail, availHeader), n)
	q.usedEvent = word(avail, availHeader+2*n)
	q.usedFlags = word(used, 0)
	q.usedIdx = word(used, 2)
	q.usedRing = unsafe.Slice((*uint32)(unsafe.Pointer(&used[usedHeader])), 2*n)
	q.availEvent = word(used, usedHeader+usedElemSize*n)
	q.view = guestmem.NewView(t)
	q.tested = false
	return nil
}

// part finds one part of the ring and checks its alignment here, where it is
// accessed: the host address is what counts.
func part(t *guestmem.Table, what string, addr guestmem.UVA, n uint64, align uintptr) ([]byte, error) {
	b, err := t.User(addr, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if uintptr(unsafe.Pointer(&b[0]))%align != 0 {
		return nil, fmt.Errorf("%s at user address %#x is not aligned to %d: %w", what, uint64(addr), align, ErrSetup)
	}
	return b, nil
}

func word(b []byte, off uint64) *uint16 { return (*uint16)(unsafe.Pointer(&b[off])) }

// Config returns what q was set up with.
func (q *Queue) Config() Config { return q.cfg }

// Base returns the position of the next chain to pop: what GET_VRING_BASE reports.
func (q *Queue) Base() uint16 { return uint16(q.popped) }

// NextUsed returns the position of the next used element, from private memory.
func (q *Queue) NextUsed() uint16 { return uint16(q.used) }

// RingUsed returns used.idx as it stands in guest memory, where the guest may
// have changed it: a driver that was reset shows itself by it.
func (q *Queue) RingUsed() uint16 { return ringmem.LoadAcquire16(q.usedIdx) }

// InFlight tells whether head h was taken and not published.
func (q *Queue) InFlight(h uint16) bool { return q.heads[h].inFlight.Load() != 0 }

// Progress returns how far q has come.
func (q *Queue) Progress() Progress {
	p := Progress{Avail: q.Base(), Used: q.NextUsed()}
	for h := range q.heads {
		if q.heads[h].inFlight.Load() != 0 {
			p.InFlight = append(p.InFlight, uint16(h))
		}
	}
	slices.SortFunc(p.InFlight, func(a, b uint16) int {
		// Positions of chains in flight differ, and by less than 2^63.
		return int(int64(q.heads[a].position - q.heads[b].position))
	})
	return p
}
