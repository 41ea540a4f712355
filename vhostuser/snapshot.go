package vhostuser

import (
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
)

// Snapshot implements session.Device: it pauses all vrings and tells how far they
// came. Requests that wait go on waiting and will not be answered by this Device:
// they are among the heads in flight, for the next one to serve again. Afterwards
// only Close is of use.
func (d *Device) Snapshot() ([]*session.Progress, []byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, errClosed
	}
	d.pauseLocked()
	vrings := make([]*session.Progress, len(d.vrings))
	for i, v := range d.vrings {
		if v.queue != nil {
			p := session.Progress(v.queue.Progress())
			vrings[i] = &p
		}
	}
	handler, err := d.handler.Snapshot()
	if err != nil {
		return nil, nil, fmt.Errorf("state of the handler: %w", err)
	}
	return vrings, handler, nil
}

// NewDeviceFromSnapshot returns a Device that goes on where the one of state
// stopped, with the same guest, in this or another process: requests in flight
// are served again. state stays the caller's, and its content is not trusted.
func NewDeviceFromSnapshot(h Handler, o Options, state *session.State) (*Device, error) {
	d, err := NewDevice(h, o)
	if err != nil {
		return nil, err
	}
	if err := d.restore(state); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Device) restore(s *session.State) error {
	if len(s.Vrings) != len(d.vrings) {
		return fmt.Errorf("state of %d vrings for a device of %d: %w", len(s.Vrings), len(d.vrings), session.ErrState)
	}
	if extra := s.Features &^ session.Features; extra != 0 {
		return fmt.Errorf("state with features %#x that are not ours: %w", extra, session.ErrState)
	}
	if len(s.Handler) > 0 { // else there is none, or the handler has it from elsewhere
		if err := d.handler.Restore(s.Handler); err != nil {
			return fmt.Errorf("state of the handler: %w", err)
		}
	}
	d.SetFeatures(s.Features)
	d.suspect = 0
	if s.Crashed {
		d.suspect = maxDeaths
	}
	if s.Inflight.FD >= 0 {
		d.mu.Lock()
		err := d.setInflightLocked(s.Inflight.FD, s.Inflight.Size)
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if len(s.Regions) > 0 {
		if err := d.SetMemory(s.Regions); err != nil {
			return err
		}
	}
	for i := range s.Vrings {
		if err := d.restoreVring(i, &s.Vrings[i]); err != nil {
			err = fmt.Errorf("vring %d: %w", i, err)
			if s.Inflight.FD < 0 || !guestFault(err) {
				return err
			}
			// The guest has spoiled it, and loses it alone.
			d.vrings[i].giveUp(err)
		}
	}
	// Nothing can go wrong any more, so nothing was served in vain.
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, v := range d.vrings {
		if s.Vrings[i].Running && v.queue != nil {
			v.launch(d.table)
		}
	}
	return nil
}

// restoreVring sets vring i up as it was, but does not launch it.
func (d *Device) restoreVring(i int, s *session.Vring) error {
	for _, set := range []struct {
		fd int
		to func(i, fd int) error
	}{{s.Kick, d.SetKick}, {s.Call, d.SetCall}, {s.Err, d.SetErr}} {
		if set.fd >= 0 {
			if err := set.to(i, set.fd); err != nil {
				return err
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vrings[i]
	switch f := v.inflight; {
	case f == nil:
		return d.resumeLocked(v, s)
	case s.Running:
		if s.Kick < 0 || d.table == nil {
			return fmt.Errorf("runs without memory or kick: %w", session.ErrState)
		}
		// If the table knows of no such start, the process ended before it.
		d.used, v.adopt = true, false
		_, err := d.prepare(v, s.Ring)
		return err
	case s.Generation != 0 && f.Generation() == s.Generation && d.table != nil:
		// Stopped; what is in flight is answered if the front-end starts it again
		// where it was.
		d.used = true
		if _, err := d.prepare(v, s.Ring); err != nil {
			return err
		}
	}
	v.adopt = s.Generation == 0
	return nil
}

// resumeLocked sets vring v up from what a snapshot says of it.
func (d *Device) resumeLocked(v *vring, s *session.Vring) error {
	switch {
	case s.Running && (!s.Live || s.Kick < 0):
		return fmt.Errorf("runs without progress or kick: %w", session.ErrState)
	case !s.Live:
		return nil
	case d.table == nil:
		return fmt.Errorf("set up without guest memory: %w", session.ErrState)
	}
	q, err := virtqueue.Resume(d.table, d.config(s.Ring), virtqueue.Progress(s.Stopped))
	if err != nil {
		return err
	}
	v.queue, v.place, v.replay, v.setUp = q, s.Ring, nil, true
	for _, h := range s.Stopped.InFlight {
		v.replay = append(v.replay, virtqueue.Replay{Head: h})
	}
	d.used = true
	return nil
}
