package wire_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// FuzzRecv reads any bytes as messages: it ends, no message is larger than
// allowed, every payload parser lives, and no descriptor is left behind.
func FuzzRecv(f *testing.F) {
	f.Add(message(wire.GetFeatures, wire.FlagVersion, nil), uint8(0))
	f.Add(append(message(wire.SetVringKick, wire.FlagVersion, wire.VringFD{Index: 1}.Append(nil)), message(wire.GetFeatures, 0, nil)...), uint8(1))
	f.Add(message(wire.SetMemTable, wire.FlagVersion, wire.AppendMemTable(nil, make([]wire.MemRegion, 8))), uint8(8))
	f.Add(message(wire.SetConfig, wire.FlagVersion, wire.Config{Data: make([]byte, 256)}.Append(nil)), uint8(40))
	f.Add(message(wire.SetConfig, wire.FlagVersion, nil)[:7], uint8(2))
	f.Fuzz(func(t *testing.T, raw []byte, fds uint8) {
		if len(raw) > 64<<10 {
			return // more than the socket holds: nobody writes while we read
		}
		before := openFDs(t)
		a, b, err := wire.Pair()
		if err != nil {
			t.Fatal(err)
		}
		c := wire.NewConn(a)
		if err := a.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var oob []byte
		if n := int(fds % 64); n > 0 && len(raw) > 0 {
			list := make([]int, n)
			for i := range list {
				list[i] = 2
			}
			oob = unix.UnixRights(list...)
		}
		if len(raw) > 0 {
			if _, _, err := b.WriteMsgUnix(raw, oob, nil); err != nil {
				t.Fatal(err)
			}
		}
		b.Close()
		for {
			m, err := c.Recv()
			if err != nil {
				break
			}
			if len(m.Payload) > wire.MaxPayload || len(m.FDs) > wire.MaxFDs {
				t.Fatalf("%v: %d bytes, %d descriptors", m.Request, len(m.Payload), len(m.FDs))
			}
			parseAll(m.Payload)
			m.CloseFDs()
		}
		c.Close()
		if after := openFDs(t); after != before {
			t.Fatalf("%d descriptors open, %d before", after, before)
		}
	})
}

// parseAll gives p to every parser; errors are for those who sent it.
func parseAll(p []byte) {
	_, _ = wire.ParseU64(p)
	_, _ = wire.ParseVringState(p)
	_, _ = wire.ParseVringAddr(p)
	_, _ = wire.ParseVringFD(p)
	_, _ = wire.ParseMemTable(p)
	_, _ = wire.ParseSingleRegion(p)
	_, _ = wire.ParseConfig(p)
}
