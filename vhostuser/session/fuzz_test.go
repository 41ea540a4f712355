package session_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// script is the fuzzers' way to write a conversation: per message request u8,
// flags u8, descriptors u8, size u16, payload.
func script(b []byte, req wire.Request, flags wire.Flags, fds byte, payload []byte) []byte {
	b = append(b, byte(req), byte(flags), fds)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// FuzzSession plays conversations. The fake device fails if the session breaks
// its side of their contract; no descriptor may be left behind.
func FuzzSession(f *testing.F) {
	const v, nr = wire.FlagVersion, wire.FlagVersion | wire.FlagNeedReply
	region := wire.MemRegion{GuestAddr: 0x1000, Size: 0x1000, UserAddr: 0x2000}
	start := script(nil, wire.SetProtocolFeatures, nr, 0, u64(wire.ProtocolReplyAck|wire.ProtocolConfig))
	start = script(start, wire.SetFeatures, nr, 0, u64(session.Features))
	start = script(start, wire.SetMemTable, nr, 1, append(wire.AppendMemTable(nil, []wire.MemRegion{region}), make([]byte, 32)...))
	start = script(start, wire.SetVringNum, nr, 0, vring(1, 64))
	start = script(start, wire.SetVringBase, v, 0, vring(1, 3))
	start = script(start, wire.SetVringAddr, nr, 0, addr(1, 0x10000))
	start = script(start, wire.SetVringCall, nr, 1, wire.VringFD{Index: 1}.Append(nil))
	start = script(start, wire.SetVringKick, nr, 1, wire.VringFD{Index: 1}.Append(nil))
	start = script(start, wire.SetVringEnable, nr, 0, vring(1, 1))
	f.Add(start)
	f.Add(script(start, wire.GetVringBase, v, 0, vring(1, 0)))
	f.Add(script(script(start, wire.ResetDevice, nr, 0, nil), wire.SetVringEnable, nr, 0, vring(1, 1)))
	f.Add(script(script(start, wire.SetVringKick, nr, 1, wire.VringFD{Index: 1}.Append(nil)), wire.ResetOwner, nr, 0, nil))
	f.Add(script(start, wire.AddMemReg, nr, 1, wire.AppendSingleRegion(nil, region)))
	f.Add(script(start, wire.RemMemReg, nr, 0, wire.AppendSingleRegion(nil, region)))
	f.Add(script(nil, wire.GetConfig, nr, 0, wire.Config{Offset: 3, Data: make([]byte, 9)}.Append(nil)))
	f.Add(script(nil, wire.SetVringKick, nr, 0, u64(1<<8|7)))
	f.Add(script(nil, wire.SetFeatures, v, 0, u64(1<<32)))
	area := wire.Inflight{MmapSize: 4096, Queues: 2, QueueSize: 64}.Append(nil)
	f.Add(script(script(start, wire.GetInflightFD, v, 0, area), wire.GetInflightFD, nr, 0, area))
	f.Add(script(script(nil, wire.SetInflightFD, nr, 1, area), wire.SetInflightFD, nr, 1, area))
	f.Add(script(start, wire.SetVringErr, nr, 1, wire.VringFD{Index: 0}.Append(nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := openFDs(t)
		play(t, b)
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

func play(t *testing.T, b []byte) {
	sa, sb, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	front, back := wire.NewConn(sa), wire.NewConn(sb)
	defer front.Close()
	defer back.Close()
	if err := sb.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	table, _, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(table)
	dev := newFake(t, 2)
	ses := session.New(session.Config{Queues: 2, ConfigSpace: []byte("space"), NewInflight: sealed, Log: discard()}, dev)
	defer ses.Close()
	read := make(chan struct{})
	go func() { // takes the replies, so that nobody waits for room
		defer close(read)
		for {
			m, err := front.Recv()
			if err != nil {
				return
			}
			want := 0
			if m.Request == wire.GetInflightFD {
				want = 1
			}
			if m.Flags != wire.ReplyFlags || len(m.FDs) != want {
				t.Errorf("reply to %v: flags %#x, %d descriptors", m.Request, m.Flags, len(m.FDs))
			}
			m.CloseFDs()
		}
	}()
	go func() {
		defer sa.CloseWrite()
		for len(b) >= 5 {
			req, flags, n := wire.Request(b[0]), wire.Flags(b[1]), int(b[2]%10)
			size := min(int(binary.LittleEndian.Uint16(b[3:])), len(b)-5)
			fds := make([]int, n)
			for i := range fds {
				fds[i] = fd
				if req == wire.SetInflightFD {
					fds[i] = table
				}
			}
			if front.Send(req, flags, b[5:5+size], fds...) != nil {
				return
			}
			b = b[5+size:]
		}
	}()
	_ = ses.Serve(back)
	back.Close()
	<-read
}

// sealed makes memory that cannot shrink.
func sealed() (fd int, size int64, err error) {
	size = 4096
	fd, err = unix.MemfdCreate("table", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, 0, err
	}
	if err = unix.Ftruncate(fd, size); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	}
	return fd, size, err
}

// FuzzUnmarshalState: what is taken is well-formed and comes back the same.
func FuzzUnmarshalState(f *testing.F) {
	raw, fds := state()
	f.Add(raw, len(fds))
	f.Add(raw[:20], 0)
	f.Add([]byte("VUS1\x01\x00\xff\xff"), 1)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		fds := make([]int, min(max(n, 0), 2000))
		for i := range fds {
			fds[i] = 100 + i
		}
		s, err := session.UnmarshalState(raw, fds)
		if err != nil {
			if !errors.Is(err, session.ErrState) {
				t.Fatalf("%v, want ErrState", err)
			}
			return
		}
		again, refs := s.Marshal()
		if len(refs) != len(fds) {
			t.Fatalf("%d descriptors, had %d", len(refs), len(fds))
		}
		if _, err := session.UnmarshalState(again, refs); err != nil {
			t.Fatalf("its own encoding: %v", err)
		}
	})
}
