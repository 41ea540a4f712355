package fuseproto_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

func recorder() *fusetest.Recorder {
	return &fusetest.Recorder{
		RootIndex: 1, Data: []byte("twenty-two bytes of it"), Count: 17,
		Entry: fuseproto.Entry{Node: 41, Generation: 3, Attr: fuseproto.Attr{Ino: 41, Mode: syscall.S_IFREG}},
	}
}

// Each request reaches its method with its arguments, and what the method says
// reaches the guest.
func TestArguments(t *testing.T) {
	r := recorder()
	c := fusetest.NewClient(t, serverOf(t, r, fuseproto.Config{Flags: math.MaxUint64 &^ fuseproto.FlagSetXattrExt}))
	c.Init()
	r.Take()
	for _, call := range fusetest.Calls() {
		reply := c.Call(call.Opcode, 40, call.Room, call.Request(40)...)
		if reply.Errno != 0 {
			t.Errorf("%v: %v", call.Opcode, reply.Errno)
			continue
		}
		if got := r.Take(); !slices.Equal(got, []string{call.Want}) {
			t.Errorf("%v: called %q, want %q", call.Opcode, got, call.Want)
		}
		if call.Entry {
			if e := fusetest.DecodeEntry(t, reply.Body[:128]); e.Node != 41 || e.Generation != 3 || e.Attr.Ino != 41 {
				t.Errorf("%v: entry %+v", call.Opcode, e)
			}
		}
		var want string // of what is behind the entry
		body := reply.Body
		switch call.Opcode {
		case fuseproto.OpCreate, fuseproto.OpTmpfile:
			body, want = body[128:], "11000000000000000000000000000000"
		case fuseproto.OpOpen:
			want = "11000000000000000200000000000000"
		case fuseproto.OpOpenDir:
			want = "11000000000000000a00000000000000"
		case fuseproto.OpWrite:
			want = "0400000000000000"
		case fuseproto.OpLseek:
			want = "1100000000000000"
		case fuseproto.OpCopyFileRange:
			want = "0500000000000000"
		case fuseproto.OpCopyFileRange64:
			want = "0000000000010000"
		case fuseproto.OpIoctl:
			want = "11000000000000000000000000000000" + fmt.Sprintf("%x", r.Data[:20])
		case fuseproto.OpReadlink, fuseproto.OpRead, fuseproto.OpGetXattr, fuseproto.OpListXattr:
			want = fmt.Sprintf("%x", r.Data)
		case fuseproto.OpGetLk:
			want = "050000000000000006000000000000000100000008000000"
		case fuseproto.OpStatFS:
			want = "11" + strings.Repeat("00", 79)
		default:
			continue
		}
		if got := fmt.Sprintf("%x", body); got != want {
			t.Errorf("%v: reply %s, want %s", call.Opcode, got, want)
		}
	}
}

// With SETXATTR_EXT granted the body is longer.
func TestSetXattrExtended(t *testing.T) {
	r := recorder()
	c := fusetest.NewClient(t, serverOf(t, r, fuseproto.Config{Flags: math.MaxUint64}))
	c.Init()
	r.Take()
	for name, tt := range map[string]struct {
		parts []any
		want  syscall.Errno
		call  string
	}{
		"whole":          {[]any{uint64(5), uint64(1), "user.a", []byte("value")}, 0, "SetXattr 40 {Size:5 Flags:0 SetXattrFlags:1} user.a=value"},
		"empty value":    {[]any{uint64(0), uint64(0), "user.a"}, 0, "SetXattr 40 {Size:0 Flags:0 SetXattrFlags:0} user.a="},
		"short form":     {[]any{uint64(5)}, syscall.EINVAL, ""},
		"value missing":  {[]any{uint64(5), uint64(0), "user.a", []byte("valu")}, syscall.EINVAL, ""},
		"value too long": {[]any{uint64(65537), uint64(0), "user.a", make([]byte, 65537)}, syscall.E2BIG, ""},
		"longest value":  {[]any{uint64(65536), uint64(0), "user.a", slices.Repeat([]byte("v"), 65536)}, 0, "SetXattr 40 {Size:65536 Flags:0 SetXattrFlags:0} user.a=" + strings.Repeat("v", 65536)},
		"no name":        {[]any{uint64(5), uint64(0), []byte("value")}, syscall.EINVAL, ""},
	} {
		if reply := c.Call(fuseproto.OpSetXattr, 40, 0, tt.parts...); reply.Errno != tt.want {
			t.Errorf("%s: %v, want %v", name, reply.Errno, tt.want)
		}
		if got := strings.Join(r.Take(), ""); got != tt.call {
			t.Errorf("%s: called %.100q, want %.100q", name, got, tt.call)
		}
	}
}

