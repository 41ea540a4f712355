package session

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// A front-end that comes back to another process of ours, as Cloud Hypervisor does,
// keeps the table of requests in flight for us meanwhile: it asks for the memory
// once, and hands it over with each connection. What is in it is the Device's.

func (s *Session) inflightOffered() error {
	if s.cfg.NewInflight == nil {
		return fmt.Errorf("INFLIGHT_SHMFD was not offered: %w", errUnknown)
	}
	return nil
}

// getInflight makes the memory. It becomes the Device's, and part of the state, when
// it comes back.
func (s *Session) getInflight(m *wire.Message) error {
	if err := s.inflightOffered(); err != nil {
		return err
	}
	in, err := wire.ParseInflight(m.Payload)
	if err != nil {
		return err
	}
	if int(in.Queues) > s.cfg.Queues || in.QueueSize > MaxQueueSize {
		return refuse("in-flight table of %d queues of %d, there are %d of at most %d", in.Queues, in.QueueSize, s.cfg.Queues, MaxQueueSize)
	}
	fd, size, err := s.cfg.NewInflight()
	if err != nil {
		return err
	}
	closeFD(&s.made)
	s.made = fd
	s.outFDs = []int{fd}
	s.out = wire.Inflight{MmapSize: uint64(size), Queues: in.Queues, QueueSize: in.QueueSize}.Append(s.out)
	return nil
}

func (s *Session) setInflight(m *wire.Message) error {
	if err := s.inflightOffered(); err != nil {
		return err
	}
	in, err := wire.ParseInflight(m.Payload)
	if err != nil {
		return err
	}
	switch {
	case len(m.FDs) != 1:
		return refuse("%d descriptors, want 1", len(m.FDs))
	case in.MmapOffset != 0:
		return refuse("in-flight table at offset %d, ours begins at 0", in.MmapOffset)
	}
	for i := range s.state.Vrings {
		if s.state.Vrings[i].Running {
			return refuse("in-flight table while vring %d runs", i)
		}
	}
	// Only memory that cannot shrink under us; ours is such.
	seals, err := unix.FcntlInt(uintptr(m.FDs[0]), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return refuse("in-flight table in memory that can shrink")
	}
	if err := s.dev.SetInflight(m.FDs[0], int64(in.MmapSize)); err != nil {
		return err
	}
	closeFD(&s.state.Inflight.FD)
	s.state.Inflight = Inflight{FD: m.TakeFD(0), Size: int64(in.MmapSize)}
	return nil
}
