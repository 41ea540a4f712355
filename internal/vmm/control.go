package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Request is the number of a vhost-user message from front-end to back-end.
type Request uint32

// The messages that a virtio-fs front-end sends.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFd            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SetBackendReqFd     Request = 21
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFd       Request = 31
	SetInflightFd       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
)

var requestNames = map[Request]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFd: "SET_LOG_FD", SetVringNum: "SET_VRING_NUM",
	SetVringAddr: "SET_VRING_ADDR", SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
	SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE", SetBackendReqFd: "SET_BACKEND_REQ_FD",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", GetInflightFd: "GET_INFLIGHT_FD", SetInflightFd: "SET_INFLIGHT_FD",
	ResetDevice: "RESET_DEVICE", GetMaxMemSlots: "GET_MAX_MEM_SLOTS", AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG",
	SetStatus: "SET_STATUS", GetStatus: "GET_STATUS",
}

func (r Request) String() string {
	if s, ok := requestNames[r]; ok {
		return s
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// Feature bits of the device.
const (
	FeatureIndirect         uint64 = 1 << 28
	FeatureEventIdx         uint64 = 1 << 29
	FeatureProtocolFeatures uint64 = 1 << 30
	FeatureVersion1         uint64 = 1 << 32
	FeatureLogAll           uint64 = 1 << 26
)

// Protocol feature bits.
const (
	ProtocolMQ               uint64 = 1 << 0
	ProtocolLogShmFd         uint64 = 1 << 1
	ProtocolReplyAck         uint64 = 1 << 3
	ProtocolBackendReq       uint64 = 1 << 5
	ProtocolConfig           uint64 = 1 << 9
	ProtocolBackendSendFd    uint64 = 1 << 10
	ProtocolInflight         uint64 = 1 << 12
	ProtocolResetDevice      uint64 = 1 << 13
	ProtocolMemSlots         uint64 = 1 << 15
	ProtocolStatus           uint64 = 1 << 16
	ProtocolDeviceState      uint64 = 1 << 19
	headerSize                      = 12
	flagVersion              uint32 = 1
	flagReply                uint32 = 4
	NeedReply                uint32 = 8
	flagsOfReply             uint32 = flagVersion | flagReply
	maxReply                        = 4096
	noDescriptor             uint64 = 1 << 8 // in the payload of KICK, CALL and ERR
	defaultControlTimeout           = 10 * time.Second
	memRegionSize                   = 32
	inflightDescriptionBytes        = 24
)

// RefusedError is an acknowledgement with a value other than 0.
type RefusedError struct {
	Request Request
	Value   uint64
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%v was refused with %d", e.Request, e.Value)
}

// Control is the front-end's end of the vhost-user socket. Its methods are for
// one goroutine at a time.
type Control struct {
	conn *net.UnixConn

	// ReplyAck is true once REPLY_ACK has been negotiated.
	ReplyAck bool

	// Timeout is how long a reply may take. A real VMM's main loop stands still
	// meanwhile.
	Timeout time.Duration

	// Trace, if set, is called for each message that is sent.
	Trace func(req Request, needReply bool, payload []byte, fds int)
}

func dialControl(ctx context.Context, path string) (*Control, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the back-end: %w", err)
	}
	return &Control{conn: c.(*net.UnixConn), Timeout: defaultControlTimeout}, nil
}

// Send writes one message. flags holds need_reply or whatever a test wants
// beside the version.
func (c *Control) Send(req Request, flags uint32, payload []byte, fds ...int) error {
	if c.Trace != nil {
		c.Trace(req, flags&NeedReply != 0, payload, len(fds))
	}
	return c.SendRaw(rawMessage(uint32(req), flagVersion|flags, uint32(len(payload)), payload), fds...)
}

func rawMessage(req, flags, size uint32, payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize, headerSize+len(payload))
	le.PutUint32(b, req)
	le.PutUint32(b[4:], flags)
	le.PutUint32(b[8:], size)
	return append(b, payload...)
}

