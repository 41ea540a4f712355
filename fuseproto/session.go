package fuseproto

import (
	"fmt"
	"syscall"
)

const (
	protocolMajor = 7
	protocolMinor = 45
	// minMinor is the oldest minor that is served: all guests with virtio-fs say
	// at least 31, and every reply has the layouts known since.
	minMinor = 27
)

// session is what one INIT negotiated. It never changes.
type session struct {
	generation   uint64
	minor        uint32
	flags        uint64 // granted
	maxReadahead uint32
	maxWrite     uint32
	maxPages     uint16
	mapAlignment uint16
}

// negotiate returns what of the offered flags a session is granted.
func (c *Config) negotiate(offered uint64) uint64 {
	want := c.Flags | FlagInitExt
	if c.ZeroMessageOpen {
		want |= flagsZeroMessageOpen
	} else {
		want &^= flagsZeroMessageOpen
	}
	if c.MapAlignment == 0 {
		want &^= flagsDAX
	}
	granted := offered & want &^ flagsNever
	if granted&FlagAutoInvalData != 0 {
		granted &^= FlagExplicitInvalData
	}
	if granted&FlagMapAlignment == 0 {
		granted &^= flagsDAX // the guest offers the other bit even without a window
	}
	if granted&FlagInitExt == 0 {
		granted &^= flagsOfSecondWord
	}
	return granted
}

// init answers INIT. A further one ends the session that was, whose requests may
// still run: they keep the session they began in.
func (s *Server) init(op *Op) error {
	var in InitIn
	in.decode(op.body)
	out := initOut{
		major: protocolMajor, minor: min(protocolMinor, in.Minor),
		maxReadahead:  in.MaxReadahead,
		maxBackground: s.cfg.MaxBackground, congestionThreshold: uint16(uint32(s.cfg.MaxBackground) * 3 / 4),
		maxWrite: s.cfg.MaxWrite, maxPages: uint16(s.cfg.MaxWrite / pageSize),
	}
	switch {
	case in.Major > protocolMajor:
		// The guest sends a second INIT with our major.
		out = initOut{major: protocolMajor, minor: protocolMinor}
		op.fixed = initOutSize
		out.encode(op.reply[outHeaderSize:])
		return nil
	case in.Major < protocolMajor || in.Minor < minMinor:
		return syscall.EPROTO
	}
	out.flags = s.cfg.negotiate(in.Flags)
	if out.flags&FlagMapAlignment != 0 {
		out.mapAlignment = s.cfg.MapAlignment
	}
	if err := s.begin(&session{
		minor: out.minor, flags: out.flags, maxReadahead: out.maxReadahead,
		maxWrite: out.maxWrite, maxPages: out.maxPages, mapAlignment: out.mapAlignment,
	}); err != nil {
		return err
	}
	op.fixed = initOutSize
	out.encode(op.reply[outHeaderSize:])
	return nil
}

// begin makes ses the session. Whoever remembers it for the next process is told
// first: the guest must not be promised what that one does not know. If this one ends
// in between, INIT is run again and begins one more.
func (s *Server) begin(ses *session) error {
	s.sessionMu.Lock()
	defer s.sessionMu.Unlock()
	ses.generation = s.generation + 1
	for _, f := range s.onChange {
		if err := f(encodeState(ses.generation, ses)); err != nil {
			return fmt.Errorf("session cannot begin: %w", err)
		}
	}
	s.generation++
	s.fs.Init(ses.flags)
	s.session.Store(ses)
	return nil
}

// OnChange has f called with what Snapshot would return, whenever a session begins or
// ends, before the reply to the INIT or DESTROY is written and before Reset returns.
// If f fails, INIT does too (EIO); an end cannot fail, it is logged. f is called
// under a lock that requests do not take, and must not call the Server. OnChange is
// called before any request.
func (s *Server) OnChange(f func(state []byte) error) { s.onChange = append(s.onChange, f) }

// end ends ses, or whatever session there is if ses is nil.
func (s *Server) end(ses *session) {
	s.sessionMu.Lock()
	defer s.sessionMu.Unlock()
	now := s.session.Load()
	if now == nil || ses != nil && ses != now {
		return
	}
	for _, f := range s.onChange {
		if err := f(encodeState(s.generation, nil)); err != nil {
			s.log.Error("the end of the FUSE session was not remembered", "err", err)
		}
	}
	s.session.Store(nil)
	s.fs.Destroy()
}

