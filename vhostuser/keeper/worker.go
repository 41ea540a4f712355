package keeper

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
)

// Worker is a worker's end: what it was left by others, and what it tells the
// keeper. Its methods are safe for any number of goroutines but for Serve, which is
// called once.
type Worker struct {
	link     *link
	version  int                 // the keeper's
	sockets  map[string]*os.File // by name
	ops      chan *message       // for Serve
	end      chan struct{}       // closed when the keeper wants us to end
	orphaned chan struct{}       // closed when the keeper is gone
	upgraded chan *message       // of capacity 1

	upgrading sync.Mutex // one Upgrade at a time; a leaf but for calls to the keeper

	mu      sync.Mutex
	entries []*record.Entry          // those of the begin; guarded by mu
	calls   map[uint64]chan *message // guarded by mu; nil when orphaned
	lastID  uint64                   // guarded by mu
}

var _ record.Record = (*Worker)(nil)

// Join takes up the connection to the keeper that has started this process, and
// waits until it says all that a worker needs to begin. It fails if there is no
// such keeper, or if it lets us go again. What is heard from then on waits for
// Serve.
func Join() (*Worker, error) {
	f := os.NewFile(workerFD, "keeper")
	if f == nil {
		return nil, errors.New("there is no keeper: a worker is started by rafsd itself")
	}
	defer f.Close() // newLink duplicates it
	l, err := newLink(f)
	if err != nil {
		return nil, fmt.Errorf("there is no keeper: %w", err)
	}
	w := &Worker{
		link: l, sockets: make(map[string]*os.File), ops: make(chan *message), end: make(chan struct{}),
		orphaned: make(chan struct{}), upgraded: make(chan *message, 1), calls: make(map[uint64]chan *message),
	}
	for {
		m, err := l.recv()
		if err != nil {
			return nil, fmt.Errorf("the keeper is gone: %w", err)
		}
		switch m.Kind {
		case kindHello:
			if len(m.Names) > len(m.fds) {
				return nil, fmt.Errorf("%d sockets, %d descriptors: %w", len(m.Names), len(m.fds), errProtocol)
			}
			w.version = m.Version
			for i, name := range m.Names {
				w.sockets[name] = os.NewFile(uintptr(m.fds[i]), name)
			}
			if err := l.send(&message{Kind: kindStandby, Version: Version}); err != nil {
				return nil, err
			}
		case kindEntry:
			w.entries = append(w.entries, &record.Entry{Key: m.Key, Value: m.body, FDs: m.fds})
		case kindBegin:
			go w.hear()
			return w, nil
		default: // of a newer keeper
			closeAll(m.fds)
		}
	}
}

// Socket returns the socket of that name, nil if there is none. It is the
// caller's.
func (w *Worker) Socket(name string) *os.File { return w.sockets[name] }

// End is closed when the keeper wants the worker to end in good order.
func (w *Worker) End() <-chan struct{} { return w.end }

// Orphaned is closed when the keeper is gone, and nobody waits for anything any
// more: the process ends at once.
func (w *Worker) Orphaned() <-chan struct{} { return w.orphaned }

// Ready tells the keeper that the worker, a program of this version, can serve.
func (w *Worker) Ready(version string) error {
	return w.link.send(&message{Kind: kindReady, Text: version})
}

// Failed tells the keeper why the worker cannot serve, which then ends.
func (w *Worker) Failed(err error) error {
	return w.link.send((&message{Kind: kindFailed}).problem(err))
}

// Over tells the keeper that its life is over, by an error or in good order (nil),
// and that the worker ends now.
func (w *Worker) Over(err error) error {
	return w.link.send((&message{Kind: kindOver}).problem(err))
}

// Upgrade asks the keeper to let the program at path serve from now on. When it
// returns nil, that serves and this worker is to end; version is its, and pause how
// long nobody served. After an error, either this worker serves on, or another one of
// the same program does; Serve has returned then. One call at a time goes to the
// keeper.
func (w *Worker) Upgrade(path string) (version string, pause time.Duration, err error) {
	w.upgrading.Lock()
	defer w.upgrading.Unlock()
	if err := w.link.send(&message{Kind: kindUpgrade, Text: path}); err != nil {
		return "", 0, err
	}
	select {
	case m := <-w.upgraded:
		return m.Text, time.Duration(m.Size), m.failure()
	case <-w.orphaned:
		return "", 0, errDied
	}
}

