package wire_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// TestLayouts pins each payload to the bytes that the protocol text gives.
func TestLayouts(t *testing.T) {
	region := wire.MemRegion{GuestAddr: 0x1000, Size: 0x2000, UserAddr: 0x7f0000000000, MmapOffset: 0x3000}
	regionBytes := []byte{
		0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0,
	}
	tests := map[string]struct {
		got  []byte
		want []byte
	}{
		"u64":         {wire.AppendU64(nil, 0x0102), []byte{2, 1, 0, 0, 0, 0, 0, 0}},
		"vring state": {wire.VringState{Index: 1, Num: 0x400}.Append(nil), []byte{1, 0, 0, 0, 0, 4, 0, 0}},
		"vring addr, used before avail": {
			wire.VringAddr{Index: 1, Flags: 1, Desc: 2, Used: 3, Avail: 4, Log: 5}.Append(nil),
			[]byte{1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0},
		},
		"vring fd":      {wire.VringFD{Index: 5}.Append(nil), []byte{5, 0, 0, 0, 0, 0, 0, 0}},
		"vring no fd":   {wire.VringFD{Index: 5, NoFD: true}.Append(nil), []byte{5, 1, 0, 0, 0, 0, 0, 0}},
		"memory table":  {wire.AppendMemTable(nil, []wire.MemRegion{region}), append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, regionBytes...)},
		"single region": {wire.AppendSingleRegion(nil, region), append(make([]byte, 8), regionBytes...)},
		"config": {
			wire.Config{Offset: 1, Flags: 2, Data: []byte{9, 8}}.Append(nil),
			[]byte{1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 9, 8},
		},
	}
	for name, tt := range tests {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("%s: encoded as % x, want % x", name, tt.got, tt.want)
		}
	}
}

func TestPayloadsComeBack(t *testing.T) {
	regions := []wire.MemRegion{{GuestAddr: 1, Size: 2, UserAddr: 3, MmapOffset: 4}, {GuestAddr: 5, Size: 6, UserAddr: 7, MmapOffset: 8}}
	check := func(what string, got any, err error, want any) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", what, got, err, want)
		}
	}
	u, err := wire.ParseU64(wire.AppendU64(nil, 1<<63|1))
	check("u64", u, err, uint64(1<<63|1))
	s := wire.VringState{Index: 7, Num: 9}
	s2, err := wire.ParseVringState(s.Append(nil))
	check("state", s2, err, s)
	a := wire.VringAddr{Index: 1, Flags: 2, Desc: 3, Used: 4, Avail: 5, Log: 6}
	a2, err := wire.ParseVringAddr(a.Append(nil))
	check("addr", a2, err, a)
	f := wire.VringFD{Index: 255, NoFD: true}
	f2, err := wire.ParseVringFD(f.Append(nil))
	check("fd", f2, err, f)
	r2, err := wire.ParseMemTable(wire.AppendMemTable(nil, regions))
	check("table", r2, err, regions)
	r1, err := wire.ParseSingleRegion(wire.AppendSingleRegion(nil, regions[1]))
	check("region", r1, err, regions[1])
	c := wire.Config{Offset: 3, Flags: 1, Data: []byte{1, 2, 3}}
	c2, err := wire.ParseConfig(c.Append(nil))
	check("config", c2, err, c)
}

func TestMemTableOfUML61HasRoomForTwo(t *testing.T) {
	one := []wire.MemRegion{{GuestAddr: 0x6f00000, Size: 0x1000000, UserAddr: 0x6f00000, MmapOffset: 0x6f00000}}
	p := append(wire.AppendMemTable(nil, one), make([]byte, wire.MemRegionSize)...)
	if len(p) != 72 {
		t.Fatalf("test message has %d bytes, want 72", len(p))
	}
	got, err := wire.ParseMemTable(p)
	if err != nil || !reflect.DeepEqual(got, one) {
		t.Errorf("got %+v, %v, want %+v", got, err, one)
	}
}

func TestParsersRefuseWrongSizes(t *testing.T) {
	parsers := map[string]func([]byte) error{
		"u64":    func(p []byte) error { _, err := wire.ParseU64(p); return err },
		"state":  func(p []byte) error { _, err := wire.ParseVringState(p); return err },
		"addr":   func(p []byte) error { _, err := wire.ParseVringAddr(p); return err },
		"fd":     func(p []byte) error { _, err := wire.ParseVringFD(p); return err },
		"region": func(p []byte) error { _, err := wire.ParseSingleRegion(p); return err },
	}
	right := map[string]int{"u64": 8, "state": 8, "addr": 40, "fd": 8, "region": 40}
	for name, parse := range parsers {
		for n := range 80 {
			err := parse(make([]byte, n))
			if ok := n == right[name]; ok != (err == nil) {
				t.Errorf("%s of %d bytes: %v", name, n, err)
			} else if !ok && !errors.Is(err, wire.ErrPayload) {
				t.Errorf("%s of %d bytes: %v, want ErrPayload", name, n, err)
			}
		}
	}
	tables := map[string][]byte{
		"empty":               {},
		"no padding":          {1, 0, 0, 0},
		"region cut":          wire.AppendMemTable(nil, make([]wire.MemRegion, 2))[:71],
		"nine regions":        wire.AppendMemTable(nil, make([]wire.MemRegion, 9)),
		"2^32-1 regions":      {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"2^27 wraps in 32 bi": {0, 0, 0, 8, 0, 0, 0, 0},
	}
	for name, p := range tables {
		if _, err := wire.ParseMemTable(p); !errors.Is(err, wire.ErrPayload) {
			t.Errorf("memory table, %s: %v, want ErrPayload", name, err)
		}
	}
	configs := map[string][]byte{
		"empty":             {},
		"fewer than said":   wire.Config{Data: make([]byte, 4)}.Append(nil)[:15],
		"more than said":    append(wire.Config{Data: make([]byte, 4)}.Append(nil), 0),
		"above 256":         wire.Config{Data: make([]byte, 257)}.Append(nil),
		"size near 2^32":    {0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"size wraps to len": {0, 0, 0, 0, 0xf4, 0xff, 0xff, 0xff, 0, 0, 0, 0},
	}
	for name, p := range configs {
		if _, err := wire.ParseConfig(p); !errors.Is(err, wire.ErrPayload) {
			t.Errorf("config, %s: %v, want ErrPayload", name, err)
		}
	}
	if _, err := wire.ParseVringFD(wire.AppendU64(nil, 1<<9)); !errors.Is(err, wire.ErrPayload) {
		t.Errorf("vring descriptor word with bit 9: %v, want ErrPayload", err)
	}
}