// Reset ends the session without a DESTROY: the device was reset or its
// front-end is gone.
func (s *Server) Reset() { s.end(nil) }

// The state that another process needs to go on with a session:
//
//	0  u32 magic    16 u64 flags         36 u16 max_pages
//	4  u16 version  24 u32 max_readahead 38 u16 map_alignment
//	6  u16 0        28 u32 max_write     40 u64 generation
//	8  u32 live     32 u32 0
//	12 u32 minor
//
// All little endian. live is 0 before INIT, and the rest is 0 then but for the
// generation.
const (
	stateMagic   = 0x45535546 // "FUSE"
	stateVersion = 1
	stateSize    = 48
)

// Snapshot returns the session as bytes, for Restore of another process.
func (s *Server) Snapshot() ([]byte, error) {
	s.sessionMu.Lock()
	defer s.sessionMu.Unlock()
	return encodeState(s.generation, s.session.Load()), nil
}

func encodeState(generation uint64, ses *session) []byte {
	b := make([]byte, stateSize)
	le.PutUint32(b, stateMagic)
	le.PutUint16(b[4:], stateVersion)
	le.PutUint64(b[40:], generation)
	if ses != nil {
		le.PutUint32(b[8:], 1)
		le.PutUint32(b[12:], ses.minor)
		le.PutUint64(b[16:], ses.flags)
		le.PutUint32(b[24:], ses.maxReadahead)
		le.PutUint32(b[28:], ses.maxWrite)
		le.PutUint16(b[36:], ses.maxPages)
		le.PutUint16(b[38:], ses.mapAlignment)
	}
	return b
}

// Restore takes up the session of a Snapshot, before any request. The guest was
// promised those values; ours may be others by now. FileSystem.Init is called
// with them, or Restore of one that is a Restorer. Who remembers sessions (OnChange)
// is told: the state may come from somebody else.
func (s *Server) Restore(state []byte) error {
	if len(state) != stateSize {
		return fmt.Errorf("session state has %d bytes, want %d", len(state), stateSize)
	}
	if m := le.Uint32(state); m != stateMagic {
		return fmt.Errorf("session state begins with %#x, want %#x", m, stateMagic)
	}
	if v := le.Uint16(state[4:]); v != stateVersion {
		return fmt.Errorf("session state has version %d, want %d", v, stateVersion)
	}
	ses := session{
		generation: le.Uint64(state[40:]),
		minor:      le.Uint32(state[12:]), flags: le.Uint64(state[16:]),
		maxReadahead: le.Uint32(state[24:]), maxWrite: le.Uint32(state[28:]),
		maxPages: le.Uint16(state[36:]), mapAlignment: le.Uint16(state[38:]),
	}
	live := le.Uint32(state[8:])
	switch {
	case live > 1:
		return fmt.Errorf("session state says live %d, want 0 or 1", live)
	case live == 1 && (ses.minor < minMinor || ses.minor > protocolMinor):
		return fmt.Errorf("session state has minor %d, want %d to %d", ses.minor, minMinor, protocolMinor)
	case live == 1 && ses.flags&flagsNever != 0:
		return fmt.Errorf("session state has flags %#x that are never granted", ses.flags&flagsNever)
	case live == 1 && (ses.maxWrite < pageSize || ses.maxWrite > maxMaxWrite):
		return fmt.Errorf("session state has max_write %d, want %d to %d", ses.maxWrite, pageSize, maxMaxWrite)
	}
	s.sessionMu.Lock()
	defer s.sessionMu.Unlock()
	s.generation = ses.generation
	s.session.Store(nil)
	if live == 1 {
		if r, ok := s.fs.(Restorer); ok {
			r.Restore(ses.flags, ses.generation)
		} else {
			s.fs.Init(ses.flags)
		}
		s.session.Store(&ses)
	}
	for _, f := range s.onChange {
		if err := f(encodeState(s.generation, s.session.Load())); err != nil {
			return fmt.Errorf("session cannot go on: %w", err)
		}
	}
	return nil
}
