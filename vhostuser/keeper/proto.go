package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
)

// Version is that of the protocol. It grows when an old keeper could not make use
// of a new worker any more. Fields and kinds are added without that: who does not
// know them ignores them.
const Version = 1

// kind says what a message is about.
type kind string

const (
	// Keeper to worker, at its begin and in this order.
	kindHello kind = "hello" // Version, Names of the sockets that come with it
	kindEntry kind = "entry" // Key, body and descriptors of one entry of the record
	kindBegin kind = "begin" // all is said that the worker needs to get ready

	// Keeper to worker, calls that are answered.
	kindDevice   kind = "device"   // Device, body: a session.State; a front-end is connected
	kindGone     kind = "gone"     // Device: the front-end is gone
	kindFeatures kind = "features" // and so on: the methods of session.Device
	kindMemory   kind = "memory"
	kindKick     kind = "kick"
	kindCall     kind = "call"
	kindErr      kind = "err"
	kindStart    kind = "start"
	kindStop     kind = "stop"
	kindReset    kind = "reset"
	kindQuiesce  kind = "quiesce" // give up the device and everything but this connection
	kindInflight kind = "inflight"

	// Keeper to worker.
	kindEnd      kind = "end"      // end in good order
	kindUpgraded kind = "upgraded" // after quiesce: Error, or the next worker's Text

	// Worker to keeper.
	kindStandby kind = "standby" // Version: hello was understood
	kindReady   kind = "ready"   // serving
	kindFailed  kind = "failed"  // Error: the worker cannot start and ends
	kindOver    kind = "over"    // Error: the worker's work is over, the keeper's too
	kindPut     kind = "put"     // Key, body, descriptors
	kindDelete  kind = "delete"  // Key
	kindDrop    kind = "drop"    // Key of memory
	kindUpgrade kind = "upgrade" // Text: path of another program

	// Worker to keeper, a call.
	kindShared kind = "shared" // Key, Size: memory

	kindAnswer kind = "answer" // of the call with the same ID
	kindFDs    kind = "fds"    // descriptors of the next message, which has more than one holds
)

// message is the part of a message that is JSON. Behind it is a body of bytes.
type message struct {
	Kind     kind              `json:"kind"`
	ID       uint64            `json:"id,omitempty"` // of a call and its answer
	Version  int               `json:"version,omitempty"`
	Names    []string          `json:"names,omitempty"`
	Error    string            `json:"error,omitempty"`
	IsVring  bool              `json:"is_vring,omitempty"` // Error wraps session.ErrVring
	Text     string            `json:"text,omitempty"`
	Device   uint64            `json:"device,omitempty"`
	Index    int               `json:"index,omitempty"`
	Features uint64            `json:"features,omitempty"`
	Regions  []guestmem.Region `json:"regions,omitempty"`
	Ring     *session.Ring     `json:"ring,omitempty"`
	Base     uint16            `json:"base,omitempty"`
	Blame    bool              `json:"blame,omitempty"`
	Key      string            `json:"key,omitempty"`
	Size     int64             `json:"size,omitempty"`

	body []byte
	fds  []int // the receiver's
}

// Limits of one packet.
const (
	maxJSON   = 128 << 10
	maxPacket = 3 + maxJSON + record.MaxValue
	maxFDs    = 200 // the kernel takes 253
)

// errProtocol is wrapped by errors after which nothing more can be said.
var errProtocol = errors.New("malformed message between keeper and worker")

// link is one end of the socket pair: packets, so that a message is there wholly
// or not at all, even if its sender dies.
type link struct {
	sock *net.UnixConn

	mu  sync.Mutex // serialises send; a leaf
	buf []byte     // guarded by mu

	// Owned by the receiving goroutine.
	in  []byte
	oob []byte
}

func newLink(f *os.File) (*link, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket between keeper and worker: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("socket between keeper and worker is a %T: %w", c, errProtocol)
	}
	return &link{sock: u, oob: make([]byte, unix.CmsgSpace(4*maxFDs))}, nil
}

// socketPair returns two connected ends.
func socketPair() (ours *link, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	a, b := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "keeper")
	defer a.Close() // newLink duplicates it
	ours, err = newLink(a)
	if err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return ours, b, nil
}

// send sends one message. The descriptors stay the caller's.
func (l *link) send(m *message) error {
	head, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(head) > maxJSON || len(m.body) > record.MaxValue {
		return fmt.Errorf("%s of %d and %d bytes: %w", m.Kind, len(head), len(m.body), record.ErrTooLarge)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fds := m.fds
	for ; len(fds) > maxFDs; fds = fds[maxFDs:] {
		if err := l.packet([]byte(`{"kind":"`+string(kindFDs)+`"}`), nil, fds[:maxFDs]); err != nil {
			return err
		}
	}
	return l.packet(head, m.body, fds)
}

func (l *link) packet(head, body []byte, fds []int) error {
	b := binary.LittleEndian.AppendUint16(l.buf[:0], uint16(len(head)&0xffff))
	b = append(b, byte(len(head)>>16))
	b = append(append(b, head...), body...)
	if cap(b) <= 64<<10 {
		l.buf = b // a large one is not kept
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := l.sock.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send between keeper and worker: %w", err)
	}
	return nil
}

// recv waits for the next message, whose descriptors are the caller's. It returns
// io.EOF when the other end is closed.
func (l *link) recv() (*message, error) {
	if l.in == nil {
		l.in = make([]byte, maxPacket)
	}
	var fds []int
	for {
		n, oobn, flags, _, err := l.sock.ReadMsgUnix(l.in, l.oob)
		if oobn > 0 {
			fds = append(fds, rights(l.oob[:oobn])...)
		}
		switch {
		case errors.Is(err, io.EOF) || err == nil && n == 0, errors.Is(err, unix.ECONNRESET):
			closeAll(fds)
			return nil, io.EOF
		case err != nil:
			closeAll(fds)
			return nil, fmt.Errorf("receive between keeper and worker: %w", err)
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
			closeAll(fds)
			return nil, fmt.Errorf("a packet was cut: %w", errProtocol)
		}
		m, err := parse(l.in[:n])
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		if m.Kind == kindFDs {
			continue
		}
		m.fds = fds
		return m, nil
	}
}

// parse reads one packet: the length of the JSON in three bytes, the JSON, the body.
func parse(b []byte) (*message, error) {
	if len(b) < 3 {
		return nil, fmt.Errorf("packet of %d bytes: %w", len(b), errProtocol)
	}
	n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	b = b[3:]
	if n > len(b) {
		return nil, fmt.Errorf("packet says %d of %d bytes are JSON: %w", n, len(b), errProtocol)
	}
	m := new(message)
	if err := json.Unmarshal(b[:n], m); err != nil {
		return nil, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if len(b) > n {
		m.body = append([]byte(nil), b[n:]...)
	}
	return m, nil
}

func rights(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// closeAll closes descriptors that nobody wrote through.
func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// problem turns an error into the fields that carry it, and failure turns them back.
func (m *message) problem(err error) *message {
	if err != nil {
		m.Error, m.IsVring = err.Error(), errors.Is(err, session.ErrVring)
	}
	return m
}

func (m *message) failure() error {
	switch {
	case m.Error == "":
		return nil
	case m.IsVring:
		return &remoteError{m.Error, session.ErrVring}
	}
	return &remoteError{m.Error, nil}
}

// remoteError is what the other process says went wrong.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }
