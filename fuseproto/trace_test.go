package fuseproto_test

import (
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// traceOf returns the text of the lines that serving m wrote.
func traceOf(t *testing.T, init bool, m *fusetest.Message, unique uint64) []string {
	t.Helper()
	log, text := logOf(slog.LevelDebug)
	c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{Logger: log}))
	if init {
		c.Init()
	}
	before := len(text.String())
	c.Send(m, unique)
	var lines []string
	for l := range strings.Lines(text.String()[before:]) {
		_, l, _ = strings.Cut(strings.TrimSpace(l), "msg=")
		lines = append(lines, strings.Trim(strings.ReplaceAll(l, `\"`, `"`), `"`))
	}
	return lines
}

func TestTraceLines(t *testing.T) {
	for _, tt := range []struct {
		op     fuseproto.Opcode
		node   uint64
		room   int
		parts  []any
		rx, tx string
	}{
		{fuseproto.OpLookup, 1, 128, []any{"dir"},
			`rx 8 LOOKUP n1 "dir" uid 1000 pid 4321`,
			`tx 8 LOOKUP ok n2 for 4294967296s ino 2 mode 040755 size 0 nlink 1 uid 7 gid 8 for 4294967296s 144 bytes`},
		{fuseproto.OpLookup, 1, 128, []any{"absent"}, `rx 8 LOOKUP n1 "absent" uid 1000 pid 4321`, `tx 8 LOOKUP ok n0 for 4294967296s 144 bytes`},
		{fuseproto.OpRead, nodeFile, 100, []any{fusetest.ReadBody(9, 7, 100)}, `rx 8 READ n3 fh 9 at 7 size 100 uid 1000 pid 4321`, `tx 8 READ ok 116 bytes`},
		{fuseproto.OpMkdir, 1, 128, []any{uint32(0o755), uint32(0), "new"}, `rx 8 MKDIR n1 mode 0755 "new" uid 1000 pid 4321`, `tx 8 MKDIR 30 read-only file system`},
		{fuseproto.OpRename2, 1, 0, []any{uint64(2), uint64(1), "a", "b"}, `rx 8 RENAME2 n1 to n2 flags 0x1 "a" "b" uid 1000 pid 4321`, `tx 8 RENAME2 30 read-only file system`},
		{fuseproto.OpOpen, nodeFile, 16, []any{uint64(0o100000)}, `rx 8 OPEN n3 flags 0100000 uid 1000 pid 4321`, `tx 8 OPEN ok fh 0 flags 0x2 32 bytes`},
		{fuseproto.OpForget, nodeFile, 0, []any{uint64(7)}, `rx 8 FORGET n3 nlookup 7 uid 1000 pid 4321`, ``},
		{fuseproto.OpGetXattr, nodeFile, 100, []any{uint64(100), "user.name"}, `rx 8 GETXATTR n3 size 100 "user.name" uid 1000 pid 4321`, `tx 8 GETXATTR ok 21 bytes`},
		{99, 1, 0, nil, `rx 8 opcode 99 n1 uid 1000 pid 4321`, `tx 8 opcode 99 38 function not implemented`},
	} {
		lines := traceOf(t, true, one{tt.op, tt.node, tt.room, tt.parts}.message(8), 8)
		want := []string{tt.rx}
		if tt.tx != "" {
			want = append(want, tt.tx)
		}
		if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("%v:\ngot  %s\nwant %s", tt.op, got, strings.Join(want, "\n     "))
		}
	}
	lines := traceOf(t, false, one{fuseproto.OpInit, 0, 64, []any{fusetest.InitBody(7, 45, fusetest.GuestFlags)}}.message(8), 8)
	want := "rx 8 INIT n0 version 7.45 readahead 131072 flags 0x5ff7bfffffb uid 1000 pid 4321\n" +
		"tx 8 INIT ok version 7.45 flags 0x10042c4e031 write 1048576 pages 256 80 bytes"
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("INIT:\ngot  %s\nwant %s", got, want)
	}
}

// Every request has a line, and no name makes it long or anything but text.
func TestTraceOfAnything(t *testing.T) {
	evil := []byte(strings.Repeat("\xff\n\x1b", 2000) + "\x00" + strings.Repeat("\xfe", 2000) + "\x00")
	for _, o := range everyRequest() {
		for _, parts := range [][]any{o.parts, append([]any{make([]byte, 16)}, evil), {evil}} {
			o := one{o.op, o.node, o.room, parts}
			lines := traceOf(t, true, o.message(8), 8)
			if len(lines) == 0 || !strings.HasPrefix(lines[0], fmt.Sprintf("rx 8 %v ", o.op)) {
				t.Errorf("%v: %q", o.op, lines)
			}
			for _, l := range lines {
				if len(l) > 8<<10 || !utf8.ValidString(l) {
					t.Errorf("%v: line of %d bytes, valid %v", o.op, len(l), utf8.ValidString(l))
				}
			}
		}
	}
}

