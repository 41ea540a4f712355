// Package fusetest drives a fuseproto.Server without a transport, for tests: a
// Message in ordinary memory that can be cut anywhere, a Client that checks what
// must hold of every reply, and a small tree of files to serve.
package fusetest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/rafsd/rafsd/fuseproto"
)

var le = binary.LittleEndian

// guard fills the room for a reply beforehand, to show what was written.
const guard = 0xA5

// Message is a request in ordinary memory.
type Message struct {
	// OnAttach is called by Attach, if set.
	OnAttach func() error
	// Attached counts the calls of Attach.
	Attached int
	// Slot is what a table of requests in flight would keep of this one, if set.
	Slot *Slot

	request  []byte
	room     []byte
	readable [][]byte
	writable [][]byte
}

var (
	_ fuseproto.Message  = (*Message)(nil)
	_ fuseproto.Rerunner = (*Message)(nil)
)

// Slot is what a table of requests in flight keeps of one, in the place of that of a
// transport.
type Slot struct {
	Again bool // an earlier process took the request
	Phase uint8
	Errno int32
	Text  []byte
	// OnSet, if set, is called before a note is kept (kept false) and after it: a
	// test can end the process there.
	OnSet func(phase uint8, kept bool)
}

// Rerun implements fuseproto.Rerunner.
func (m *Message) Rerun() bool { return m.Slot != nil && m.Slot.Again }

// Note implements fuseproto.Rerunner.
func (m *Message) Note() (phase uint8, errno int32, note []byte) {
	if m.Slot == nil {
		return fuseproto.PhaseNone, 0, nil
	}
	return m.Slot.Phase, m.Slot.Errno, m.Slot.Text
}

// SetNote implements fuseproto.Rerunner.
func (m *Message) SetNote(phase uint8, errno int32, note []byte) {
	s := m.Slot
	if s == nil {
		return
	}
	if len(note) > fuseproto.NoteSize {
		panic(fmt.Sprintf("fusetest: note of %d bytes", len(note)))
	}
	if s.OnSet != nil {
		s.OnSet(phase, false)
	}
	s.Phase, s.Errno, s.Text = phase, errno, append(s.Text[:0], note...)
	if s.OnSet != nil {
		s.OnSet(phase, true)
	}
}

// NewMessage returns a Message with the given request, in one segment, and room
// bytes for the reply, in another.
func NewMessage(request []byte, room int) *Message {
	m := new(Message)
	m.Set(request, room)
	return m
}

// Set gives m another request and room, in memory that it reuses.
func (m *Message) Set(request []byte, room int) {
	m.request = append(m.request[:0], request...)
	m.room = slices.Grow(m.room[:0], room)[:room]
	for i := range m.room {
		m.room[i] = guard
	}
	m.readable = append(m.readable[:0], m.request)
	m.writable = append(m.writable[:0], m.room)
}

// CutRequest divides the request into segments that end at the given offsets;
// equal offsets make empty segments.
func (m *Message) CutRequest(at ...int) { m.readable = cut(m.readable[:0], m.request, at) }

// CutRoom divides the room for the reply likewise.
func (m *Message) CutRoom(at ...int) { m.writable = cut(m.writable[:0], m.room, at) }

func cut(segs [][]byte, b []byte, at []int) [][]byte {
	begin := 0
	for _, end := range at {
		segs = append(segs, b[begin:end:end])
		begin = end
	}
	return append(segs, b[begin:])
}

// CutEvery returns the offsets that cut n bytes into pieces of size.
func CutEvery(n, size int) []int {
	var at []int
	for i := size; i < n; i += size {
		at = append(at, i)
	}
	return at
}

// Readable implements fuseproto.Message.
func (m *Message) Readable() [][]byte { return m.readable }

// Writable implements fuseproto.Message.
func (m *Message) Writable() [][]byte { return m.writable }

// Attach implements fuseproto.Message.
func (m *Message) Attach() error {
	m.Attached++
	if m.OnAttach != nil {
		return m.OnAttach()
	}
	return nil
}

// Room returns the memory of the reply.
func (m *Message) Room() []byte { return m.room }

// Request returns a request: header and body. Strings among the parts are names
// and get their NUL; the rest is []byte, uint32 and uint64.
func Request(opcode fuseproto.Opcode, unique, node uint64, parts ...any) []byte {
	b := make([]byte, 40, 128)
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(append(b, p...), 0)
		case []byte:
			b = append(b, p...)
		case uint32:
			b = le.AppendUint32(b, p)
		case uint64:
			b = le.AppendUint64(b, p)
		default:
			panic(fmt.Sprintf("fusetest: part of type %T", p))
		}
	}
	le.PutUint32(b, uint32(len(b)))
	le.PutUint32(b[4:], uint32(opcode))
	le.PutUint64(b[8:], unique)
	le.PutUint64(b[16:], node)
	le.PutUint32(b[24:], 1000) // uid
	le.PutUint32(b[28:], 1000) // gid
	le.PutUint32(b[32:], 4321) // pid
	return b
}

// Reply is a reply whose frame was found right.
type Reply struct {
	Errno syscall.Errno
	Body  []byte // behind the header
	None  bool   // there was no reply
}

// Reply checks the frame of a reply of written bytes and returns it: what the
// header says, what was reported and what was touched must agree. dataMayFollow
// allows bytes behind an error, which a guest ignores.
func (m *Message) Reply(written uint32, unique uint64) (Reply, error) {
	if written == 0 {
		return Reply{None: true}, nil
	}
	if int(written) > len(m.room) || written < 16 {
		return Reply{}, fmt.Errorf("%d bytes written to a room of %d", written, len(m.room))
	}
	out := m.room[:written]
	errno := -int32(le.Uint32(out[4:]))
	switch {
	case le.Uint32(out) != written:
		return Reply{}, fmt.Errorf("header says %d bytes, %d were reported", le.Uint32(out), written)
	case le.Uint64(out[8:]) != unique:
		return Reply{}, fmt.Errorf("unique %d, want %d", le.Uint64(out[8:]), unique)
	case errno < 0 || errno > 511:
		return Reply{}, fmt.Errorf("error %d", -errno)
	case errno != 0 && written != 16:
		return Reply{}, fmt.Errorf("error reply of %d bytes", written)
	}
	return Reply{Errno: syscall.Errno(errno), Body: out[16:]}, nil
}

// Untouched returns an error if a byte behind the first n of the room was
// written to.
func (m *Message) Untouched(n uint32) error {
	for i, c := range m.room[n:] {
		if c != guard {
			return fmt.Errorf("byte %d of the room was written, %d were reported", int(n)+i, n)
		}
	}
	return nil
}
