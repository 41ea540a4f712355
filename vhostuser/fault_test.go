package vhostuser_test

import (
	"math"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// TestTransportL42_BrokenVringHarmsNobodyElse: the vring is given up and says so, the
// others serve on, and the driver can set it up again.
func TestTransportL42_BrokenVringHarmsNobodyElse(t *testing.T) {
	defer goleak.VerifyNone(t)
	attacks := map[string]func(q *frontQueue){
		"cyclic chain":     func(q *frontQueue) { q.Desc(0, vqtest.Desc{Addr: frontGPA, Len: 8, Flags: vqtest.Next}); q.Offer(0) },
		"head out of ring": func(q *frontQueue) { q.Offer(q.Size) },
		"outside memory":   func(q *frontQueue) { q.Desc(0, vqtest.Desc{Addr: 8, Len: math.MaxUint32}); q.Offer(0) },
		"index jump":       func(q *frontQueue) { q.Jump(q.Available() + q.Size + 1); q.sendKick() },
		"head in flight": func(q *frontQueue) {
			q.offer(1, opWait, 1, 1)
			q.Offer(1)
		},
		"handler panics": func(q *frontQueue) { q.offer(1, opPanic, 0, 0) },
	}
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newEcho(), vhostuser.Options{})
			f := b.connect(t, frontOptions{queues: 3})
			bad := f.q[1]
			bad.offer(5, opEcho, 0, 1) // sound, stands before the attack
			attack(bad)
			bad.show()
			if name != "index jump" { // which hides what is before it
				bad.reply(bad.wait(), 1)
			}
			poll(t, "the error signal", func() bool { return signalled(t, bad.failure) })
			for _, q := range []*frontQueue{f.q[0], f.q[2]} {
				q.offer(0, opEcho, 0, 7)
				q.show()
				q.reply(q.wait(), 7)
			}
			// A change of memory does not bring a broken vring back to life.
			extra := wire.MemRegion{GuestAddr: 0, Size: 4096, UserAddr: 0}
			f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, extra), f.fd)
			if s := b.server.Stats()[1]; s.Broken != 1 {
				t.Errorf("vring given up %d times, want once", s.Broken)
			}
			bad.stop()
			bad.reset(0)
			bad.setUp(0)
			bad.enable(1)
			bad.offer(5, opEcho, 0, 2)
			bad.show()
			bad.reply(bad.wait(), 2)
			b.leave(t, f)
			b.end()
		})
	}
}

// TestTransportL30_TruncatedMemory: all vrings of that front-end stop, the process and
// other front-ends live.
func TestTransportL30_TruncatedMemory(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, op := range map[string]uint32{"found by the vring": opEcho, "found by a request that waited": opWait} {
		t.Run(name, func(t *testing.T) {
			b, other := newBed(t, newEcho(), vhostuser.Options{}), newBed(t, newEcho(), vhostuser.Options{})
			f, g := b.connect(t, frontOptions{}), other.connect(t, frontOptions{})
			q := f.q[1]
			q.offer(0, op, 1, 1)
			if op == opWait {
				q.show()
				poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
				check(t, unix.Ftruncate(f.fd, frontOffset+ringStride*2))
				close(b.echo.gate(1))
			} else {
				// The rings stay, what the request lies in goes.
				check(t, unix.Ftruncate(f.fd, frontOffset+ringStride*2))
				q.show()
			}
			for _, q := range f.q {
				poll(t, "the error signals", func() bool { return signalled(t, q.failure) })
			}
			q.stop()
			g.q[1].offer(0, opEcho, 0, 3)
			g.q[1].show()
			g.q[1].reply(g.q[1].wait(), 3)
			other.leave(t, g)
			b.leave(t, f)
			b.end()
			other.end()
		})
	}
}

func TestTransportL35_FrontEndsAreIsolated(t *testing.T) {
	defer goleak.VerifyNone(t)
	const n = 3
	var beds [n]*bed
	var fronts [n]*front
	for i := range beds {
		beds[i] = newBed(t, newEcho(), vhostuser.Options{})
		fronts[i] = beds[i].connect(t, frontOptions{})
	}
	fronts[0].q[1].offer(0, opWait, 1, 1)
	fronts[0].q[1].show()
	poll(t, "the request waits", func() bool { return beds[0].echo.inWait.Load() == 1 })
	var wg sync.WaitGroup
	for _, f := range fronts[1:] {
		wg.Go(func() {
			for id := range uint64(500) {
				f.q[1].offer(0, opEcho, 0, id)
				f.q[1].show()
				u, err := f.q[1].next(frontWait)
				if err != nil || u.Len != echoSize {
					t.Errorf("%+v, %v", u, err)
					return
				}
			}
		})
	}
	beds[0].leave(t, fronts[0])
	beds[0].end()
	wg.Wait()
	for i := 1; i < n; i++ {
		beds[i].leave(t, fronts[i])
		beds[i].end()
	}
}

