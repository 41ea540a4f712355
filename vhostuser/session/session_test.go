package session_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// talk is a session with its front-end.
type talk struct {
	t     testing.TB
	front *wire.Conn
	dev   *fakeDevice
	ses   *session.Session
	done  chan error
	logs  bytes.Buffer // read after end
	fd    int          // an eventfd
	mem   int          // a memfd
}

func newTalk(t testing.TB, queues int, space []byte) *talk {
	t.Helper()
	a, b, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	k := &talk{t: t, front: wire.NewConn(a), dev: newFake(t, queues), done: make(chan error, 1)}
	if err := a.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	k.ses = session.New(session.Config{Queues: queues, ConfigSpace: space, Log: slog.New(slog.NewTextHandler(&k.logs, nil))}, k.dev)
	if k.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	if k.mem, err = unix.MemfdCreate("session-test", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	back := wire.NewConn(b)
	go func() {
		err := k.ses.Serve(back)
		back.Close()
		k.done <- err
	}()
	return k
}

// end hangs up and returns what Serve returned.
func (k *talk) end() error {
	k.front.Close()
	err := <-k.done
	k.ses.Close()
	unix.Close(k.fd)
	unix.Close(k.mem)
	return err
}

func (k *talk) call(req wire.Request, payload []byte, fds ...int) []byte {
	k.t.Helper()
	if err := k.front.Send(req, wire.FlagVersion|wire.FlagNeedReply, payload, fds...); err != nil {
		k.t.Fatal(err)
	}
	m, err := k.front.Recv()
	if err != nil {
		k.t.Fatalf("%v: %v", req, err)
	}
	if m.Request != req || m.Flags != wire.ReplyFlags {
		k.t.Fatalf("%v: answered by %v, flags %#x", req, m.Request, m.Flags)
	}
	return bytes.Clone(m.Payload)
}

func (k *talk) ack(want uint64, req wire.Request, payload []byte, fds ...int) {
	k.t.Helper()
	if v, err := wire.ParseU64(k.call(req, payload, fds...)); err != nil || v != want {
		k.t.Fatalf("%v: acknowledged with %d, %v, want %d", req, v, err, want)
	}
}

func u64(v uint64) []byte      { return wire.AppendU64(nil, v) }
func vring(i, n uint32) []byte { return wire.VringState{Index: i, Num: n}.Append(nil) }
func addr(i uint32, a uint64) []byte {
	return wire.VringAddr{Index: i, Desc: a, Avail: a + 0x1000, Used: a + 0x2000}.Append(nil)
}

func (k *talk) negotiate() {
	k.t.Helper()
	features, err := wire.ParseU64(k.call(wire.GetFeatures, nil))
	if err != nil {
		k.t.Fatal(err)
	}
	k.ack(0, wire.SetProtocolFeatures, u64(wire.ProtocolMQ|wire.ProtocolReplyAck|wire.ProtocolConfigureMemSlots))
	k.ack(0, wire.SetFeatures, u64(features))
}

// expectLog checks what the device was asked for since the last time.
func (k *talk) expectLog(want ...string) {
	k.t.Helper()
	if got := k.dev.takeLog(); !slices.Equal(got, want) {
		k.t.Errorf("the device was asked for\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// TestTransportL14_VringRunsAsSoonAsAllIsThere: whichever message comes last starts it.
func TestTransportL14_VringRunsAsSoonAsAllIsThere(t *testing.T) {
	defer goleak.VerifyNone(t)
	type step func(k *talk)
	steps := map[string]step{
		"num":    func(k *talk) { k.ack(0, wire.SetVringNum, vring(0, 128)) },
		"base":   func(k *talk) { k.ack(0, wire.SetVringBase, vring(0, 5)) },
		"addr":   func(k *talk) { k.ack(0, wire.SetVringAddr, addr(0, 0x10000)) },
		"kick":   func(k *talk) { k.ack(0, wire.SetVringKick, wire.VringFD{}.Append(nil), k.fd) },
		"enable": func(k *talk) { k.ack(0, wire.SetVringEnable, vring(0, 1)) },
	}
	orders := map[string][]string{
		"QEMU":             {"num", "base", "addr", "kick", "enable"},
		"Cloud Hypervisor": {"num", "addr", "base", "kick", "enable"},
		"enabled first":    {"enable", "num", "base", "addr", "kick"},
		"address last":     {"enable", "base", "num", "kick", "addr"},
		"size last":        {"enable", "base", "kick", "addr", "num"},
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, 1, nil)
			k.negotiate()
			for i, s := range order {
				if k.dev.at(0).running {
					t.Fatalf("runs before %q", order[i])
				}
				steps[s](k)
			}
			if v := k.dev.at(0); !v.running || v.base != 5 {
				t.Errorf("after all steps: %+v, want it to run from 5", v)
			}
			if err := k.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVringStopsAndStarts(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := newTalk(t, 2, nil)
	k.negotiate()
	k.ack(0, wire.SetVringNum, vring(1, 128))
	k.ack(0, wire.SetVringAddr, addr(1, 0x10000))
	k.ack(0, wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), k.fd)
	k.dev.takeLog()
	k.ack(0, wire.SetVringEnable, vring(1, 1))
	k.ack(0, wire.SetVringEnable, vring(1, 1))
	k.expectLog("start 1 at 0")
	k.ack(0, wire.SetVringEnable, vring(1, 0))
	k.ack(0, wire.SetVringEnable, vring(1, 0))
	k.expectLog("stop 1")
	k.ack(0, wire.SetVringEnable, vring(1, 1))
	k.expectLog("start 1 at 7") // goes on where it stopped
	base := func() uint32 {
		st, err := wire.ParseVringState(k.call(wire.GetVringBase, vring(1, 0)))
		if err != nil || st.Index != 1 {
			t.Fatal(st, err)
		}
		return st.Num
	}
	if b := base(); b != 14 {
		t.Errorf("base %d, want 14", b)
	}
	if b := base(); b != 14 {
		t.Errorf("base asked again %d, want 14", b)
	}
	k.expectLog("stop 1", "kick 1 false", "kick 1 false")
	k.ack(0, wire.SetVringEnable, vring(1, 0))
	k.ack(0, wire.SetVringEnable, vring(1, 1))
	k.expectLog() // a stopped vring waits for the next kick descriptor
	k.dev.fail()
	k.ack(1, wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), k.fd)
	k.ack(0, wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), k.fd)
	k.ack(0, wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), k.fd)
	k.expectLog("kick 1 true", "kick 1 true", "start 1 at 14", "stop 1", "kick 1 true", "start 1 at 21")
	k.ack(0, wire.ResetOwner, nil)
	k.expectLog("stop 1")
	k.ack(0, wire.ResetDevice, nil)
	k.expectLog("reset", "kick 0 false", "kick 1 false")
	if err := k.end(); err != nil {
		t.Error(err)
	}
}

// TestGuestFaultNeverEndsTheConnection: a vring that cannot start is no reason to,
// even if the front-end asked for no answer.
func TestGuestFaultNeverEndsTheConnection(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := newTalk(t, 1, nil)
	k.negotiate()
	k.ack(0, wire.SetVringNum, vring(0, 128))
	k.ack(0, wire.SetVringAddr, addr(0, 0x10000))
	k.ack(0, wire.SetVringKick, wire.VringFD{}.Append(nil), k.fd)
	k.dev.fail()
	if err := k.front.Send(wire.SetVringEnable, wire.FlagVersion, vring(0, 1)); err != nil {
		t.Fatal(err)
	}
	k.call(wire.GetFeatures, nil)
	if err := k.end(); err != nil {
		t.Error(err)
	}
}

func TestComplaintsAreBounded(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := newTalk(t, 1, nil)
	for range 500 {
		if err := k.front.Send(77, wire.FlagVersion, nil); err != nil {
			t.Fatal(err)
		}
	}
	k.call(wire.GetFeatures, nil)
	if err := k.end(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(k.logs.String(), "\n"); n > 40 {
		t.Errorf("%d log lines for 500 unknown requests", n)
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// TestTransportL06_AllDescriptorsAreClosed: those kept, those replaced, those refused.
func TestTransportL06_AllDescriptorsAreClosed(t *testing.T) {
	defer goleak.VerifyNone(t)
	before := openFDs(t)
	k := newTalk(t, 2, []byte("space"))
	region := wire.MemRegion{GuestAddr: 0x1000, Size: 0x1000, UserAddr: 0x2000}
	k.negotiate()
	for range 3 {
		k.ack(0, wire.SetMemTable, wire.AppendMemTable(nil, []wire.MemRegion{region, region}), k.mem, k.mem)
		k.ack(0, wire.SetBackendReqFD, nil, k.fd)
		for i := range uint8(2) {
			k.ack(0, wire.SetVringCall, wire.VringFD{Index: i}.Append(nil), k.fd)
			k.ack(0, wire.SetVringErr, wire.VringFD{Index: i}.Append(nil), k.fd)
			k.ack(0, wire.SetVringKick, wire.VringFD{Index: i}.Append(nil), k.fd)
		}
	}
	during := openFDs(t)
	k.ack(0, wire.AddMemReg, wire.AppendSingleRegion(nil, region), k.mem)
	k.ack(0, wire.RemMemReg, wire.AppendSingleRegion(nil, region), k.mem)
	k.ack(1, wire.AddMemReg, wire.AppendSingleRegion(nil, wire.MemRegion{}), k.mem)
	k.ack(1, wire.SetMemTable, wire.AppendMemTable(nil, []wire.MemRegion{{}}), k.mem)
	k.ack(1, wire.SetVringCall, wire.VringFD{Index: 9}.Append(nil), k.fd)
	k.ack(1, wire.SetLogFD, nil, k.fd)
	k.ack(0, wire.SetVringCall, wire.VringFD{NoFD: true}.Append(nil))
	if after := openFDs(t); after != during-1 { // one call less
		t.Errorf("%d descriptors open, want %d", after, during-1)
	}
	if err := k.end(); err != nil {
		t.Error(err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open at the end, %d before", after, before)
	}
}

func TestSnapshotComesBack(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := newTalk(t, 2, nil)
	k.negotiate()
	region := wire.MemRegion{GuestAddr: 0x1000, Size: 0x1000, UserAddr: 0x2000, MmapOffset: 0x3000}
	k.ack(0, wire.AddMemReg, wire.AppendSingleRegion(nil, region), k.mem)
	k.ack(0, wire.SetVringNum, vring(1, 128))
	k.ack(0, wire.SetVringBase, vring(1, 9))
	k.ack(0, wire.SetVringAddr, addr(1, 0x10000))
	k.ack(0, wire.SetVringErr, wire.VringFD{}.Append(nil), k.fd)
	k.ack(0, wire.SetVringKick, wire.VringFD{Index: 1}.Append(nil), k.fd)
	k.ack(0, wire.SetVringEnable, vring(1, 1))
	st, err := k.ses.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	v := st.Vrings[1]
	if !v.Live || !v.Running || !v.Enabled || !v.Placed || v.Base != 9 || v.Size != 128 ||
		!reflect.DeepEqual(v.Stopped, session.Progress{Avail: 3, Used: 1, InFlight: []uint16{1, 0}}) {
		t.Errorf("vring 1: %+v", v)
	}
	raw, fds := st.Marshal()
	if len(fds) != 3 {
		t.Errorf("%d descriptors, want memory, kick, err", len(fds))
	}
	back, err := session.UnmarshalState(raw, fds)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, st) {
		t.Errorf("came back as\n%+v, was\n%+v", back, st)
	}
	if err := k.end(); err != nil {
		t.Error(err)
	}
}

// TestSnapshotOfAStoppedVring: its progress counts only as long as the front-end
// has not begun to set the vring up differently.
func TestSnapshotOfAStoppedVring(t *testing.T) {
	defer goleak.VerifyNone(t)
	changes := map[string]struct {
		change func(k *talk)
		live   bool
	}{
		"as it was":    {func(k *talk) {}, true},
		"said again":   {func(k *talk) { k.ack(0, wire.SetVringNum, vring(0, 64)); k.ack(0, wire.SetVringBase, vring(0, 7)) }, true},
		"other size":   {func(k *talk) { k.ack(0, wire.SetVringNum, vring(0, 32)) }, false},
		"other base":   {func(k *talk) { k.ack(0, wire.SetVringBase, vring(0, 0)) }, false},
		"other place":  {func(k *talk) { k.ack(0, wire.SetVringAddr, addr(0, 0x40000)) }, false},
		"device reset": {func(k *talk) { k.ack(0, wire.ResetDevice, nil) }, false},
	}
	for name, tt := range changes {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, 1, nil)
			k.negotiate()
			k.ack(0, wire.SetVringNum, vring(0, 64))
			k.ack(0, wire.SetVringAddr, addr(0, 0x10000))
			k.ack(0, wire.SetVringKick, wire.VringFD{}.Append(nil), k.fd)
			k.ack(0, wire.SetVringEnable, vring(0, 1))
			k.call(wire.GetVringBase, vring(0, 0))
			tt.change(k)
			st, err := k.ses.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if st.Vrings[0].Live != tt.live || st.Vrings[0].Running {
				t.Errorf("vring in the snapshot: %+v, want Live %v, not Running", st.Vrings[0], tt.live)
			}
			raw, fds := st.Marshal()
			if _, err := session.UnmarshalState(raw, fds); err != nil {
				t.Errorf("the snapshot does not come back: %v", err)
			}
			if err := k.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// state returns a small state as bytes, with numbers that are no descriptors.
func state() (raw []byte, fds []int) {
	s := session.State{
		Features: 1 << 32, BackendReq: 100, Handler: []byte("h"),
		Regions: []guestmem.Source{{Region: guestmem.Region{GPA: 1, UVA: 2, Size: 3, Offset: 4}, FD: 101}},
		Vrings: []session.Vring{
			{Kick: -1, Call: -1, Err: -1},
			{Ring: session.Ring{Size: 4, Desc: 16, Avail: 32, Used: 64, Base: 2}, Placed: true, Enabled: true, Running: true, Live: true,
				Kick: 102, Call: 103, Err: 104, Stopped: session.Progress{Avail: 2, Used: 1, InFlight: []uint16{3}}},
		},
	}
	return s.Marshal()
}

func TestUnmarshalRefuses(t *testing.T) {
	raw, fds := state()
	if _, err := session.UnmarshalState(raw, fds); err != nil {
		t.Fatal(err)
	}
	for n := range raw {
		if _, err := session.UnmarshalState(raw[:n], fds); !errors.Is(err, session.ErrState) {
			t.Fatalf("cut to %d of %d bytes: %v, want ErrState", n, len(raw), err)
		}
	}
	if _, err := session.UnmarshalState(append(bytes.Clone(raw), 0), fds); !errors.Is(err, session.ErrState) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := session.UnmarshalState(raw, fds[:len(fds)-1]); !errors.Is(err, session.ErrState) {
		t.Errorf("a descriptor too few: %v", err)
	}
	if _, err := session.UnmarshalState(raw, append(slices.Clone(fds), 105)); !errors.Is(err, session.ErrState) {
		t.Errorf("a descriptor too many: %v", err)
	}
	bad := map[string]session.State{
		"size no power of two": {BackendReq: -1, Vrings: []session.Vring{{Ring: session.Ring{Size: 3}, Kick: -1, Call: -1, Err: -1}}},
		"more in flight than entries": {BackendReq: -1, Vrings: []session.Vring{{Ring: session.Ring{Size: 1}, Kick: -1, Call: -1, Err: -1,
			Stopped: session.Progress{InFlight: []uint16{0, 0}}}}},
		"runs without place":    {BackendReq: -1, Vrings: []session.Vring{{Running: true, Kick: -1, Call: -1, Err: -1}}},
		"progress without size": {BackendReq: -1, Vrings: []session.Vring{{Live: true, Kick: -1, Call: -1, Err: -1}}},
		"too many vrings":       {BackendReq: -1, Vrings: make([]session.Vring, 300)},
		"too many regions":      {BackendReq: -1, Regions: make([]guestmem.Source, guestmem.MaxRegions+1)},
	}
	for name, s := range bad {
		raw, fds := s.Marshal()
		if _, err := session.UnmarshalState(raw, fds); !errors.Is(err, session.ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
	if _, err := session.Restore(session.Config{Queues: 3}, nil, &session.State{}); !errors.Is(err, session.ErrState) {
		t.Errorf("state of another number of vrings: %v", err)
	}
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
