package vhostuser_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

func state(i, n uint32) []byte { return wire.VringState{Index: i, Num: n}.Append(nil) }

// TestQEMU72Order is the conversation of QEMU 7.2 (transport sheet 2.3): need_reply
// on memory messages only.
func TestQEMU72Order(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := newFront(t, frontOptions{queues: 2})
	f.dial(b.path)
	send := func(req wire.Request, payload []byte, fds ...int) {
		t.Helper()
		check(t, f.conn.Send(req, wire.FlagVersion, payload, fds...))
	}
	get := func(req wire.Request, payload []byte) []byte {
		t.Helper()
		send(req, payload)
		m, err := f.conn.Recv()
		check(t, err)
		if m.Request != req || m.Flags != wire.ReplyFlags {
			t.Fatalf("%v answered by %v with flags %#x", req, m.Request, m.Flags)
		}
		return bytes.Clone(m.Payload)
	}
	features := get(wire.GetFeatures, nil)
	if v, _ := wire.ParseU64(features); v != session.Features {
		t.Errorf("features %#x", v)
	}
	if v, _ := wire.ParseU64(get(wire.GetProtocolFeatures, nil)); v != 0xb009 {
		t.Errorf("protocol features %#x, want MQ, REPLY_ACK, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS", v)
	}
	send(wire.SetProtocolFeatures, wire.AppendU64(nil, 0xb009))
	if v, _ := wire.ParseU64(get(wire.GetQueueNum, nil)); v != 4 {
		t.Errorf("%d queues, want 4", v)
	}
	if v, _ := wire.ParseU64(get(wire.GetMaxMemSlots, nil)); v != 509 {
		t.Errorf("%d memory slots, want 509", v)
	}
	send(wire.SetOwner, nil)
	if again := get(wire.GetFeatures, nil); !bytes.Equal(again, features) {
		t.Errorf("L11: features change from %x to %x", features, again)
	}
	dummy, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(t, err)
	defer unix.Close(dummy)
	for i := range uint8(4) { // L13: before memory and features
		send(wire.SetVringCall, wire.VringFD{Index: i}.Append(nil), dummy)
		send(wire.SetVringErr, wire.VringFD{Index: i}.Append(nil), dummy)
	}
	for round := range 3 { // start, stop, and again as after a reboot
		for i := range uint8(4) {
			send(wire.SetVringCall, wire.VringFD{Index: i}.Append(nil), dummy)
		}
		send(wire.SetFeatures, wire.AppendU64(nil, 0x170000000))
		if round == 0 { // fact 9: memory comes once
			f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, f.region()), f.fd)
		}
		for _, q := range f.q {
			q.reset(0)
			i := uint32(q.index)
			send(wire.SetVringNum, state(i, uint32(q.Size)))
			send(wire.SetVringBase, state(i, 0))
			send(wire.SetVringAddr, wire.VringAddr{Index: i, Desc: frontUVA + q.DescAt, Used: frontUVA + q.UsedAt, Avail: frontUVA + q.AvailAt}.Append(nil))
			send(wire.SetVringKick, wire.VringFD{Index: uint8(i)}.Append(nil), q.kick)
			// L18: a request stands in the ring already, its kick was consumed.
			q.offer(1, opEcho, 0, 40)
			q.Show()
		}
		for i := range uint32(4) { // L15: also those that the guest never set up
			send(wire.SetVringEnable, state(i, 1))
		}
		for i := range uint8(4) {
			fd := dummy
			if int(i) < len(f.q) {
				fd = f.q[i].callPeer
			}
			send(wire.SetVringCall, wire.VringFD{Index: i}.Append(nil), fd)
		}
		get(wire.GetFeatures, nil) // all before is done now
		for _, q := range f.q {
			// Its signal may have gone to the dummy.
			poll(t, "the first reply", func() bool { return q.UsedIndex() == 1 })
			q.reply(q.wait(), 40)
			q.offer(2, opEcho, 0, 41)
			q.show()
			q.reply(q.wait(), 41)
			q.sendKick() // L19: for nothing
			q.sendKick()
		}
		for i := range uint32(4) {
			send(wire.SetVringEnable, state(i, 0))
		}
		for _, q := range f.q {
			st, err := wire.ParseVringState(get(wire.GetVringBase, state(uint32(q.index), 0)))
			if err != nil || st.Num != 2 || st.Index != uint32(q.index) {
				t.Errorf("base of vring %d: %+v, %v, want 2", q.index, st, err)
			}
		}
	}
	b.leave(t, f)
	b.end()
}