// Put implements record.Record: what was sent is the keeper's, whatever becomes of
// us, so that nothing is waited for.
func (w *Worker) Put(key string, value []byte, fds ...int) error {
	if err := record.Check(key, value, len(fds)); err != nil {
		return fmt.Errorf("session record: %.80q: %w", key, err)
	}
	return w.link.send(&message{Kind: kindPut, Key: key, body: value, fds: fds})
}

// Delete implements record.Record.
func (w *Worker) Delete(key string) error {
	return w.link.send(&message{Kind: kindDelete, Key: key})
}

// DropMemory implements record.Record.
func (w *Worker) DropMemory(key string) error {
	return w.link.send(&message{Kind: kindDrop, Key: key})
}

// Each implements record.Record. It hands out each descriptor once.
func (w *Worker) Each(prefix string, f func(key string, value []byte, fds []int) error) error {
	w.mu.Lock()
	var found []record.Entry
	for _, e := range w.entries {
		if strings.HasPrefix(e.Key, prefix) {
			found = append(found, *e)
			e.FDs = nil
		}
	}
	w.mu.Unlock()
	for i, e := range found {
		if err := f(e.Key, e.Value, e.FDs); err != nil {
			for _, rest := range found[i+1:] {
				closeAll(rest.FDs)
			}
			return err
		}
	}
	return nil
}

// Memory implements record.Record.
func (w *Worker) Memory(key string, size int64) ([]byte, error) {
	answer, err := w.call(&message{Kind: kindShared, Key: key, Size: size})
	if err != nil {
		return nil, fmt.Errorf("session record: memory %.80q: %w", key, err)
	}
	defer closeAll(answer.fds)
	if err := answer.failure(); err != nil {
		return nil, err
	}
	if len(answer.fds) != 1 {
		return nil, fmt.Errorf("session record: memory of %d descriptors: %w", len(answer.fds), errProtocol)
	}
	b, err := record.Map(answer.fds[0], size)
	if err != nil {
		return nil, fmt.Errorf("session record: memory %.80q: %w", key, err)
	}
	return b, nil
}

func (w *Worker) call(m *message) (*message, error) {
	c := make(chan *message, 1)
	w.mu.Lock()
	if w.calls == nil {
		w.mu.Unlock()
		return nil, errors.New("the keeper is gone")
	}
	w.lastID++
	m.ID = w.lastID
	w.calls[m.ID] = c
	w.mu.Unlock()
	if err := w.link.send(m); err != nil {
		return nil, err
	}
	select {
	case answer := <-c:
		return answer, nil
	case <-w.orphaned:
		return nil, errors.New("the keeper is gone")
	}
}

// hear sorts what the keeper says until it is gone.
func (w *Worker) hear() {
	defer close(w.orphaned)
	ended := false
	for {
		m, err := w.link.recv()
		if err != nil {
			return
		}
		switch m.Kind {
		case kindAnswer:
			w.mu.Lock()
			c := w.calls[m.ID]
			delete(w.calls, m.ID)
			w.mu.Unlock()
			if c != nil {
				c <- m
			} else {
				closeAll(m.fds)
			}
		case kindEnd:
			if !ended {
				close(w.end)
			}
			ended = true
		case kindUpgraded:
			select {
			case w.upgraded <- m:
			default:
			}
		default:
			w.ops <- m
		}
	}
}

// Host is what a Worker serves a front-end with.
type Host struct {
	Handler vhostuser.Handler
	Options vhostuser.Options // OnConnect and OnDisconnect as for a Server

	// Quiesce gives up everything that another process is about to take up: when it
	// returns, nothing is written any more, to the record neither. The device is
	// closed before.
	Quiesce func()
}

