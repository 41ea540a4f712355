package session

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// errUnknown marks requests that we do not have, or have not offered.
var errUnknown = errors.New("unknown request")

// errRefused marks messages that no correct front-end sends.
var errRefused = errors.New("refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errRefused)...)
}

// handle does what m asks for. The payload of a reply of its own is left in s.out.
func (s *Session) handle(m *wire.Message) error {
	if err := checkFDs(m); err != nil {
		return err
	}
	switch m.Request {
	case wire.GetFeatures:
		return s.reply(m, Features)
	case wire.SetFeatures:
		return s.setFeatures(m)
	case wire.SetOwner:
		return nil // every connection has one owner: the other end
	case wire.ResetOwner:
		return s.disableAll()
	case wire.SetMemTable:
		return s.setMemTable(m)
	case wire.AddMemReg:
		return s.addRegion(m)
	case wire.RemMemReg:
		return s.removeRegion(m)
	case wire.GetMaxMemSlots:
		return s.reply(m, guestmem.MaxRegions)
	case wire.SetVringNum:
		return s.setVringNum(m)
	case wire.SetVringAddr:
		return s.setVringAddr(m)
	case wire.SetVringBase:
		return s.setVringBase(m)
	case wire.GetVringBase:
		return s.getVringBase(m)
	case wire.SetVringKick:
		return s.setVringKick(m)
	case wire.SetVringCall:
		return s.setVringNotifier(m, func(v *Vring) *int { return &v.Call }, s.dev.SetCall)
	case wire.SetVringErr:
		return s.setVringNotifier(m, func(v *Vring) *int { return &v.Err }, s.dev.SetErr)
	case wire.SetVringEnable:
		return s.setVringEnable(m)
	case wire.GetProtocolFeatures:
		return s.reply(m, s.cfg.ProtocolFeatures())
	case wire.SetProtocolFeatures:
		return s.setProtocolFeatures(m)
	case wire.GetQueueNum:
		return s.reply(m, uint64(s.cfg.Queues))
	case wire.ResetDevice:
		return s.resetDevice()
	case wire.GetInflightFD:
		return s.getInflight(m)
	case wire.SetInflightFD:
		return s.setInflight(m)
	case wire.SetBackendReqFD:
		if s.cfg.ConfigSpace == nil {
			return fmt.Errorf("BACKEND_REQ was not offered: %w", errUnknown)
		}
		closeFD(&s.state.BackendReq)
		s.state.BackendReq = m.TakeFD(0)
		return nil
	case wire.GetConfig, wire.SetConfig:
		if s.cfg.ConfigSpace == nil {
			return fmt.Errorf("CONFIG was not offered: %w", errUnknown)
		}
		return s.config(m)
	}
	return fmt.Errorf("not known here: %w", errUnknown)
}

// checkFDs tests the number of descriptors where the request alone says it.
func checkFDs(m *wire.Message) error {
	least, most := 0, 0
	switch m.Request {
	case wire.SetMemTable:
		most = wire.MaxTableRegions
	case wire.AddMemReg, wire.SetBackendReqFD:
		least, most = 1, 1
	case wire.RemMemReg, wire.SetVringKick, wire.SetVringCall, wire.SetVringErr:
		most = 1
	case wire.SetLogBase, wire.SetLogFD, wire.SetInflightFD, wire.SetDeviceStateFD:
		most = 1 // not offered; said so below
	}
	if n := len(m.FDs); n < least || n > most {
		return refuse("%d descriptors, want %d to %d", n, least, most)
	}
	return nil
}

// reply answers a GET message, which has no payload, with v.
func (s *Session) reply(m *wire.Message, v uint64) error {
	if len(m.Payload) != 0 {
		return refuse("%d bytes of payload, want none", len(m.Payload))
	}
	s.out = wire.AppendU64(s.out, v)
	return nil
}