// TestCloudHypervisorOrder: SET_OWNER first, the table even with slots, addresses
// before the base, need_reply everywhere (sheet 2.5). Replayed, not seen.
func TestCloudHypervisorOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := newFront(t, frontOptions{queues: 2, size: 1024, start: 700})
	f.dial(b.path)
	f.connectAsCloudHypervisor()
	for range 2 {
		f.ok(wire.SetFeatures, wire.AppendU64(nil, 0x170000000))
		f.ok(wire.SetMemTable, wire.AppendMemTable(nil, []wire.MemRegion{f.region()}), f.fd)
		for _, q := range f.q {
			f.ok(wire.SetVringNum, state(uint32(q.index), uint32(q.Size)))
		}
		for _, q := range f.q {
			i := uint32(q.index)
			f.ok(wire.SetVringAddr, wire.VringAddr{Index: i, Desc: frontUVA + q.DescAt, Used: frontUVA + q.UsedAt, Avail: frontUVA + q.AvailAt}.Append(nil))
			f.ok(wire.SetVringBase, state(i, uint32(q.Available())))
			f.ok(wire.SetVringCall, wire.VringFD{Index: uint8(i)}.Append(nil), q.callPeer)
			f.ok(wire.SetVringKick, wire.VringFD{Index: uint8(i)}.Append(nil), q.kick)
		}
		for _, q := range f.q {
			q.enable(1)
		}
		for _, q := range f.q {
			for h := range uint16(100) {
				q.offer(h, opEcho, 0, uint64(h))
			}
			q.show()
			for range 100 {
				u := q.wait()
				q.reply(u, uint64(u.ID))
			}
		}
		for _, q := range f.q {
			q.stop()
		}
	}
	b.leave(t, f)
	b.end()
}

// connectAsCloudHypervisor says what Cloud Hypervisor says at VM creation. REPLY_ACK
// counts from its end on.
func (f *front) connectAsCloudHypervisor() {
	check(f.t, f.conn.Send(wire.SetOwner, wire.FlagVersion, nil))
	f.getU64(wire.GetFeatures)
	offered := f.getU64(wire.GetProtocolFeatures)
	check(f.t, f.conn.Send(wire.SetProtocolFeatures, wire.FlagVersion, wire.AppendU64(nil, offered)))
	f.getU64(wire.GetQueueNum)
}

