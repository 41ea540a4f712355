package session_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
)

// fakeDevice is a Device that holds the Session to its side of the contract.
type fakeDevice struct {
	t        testing.TB
	mu       sync.Mutex // guards all below: the test looks from another goroutine
	features uint64
	regions  []guestmem.Region
	vrings   []fakeVring
	log      []string // what was asked for, in order
	resets   int
	failNext bool // the next StartVring fails as a guest can make it
}

type fakeVring struct {
	running, kick bool
	known         bool // it was started since the last reset
	base          uint16
}

func newFake(t testing.TB, queues int) *fakeDevice {
	return &fakeDevice{t: t, vrings: make([]fakeVring, queues)}
}

func (d *fakeDevice) note(format string, args ...any) {
	d.log = append(d.log, fmt.Sprintf(format, args...))
}

func (d *fakeDevice) vring(i int) *fakeVring {
	if i < 0 || i >= len(d.vrings) {
		d.t.Fatalf("vring %d of %d", i, len(d.vrings))
	}
	return &d.vrings[i]
}

func (d *fakeDevice) SetFeatures(f uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.vrings {
		if d.vrings[i].running {
			d.t.Fatalf("features change while vring %d runs", i)
		}
	}
	d.features = f
	d.note("features %#x", f)
}

func (d *fakeDevice) SetMemory(sources []guestmem.Source) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	regions := make([]guestmem.Region, 0, len(sources))
	for _, s := range sources {
		if s.Size == 0 {
			return errors.New("no memory of that kind")
		}
		d.valid(s.FD)
		regions = append(regions, s.Region)
	}
	d.regions = regions
	d.note("memory %d", len(regions))
	return nil
}

// valid fails if fd is not open.
func (d *fakeDevice) valid(fd int) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		d.t.Fatalf("descriptor %d: %v", fd, err)
	}
}

func (d *fakeDevice) SetKick(i, fd int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vring(i)
	if v.running {
		d.t.Fatalf("kick of vring %d changes while it runs", i)
	}
	if fd >= 0 {
		d.valid(fd)
	}
	v.kick = fd >= 0
	d.note("kick %d %v", i, v.kick)
	return nil
}

func (d *fakeDevice) SetCall(i, fd int) error { return d.notifier("call", i, fd) }
func (d *fakeDevice) SetErr(i, fd int) error  { return d.notifier("err", i, fd) }

func (d *fakeDevice) notifier(what string, i, fd int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.vring(i)
	if fd >= 0 {
		d.valid(fd)
	}
	d.note("%s %d %v", what, i, fd >= 0)
	return nil
}

func (d *fakeDevice) StartVring(i int, r session.Ring) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vring(i)
	switch {
	case v.running:
		d.t.Fatalf("vring %d starts twice", i)
	case !v.kick:
		d.t.Fatalf("vring %d starts without kick", i)
	case d.features == 0:
		d.t.Fatalf("vring %d starts without features", i)
	case r.Size == 0 || r.Size > session.MaxQueueSize || r.Size&(r.Size-1) != 0:
		d.t.Fatalf("vring %d starts with size %d", i, r.Size)
	case r.Desc%16 != 0 || r.Avail%2 != 0 || r.Used%4 != 0:
		d.t.Fatalf("vring %d starts askew: %+v", i, r)
	}
	if d.failNext {
		d.failNext = false
		return fmt.Errorf("rings elsewhere: %w", session.ErrVring)
	}
	v.running, v.known, v.base = true, true, r.Base
	d.note("start %d at %d", i, r.Base)
	return nil
}

func (d *fakeDevice) StopVring(i int) uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vring(i)
	if !v.running {
		d.t.Fatalf("vring %d stops twice", i)
	}
	v.running = false
	d.note("stop %d", i)
	return v.base + 7 // as if it had served that many
}

func (d *fakeDevice) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.vrings {
		if d.vrings[i].running {
			d.t.Fatalf("reset while vring %d runs", i)
		}
		d.vrings[i].known = false
	}
	d.resets++
	d.note("reset")
}

func (d *fakeDevice) Snapshot() ([]*session.Progress, []byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := make([]*session.Progress, len(d.vrings))
	for i := range d.vrings {
		if d.vrings[i].known {
			p[i] = &session.Progress{Avail: 3, Used: 1, InFlight: []uint16{1, 0}}
		}
	}
	return p, []byte("state of the handler"), nil
}

// at returns the state of vring i.
func (d *fakeDevice) at(i int) fakeVring {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vrings[i]
}

// takeLog returns what was asked for since the last call.
func (d *fakeDevice) takeLog() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	log := d.log
	d.log = nil
	return log
}

// fail makes the next start of a vring fail.
func (d *fakeDevice) fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failNext = true
}

func (d *fakeDevice) SetInflight(fd int, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.vrings {
		if d.vrings[i].running {
			d.t.Fatalf("in-flight table while vring %d runs", i)
		}
	}
	d.note("inflight %d", size)
	return nil
}
