package session

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// State is all that a device's front-end and guest have agreed on with us: what
// another process needs to go on serving them.
type State struct {
	Features         uint64 // acknowledged virtio features
	ProtocolFeatures uint64 // acknowledged protocol features
	Regions          []guestmem.Source
	Vrings           []Vring
	BackendReq       int // the channel to the front-end, or -1
	Inflight         Inflight
	Handler          []byte // state of the device's own protocol, opaque here

	// Crashed says that the last process to serve the device has ended by a fault of
	// its own. It is not among the bytes of Marshal.
	Crashed bool
}

// Inflight is memory for the table of requests in flight.
type Inflight struct {
	FD   int // -1 = none
	Size int64
}

// Vring is the state of one vring. Descriptors are -1 when not set.
type Vring struct {
	Ring             // Base is what was set, or returned by the last stop
	Placed  bool     // the three addresses were set
	Enabled bool     // SET_VRING_ENABLE
	Running bool     // asked to run
	Kick    int      // eventfd
	Call    int      // eventfd, socket or pipe
	Err     int      // as Call
	Stopped Progress // meaningful in a snapshot, and there if Live
	Live    bool     // Stopped is set: the Device still knows the vring, at this Ring

	last Ring // what the Device knows it by, once it was started; Base is the stop's
}

// NewState returns the state of a device of so many vrings that has heard nothing.
func NewState(queues int) State {
	s := State{BackendReq: -1, Inflight: Inflight{FD: -1}, Vrings: make([]Vring, queues)}
	for i := range s.Vrings {
		s.Vrings[i].Kick, s.Vrings[i].Call, s.Vrings[i].Err = -1, -1, -1
	}
	return s
}

// Close closes all descriptors of the state.
func (s *State) Close() {
	for i := range s.Regions {
		closeFD(&s.Regions[i].FD)
	}
	for i := range s.Vrings {
		v := &s.Vrings[i]
		closeFD(&v.Kick)
		closeFD(&v.Call)
		closeFD(&v.Err)
	}
	closeFD(&s.BackendReq)
	closeFD(&s.Inflight.FD)
}

// closeFD closes *fd if it is one and marks it as closed.
func closeFD(fd *int) {
	if *fd >= 0 {
		// Nothing is written through it; an error says nothing we could use.
		_ = unix.Close(*fd)
	}
	*fd = -1
}

// ErrState is wrapped by errors about bytes that are no State.
var ErrState = errors.New("bad device state")

// The encoding: little endian, fixed order, no padding.
//
//	magic u32, version u16, vrings u16, features u64, protocol features u64
//	regions u16, each: gpa u64, uva u64, size u64, offset u64, fd u16
//	backend fd u16, in-flight fd u16, in-flight size u64
//	vrings, each: size u16, desc u64, avail u64, used u64, base u16,
//	    generation u64, flags u8, kick u16, call u16, err u16, avail u16, used u16, n u16, n heads u16
//	handler: length u32, bytes
//
// An fd is an index into the list that travels beside the bytes; noFD is none.
const (
	stateMagic   = 0x31535556 // "VUS1"
	stateVersion = 2
	noFD         = 0xffff

	flagPlaced  = 1
	flagEnabled = 2
	flagRunning = 4
	flagLive    = 8

	// Limits of what Unmarshal takes.
	maxVrings  = 256
	maxHandler = 64 << 20
)

// Marshal returns the state as bytes, and the descriptors that they refer to by
// index. The descriptors stay the state's.
func (s *State) Marshal() (b []byte, fds []int) {
	le := binary.LittleEndian
	fd := func(n int) {
		if n < 0 {
			b = le.AppendUint16(b, noFD)
			return
		}
		b = le.AppendUint16(b, uint16(len(fds)))
		fds = append(fds, n)
	}
	b = le.AppendUint32(b, stateMagic)
	b = le.AppendUint16(b, stateVersion)
	b = le.AppendUint16(b, uint16(len(s.Vrings)))
	b = le.AppendUint64(b, s.Features)
	b = le.AppendUint64(b, s.ProtocolFeatures)
	b = le.AppendUint16(b, uint16(len(s.Regions)))
	for _, r := range s.Regions {
		b = le.AppendUint64(b, uint64(r.GPA))
		b = le.AppendUint64(b, uint64(r.UVA))
		b = le.AppendUint64(b, r.Size)
		b = le.AppendUint64(b, uint64(r.Offset))
		fd(r.FD)
	}
	fd(s.BackendReq)
	fd(s.Inflight.FD)
	b = le.AppendUint64(b, uint64(s.Inflight.Size))
	for i := range s.Vrings {
		v := &s.Vrings[i]
		b = le.AppendUint16(b, v.Size)
		b = le.AppendUint64(b, uint64(v.Desc))
		b = le.AppendUint64(b, uint64(v.Avail))
		b = le.AppendUint64(b, uint64(v.Used))
		b = le.AppendUint16(b, v.Base)
		b = le.AppendUint64(b, v.Generation)
		b = append(b, v.flags())
		fd(v.Kick)
		fd(v.Call)
		fd(v.Err)
		b = le.AppendUint16(b, v.Stopped.Avail)
		b = le.AppendUint16(b, v.Stopped.Used)
		b = le.AppendUint16(b, uint16(len(v.Stopped.InFlight)))
		for _, h := range v.Stopped.InFlight {
			b = le.AppendUint16(b, h)
		}
	}
	b = le.AppendUint32(b, uint32(len(s.Handler)))
	return append(b, s.Handler...), fds
}

