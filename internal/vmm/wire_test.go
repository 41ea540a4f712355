package vmm

import (
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestLayouts holds our structures against those of another implementation.
func TestLayouts(t *testing.T) {
	tests := map[string]struct {
		ours   any
		theirs uintptr
	}{
		"fuse_in_header":  {header{}, unsafe.Sizeof(fuse.InHeader{})},
		"fuse_out_header": {outHeader{}, unsafe.Sizeof(fuse.OutHeader{})},
		"fuse_attr":       {Attr{}, unsafe.Sizeof(fuse.Attr{})},
		"fuse_entry_out":  {Entry{}, unsafe.Sizeof(fuse.EntryOut{})},
		"fuse_attr_out":   {AttrOut{}, unsafe.Sizeof(fuse.AttrOut{})},
		"fuse_open_out":   {OpenOut{}, unsafe.Sizeof(fuse.OpenOut{})},
		"fuse_kstatfs":    {Statfs{}, unsafe.Sizeof(fuse.StatfsOut{})},
		"fuse_init_out":   {InitOut{}, unsafe.Sizeof(fuse.InitOut{})},
		"fuse_setattr_in": {SetattrIn{}, unsafe.Sizeof(fuse.SetAttrInCommon{})},
	}
	for name, tt := range tests {
		want := int(tt.theirs)
		if name == "fuse_setattr_in" {
			want -= inHeaderSize // theirs begin with the header
		}
		if got := binary.Size(tt.ours); got != want {
			t.Errorf("%s has %d bytes, go-fuse's %d", name, got, want)
		}
	}
}

func TestParseDirents(t *testing.T) {
	record := func(plus bool, name string, pad int) []byte {
		var b []byte
		if plus {
			b = append(b, pack(Entry{NodeID: 9})...)
		}
		b = append(b, pack(uint64(7), uint64(1), uint32(len(name)), uint32(8))...)
		b = append(b, name...)
		return append(b, make([]byte, pad)...)
	}
	good := map[string]struct {
		plus bool
		b    []byte
		n    int
	}{
		"nothing":                {false, nil, 0},
		"one of eight bytes":     {false, record(false, "12345678", 0), 1},
		"two with padding":       {false, append(record(false, "a", 7), record(false, "bcd", 5)...), 2},
		"with attributes":        {true, record(true, "name", 4), 1},
		"names that are no text": {false, record(false, "\xff\xfe", 6), 1},
	}
	for name, tt := range good {
		list, err := parseDirents(tt.b, tt.plus)
		if err != nil || len(list) != tt.n {
			t.Errorf("%s: %d entries, %v; want %d", name, len(list), err, tt.n)
		}
	}
	dirty := record(false, "a", 7)
	dirty[len(dirty)-1] = 1
	bad := map[string][]byte{
		"half a record":         record(false, "abcdefgh", 0)[:20],
		"a name cut off":        record(false, "abcdefgh", 0)[:28],
		"padding cut off":       record(false, "a", 3),
		"an empty name":         record(false, "", 0),
		"a slash":               record(false, "a/b", 5),
		"a NUL":                 record(false, "a\x00b", 5),
		"padding that is not 0": dirty,
		"a name of 2^32-1":      append(pack(uint64(7), uint64(1), ^uint32(0), uint32(8)), make([]byte, 64)...),
	}
	for name, b := range bad {
		var rule *Violation
		if _, err := parseDirents(b, false); !errors.As(err, &rule) {
			t.Errorf("%s: %v, want a Violation", name, err)
		}
	}
}

// FuzzParseDirents feeds replies of a broken back-end to the client's parser.
func FuzzParseDirents(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add(make([]byte, 24), false)
	f.Add(make([]byte, 160), true)
	f.Add(append(pack(uint64(7), uint64(1), uint32(3), uint32(8)), "abc\x00\x00\x00\x00\x00"...), false)
	f.Fuzz(func(t *testing.T, b []byte, plus bool) {
		list, err := parseDirents(b, plus)
		var rule *Violation
		if err != nil && !errors.As(err, &rule) {
			t.Errorf("err = %v, want a Violation", err)
		}
		size := 0
		for _, d := range list {
			size += direntSize + len(d.Name)
		}
		if size > len(b) {
			t.Errorf("%d entries of at least %d bytes out of %d", len(list), size, len(b))
		}
	})
}