// TestUMLOrder is user-mode Linux 6.1: CONFIG a byte at a time, the memory message
// with room for two regions, blocking kicks, a socket to call on, need_reply also
// on SET_PROTOCOL_FEATURES (testbed sheet 4.3).
func TestUMLOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newEcho()
	h.space = append(append([]byte("tag"), make([]byte, 33)...), 1, 0, 0, 0)
	b := newBed(t, h, vhostuser.Options{Config: true, Queues: 2})
	f := newFront(t, frontOptions{queues: 2, size: 256, blocking: true, call: callSocket})
	f.dial(b.path)
	check(t, f.conn.Send(wire.SetOwner, wire.FlagVersion, nil))
	f.getU64(wire.GetFeatures)
	if v := f.getU64(wire.GetProtocolFeatures); v != 0xb229 {
		t.Errorf("protocol features %#x, want also CONFIG and BACKEND_REQ", v)
	}
	f.ok(wire.SetProtocolFeatures, wire.AppendU64(nil, 0x228))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(pair[0])
	f.ok(wire.SetBackendReqFD, nil, pair[1])
	unix.Close(pair[1])
	f.ok(wire.SetFeatures, wire.AppendU64(nil, 0x170000000))
	for _, size := range []int{1, 2, 3, 35, 36, 40, 44, 256} {
		want := make([]byte, size)
		copy(want, h.space)
		got, err := wire.ParseConfig(f.call(wire.GetConfig, wire.Config{Data: make([]byte, size)}.Append(nil)))
		if err != nil || !bytes.Equal(got.Data, want) || got.Offset != 0 {
			t.Errorf("%d bytes of configuration space: %+v, %v", size, got, err)
		}
	}
	c, err := wire.ParseConfig(f.call(wire.GetConfig, wire.Config{Offset: 36, Data: make([]byte, 4)}.Append(nil)))
	if err != nil || binary.LittleEndian.Uint32(c.Data) != 1 {
		t.Errorf("number of request queues: %+v, %v", c, err)
	}
	c, err = wire.ParseConfig(f.call(wire.GetConfig, wire.Config{Offset: 0xfffffff0, Data: make([]byte, 4)}.Append(nil)))
	if err != nil || !bytes.Equal(c.Data, make([]byte, 4)) {
		t.Errorf("far behind the space: %+v, %v", c, err)
	}
	f.refused(wire.SetConfig, wire.Config{Data: []byte{1}}.Append(nil))
	f.ok(wire.SetConfig, wire.Config{Flags: wire.ConfigFlagMigration, Data: []byte{1}}.Append(nil))
	f.ok(wire.SetMemTable, append(wire.AppendMemTable(nil, []wire.MemRegion{f.region()}), make([]byte, 32)...), f.fd)
	f.start()
	for _, q := range f.q {
		for h := range uint16(200) {
			q.offer(h, opEcho, 0, uint64(h))
			q.show()
		}
		for range 200 {
			u := q.wait()
			q.reply(u, uint64(u.ID))
		}
	}
	for i := len(f.q) - 1; i >= 0; i-- {
		f.q[i].enable(0)
	}
	f.getU64(wire.GetFeatures)
	b.leave(t, f)
	b.end()
}

// TestTransportL05: nothing we do changes the status flags of descriptors that the
// front-end shares with us, whatever they are.
func TestTransportL05_StatusFlagsAreLeftAlone(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, o := range []frontOptions{
		{}, {blocking: true, call: callSocket}, {call: callPipe},
	} {
		b := newBed(t, newEcho(), vhostuser.Options{})
		f := newFront(t, o)
		flags := func() (all []int) {
			for _, q := range f.q {
				for _, fd := range []int{q.kick, q.call, q.callPeer, q.failure, f.fd} {
					n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
					check(t, err)
					all = append(all, n)
				}
			}
			return all
		}
		before := flags()
		f.dial(b.path)
		f.negotiate()
		f.start()
		q := f.q[1]
		q.offer(0, opWait, 1, 1)
		q.show()
		close(b.echo.gate(1))
		q.wait()
		during := flags()
		q.stop()
		stopped := flags()
		b.leave(t, f)
		for i, after := range flags() {
			if after != before[i] || during[i] != before[i] || stopped[i] != before[i] {
				t.Errorf("descriptor %d: flags %#x, while serving %#x, stopped %#x, after %#x", i, before[i], during[i], stopped[i], after)
			}
		}
		b.end()
	}
}

