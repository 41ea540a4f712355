package fuseproto_test

import (
	"fmt"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// extFS remembers what creating requests said beside their bodies.
type extFS struct {
	fuseproto.ReadOnly
	constant
	got string
}

func (e *extFS) Mkdir(op *fuseproto.Op, _ uint64, _ *fuseproto.MkdirIn, name []byte, out *fuseproto.Entry) error {
	return e.remember(op, name, out)
}

func (e *extFS) Symlink(op *fuseproto.Op, _ uint64, name, _ []byte, out *fuseproto.Entry) error {
	return e.remember(op, name, out)
}

func (e *extFS) Tmpfile(op *fuseproto.Op, _ uint64, _ *fuseproto.CreateIn, out *fuseproto.Entry, _ *fuseproto.OpenOut) error {
	return e.remember(op, []byte("tmp"), out)
}

func (e *extFS) remember(op *fuseproto.Op, name []byte, out *fuseproto.Entry) error {
	x := op.CreateExt()
	e.got = fmt.Sprintf("%s gid %d %v label %s=%s", name, x.GID, x.HasGID, x.LabelName, x.Label)
	out.Node = 2
	return nil
}

func u32s(v ...uint32) (b []byte) {
	for _, n := range v {
		b = le.AppendUint32(b, n)
	}
	return b
}

func TestExtensions(t *testing.T) {
	group := u32s(16, 32, 1, 50)
	label := append(u32s(32, 1, 3, 0), "sec.l\x00abc\x00\x00\x00\x00\x00\x00\x00"...)
	both := append(append([]byte{}, label...), group...)
	tests := map[string]struct {
		ext   []byte
		units int // what the header says
		want  string
	}{
		"none":                 {nil, 0, "n gid 0 false label ="},
		"group":                {group, 2, "n gid 50 true label ="},
		"label":                {label, 4, "n gid 0 false label sec.l=abc"},
		"both":                 {both, 6, "n gid 50 true label sec.l=abc"},
		"label, length untold": {label, 0, "n gid 0 false label sec.l=abc"},
		"more told than sent":  {group, 100, "n gid 0 false label ="},
		"size too large":       {u32s(400, 32, 1, 50), 2, "n gid 0 false label ="},
		"size too small":       {u32s(4, 32, 1, 50), 2, "n gid 0 false label ="},
		"no groups":            {u32s(16, 32, 0, 50), 2, "n gid 0 false label ="},
		"groups cut":           {u32s(12, 32, 1, 0), 2, "n gid 0 false label ="},
		"unknown type":         {append(u32s(16, 77, 1, 1), group...), 4, "n gid 50 true label ="},
		"no records":           {u32s(8, 0), 1, "n gid 0 false label ="},
		"value too long":       {append(u32s(24, 1, 300, 0), "sec.l\x00ab"...), 3, "n gid 0 false label ="},
		"name without end":     {append(u32s(24, 1, 1, 0), "sec.labe"...), 3, "n gid 0 false label ="},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fs := &extFS{}
			c := fusetest.NewClient(t, serverOf(t, fs, fuseproto.Config{Flags: fuseproto.FlagsShared | fuseproto.FlagSecurityCtx}))
			c.Init()
			for opcode, parts := range map[fuseproto.Opcode][]any{
				fuseproto.OpMkdir:   {uint64(0), "n", tt.ext},
				fuseproto.OpSymlink: {"n", "target", tt.ext},
				fuseproto.OpTmpfile: {uint64(0), uint64(0), "/", tt.ext},
			} {
				b := fusetest.Request(opcode, 2, 1, parts...)
				le.PutUint16(b[36:], uint16(tt.units))
				r := c.Send(fusetest.NewMessage(b, 16+144), 2)
				want := tt.want
				if opcode == fuseproto.OpTmpfile {
					want = "tmp" + want[1:]
				}
				if r.Errno != 0 || fs.got != want {
					t.Errorf("%v: %v, %q, want %q", opcode, r.Errno, fs.got, want)
				}
			}
		})
	}
}
