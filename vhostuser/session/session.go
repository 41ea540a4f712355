package session

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// MaxQueueSize is the most entries of one vring.
const MaxQueueSize = 1024

// Features are the virtio features that every session offers. A front-end must
// acknowledge VERSION_1.
const Features = wire.FeatureVersion1 | wire.FeatureIndirectDesc | wire.FeatureEventIdx | wire.FeatureProtocolFeatures

// Config says what a Session offers.
type Config struct {
	Queues int // vrings in all, at most 256

	// ConfigSpace is the device's configuration space. With nil, neither CONFIG
	// nor BACKEND_REQ is offered: QEMU has the space of its own and warns about
	// ours, and user-mode Linux needs both.
	ConfigSpace []byte

	// NewInflight makes memory for the table of requests in flight, which the
	// front-end keeps for us. With nil, INFLIGHT_SHMFD is not offered.
	NewInflight func() (fd int, size int64, err error)

	Log *slog.Logger
}

// ProtocolFeatures returns the protocol features that c offers.
func (c *Config) ProtocolFeatures() uint64 {
	f := wire.ProtocolMQ | wire.ProtocolReplyAck | wire.ProtocolResetDevice | wire.ProtocolConfigureMemSlots
	if c.NewInflight != nil {
		f |= wire.ProtocolInflightSHMFD
	}
	if c.ConfigSpace != nil {
		f |= wire.ProtocolConfig | wire.ProtocolBackendReq
	}
	return f
}

// maxComplaints bounds how many refused messages of one session are logged.
const maxComplaints = 32

// Session is one conversation with a front-end.
type Session struct {
	cfg Config
	dev Device

	mu         sync.Mutex // before any lock of dev
	state      State      // guarded by mu
	complaints int        // guarded by mu
	out        []byte     // guarded by mu; payload of the reply under construction
	outFDs     []int      // guarded by mu; descriptors of that reply, lent
	made       int        // guarded by mu; what GET_INFLIGHT_FD has made last, or -1
	starts     uint64     // of vrings; guarded by mu
}

// New returns a Session that has heard nothing yet and drives dev.
func New(cfg Config, dev Device) *Session {
	return &Session{cfg: cfg, dev: dev, state: NewState(cfg.Queues), made: -1}
}

// Restore returns a Session that goes on from state, and owns it from now on. dev
// is in that state already.
func Restore(cfg Config, dev Device, state *State) (*Session, error) {
	if len(state.Vrings) != cfg.Queues {
		return nil, fmt.Errorf("state of %d vrings for a device of %d: %w", len(state.Vrings), cfg.Queues, ErrState)
	}
	s := &Session{cfg: cfg, dev: dev, state: *state, made: -1}
	s.state.Handler = nil
	for i := range s.state.Vrings {
		v := &s.state.Vrings[i]
		s.starts = max(s.starts, v.Generation)
		if v.Live {
			v.last = v.Ring
		}
		// The Device has taken over from here.
		v.Live, v.Stopped = false, Progress{}
	}
	return s, nil
}

// Close closes all descriptors. The Device must not be used by the Session any
// more: Serve has returned.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Close()
	closeFD(&s.made)
}

// Snapshot stops the Device and returns the state of session and device. The
// descriptors in it stay the Session's: they are valid until Close.
func (s *Session) Snapshot() (*State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	vrings, handler, err := s.dev.Snapshot()
	if err != nil {
		return nil, err
	}
	st := s.state
	st.Regions = append(st.Regions[:0:0], st.Regions...)
	st.Vrings = append(st.Vrings[:0:0], st.Vrings...)
	st.Handler = handler
	for i, p := range vrings {
		v := &st.Vrings[i]
		// A stopped vring that was given another place, size or base since will
		// begin anew, whatever the Device still knows of it.
		if p != nil && (v.Running || v.Ring == v.last) {
			v.Live, v.Stopped = true, *p
		}
		v.last = Ring{}
	}
	return &st, nil
}

// Serve answers messages until the front-end leaves, which is nil, or the
// connection is of no use any more.
func (s *Session) Serve(c *wire.Conn) error {
	for {
		m, err := c.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		reply, fds, send, err := s.answer(&m)
		m.CloseFDs()
		if err == nil && send {
			err = c.Reply(m.Request, reply, fds...)
		}
		if err != nil {
			return err
		}
	}
}

// answer handles m and returns the payload of the reply, if one is to be sent.
// An error ends the connection. It is valid until the next call.
func (s *Session) answer(m *wire.Message) (reply []byte, fds []int, send bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Log.Debug("vhost-user message", "request", m.Request, "flags", uint32(m.Flags), "size", len(m.Payload), "fds", len(m.FDs))
	s.out, s.outFDs = s.out[:0], nil
	err = s.handle(m)
	// What SET_PROTOCOL_FEATURES has just switched on counts for itself: user-mode
	// Linux waits for that answer.
	acks := m.NeedReply() && s.state.ProtocolFeatures&wire.ProtocolReplyAck != 0
	if err == nil && m.Request.HasOwnReply() {
		return s.out, s.outFDs, true, nil
	}
	if err != nil {
		s.complain(m, err)
		switch {
		case errors.Is(err, errUnknown), errors.Is(err, ErrVring):
			// Nothing that the front-end cannot live without.
		case m.Request.HasOwnReply(), !acks:
			return nil, nil, false, fmt.Errorf("%v: %w", m.Request, err)
		}
	}
	if !acks {
		return nil, nil, false, nil
	}
	code := uint64(0)
	if err != nil {
		code = 1
	}
	s.out = wire.AppendU64(s.out[:0], code)
	return s.out, nil, true, nil
}

// complain logs why a message was refused, but not for ever.
func (s *Session) complain(m *wire.Message, err error) {
	s.complaints++
	if s.complaints > maxComplaints {
		return
	}
	s.cfg.Log.Warn("vhost-user message refused", "request", m.Request, "err", err)
	if s.complaints == maxComplaints {
		s.cfg.Log.Warn("further refusals of this connection are not logged")
	}
}