// TestRefusals: what no correct front-end sends is refused, and the session goes
// on; a guest's bad rings are refused too, and signalled.
func TestRefusals(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{Queues: 2})
	f := b.connect(t, frontOptions{})
	fd := f.fd
	u64 := func(v uint64) []byte { return wire.AppendU64(nil, v) }
	addr := func(i uint32, desc, used, avail uint64) []byte {
		return wire.VringAddr{Index: i, Desc: desc, Used: used, Avail: avail}.Append(nil)
	}
	region := func(r wire.MemRegion) []byte { return wire.AppendSingleRegion(nil, r) }
	running := f.q[1]
	tests := []struct {
		name    string
		req     wire.Request
		payload []byte
		fds     []int
	}{
		{"L34 feature not offered", wire.SetFeatures, u64(f.features() | wire.FeatureRingPacked), nil},
		{"IN_ORDER", wire.SetFeatures, u64(f.features() | wire.FeatureInOrder), nil},
		{"LOG_ALL", wire.SetFeatures, u64(f.features() | wire.FeatureLogAll), nil},
		{"no VERSION_1", wire.SetFeatures, u64(wire.FeatureProtocolFeatures), nil},
		{"features change while running", wire.SetFeatures, u64(f.features() &^ wire.FeatureEventIdx), nil},
		{"features with a descriptor", wire.SetFeatures, u64(f.features()), []int{fd}},
		{"features too long", wire.SetFeatures, make([]byte, 9), nil},
		{"protocol feature not offered", wire.SetProtocolFeatures, u64(wire.ProtocolReplyAck | wire.ProtocolStatus), nil},
		{"L16 num of vring 2", wire.SetVringNum, state(2, 64), nil},
		{"L16 base of vring 2^32-1", wire.SetVringBase, state(math.MaxUint32, 0), nil},
		{"L16 addr of vring 2", wire.SetVringAddr, addr(2, frontUVA, frontUVA, frontUVA), nil},
		{"L16 enable of vring 2", wire.SetVringEnable, state(2, 1), nil},
		{"L16 kick of vring 2", wire.SetVringKick, u64(2), []int{running.kick}},
		{"L16 call of vring 255", wire.SetVringCall, u64(255), []int{running.kick}},
		{"num while running", wire.SetVringNum, state(1, 64), nil},
		{"base while running", wire.SetVringBase, state(1, 0), nil},
		{"addr while running", wire.SetVringAddr, addr(1, frontUVA, frontUVA+4096, frontUVA+8192), nil},
		{"enable 2", wire.SetVringEnable, state(0, 2), nil},
		{"L17 kick without descriptor", wire.SetVringKick, u64(1 | 1<<8), nil},
		{"kick says none, has one", wire.SetVringKick, u64(1 | 1<<8), []int{running.kick}},
		{"kick says one, has none", wire.SetVringKick, u64(1), nil},
		{"kick of another kind", wire.SetVringKick, u64(0), []int{fd}},
		{"call of another kind", wire.SetVringCall, u64(0), []int{fd}},
		{"two calls", wire.SetVringCall, u64(0), []int{running.kick, running.kick}},
		{"memory without descriptor", wire.AddMemReg, region(wire.MemRegion{GuestAddr: 0, Size: 4096}), nil},
		{"memory table, one descriptor short", wire.SetMemTable, wire.AppendMemTable(nil, []wire.MemRegion{f.region(), {Size: 4096}}), []int{fd}},
		{"memory of a pipe", wire.AddMemReg, region(wire.MemRegion{Size: 4096}), []int{running.kick}},
		{"memory that wraps", wire.AddMemReg, region(wire.MemRegion{GuestAddr: math.MaxUint64 &^ 4095, Size: 8192}), []int{fd}},
		{"memory beyond the file", wire.AddMemReg, region(wire.MemRegion{Size: 1 << 40}), []int{fd}},
		{"backend channel not offered", wire.SetBackendReqFD, nil, []int{running.kick}},
		{"configuration not offered", wire.GetConfig, wire.Config{Data: make([]byte, 8)}.Append(nil), nil},
		{"log not offered", wire.SetLogBase, make([]byte, 16), []int{fd}},
		{"in-flight not offered", wire.SetInflightFD, make([]byte, 24), []int{fd}},
		{"status not offered", wire.SetStatus, u64(4), nil},
		{"postcopy", 28, nil, nil},
		{"request 0", 0, nil, nil},
		{"request 2^32-1", math.MaxUint32, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := *f
			g.t = t
			g.refused(tt.req, tt.payload, tt.fds...)
			// What runs is not disturbed.
			q := *running
			q.f = &g
			q.offer(0, opEcho, 0, 5)
			q.show()
			q.reply(q.wait(), 5)
		})
	}
	// The same again is no change.
	f.ok(wire.SetFeatures, wire.AppendU64(nil, f.features()))
	f.ok(wire.SetVringAddr, addr(1, frontUVA+running.DescAt, frontUVA+running.UsedAt, frontUVA+running.AvailAt))
	// Rings that the guest has put where no memory is, or askew.
	base := running.stop()
	f.refused(wire.SetVringNum, state(1, 0))
	f.refused(wire.SetVringNum, state(1, 48))
	f.refused(wire.SetVringNum, state(1, 2048))
	f.refused(wire.SetVringNum, state(1, math.MaxUint32))
	f.refused(wire.SetVringBase, state(1, 1<<16))
	f.refused(wire.SetVringAddr, addr(1, frontUVA+8, frontUVA+4096, frontUVA+8192))
	f.refused(wire.SetVringAddr, addr(1, frontUVA, frontUVA+4098, frontUVA+8192))
	f.refused(wire.SetVringAddr, addr(1, frontUVA, frontUVA+4096, frontUVA+8193))
	f.ok(wire.SetVringAddr, addr(1, 4096, 8192, 16384))
	running.enable(1)
	f.refused(wire.SetVringKick, u64(1), running.kick)
	if !signalled(t, running.failure) {
		t.Error("no error signal for rings outside of memory")
	}
	running.enable(0)
	running.setUp(base)
	running.enable(1)
	running.offer(0, opEcho, 0, 5)
	running.show()
	running.reply(running.wait(), 5)
	b.leave(t, f)
	b.end()
}