func (s *Session) setFeatures(m *wire.Message) error {
	f, err := wire.ParseU64(m.Payload)
	if err != nil {
		return err
	}
	if f&^Features != 0 {
		return refuse("features %#x, of which %#x were not offered", f, f&^Features)
	}
	if f&wire.FeatureVersion1 == 0 {
		return refuse("features %#x lack VERSION_1", f)
	}
	// The same again may come at any time. What the rings look like may not
	// change under them.
	if f != s.state.Features {
		for i := range s.state.Vrings {
			if s.state.Vrings[i].Running {
				return refuse("features change from %#x to %#x while vring %d runs", s.state.Features, f, i)
			}
		}
		s.state.Features = f
		s.dev.SetFeatures(f)
	}
	if f&wire.FeatureProtocolFeatures == 0 {
		// A front-end that does not know SET_VRING_ENABLE: all vrings are on.
		// The other way round nothing is switched off, since rings may run.
		for i := range s.state.Vrings {
			s.state.Vrings[i].Enabled = true
		}
	}
	return s.adaptAll()
}

func (s *Session) setProtocolFeatures(m *wire.Message) error {
	f, err := wire.ParseU64(m.Payload)
	if err != nil {
		return err
	}
	if extra := f &^ s.cfg.ProtocolFeatures(); extra != 0 {
		return refuse("protocol features %#x, of which %#x were not offered", f, extra)
	}
	s.state.ProtocolFeatures = f
	return nil
}

func (s *Session) config(m *wire.Message) error {
	c, err := wire.ParseConfig(m.Payload)
	if err != nil {
		return err
	}
	if m.Request == wire.SetConfig {
		if c.Flags == wire.ConfigFlagMigration {
			return nil // the space is the same wherever the guest migrates from
		}
		return refuse("the configuration space is read-only")
	}
	data := make([]byte, len(c.Data)) // zeros behind the end
	if int64(c.Offset) < int64(len(s.cfg.ConfigSpace)) {
		copy(data, s.cfg.ConfigSpace[c.Offset:])
	}
	s.out = wire.Config{Offset: c.Offset, Flags: c.Flags, Data: data}.Append(s.out)
	return nil
}

func region(r wire.MemRegion) guestmem.Region {
	return guestmem.Region{
		GPA: guestmem.GPA(r.GuestAddr), UVA: guestmem.UVA(r.UserAddr),
		Size: r.Size, Offset: guestmem.Offset(r.MmapOffset),
	}
}

func (s *Session) setMemTable(m *wire.Message) error {
	regions, err := wire.ParseMemTable(m.Payload)
	if err != nil {
		return err
	}
	if len(regions) != len(m.FDs) {
		return refuse("%d regions with %d descriptors", len(regions), len(m.FDs))
	}
	sources := make([]guestmem.Source, len(regions))
	for i, r := range regions {
		sources[i] = guestmem.Source{Region: region(r), FD: m.FDs[i]}
	}
	if err := s.dev.SetMemory(sources); err != nil {
		return err
	}
	for i := range s.state.Regions {
		closeFD(&s.state.Regions[i].FD)
	}
	for i := range sources {
		m.TakeFD(i) // sources has it
	}
	s.state.Regions = sources
	return nil
}

func (s *Session) addRegion(m *wire.Message) error {
	r, err := wire.ParseSingleRegion(m.Payload)
	if err != nil {
		return err
	}
	sources := append(s.state.Regions[:len(s.state.Regions):len(s.state.Regions)],
		guestmem.Source{Region: region(r), FD: m.FDs[0]})
	if err := s.dev.SetMemory(sources); err != nil {
		return err
	}
	m.TakeFD(0) // sources has it
	s.state.Regions = sources
	return nil
}

func (s *Session) removeRegion(m *wire.Message) error {
	r, err := wire.ParseSingleRegion(m.Payload)
	if err != nil {
		return err
	}
	for i, have := range s.state.Regions {
		// Not by the offset: QEMU says 0 here.
		if uint64(have.GPA) != r.GuestAddr || uint64(have.UVA) != r.UserAddr || have.Size != r.Size {
			continue
		}
		sources := append(append([]guestmem.Source(nil), s.state.Regions[:i]...), s.state.Regions[i+1:]...)
		if err := s.dev.SetMemory(sources); err != nil {
			return err
		}
		closeFD(&have.FD)
		s.state.Regions = sources
		return nil
	}
	return refuse("no region at gpa %#x, user %#x, of %#x bytes", r.GuestAddr, r.UserAddr, r.Size)
}
