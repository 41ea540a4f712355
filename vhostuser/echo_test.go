package vhostuser_test

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/vhostuser"
)

// Operations that the tests' handler knows.
const (
	opEcho   = iota // answer at once with the inverted id
	opWait          // answer when the test lets arg go
	opSilent        // answer nothing
	opPanic         // a mistake of the handler's
)

const echoSize = 32 // bytes of a reply

// echo is a Handler that inverts ids. Its requests may wait for a gate.
type echo struct {
	mu    sync.Mutex
	gates map[uint32]chan struct{}

	resets, inWait, attachFailed atomic.Int64
	served                       atomic.Int64
	space                        []byte
	state                        []byte // what Restore got
}

// echoState is what echo keeps with a Request.
type echoState struct {
	buf     [reqSize]byte
	op, arg uint32
	id      uint64
}

func newEcho() *echo { return &echo{gates: make(map[uint32]chan struct{})} }

// gate returns the channel that requests with this arg wait for.
func (e *echo) gate(arg uint32) chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.gates[arg]
	if g == nil {
		g = make(chan struct{})
		e.gates[arg] = g
	}
	return g
}

func (e *echo) Serve(r *vhostuser.Request) (uint32, bool) {
	s, ok := r.State.(*echoState)
	if !ok {
		s = new(echoState)
		r.State = s
	}
	n := 0
	for _, seg := range r.Readable() {
		n += copy(s.buf[n:], seg)
	}
	s.op = binary.LittleEndian.Uint32(s.buf[:])
	s.arg = binary.LittleEndian.Uint32(s.buf[4:])
	s.id = binary.LittleEndian.Uint64(s.buf[8:])
	switch s.op {
	case opWait:
		return 0, false
	case opSilent:
		return 0, true
	case opPanic:
		panic("a mistake")
	}
	e.served.Add(1)
	return answer(r, s.id), true
}

// answer writes the reply over as many segments as it takes.
func answer(r *vhostuser.Request, id uint64) uint32 {
	var rep [echoSize]byte
	binary.LittleEndian.PutUint64(rep[:], ^id)
	n := 0
	for _, seg := range r.Writable() {
		n += copy(seg, rep[n:])
	}
	return uint32(n)
}

func (e *echo) ServeBlocking(ctx context.Context, r *vhostuser.Request) (uint32, error) {
	s := r.State.(*echoState)
	e.inWait.Add(1)
	defer e.inWait.Add(-1)
	select {
	case <-e.gate(s.arg):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := r.Attach(); err != nil {
		e.attachFailed.Add(1)
		return 0, err
	}
	e.served.Add(1)
	return answer(r, s.id), nil
}

func (e *echo) Reset()                    { e.resets.Add(1) }
func (e *echo) Snapshot() ([]byte, error) { return []byte("echo state"), nil }
func (e *echo) Restore(state []byte) error {
	e.state = append([]byte(nil), state...)
	return nil
}
func (e *echo) Config() []byte { return e.space }

// shut makes requests with this arg wait again.
func (e *echo) shut(arg uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.gates, arg)
}
