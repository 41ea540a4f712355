package wire_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// pair returns a Conn and the raw socket at its other end.
func pair(t *testing.T) (*wire.Conn, *net.UnixConn) {
	t.Helper()
	a, b, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	c := wire.NewConn(a)
	t.Cleanup(func() { c.Close(); b.Close() })
	for _, s := range []*net.UnixConn{a, b} {
		if err := s.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return c, b
}

// tempFD returns a fresh descriptor and the inode behind it.
func tempFD(t *testing.T) (fd int, ino uint64) {
	t.Helper()
	fd, err := unix.MemfdCreate("wire-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, inode(t, fd)
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatalf("fstat %d: %v", fd, err)
	}
	return st.Ino
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func message(req wire.Request, flags wire.Flags, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(req))
	b = binary.LittleEndian.AppendUint32(b, uint32(flags))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func TestConnCarriesMessagesWithDescriptors(t *testing.T) {
	c, peer := pair(t)
	p := wire.NewConn(peer)
	fd1, ino1 := tempFD(t)
	fd2, ino2 := tempFD(t)
	if err := p.Send(wire.SetVringKick, wire.FlagVersion|wire.FlagNeedReply, wire.VringFD{Index: 3}.Append(nil), fd1, fd2); err != nil {
		t.Fatal(err)
	}
	m, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	defer m.CloseFDs()
	if m.Request != wire.SetVringKick || !m.NeedReply() || len(m.FDs) != 2 {
		t.Fatalf("got %v flags %#x with %d descriptors", m.Request, m.Flags, len(m.FDs))
	}
	if inode(t, m.FDs[0]) != ino1 || inode(t, m.FDs[1]) != ino2 {
		t.Errorf("descriptors arrived in another order")
	}
	if err := c.Reply(m.Request, wire.AppendU64(nil, 7)); err != nil {
		t.Fatal(err)
	}
	r, err := p.Recv()
	if err != nil {
		t.Fatal(err)
	}
	// L01: front-ends compare the flags word for equality.
	if r.Flags != 0x5 || r.Request != wire.SetVringKick {
		t.Errorf("reply %v flags %#x, want 0x5", r.Request, r.Flags)
	}
	if v, err := wire.ParseU64(r.Payload); err != nil || v != 7 {
		t.Errorf("reply = %d, %v, want 7", v, err)
	}
}

func TestTransportL07_MessageInOneByteWrites(t *testing.T) {
	c, peer := pair(t)
	fd, ino := tempFD(t)
	raw := message(wire.SetFeatures, wire.FlagVersion, wire.AppendU64(nil, 0x1122334455667788))
	go func() {
		oob := unix.UnixRights(fd)
		for i := range raw {
			if _, _, err := peer.WriteMsgUnix(raw[i:i+1], oob, nil); err != nil {
				return
			}
			oob = nil
		}
	}()
	m, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	defer m.CloseFDs()
	v, err := wire.ParseU64(m.Payload)
	if err != nil || v != 0x1122334455667788 {
		t.Errorf("payload %#x, %v", v, err)
	}
	if len(m.FDs) != 1 || inode(t, m.FDs[0]) != ino {
		t.Errorf("descriptors %v, want the one sent", m.FDs)
	}
}

func TestTransportL08_TwoMessagesInOneWrite(t *testing.T) {
	c, peer := pair(t)
	fd1, ino1 := tempFD(t)
	fd2, ino2 := tempFD(t)
	two := append(message(wire.SetVringCall, wire.FlagVersion, wire.VringFD{}.Append(nil)),
		message(wire.GetFeatures, wire.FlagVersion, nil)...)
	if _, _, err := peer.WriteMsgUnix(two, unix.UnixRights(fd1), nil); err != nil {
		t.Fatal(err)
	}
	third := message(wire.SetVringErr, wire.FlagVersion, wire.VringFD{}.Append(nil))
	if _, _, err := peer.WriteMsgUnix(third, unix.UnixRights(fd2), nil); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		req wire.Request
		ino uint64
	}{{wire.SetVringCall, ino1}, {wire.GetFeatures, 0}, {wire.SetVringErr, ino2}} {
		m, err := c.Recv()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if m.Request != want.req {
			t.Errorf("message %d is %v, want %v", i, m.Request, want.req)
		}
		var got uint64
		if len(m.FDs) == 1 {
			got = inode(t, m.FDs[0])
		}
		if got != want.ino || len(m.FDs) > 1 {
			t.Errorf("%v: %d descriptors, inode %d, want inode %d", m.Request, len(m.FDs), got, want.ino)
		}
		m.CloseFDs()
	}
}

func TestRecvRefuses(t *testing.T) {
	tests := map[string]struct {
		raw  []byte
		fds  int
		want error
	}{
		"L09 size above the limit":   {message(wire.SetConfig, wire.FlagVersion, nil)[:8:8], 1, wire.ErrFraming},
		"version 0":                  {message(wire.GetFeatures, 0, nil), 1, wire.ErrFraming},
		"version 2":                  {message(wire.GetFeatures, 2, nil), 1, wire.ErrFraming},
		"L10 truncated descriptors":  {message(wire.GetFeatures, wire.FlagVersion, nil), wire.MaxFDs + 4, wire.ErrFraming},
		"end inside of the header":   {message(wire.GetFeatures, wire.FlagVersion, nil)[:5], 2, io.ErrUnexpectedEOF},
		"end before the payload":     {message(wire.SetFeatures, wire.FlagVersion, make([]byte, 8))[:12], 2, io.ErrUnexpectedEOF},
		"end inside of the payload":  {message(wire.SetFeatures, wire.FlagVersion, make([]byte, 8))[:15], 2, io.ErrUnexpectedEOF},
		"end between two messages":   {nil, 0, io.EOF},
		"L09 size near the overflow": {append(message(wire.SetConfig, wire.FlagVersion, nil)[:8:8], 0xff, 0xff, 0xff, 0xff), 1, wire.ErrFraming},
	}
	// The first case needs a size of its own: MaxPayload + 1.
	c := tests["L09 size above the limit"]
	c.raw = binary.LittleEndian.AppendUint32(c.raw, wire.MaxPayload+1)
	tests["L09 size above the limit"] = c

	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, peer := pair(t)
			fd, _ := tempFD(t)
			before := openFDs(t)
			if len(tt.raw) > 0 {
				fds := make([]int, tt.fds)
				for i := range fds {
					fds[i] = fd
				}
				if _, _, err := peer.WriteMsgUnix(tt.raw, unix.UnixRights(fds...), nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			m, err := c.Recv()
			if !errors.Is(err, tt.want) {
				t.Fatalf("Recv = %v, %v, want %v", m, err, tt.want)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func TestSendRefusesWhatOneMessageCannotHold(t *testing.T) {
	c, _ := pair(t)
	if err := c.Send(wire.SetConfig, wire.FlagVersion, make([]byte, wire.MaxPayload+1)); err == nil {
		t.Error("a payload above the limit was sent")
	}
	if err := c.Send(wire.SetMemTable, wire.FlagVersion, nil, make([]int, wire.MaxFDs+1)...); err == nil {
		t.Error("more descriptors than the limit were sent")
	}
}

func TestConnFromFDOwnsTheDescriptor(t *testing.T) {
	before := openFDs(t)
	fd, err := unix.MemfdCreate("not-a-socket", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := wire.ConnFromFD(fd); err == nil {
		c.Close()
		t.Error("a memfd became a connection")
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