// TestConnectionEnds: without need_reply a front-end cannot be told; what it takes
// for done must not go on.
func TestConnectionEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	tests := map[string]struct {
		req     wire.Request
		flags   wire.Flags
		payload []byte
		ends    bool
	}{
		"bad index":                       {wire.SetVringNum, wire.FlagVersion, state(9, 64), true},
		"L04 need_reply before REPLY_ACK": {wire.SetVringNum, wire.FlagVersion | wire.FlagNeedReply, state(9, 64), true},
		"own reply, bad index":            {wire.GetVringBase, wire.FlagVersion | wire.FlagNeedReply, state(9, 0), true},
		"GET with a payload":              {wire.GetFeatures, wire.FlagVersion, make([]byte, 8), true},
		"unknown":                         {99, wire.FlagVersion, nil, false},
		"L02 no need_reply, no reply":     {wire.SetOwner, wire.FlagVersion, nil, false},
		"L04 need_reply on SET_OWNER":     {wire.SetOwner, wire.FlagVersion | wire.FlagNeedReply, nil, false},
		"L31 RESET_DEVICE before all":     {wire.ResetDevice, wire.FlagVersion, nil, false},
		"RESET_OWNER":                     {wire.ResetOwner, wire.FlagVersion, nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newEcho(), vhostuser.Options{})
			f := newFront(t, frontOptions{})
			f.dial(b.path)
			check(t, f.conn.Send(tt.req, tt.flags, tt.payload))
			if tt.ends {
				if m, err := f.conn.Recv(); err == nil {
					t.Errorf("answered by %v", m.Request)
				}
				if err := <-b.gone; err == nil || !strings.Contains(err.Error(), tt.req.String()) {
					t.Errorf("connection ended with %v, want an error that names %v", err, tt.req)
				}
			} else {
				// The next answer is that of the next question.
				f.getU64(wire.GetFeatures)
				b.leave(t, f)
			}
			b.end()
		})
	}
}

// TestTransportL33: a front-end without bit 30 never sends SET_VRING_ENABLE.
func TestTransportL33_WithoutBit30AllVringsAreOn(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := newFront(t, frontOptions{})
	f.dial(b.path)
	f.tell(wire.SetFeatures, wire.AppendU64(nil, f.features()&^wire.FeatureProtocolFeatures))
	f.tell(wire.SetMemTable, wire.AppendMemTable(nil, []wire.MemRegion{f.region()}), f.fd)
	q := f.q[1]
	f.tell(wire.SetVringNum, state(1, uint32(q.Size)))
	f.tell(wire.SetVringAddr, wire.VringAddr{Index: 1, Desc: frontUVA + q.DescAt, Used: frontUVA + q.UsedAt, Avail: frontUVA + q.AvailAt}.Append(nil))
	f.tell(wire.SetVringCall, wire.VringFD{Index: 1}.Append(nil), q.callPeer)
	f.tell(wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), q.kick)
	q.offer(0, opEcho, 0, 5)
	q.show()
	q.reply(q.wait(), 5)
	b.leave(t, f)
	b.end()
}

// tell sends a message that gets no answer.
func (f *front) tell(req wire.Request, payload []byte, fds ...int) {
	f.t.Helper()
	check(f.t, f.conn.Send(req, wire.FlagVersion, payload, fds...))
}