// SendRaw writes any bytes with any descriptors on the first of them.
func (c *Control) SendRaw(b []byte, fds ...int) error {
	c.conn.SetWriteDeadline(time.Now().Add(c.Timeout))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.conn.WriteMsgUnix(b, oob, nil)
	for err == nil && n < len(b) {
		b = b[n:]
		n, err = c.conn.Write(b)
	}
	if err != nil {
		return fmt.Errorf("send to the back-end: %w", err)
	}
	return nil
}

// Receive reads the reply to req, whose payload must have size bytes (any size
// when negative), and verifies its header.
func (c *Control) Receive(req Request, size int) (payload []byte, fds []int, err error) {
	c.conn.SetReadDeadline(time.Now().Add(c.Timeout))
	var head [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*8))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%v: waiting for the reply: %w", req, err)
	}
	if fds, err = descriptors(oob[:oobn], flags); err != nil {
		return nil, nil, fmt.Errorf("%v: %w", req, err)
	}
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	if n < headerSize {
		if _, err = io.ReadFull(c.conn, head[n:]); err != nil {
			return nil, fds, fmt.Errorf("%v: reading the reply's header: %w", req, err)
		}
	}
	le := binary.LittleEndian
	gotReq, gotFlags, gotSize := Request(le.Uint32(head[:])), le.Uint32(head[4:]), le.Uint32(head[8:])
	switch {
	case gotReq != req:
		err = violation("%v was answered as %v", req, gotReq)
	case gotFlags != flagsOfReply:
		err = violation("the reply to %v has flags %#x, not %#x", req, gotFlags, flagsOfReply)
	case gotSize > maxReply, size >= 0 && gotSize != uint32(size):
		err = violation("the reply to %v has %d bytes, not %d", req, gotSize, size)
	}
	if err != nil {
		return nil, fds, err
	}
	payload = make([]byte, gotSize)
	if _, err = io.ReadFull(c.conn, payload); err != nil {
		err = fmt.Errorf("%v: reading the reply: %w", req, err)
	}
	return payload, fds, err
}

func descriptors(oob []byte, flags int) ([]int, error) {
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message of a reply: %w", err)
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("control message of a reply: %w", err)
		}
		fds = append(fds, got...)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		closeAll(fds)
		return nil, violation("a reply came with more than 8 descriptors")
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Get sends a message that has a reply of its own, of size bytes and without
// descriptors.
func (c *Control) Get(req Request, payload []byte, size int) ([]byte, error) {
	if err := c.Send(req, 0, payload); err != nil {
		return nil, err
	}
	b, fds, err := c.Receive(req, size)
	if err == nil && len(fds) > 0 {
		closeAll(fds)
		return nil, violation("the reply to %v came with %d descriptors", req, len(fds))
	}
	return b, err
}

// GetU64 is Get of one number.
func (c *Control) GetU64(req Request) (uint64, error) {
	b, err := c.Get(req, nil, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Set sends a message without a reply of its own; with ack it asks for an
// acknowledgement and waits for it.
func (c *Control) Set(req Request, ack bool, payload []byte, fds ...int) error {
	if !ack || !c.ReplyAck {
		return c.Send(req, 0, payload, fds...)
	}
	if err := c.Send(req, NeedReply, payload, fds...); err != nil {
		return err
	}
	b, extra, err := c.Receive(req, 8)
	if err != nil {
		return err
	}
	if len(extra) > 0 {
		closeAll(extra)
		return violation("the acknowledgement of %v came with %d descriptors", req, len(extra))
	}
	if v := binary.LittleEndian.Uint64(b); v != 0 {
		return &RefusedError{Request: req, Value: v}
	}
	return nil
}

// Quiet verifies that the back-end has sent nothing that was not asked for: a
// reply of some other message would be the first thing that GET_FEATURES reads.
func (c *Control) Quiet() error {
	_, err := c.GetU64(GetFeatures)
	return err
}

// Close closes the socket.
func (c *Control) Close() error {
	err := c.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func le32s(v ...uint32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}