func TestCounters(t *testing.T) {
	tree, c := guest(t)
	for range 5 {
		c.Lookup(1, "dir")
	}
	c.Call(fuseproto.OpMkdir, 1, 128, uint64(0), "new")
	c.Call(77, 1, 0)
	c.Call(1<<31, 1, 0)
	tree.MustBlock = func(*fuseproto.Op) bool { return true }
	c.Read(nodeFile, 0, 100)
	c.Read(nodeFile, 0, 100)
	n := c.Server.Counters()
	want := map[fuseproto.Opcode]fuseproto.OpCounters{
		0:                  {Requests: 2, Errors: 2},
		fuseproto.OpInit:   {Requests: 1},
		fuseproto.OpLookup: {Requests: 5},
		fuseproto.OpMkdir:  {Requests: 1, Errors: 1},
		fuseproto.OpRead:   {Requests: 2, WouldBlock: 2},
	}
	for op, w := range want {
		if n.Ops[op] != w {
			t.Errorf("%v: %+v, want %+v", op, n.Ops[op], w)
		}
	}
	if len(n.Ops) != len(want) || n.InFlight != 0 || n.Panics+n.Faults+n.Dropped != 0 {
		t.Errorf("counters %+v", n)
	}
}

func TestOpcodeNames(t *testing.T) {
	for op, want := range map[fuseproto.Opcode]string{
		fuseproto.OpLookup: "LOOKUP", fuseproto.OpCopyFileRange64: "COPY_FILE_RANGE_64", 0: "opcode 0", 7: "opcode 7", 54: "opcode 54", 1 << 31: "opcode 2147483648",
	} {
		if got := op.String(); got != want {
			t.Errorf("Opcode(%d) = %q, want %q", uint32(op), got, want)
		}
	}
}

func TestStandAlone(t *testing.T) {
	op := fuseproto.NewOp(t.Context())
	if !op.MayBlock() || op.Context() != t.Context() || op.Session() != 0 || op.SessionFlags() != 0 {
		t.Errorf("NewOp: %+v", op)
	}
	if (&fuseproto.Op{}).Context().Err() != nil {
		t.Error("zero Op has no context")
	}
	tree := testTree()
	a, b := make([]byte, 3), make([]byte, 5)
	out := fuseproto.NewOut(a, nil, b)
	if err := tree.Read(op, nodeFile, &fuseproto.ReadIn{Offset: 2, Size: 7}, out); err != nil {
		t.Fatal(err)
	}
	if got := append(a, b...); string(got[:7]) != string(fileData[2:9]) || out.Len() != 7 || out.Room() != 1 {
		t.Errorf("READ: %x, %d written, room %d", got, out.Len(), out.Room())
	}
	if n, err := out.Write([]byte{1, 2}); n != 1 || err == nil {
		t.Errorf("Write of 2 bytes into 1: %d, %v", n, err)
	}
	if err := out.Zero(1); err == nil {
		t.Error("Zero without room succeeded")
	}
	buf := make([]byte, 4096)
	w := fuseproto.NewDirWriter(buf, true)
	if err := tree.ReadDir(op, 1, new(fuseproto.ReadIn), w); err != nil {
		t.Fatal(err)
	}
	if n := len(fusetest.DecodeDirents(t, buf[:w.Len()], true)); n != 5 || w.Full() || !w.Plus() {
		t.Errorf("ReadDir: %d entries, full %v", n, w.Full())
	}
	p := fuseproto.NewPayload([]byte("data"))
	if segs, err := p.Segments(nil); err != nil || len(segs) != 1 || string(segs[0]) != "data" || p.Len() != 4 {
		t.Errorf("payload %q, %v", segs, err)
	}
}

func TestZero(t *testing.T) {
	fs := zeros{}
	c := fusetest.NewClient(t, serverOf(t, fs, fuseproto.Config{}))
	c.Init()
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpRead, 2, 1, fusetest.ReadBody(0, 0, 5000)), 16+5000)
	m.CutRoom(17, 100, 100, 3000)
	r := c.Send(m, 2)
	if r.Errno != 0 || len(r.Body) != 5000 {
		t.Fatalf("READ: %v, %d bytes", r.Errno, len(r.Body))
	}
	for i, b := range r.Body {
		want := byte(0)
		if i == 2000 {
			want = 1
		}
		if b != want {
			t.Fatalf("byte %d is %d, want %d", i, b, want)
		}
	}
}

// zeros reads as 2000 zeros, a one, and zeros.
type zeros struct{ stub }

func (zeros) Read(_ *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	if err := out.Zero(2000); err != nil {
		return err
	}
	if _, err := out.Write([]byte{1}); err != nil {
		return err
	}
	if err := out.Zero(out.Room() + 1); err == nil {
		return syscall.EINVAL
	}
	return out.Zero(out.Room())
}