// F39: the older request has 32 bits to tell how much was copied.
func TestF39_CopyFileRangeIsShort(t *testing.T) {
	r := recorder()
	c := fusetest.NewClient(t, serverOf(t, r, fuseproto.Config{}))
	c.Init()
	for name, tt := range map[string]struct {
		op             fuseproto.Opcode
		offIn, offOut  uint64
		length, copied uint64
		errno          syscall.Errno
	}{
		"more than 4 GiB":          {fuseproto.OpCopyFileRange, 0, 0, 5 << 30, 4<<30 - 4096, 0},
		"all":                      {fuseproto.OpCopyFileRange, 0, 0, math.MaxUint64, 4<<30 - 4096, 0},
		"little":                   {fuseproto.OpCopyFileRange, 0, 0, 9, 9, 0},
		"more than 4 GiB, 64 bits": {fuseproto.OpCopyFileRange64, 0, 0, 5 << 30, 5 << 30, 0},
		"beyond 2^63":              {fuseproto.OpCopyFileRange64, 4096, 8192, math.MaxUint64, math.MaxInt64 - 8192, 0},
		"from 2^63":                {fuseproto.OpCopyFileRange64, 1 << 63, 0, 1, 0, syscall.EINVAL},
		"to 2^63":                  {fuseproto.OpCopyFileRange64, 0, 1 << 63, 1, 0, syscall.EINVAL},
	} {
		reply := c.Call(tt.op, 40, 8, uint64(0), tt.offIn, uint64(41), uint64(0), tt.offOut, tt.length, uint64(0))
		if reply.Errno != tt.errno || tt.errno == 0 && le.Uint64(reply.Body) != tt.copied {
			t.Errorf("%s: %v %x, want %v and %#x", name, reply.Errno, reply.Body, tt.errno, tt.copied)
		}
	}
}

func TestIoctlThatLies(t *testing.T) {
	r := recorder()
	c := fusetest.NewClient(t, serverOf(t, r, fuseproto.Config{}))
	c.Init()
	for name, tt := range map[string]struct {
		flags, in, out uint32
		data           int
		want           syscall.Errno
	}{
		"as much as it says":  {0, 4, 4, 4, 0},
		"less than it says":   {0, 5, 0, 4, syscall.EINVAL},
		"2^32-1 bytes":        {0, math.MaxUint32, 0, 4, syscall.EINVAL},
		"2^32-1 bytes to get": {0, 0, math.MaxUint32, 0, 0},
		"unrestricted":        {2, 0, 0, 0, syscall.EINVAL},
	} {
		reply := c.Call(fuseproto.OpIoctl, 40, 24, uint64(0), tt.flags, uint32(0), uint64(0), tt.in, tt.out, make([]byte, tt.data))
		if reply.Errno != tt.want {
			t.Errorf("%s: %v, want %v", name, reply.Errno, tt.want)
		}
	}
}

// The header of the request is what the Op shows.
func TestHeaderIsShown(t *testing.T) {
	tree, c := guest(t)
	tree.Fail = func(op *fuseproto.Op) error {
		if op.Opcode != fuseproto.OpGetAttr || op.NodeID != nodeFile || op.UID != 1000 || op.GID != 1000 || op.PID != 4321 || op.Unique != c.Unique {
			t.Errorf("op %v unique %d node %d uid %d gid %d pid %d", op.Opcode, op.Unique, op.NodeID, op.UID, op.GID, op.PID)
		}
		return nil
	}
	c.GetAttr(nodeFile)
}

// Sessions begin and end on all queues at once; Init and Destroy come in turn
// and every reply is whole.
func TestSessionsFromManyQueues(t *testing.T) {
	r := recorder()
	s := serverOf(t, r, fuseproto.Config{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			c := fusetest.NewClient(t, s)
			for n := range 300 {
				switch (n*7 + i) % 5 {
				case 0:
					c.Init()
				case 1:
					c.Call(fuseproto.OpDestroy, 0, 0)
				default:
					if _, reply := c.GetAttr(40); reply.Errno != 0 && reply.Errno != syscall.EIO {
						t.Errorf("GETATTR: %v", reply.Errno)
					}
				}
			}
		})
	}
	wg.Wait()
	s.Reset()
	live := false
	for _, call := range r.Take() {
		switch call {
		case "Init":
			live = true
		case "Destroy":
			if !live {
				t.Fatal("Destroy without a session")
			}
			live = false
		}
	}
	if live {
		t.Error("Reset left a session")
	}
}
