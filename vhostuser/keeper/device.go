package keeper

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
)

// device is the session.Device of the keeper: what the session tells it, it tells
// the worker, and remembers for the next one. One exists as long as a front-end.
//
// state holds what the worker has said is done, and nothing else. A call whose
// worker dies is repeated with the next one, which begins with state.
type device struct {
	keeper *Keeper
	number uint64 // tells devices apart; never used twice

	mu    sync.Mutex
	state session.State // with descriptors of its own; guarded by mu
	given *worker       // has begun with state, or done all that is in it; guarded by mu
}

var _ session.Device = (*device)(nil)

func newDevice(k *Keeper, number uint64, queues int) (*device, error) {
	d := &device{keeper: k, number: number, state: session.NewState(queues)}
	var err error
	d.state.Inflight.FD, d.state.Inflight.Size, err = vhostuser.NewInflight(queues)
	return d, err
}

// begin returns the message that makes a worker take up the device. Its
// descriptors stay the device's; they are valid as long as mu is held.
func (d *device) beginLocked() *message {
	body, fds := d.state.Marshal()
	return &message{Kind: kindDevice, Device: d.number, body: body, fds: fds}
}

// Close ends the device: the front-end is gone.
func (d *device) Close() {
	d.keeper.forget(d)
	_, _ = d.call(&message{Kind: kindGone}, func() {})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Close()
}

// errEnded is what becomes of calls when the keeper ends.
var errEnded = errors.New("the daemon ends")

// call has a worker do m, and then done, under mu, changes state. Whatever worker
// serves the device when call returns has done m or has begun with state.
func (d *device) call(m *message, done func()) (*message, error) {
	m.Device = d.number
	for {
		w, err := d.keeper.current()
		if err != nil {
			return nil, err
		}
		answer, err := w.call(m)
		if errors.Is(err, errDied) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if failure := answer.failure(); failure != nil {
			return nil, failure
		}
		d.mu.Lock()
		if d.given == w || m.Kind == kindGone {
			done()
			d.mu.Unlock()
			return answer, nil
		}
		// Another worker has begun with the state before m.
		d.mu.Unlock()
	}
}

// keep returns a duplicate of fd for the state.
func keep(fd int) (int, error) {
	if fd < 0 {
		return -1, nil
	}
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("keep a descriptor of the front-end: %w", err)
	}
	return kept, nil
}

// replace closes *have and puts fd, which becomes the state's, in its place.
func replace(have *int, fd int) {
	closeAll([]int{*have})
	*have = fd
}

// SetFeatures implements session.Device.
func (d *device) SetFeatures(features uint64) {
	d.report(d.call(&message{Kind: kindFeatures, Features: features}, func() { d.state.Features = features }))
}

// report logs an error of a method that has none to return: the keeper ends.
func (d *device) report(_ *message, err error) {
	if err != nil {
		d.keeper.opts.Log.Warn("vhost-user device", "err", err)
	}
}

// SetMemory implements session.Device.
func (d *device) SetMemory(regions []guestmem.Source) error {
	m := &message{Kind: kindMemory}
	kept := slices.Clone(regions)
	for i, r := range regions {
		m.Regions = append(m.Regions, r.Region)
		m.fds = append(m.fds, r.FD)
		fd, err := keep(r.FD)
		if err != nil {
			for _, k := range kept[:i] {
				closeAll([]int{k.FD})
			}
			return err
		}
		kept[i].FD = fd
	}
	var old []guestmem.Source
	_, err := d.call(m, func() { old, d.state.Regions = d.state.Regions, kept })
	if err != nil {
		old = kept
	}
	for _, r := range old {
		closeAll([]int{r.FD})
	}
	return err
}

// SetKick implements session.Device.
func (d *device) SetKick(i, fd int) error {
	return d.setFD(kindKick, i, fd, func(v *session.Vring) *int { return &v.Kick })
}

// SetCall implements session.Device.
func (d *device) SetCall(i, fd int) error {
	return d.setFD(kindCall, i, fd, func(v *session.Vring) *int { return &v.Call })
}

// SetErr implements session.Device.
func (d *device) SetErr(i, fd int) error {
	return d.setFD(kindErr, i, fd, func(v *session.Vring) *int { return &v.Err })
}

func (d *device) setFD(k kind, i, fd int, field func(*session.Vring) *int) error {
	kept, err := keep(fd)
	if err != nil {
		return err
	}
	m := &message{Kind: k, Index: i}
	if fd >= 0 {
		m.fds = []int{fd}
	}
	if _, err = d.call(m, func() { replace(field(&d.state.Vrings[i]), kept) }); err != nil {
		closeAll([]int{kept})
	}
	return err
}

// StartVring implements session.Device.
func (d *device) StartVring(i int, r session.Ring) error {
	_, err := d.call(&message{Kind: kindStart, Index: i, Ring: &r}, func() {
		v := &d.state.Vrings[i]
		v.Ring, v.Placed, v.Enabled, v.Running = r, true, true, true
	})
	return err
}

// StopVring implements session.Device.
func (d *device) StopVring(i int) (base uint16) {
	answer, err := d.call(&message{Kind: kindStop, Index: i}, func() {
		d.state.Vrings[i].Running = false
	})
	if err != nil {
		d.report(nil, err)
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Vrings[i].Base = answer.Base
	return answer.Base
}

// SetInflight implements session.Device.
func (d *device) SetInflight(fd int, size int64) error {
	kept, err := keep(fd)
	if err != nil {
		return err
	}
	m := &message{Kind: kindInflight, Size: size, fds: []int{fd}}
	if _, err = d.call(m, func() {
		replace(&d.state.Inflight.FD, kept)
		d.state.Inflight.Size = size
	}); err != nil {
		closeAll([]int{kept})
	}
	return err
}

// Reset implements session.Device.
func (d *device) Reset() {
	d.report(d.call(&message{Kind: kindReset}, func() {}))
}

// Snapshot implements session.Device. The keeper needs none: its state always is
// one.
func (d *device) Snapshot() ([]*session.Progress, []byte, error) {
	return nil, nil, errors.New("a device of a keeper has no snapshot")
}