// TestCallChanges: when the answer to SET_VRING_CALL is here, no signal goes to
// the old descriptor, and none is lost.
func TestCallChanges(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	fresh, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(t, err)
	defer unix.Close(fresh)
	serve := func() {
		q.offer(0, opEcho, 0, 1)
		q.Arm()
		q.show()
		poll(t, "the reply", func() bool { return q.UsedIndex() == q.Available() })
		// The signal follows the index; GET_VRING_BASE comes behind both.
		base := q.stop()
		q.setUpKeepingCall(base)
		q.enable(1)
		if _, ok, err := q.Reap(); !ok || err != nil {
			t.Fatalf("Reap: %v, %v", ok, err)
		}
	}
	serve()
	if !signalled(t, q.call) {
		t.Error("no signal to the first descriptor")
	}
	f.ok(wire.SetVringCall, wire.VringFD{Index: 1}.Append(nil), fresh)
	serve()
	if signalled(t, q.call) || !signalled(t, fresh) {
		t.Error("the signal did not move to the second descriptor")
	}
	f.ok(wire.SetVringCall, wire.VringFD{Index: 1, NoFD: true}.Append(nil)) // L17
	serve()
	if signalled(t, q.call) || signalled(t, fresh) {
		t.Error("a signal although there is no descriptor")
	}
	b.leave(t, f)
	b.end()
}

// setUpKeepingCall is setUp without SET_VRING_CALL.
func (q *frontQueue) setUpKeepingCall(base uint16) {
	q.f.ok(wire.SetVringBase, state(uint32(q.index), uint32(base)))
	q.f.ok(wire.SetVringKick, wire.VringFD{Index: uint8(q.index)}.Append(nil), q.kick)
}

func TestTransportL26_RemovedMemoryIsUnmappedBeforeTheAnswer(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	extra, err := unix.MemfdCreate("hotplugged", unix.MFD_CLOEXEC)
	check(t, err)
	defer unix.Close(extra)
	check(t, unix.Ftruncate(extra, 1<<20))
	r := wire.MemRegion{GuestAddr: frontGPA + frontSize, Size: 1 << 20, UserAddr: 0x1000, MmapOffset: 0}
	q := f.q[1]
	mapped := func() bool { return strings.Contains(readFile(t, "/proc/self/maps"), "memfd:hotplugged") }
	for _, stray := range []bool{false, true} {
		q.offer(0, opWait, 1, 9) // stays in flight over the changes
		q.show()
		poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
		f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, r), extra)
		if !mapped() {
			t.Fatal("the added region is not mapped")
		}
		f.refused(wire.AddMemReg, wire.AppendSingleRegion(nil, r), extra) // twice
		q.offer(1, opEcho, 0, 10)
		q.show()
		q.reply(q.wait(), 10)
		fds := []int{}
		if stray {
			fds = append(fds, extra)
		}
		gone := r
		gone.MmapOffset = 0x5000 // QEMU does not care, so we do not
		f.ok(wire.RemMemReg, wire.AppendSingleRegion(nil, gone), fds...)
		if mapped() {
			t.Error("the removed region is still mapped")
		}
		f.refused(wire.RemMemReg, wire.AppendSingleRegion(nil, gone))
		close(b.echo.gate(1))
		q.reply(q.wait(), 9)
		b.echo.shut(1)
	}
	// A request whose memory goes while it waits comes back empty.
	f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, r), extra)
	q.offerAt(2, r.GuestAddr, opWait, 1, 3)
	q.show()
	poll(t, "the request waits", func() bool { return b.echo.inWait.Load() == 1 })
	f.ok(wire.RemMemReg, wire.AppendSingleRegion(nil, r))
	close(b.echo.gate(1))
	if u := q.wait(); u.ID != 2 || u.Len != 0 {
		t.Errorf("used %+v, want head 2 with length 0", u)
	}
	if n := b.echo.attachFailed.Load(); n != 1 {
		t.Errorf("Attach failed %d times, want once", n)
	}
	b.leave(t, f)
	b.end()
}

func TestMemoryTakenAwayUnderTheRings(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	f.ok(wire.RemMemReg, wire.AppendSingleRegion(nil, f.region()))
	for _, q := range f.q {
		if !signalled(t, q.failure) {
			t.Errorf("vring %d: no error signal", q.index)
		}
		q.stop()
	}
	f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, f.region()), f.fd)
	f.start()
	q := f.q[1]
	q.offer(0, opEcho, 0, 1)
	q.show()
	q.reply(q.wait(), 1)
	b.leave(t, f)
	b.end()
}
