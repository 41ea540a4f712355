package session

import (
	"errors"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Ring says where a vring lies and where it starts.
type Ring struct {
	Size  uint16
	Desc  guestmem.UVA
	Avail guestmem.UVA
	Used  guestmem.UVA
	Base  uint16 // next position of the available ring

	// Generation tells the starts of a vring apart, beyond the end of a process: it
	// is 0 before the first one and grows with each.
	Generation uint64
}

// Progress is how far a vring has come when its Device was stopped.
type Progress struct {
	Avail    uint16
	Used     uint16
	InFlight []uint16 // heads popped and not published, in the order popped
}

// ErrVring marks errors about one vring that a guest can cause, by the addresses
// that it chose: they concern this vring only and never end a connection.
var ErrVring = errors.New("vring cannot run")

// Device is the other half: what a Session tells about guest memory and vrings.
// All methods are called by one goroutine at a time. Descriptors are lent for
// the call.
type Device interface {
	// SetFeatures tells the virtio features that were acknowledged. They
	// concern vrings started afterwards.
	SetFeatures(features uint64)

	// SetMemory replaces guest memory. When it returns, nothing of the Device
	// touches or maps what is not among regions any more. On an error, memory
	// is what it was.
	SetMemory(regions []guestmem.Source) error

	// SetKick, SetCall and SetErr give vring i its descriptors; -1 takes them
	// away. The kick changes only while the vring is stopped. When SetCall
	// returns, no signal goes to the old descriptor. A descriptor of a kind that
	// cannot serve is refused.
	SetKick(i, fd int) error
	SetCall(i, fd int) error
	SetErr(i, fd int) error

	// StartVring lets vring i run from r.Base on. If r is what the vring was
	// stopped with, and the rings are as they were left, requests that were
	// waiting then are answered; else they are forgotten. An error that wraps
	// ErrVring leaves the vring stopped.
	StartVring(i int, r Ring) error

	// StopVring stops vring i and returns its position. When it returns, nothing
	// touches guest memory on behalf of this vring. It never waits for requests
	// that wait for something slow.
	StopVring(i int) (base uint16)

	// SetInflight gives the Device memory of size bytes that outlives this process,
	// for the table of requests in flight, before any vring runs. What an earlier
	// process left in it is gone on with by the vrings that start for the first time.
	SetInflight(fd int, size int64) error

	// Reset forgets all requests and what the guest negotiated in them. All
	// vrings are stopped.
	Reset()

	// Snapshot stops all work and returns the progress of each vring that runs
	// or has requests waiting (nil for the others), and the state of the
	// device's own protocol.
	Snapshot() (vrings []*Progress, handler []byte, err error)
}