// Serve does what the keeper says about the front-end and its device, and returns
// when stop closes, after a Quiesce, or without a keeper. The device is closed then.
func (w *Worker) Serve(h Host, stop <-chan struct{}) error {
	s := &served{host: h}
	defer s.closeDevice()
	// Setting up a vring looks at guest memory, which may be gone.
	debug.SetPanicOnFault(true)
	for {
		select {
		case <-stop:
			return nil
		case <-w.orphaned:
			return nil
		case m := <-w.ops:
			answer, err := s.guarded(m)
			closeAll(m.fds)
			answer.Kind, answer.ID = kindAnswer, m.ID
			if err := w.link.send(answer.problem(err)); err != nil {
				return err
			}
			if m.Kind == kindQuiesce {
				return nil
			}
		}
	}
}

// served is the device that a Worker serves.
type served struct {
	host   Host
	device *vhostuser.Device // nil without a front-end
	number uint64            // of the keeper's device
}

// errNoDevice answers calls about a device that we do not have.
var errNoDevice = errors.New("no such device")

// guarded is do, with faults of guest memory turned into errors.
func (s *served) guarded(m *message) (answer *message, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		fault, ok := p.(interface{ Addr() uintptr })
		if !ok {
			panic(p)
		}
		answer, err = &message{}, fmt.Errorf("%s: fault at %#x: %w: %w", m.Kind, fault.Addr(), guestmem.ErrGone, session.ErrVring)
	}()
	return s.do(m)
}

func (s *served) do(m *message) (*message, error) {
	switch m.Kind {
	case kindDevice:
		return &message{}, s.begin(m)
	case kindQuiesce:
		if s.device != nil {
			s.device.Abandon()
			s.device = nil
		}
		if s.host.Quiesce != nil {
			s.host.Quiesce()
		}
		return &message{}, nil
	}
	if s.device == nil || m.Device != s.number {
		if m.Kind == kindGone {
			return &message{}, nil
		}
		return &message{}, fmt.Errorf("%s of device %d: %w", m.Kind, m.Device, errNoDevice)
	}
	return s.drive(m)
}

// begin takes up a device in the state that m holds.
func (s *served) begin(m *message) error {
	if s.device != nil && m.Device == s.number {
		return nil
	}
	s.closeDevice()
	state, err := session.UnmarshalState(m.body, m.fds)
	if err != nil {
		return err
	}
	state.Crashed = m.Blame
	s.device, err = vhostuser.NewDeviceFromSnapshot(s.host.Handler, s.host.Options, state)
	state.Close() // the Device has duplicates
	m.fds = nil
	if err != nil {
		return err
	}
	s.number = m.Device
	if f := s.host.Options.OnConnect; f != nil {
		f()
	}
	return nil
}

func (s *served) closeDevice() {
	if s.device == nil {
		return
	}
	s.device.Close()
	s.device = nil
	if f := s.host.Options.OnDisconnect; f != nil {
		f(nil)
	}
}

// drive calls the method of the device that m stands for.
func (s *served) drive(m *message) (*message, error) {
	fd := -1
	if len(m.fds) == 1 {
		fd = m.fds[0]
	}
	switch m.Kind {
	case kindGone:
		s.closeDevice()
	case kindFeatures:
		s.device.SetFeatures(m.Features)
	case kindMemory:
		if len(m.Regions) != len(m.fds) {
			return &message{}, fmt.Errorf("%d regions, %d descriptors: %w", len(m.Regions), len(m.fds), errProtocol)
		}
		var sources []guestmem.Source
		for i, r := range m.Regions {
			sources = append(sources, guestmem.Source{Region: r, FD: m.fds[i]})
		}
		return &message{}, s.device.SetMemory(sources)
	case kindKick:
		return &message{}, s.device.SetKick(m.Index, fd)
	case kindCall:
		return &message{}, s.device.SetCall(m.Index, fd)
	case kindErr:
		return &message{}, s.device.SetErr(m.Index, fd)
	case kindStart:
		if m.Ring == nil {
			return &message{}, fmt.Errorf("start without a ring: %w", errProtocol)
		}
		return &message{}, s.device.StartVring(m.Index, *m.Ring)
	case kindStop:
		return &message{Base: s.device.StopVring(m.Index)}, nil
	case kindInflight:
		return &message{}, s.device.SetInflight(fd, m.Size)
	case kindReset:
		s.device.Reset()
	default:
		return &message{}, fmt.Errorf("%q is not known: %w", m.Kind, errProtocol)
	}
	return &message{}, nil
}