func (v *Vring) flags() (f uint8) {
	for _, x := range []struct {
		on  bool
		bit uint8
	}{{v.Placed, flagPlaced}, {v.Enabled, flagEnabled}, {v.Running, flagRunning}, {v.Live, flagLive}} {
		if x.on {
			f |= x.bit
		}
	}
	return f
}

// UnmarshalState turns bytes and descriptors back into a State, which owns the
// descriptors; on an error they stay the caller's. The bytes are not trusted:
// counts, indexes and relations are checked, and each descriptor must be used
// once. Whether addresses and descriptors are any good shows when a Device is
// built of them.
func UnmarshalState(b []byte, fds []int) (*State, error) {
	d := decoder{b: b, fds: fds, taken: make([]bool, len(fds))}
	if m, v := d.u32(), d.u16(); m != stateMagic || v != stateVersion {
		return nil, fmt.Errorf("magic %#x, version %d, want %#x, %d: %w", m, v, stateMagic, stateVersion, ErrState)
	}
	queues := int(d.u16())
	if queues > maxVrings {
		return nil, fmt.Errorf("%d vrings, at most %d: %w", queues, maxVrings, ErrState)
	}
	s := NewState(queues)
	s.Features, s.ProtocolFeatures = d.u64(), d.u64()
	regions := int(d.u16())
	if regions > guestmem.MaxRegions {
		return nil, fmt.Errorf("%d regions, at most %d: %w", regions, guestmem.MaxRegions, ErrState)
	}
	for range regions {
		s.Regions = append(s.Regions, guestmem.Source{
			Region: guestmem.Region{
				GPA: guestmem.GPA(d.u64()), UVA: guestmem.UVA(d.u64()),
				Size: d.u64(), Offset: guestmem.Offset(d.u64()),
			},
			FD: d.fd(),
		})
	}
	s.BackendReq = d.fd()
	s.Inflight = Inflight{FD: d.fd(), Size: int64(d.u64())}
	for i := range s.Vrings {
		d.vring(i, &s.Vrings[i])
	}
	n := d.u32()
	if n > maxHandler {
		return nil, fmt.Errorf("handler state of %d bytes, at most %d: %w", n, maxHandler, ErrState)
	}
	s.Handler = append([]byte(nil), d.bytes(int(n))...)
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes behind the end", len(d.b))
	}
	for i, t := range d.taken {
		if !t {
			d.fail("descriptor %d of %d is used nowhere", i, len(fds))
		}
	}
	if d.err != nil {
		return nil, d.err
	}
	return &s, nil
}

// decoder reads fields; after the first error all fields are zero.
type decoder struct {
	b     []byte
	fds   []int
	taken []bool
	err   error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format+": %w", append(args, ErrState)...)
	}
}

func (d *decoder) bytes(n int) []byte {
	if d.err != nil || len(d.b) < n {
		d.fail("ends %d bytes early", n-len(d.b))
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) fd() int {
	i := d.u16()
	if d.err != nil || i == noFD {
		return -1
	}
	if int(i) >= len(d.fds) || d.taken[i] {
		d.fail("descriptor %d of %d, unknown or used twice", i, len(d.fds))
		return -1
	}
	d.taken[i] = true
	return d.fds[i]
}

func (d *decoder) vring(i int, v *Vring) {
	v.Size = d.u16()
	v.Desc, v.Avail, v.Used = guestmem.UVA(d.u64()), guestmem.UVA(d.u64()), guestmem.UVA(d.u64())
	v.Base, v.Generation = d.u16(), d.u64()
	flags := d.u8()
	v.Placed, v.Enabled = flags&flagPlaced != 0, flags&flagEnabled != 0
	v.Running, v.Live = flags&flagRunning != 0, flags&flagLive != 0
	v.Kick, v.Call, v.Err = d.fd(), d.fd(), d.fd()
	v.Stopped.Avail, v.Stopped.Used = d.u16(), d.u16()
	n := d.u16()
	if n > v.Size {
		d.fail("vring %d: %d heads in flight, size %d", i, n, v.Size)
		return
	}
	for range n {
		v.Stopped.InFlight = append(v.Stopped.InFlight, d.u16())
	}
	switch {
	case v.Size&(v.Size-1) != 0:
		d.fail("vring %d: size %d is not a power of two", i, v.Size)
	case flags&^(flagPlaced|flagEnabled|flagRunning|flagLive) != 0:
		d.fail("vring %d: flags %#x", i, flags)
	case v.Running && !v.runnable():
		d.fail("vring %d runs without all that it needs", i)
	case v.Live && (v.Size == 0 || !v.Placed):
		d.fail("vring %d has progress but no place", i)
	}
}

// runnable reports whether all is there that a vring needs to run.
func (v *Vring) runnable() bool {
	return v.Enabled && v.Placed && v.Size > 0 && v.Kick >= 0
}
