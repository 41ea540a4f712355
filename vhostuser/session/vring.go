package session

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// vring returns vring i, or refuses.
func (s *Session) vring(i uint32) (*Vring, error) {
	if i >= uint32(len(s.state.Vrings)) {
		return nil, refuse("vring %d of %d", i, len(s.state.Vrings))
	}
	return &s.state.Vrings[i], nil
}

// adapt starts or stops vring i so that it runs exactly when it should.
func (s *Session) adapt(i int) error {
	v := &s.state.Vrings[i]
	switch want := v.runnable(); {
	case want && !v.Running:
		if s.state.Features == 0 {
			return refuse("vring %d to start before SET_FEATURES", i)
		}
		s.starts++
		v.Generation = s.starts
		if err := s.dev.StartVring(i, v.Ring); err != nil {
			return fmt.Errorf("start of vring %d: %w", i, err)
		}
		v.Running = true
	case !want && v.Running:
		v.Base = s.dev.StopVring(i)
		v.Running, v.last = false, v.Ring
	}
	return nil
}

// adaptAll adapts all vrings; one that cannot start does not keep back others.
func (s *Session) adaptAll() (err error) {
	for i := range s.state.Vrings {
		if e := s.adapt(i); e != nil && err == nil {
			err = e
		}
	}
	return err
}

// state of a vring by a message that carries index and number, stopped.
func (s *Session) stoppedVring(m *wire.Message) (*Vring, wire.VringState, error) {
	st, err := wire.ParseVringState(m.Payload)
	if err != nil {
		return nil, st, err
	}
	v, err := s.vring(st.Index)
	if err != nil {
		return nil, st, err
	}
	if v.Running {
		return nil, st, refuse("vring %d runs", st.Index)
	}
	return v, st, nil
}

func (s *Session) setVringNum(m *wire.Message) error {
	v, st, err := s.stoppedVring(m)
	if err != nil {
		return err
	}
	if st.Num == 0 || st.Num > MaxQueueSize || st.Num&(st.Num-1) != 0 {
		return refuse("vring %d: size %d is not a power of two from 1 to %d", st.Index, st.Num, MaxQueueSize)
	}
	v.Size = uint16(st.Num)
	return s.adapt(int(st.Index))
}

func (s *Session) setVringBase(m *wire.Message) error {
	v, st, err := s.stoppedVring(m)
	if err != nil {
		return err
	}
	if st.Num > 0xffff {
		return refuse("vring %d: base %#x of a split ring", st.Index, st.Num)
	}
	v.Base = uint16(st.Num)
	return nil
}

func (s *Session) setVringAddr(m *wire.Message) error {
	a, err := wire.ParseVringAddr(m.Payload)
	if err != nil {
		return err
	}
	v, err := s.vring(a.Index)
	if err != nil {
		return err
	}
	desc, avail, used := guestmem.UVA(a.Desc), guestmem.UVA(a.Avail), guestmem.UVA(a.Used)
	if v.Running {
		// The same again may come at any time, to switch logging.
		if v.Desc != desc || v.Avail != avail || v.Used != used {
			return refuse("vring %d runs", a.Index)
		}
		return nil
	}
	if desc%16 != 0 || avail%2 != 0 || used%4 != 0 {
		return refuse("vring %d: descriptor table %#x, available ring %#x or used ring %#x is not aligned", a.Index, a.Desc, a.Avail, a.Used)
	}
	v.Desc, v.Avail, v.Used, v.Placed = desc, avail, used, true
	return s.adapt(int(a.Index))
}

func (s *Session) getVringBase(m *wire.Message) error {
	st, err := wire.ParseVringState(m.Payload)
	if err != nil {
		return err
	}
	v, err := s.vring(st.Index)
	if err != nil {
		return err
	}
	// A vring is stopped until the next kick descriptor comes.
	fd := v.Kick
	v.Kick = -1
	if err := s.adapt(int(st.Index)); err != nil {
		return err
	}
	if err := s.dev.SetKick(int(st.Index), -1); err != nil {
		return err
	}
	closeFD(&fd)
	s.out = wire.VringState{Index: st.Index, Num: uint32(v.Base)}.Append(s.out)
	return nil
}

// vringFD decodes a message that gives a vring a descriptor or none.
func (s *Session) vringFD(m *wire.Message) (*Vring, wire.VringFD, error) {
	f, err := wire.ParseVringFD(m.Payload)
	if err != nil {
		return nil, f, err
	}
	if f.NoFD != (len(m.FDs) == 0) {
		return nil, f, refuse("vring %d: %d descriptors, no-descriptor bit is %v", f.Index, len(m.FDs), f.NoFD)
	}
	v, err := s.vring(uint32(f.Index))
	return v, f, err
}

func (s *Session) setVringKick(m *wire.Message) error {
	v, f, err := s.vringFD(m)
	if err != nil {
		return err
	}
	if f.NoFD {
		return refuse("vring %d: polling without a kick descriptor", f.Index)
	}
	i := int(f.Index)
	old := v.Kick
	v.Kick = -1
	if err := s.adapt(i); err != nil {
		return err
	}
	if err := s.dev.SetKick(i, m.FDs[0]); err != nil {
		v.Kick = old
		return errors.Join(err, s.adapt(i))
	}
	closeFD(&old)
	v.Kick = m.TakeFD(0)
	return s.adapt(i)
}

// setVringNotifier handles SET_VRING_CALL and SET_VRING_ERR, which may come at
// any time, also before everything else.
func (s *Session) setVringNotifier(m *wire.Message, field func(*Vring) *int, set func(i, fd int) error) error {
	v, f, err := s.vringFD(m)
	if err != nil {
		return err
	}
	fd := -1
	if !f.NoFD {
		fd = m.FDs[0]
	}
	if err := set(int(f.Index), fd); err != nil {
		return err
	}
	have := field(v)
	closeFD(have)
	if !f.NoFD {
		*have = m.TakeFD(0)
	}
	return nil
}

// setVringEnable also takes vrings that the guest never set up: front-ends
// enable all that the device has.
func (s *Session) setVringEnable(m *wire.Message) error {
	st, err := wire.ParseVringState(m.Payload)
	if err != nil {
		return err
	}
	v, err := s.vring(st.Index)
	if err != nil {
		return err
	}
	if st.Num > 1 {
		return refuse("vring %d: enable %d", st.Index, st.Num)
	}
	v.Enabled = st.Num == 1
	return s.adapt(int(st.Index))
}

// disableAll is RESET_OWNER, an obsolete message.
func (s *Session) disableAll() error {
	for i := range s.state.Vrings {
		s.state.Vrings[i].Enabled = false
	}
	return s.adaptAll()
}

// resetDevice is RESET_DEVICE. It may come at any time and several times. Memory,
// features, call and error descriptors stay: they belong to the connection.
func (s *Session) resetDevice() error {
	if err := s.disableAll(); err != nil {
		return err
	}
	s.dev.Reset()
	for i := range s.state.Vrings {
		v := &s.state.Vrings[i]
		if err := s.dev.SetKick(i, -1); err != nil {
			return err
		}
		closeFD(&v.Kick)
		v.Ring, v.last, v.Placed = Ring{}, Ring{}, false
	}
	return nil
}
