package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of one message.
const (
	HeaderSize = 12
	MaxPayload = 4096
	MaxFDs     = 32
)

// sendTimeout bounds how long a peer that does not read can hold up a sender.
const sendTimeout = 10 * time.Second

// ErrFraming is wrapped by errors after which the stream cannot be read on:
// where the next message starts is not known, or descriptors were lost.
var ErrFraming = errors.New("malformed vhost-user message")

// Message is one message as it arrived.
type Message struct {
	Request Request
	Flags   Flags
	Payload []byte // valid until the next Recv of the same Conn
	FDs     []int  // owned by the receiver of the message
}

// NeedReply reports whether the sender asks for an answer.
func (m *Message) NeedReply() bool { return m.Flags&FlagNeedReply != 0 }

// TakeFD hands over descriptor i to the caller; CloseFDs leaves it alone from
// then on.
func (m *Message) TakeFD(i int) int {
	fd := m.FDs[i]
	m.FDs[i] = -1
	return fd
}

// CloseFDs closes all descriptors of the message that were not taken.
func (m *Message) CloseFDs() {
	closeFDs(m.FDs)
	m.FDs = nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			// Close errors mean nothing for descriptors that were never used.
			_ = unix.Close(fd)
		}
	}
}

// Conn frames messages on one connected unix stream socket.
type Conn struct {
	sock *net.UnixConn

	// Owned by the receiving goroutine.
	head    [HeaderSize]byte
	payload [MaxPayload]byte
	oob     []byte

	sendMu  sync.Mutex // serialises Send, leaf
	sendBuf []byte     // guarded by sendMu
}

// NewConn returns a Conn on sock and owns it from now on.
func NewConn(sock *net.UnixConn) *Conn {
	return &Conn{sock: sock, oob: make([]byte, unix.CmsgSpace(4*MaxFDs))}
}

// Close closes the socket; a Recv or Send under way ends with net.ErrClosed.
func (c *Conn) Close() error { return c.sock.Close() }

// Socket returns the socket that c frames. It stays owned by c.
func (c *Conn) Socket() *net.UnixConn { return c.sock }

// Recv waits for the next message. It returns io.EOF when the peer closed the
// connection between two messages, io.ErrUnexpectedEOF inside of one, and an
// error that wraps ErrFraming when the stream is useless from here on. No
// descriptor is left open on an error.
//
// Exactly the bytes of one message are read, never more: descriptors travel with
// the first byte of theirs, and reading ahead would attach them to the wrong one.
func (c *Conn) Recv() (m Message, err error) {
	defer func() {
		if err != nil {
			m.CloseFDs()
			m = Message{}
		}
	}()
	n, err := c.fill(c.head[:], &m.FDs)
	if err != nil {
		if err == io.EOF && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	m.Request = Request(le.Uint32(c.head[:]))
	m.Flags = Flags(le.Uint32(c.head[4:]))
	size := le.Uint32(c.head[8:])
	if m.Flags&versionMask != FlagVersion {
		return m, fmt.Errorf("%v: flags %#x, version is not 1: %w", m.Request, uint32(m.Flags), ErrFraming)
	}
	if size > MaxPayload {
		return m, fmt.Errorf("%v: payload of %d bytes, at most %d: %w", m.Request, size, MaxPayload, ErrFraming)
	}
	m.Payload = c.payload[:size:size]
	if _, err := c.fill(m.Payload, &m.FDs); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	return m, nil
}

// fill reads exactly len(b) bytes and adds the descriptors that came with them
// to fds, also when it fails. It reports how many bytes it read.
func (c *Conn) fill(b []byte, fds *[]int) (int, error) {
	done := 0
	for done < len(b) {
		n, oobn, flags, _, err := c.sock.ReadMsgUnix(b[done:], c.oob)
		if oobn > 0 {
			got, cerr := parseRights(c.oob[:oobn])
			*fds = append(*fds, got...)
			if cerr != nil {
				return done, cerr
			}
		}
		switch {
		case flags&unix.MSG_CTRUNC != 0:
			return done, fmt.Errorf("more descriptors than %d, or no room for them: %w", MaxFDs, ErrFraming)
		case len(*fds) > MaxFDs:
			return done, fmt.Errorf("%d descriptors with one message, at most %d: %w", len(*fds), MaxFDs, ErrFraming)
		case n == 0 && (err == nil || errors.Is(err, io.EOF)):
			return done, io.EOF
		case err != nil:
			return done, err
		}
		done += n
	}
	return done, nil
}

// parseRights returns the descriptors of the control messages in oob. Those
// found before an error are returned with it.
func parseRights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w: %w", err, ErrFraming)
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, perr := unix.ParseUnixRights(&msgs[i])
		if perr != nil {
			err = fmt.Errorf("descriptors: %w: %w", perr, ErrFraming)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// Send sends one message; fds stay the caller's. Safe for concurrent use.
func (c *Conn) Send(req Request, flags Flags, payload []byte, fds ...int) error {
	if len(payload) > MaxPayload || len(fds) > MaxFDs {
		return fmt.Errorf("%v: send %d bytes with %d descriptors: more than one message holds", req, len(payload), len(fds))
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	b := le.AppendUint32(c.sendBuf[:0], uint32(req))
	b = le.AppendUint32(b, uint32(flags))
	b = le.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	c.sendBuf = b
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := c.sock.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send %v: %w", req, err)
	}
	for len(b) > 0 {
		n, _, err := c.sock.WriteMsgUnix(b, oob, nil)
		if err != nil {
			return fmt.Errorf("send %v: %w", req, err)
		}
		b, oob = b[n:], nil
	}
	return nil
}

// Reply answers a message of number req with payload; fds stay the caller's.
func (c *Conn) Reply(req Request, payload []byte, fds ...int) error {
	return c.Send(req, ReplyFlags, payload, fds...)
}

// Pair returns the two ends of a fresh connection: a front-end and a back-end in
// one process, or a descriptor to hand to another one.
func Pair() (*net.UnixConn, *net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	a, err := ConnFromFD(fds[0])
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, nil, err
	}
	b, err := ConnFromFD(fds[1])
	if err != nil {
		_ = a.Close()
		return nil, nil, err
	}
	return a, b, nil
}
