package fuseproto_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// What each request of everyRequest answers on a read-only tree. The frame (F01,
// F02) is checked by the client for each.
func TestF19_EveryRequestOnAReadOnlyTree(t *testing.T) {
	tree, c := guest(t)
	changes := map[fuseproto.Opcode]bool{
		fuseproto.OpSetAttr: true, fuseproto.OpSymlink: true, fuseproto.OpMknod: true, fuseproto.OpMkdir: true,
		fuseproto.OpUnlink: true, fuseproto.OpRmdir: true, fuseproto.OpRename: true, fuseproto.OpRename2: true,
		fuseproto.OpLink: true, fuseproto.OpWrite: true, fuseproto.OpSetXattr: true, fuseproto.OpRemoveXattr: true,
		fuseproto.OpCreate: true, fuseproto.OpFallocate: true, fuseproto.OpTmpfile: true,
		fuseproto.OpCopyFileRange: true, fuseproto.OpCopyFileRange64: true,
	}
	others := map[fuseproto.Opcode]syscall.Errno{
		fuseproto.OpGetLk: syscall.ENOSYS, fuseproto.OpSetLk: syscall.ENOSYS, fuseproto.OpSetLkW: syscall.ENOSYS,
		fuseproto.OpAccess: syscall.ENOSYS, fuseproto.OpBmap: syscall.ENOSYS, fuseproto.OpPoll: syscall.ENOSYS,
		fuseproto.OpSetupMapping: syscall.ENOSYS, fuseproto.OpStatx: syscall.ENOSYS, // F30
		fuseproto.OpIoctl: syscall.ENOTTY,
		99:                syscall.ENOSYS, // F06
	}
	// F03: bytes behind the header.
	sizes := map[fuseproto.Opcode]int{
		fuseproto.OpLookup: 128, fuseproto.OpGetAttr: 104, fuseproto.OpReadlink: 8, fuseproto.OpOpen: 16, fuseproto.OpRead: fileSize,
		fuseproto.OpStatFS: 80, fuseproto.OpGetXattr: 5, fuseproto.OpListXattr: 21, fuseproto.OpInit: 64, fuseproto.OpOpenDir: 16,
		fuseproto.OpReadDir: 4*32 + 32, fuseproto.OpReadDirPlus: 5 * 160, fuseproto.OpLseek: 8,
	}
	unique := uint64(100)
	for _, o := range everyRequest() {
		unique += 2
		want := others[o.op]
		if changes[o.op] {
			want = syscall.EROFS
		}
		r := c.Send(o.message(unique), unique)
		none := o.op == fuseproto.OpForget || o.op == fuseproto.OpBatchForget || o.op == fuseproto.OpInterrupt
		switch {
		case r.None != none:
			t.Errorf("%v: no reply is %v, want %v", o.op, r.None, none)
		case r.Errno != want:
			t.Errorf("%v: %v, want %v", o.op, r.Errno, want)
		case want == 0 && len(r.Body) != sizes[o.op]:
			t.Errorf("%v: %d bytes, want %d", o.op, len(r.Body), sizes[o.op])
		}
	}
	if n := tree.Destroys.Load(); n != 1 {
		t.Errorf("Destroy %d times, want 1", n) // F34: and it was answered
	}
}

// F04: a request parses alike wherever it is cut, and a reply is the same
// wherever its room is.
func TestF04_CutAtEveryOffset(t *testing.T) {
	for _, o := range everyRequest() {
		t.Run(o.op.String(), func(t *testing.T) {
			_, c := guest(t)
			whole := c.Send(o.message(2), 2)
			whole.Body = slices.Clone(whole.Body)
			try := func(m *fusetest.Message, how string) {
				t.Helper()
				_, c := guest(t)
				if r := c.Send(m, 2); r.Errno != whole.Errno || !bytes.Equal(r.Body, whole.Body) {
					t.Fatalf("%s: %v and %d bytes, want %v and %d", how, r.Errno, len(r.Body), whole.Errno, len(whole.Body))
				}
			}
			n, room := len(o.message(2).Readable()[0]), len(o.message(2).Room())
			for i := range n + 1 {
				m := o.message(2)
				m.CutRequest(i)
				try(m, fmt.Sprintf("request cut at %d", i))
			}
			for i := range min(room, 300) + 1 {
				m := o.message(2)
				m.CutRoom(i, i)
				try(m, fmt.Sprintf("room cut at %d", i))
			}
			for _, size := range []int{1, 7} {
				m := o.message(2)
				m.CutRequest(fusetest.CutEvery(n, size)...)
				m.CutRoom(fusetest.CutEvery(room, size)...)
				try(m, fmt.Sprintf("pieces of %d", size))
			}
		})
	}
}

// F40: other drivers give one big readable and one big writable descriptor.
func TestF40_BigDescriptors(t *testing.T) {
	for _, o := range everyRequest() {
		_, c := guest(t)
		want := c.Send(o.message(2), 2)
		body := slices.Clone(want.Body)
		if want.None {
			continue
		}
		request := fusetest.Request(o.op, 2, o.node, o.parts...)
		request = append(request, make([]byte, 4096)...) // behind len: ignored
		_, c = guest(t)
		if got := c.Send(fusetest.NewMessage(request, 1<<16), 2); got.Errno != want.Errno || !bytes.Equal(got.Body, body) {
			t.Errorf("%v: %v and %d bytes, want %v and %d", o.op, got.Errno, len(got.Body), want.Errno, len(body))
		}
	}
}

func TestF05_MalformedFrames(t *testing.T) {
	_, c := guest(t)
	frame := func(change func(b []byte) []byte) []byte {
		return change(fusetest.Request(fuseproto.OpGetAttr, 8, 1, make([]byte, 16)))
	}
	length := func(n uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b, n); return b }
	}
	for name, tt := range map[string]struct {
		request []byte
		unique  uint64
	}{
		"nothing at all":            {nil, 0},
		"15 bytes":                  {frame(func(b []byte) []byte { return b[:15] }), 0x8 & 0xff},
		"39 bytes":                  {frame(func(b []byte) []byte { return b[:39] }), 8},
		"length 0":                  {frame(length(0)), 8},
		"length 39":                 {frame(length(39)), 8},
		"length beyond the request": {frame(length(57)), 8},
		"length 2^32-1":             {frame(length(math.MaxUint32)), 8},
		"body cut short":            {frame(func(b []byte) []byte { return length(55)(b)[:55] }), 8},
		"no body":                   {frame(func(b []byte) []byte { return length(40)(b)[:40] }), 8},
	} {
		r := c.Send(fusetest.NewMessage(tt.request, 200), tt.unique)
		if r.Errno != syscall.EINVAL {
			t.Errorf("%s: %v, want EINVAL", name, r.Errno)
		}
	}
}

func TestF05_EveryBodyCutShort(t *testing.T) {
	for _, o := range everyRequest() {
		whole := fusetest.Request(o.op, 4, o.node, o.parts...)
		for n := 40; n < len(whole); n++ {
			_, c := guest(t)
			b := slices.Clone(whole[:n])
			binary.LittleEndian.PutUint32(b, uint32(n))
			m := o.message(4)
			m.Set(b, len(m.Room()))
			r := c.Send(m, 4) // the client fails the test for a bad frame
			if o.op == fuseproto.OpLookup && r.Errno != syscall.EINVAL {
				t.Errorf("LOOKUP of %d bytes: %v, want EINVAL", n, r.Errno)
			}
		}
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("x", 255)
	tree := testTree()
	tree.Dir(1, long)
	tree.Dir(1, "not / a path")
	c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{}))
	c.Init()
	for name, tt := range map[string]struct {
		op   fuseproto.Opcode
		body []byte
		want syscall.Errno
	}{
		"of 255 bytes":           {fuseproto.OpLookup, []byte(long + "\x00"), 0},
		"of 256 bytes":           {fuseproto.OpLookup, []byte(long + "x\x00"), syscall.ENAMETOOLONG},
		"of 4095 bytes":          {fuseproto.OpLookup, []byte(strings.Repeat("x", 4095) + "\x00"), syscall.ENAMETOOLONG},
		"of 100,000 bytes":       {fuseproto.OpLookup, []byte(strings.Repeat("x", 100_000) + "\x00"), syscall.ENAMETOOLONG},
		"without NUL":            {fuseproto.OpLookup, []byte("dir"), syscall.EINVAL},
		"empty":                  {fuseproto.OpLookup, []byte{0}, syscall.EINVAL},
		"with a slash":           {fuseproto.OpLookup, []byte("dir/file\x00"), syscall.EINVAL},
		"a slash":                {fuseproto.OpLookup, []byte("/\x00"), syscall.EINVAL},
		"that exists but cannot": {fuseproto.OpLookup, []byte("not / a path\x00"), syscall.EINVAL},
		"ended by NUL and more":  {fuseproto.OpLookup, []byte("dir\x00junk"), 0},
		"dot":                    {fuseproto.OpLookup, []byte(".\x00"), 0}, // F29
		"dot dot":                {fuseproto.OpLookup, []byte("..\x00"), 0},
		"dot to remove":          {fuseproto.OpUnlink, []byte(".\x00"), syscall.EINVAL},
		"dot dot to remove":      {fuseproto.OpRmdir, []byte("..\x00"), syscall.EINVAL},
		"dots to remove":         {fuseproto.OpUnlink, []byte("...\x00"), syscall.EROFS},
		"second name missing":    {fuseproto.OpSymlink, []byte("a\x00"), syscall.EINVAL},
		"target of 4095 bytes":   {fuseproto.OpSymlink, []byte("a\x00" + strings.Repeat("/", 4095) + "\x00"), syscall.EROFS},
		"target of 4096 bytes":   {fuseproto.OpSymlink, []byte("a\x00" + strings.Repeat("/", 4096) + "\x00"), syscall.ENAMETOOLONG},
		"xattr of 255 bytes":     {fuseproto.OpRemoveXattr, []byte(long + "\x00"), syscall.EROFS},
		"xattr of 256 bytes":     {fuseproto.OpRemoveXattr, []byte(long + "x\x00"), syscall.ERANGE},
		"xattr with a slash":     {fuseproto.OpRemoveXattr, []byte("user.a/b\x00"), syscall.EROFS},
		"xattr, empty":           {fuseproto.OpRemoveXattr, []byte{0}, syscall.EINVAL},
	} {
		if r := c.Call(tt.op, 1, 128, tt.body); r.Errno != tt.want {
			t.Errorf("%v of a name %s: %v, want %v", tt.op, name, r.Errno, tt.want)
		}
	}
}

func TestF29_LookupOfDots(t *testing.T) {
	_, c := guest(t)
	for name, tt := range map[string]struct{ node, want uint64 }{
		".": {nodeDir, nodeDir}, "..": {nodeFile, nodeDir},
	} {
		if e, r := c.Lookup(tt.node, name); r.Errno != 0 || e.Node != tt.want {
			t.Errorf("LOOKUP(%d, %s): %v, node %d, want %d", tt.node, name, r.Errno, e.Node, tt.want)
		}
	}
}

func TestF18_NegativeEntry(t *testing.T) {
	_, c := guest(t)
	e, r := c.Lookup(1, "absent")
	if r.Errno != 0 || e.Node != 0 || e.ValidSec != 1<<32 {
		t.Errorf("LOOKUP of an absent name: %v, %+v; want node 0 for 2^32 s", r.Errno, e)
	}
}

func TestF23_ReadAroundTheEnd(t *testing.T) {
	_, c := guest(t)
	for name, tt := range map[string]struct {
		off  uint64
		size uint32
		want int
	}{
		"all":                    {0, fileSize, fileSize},
		"across the end":         {fileSize - 10, 4096, 10},
		"at the end":             {fileSize, 4096, 0},
		"behind the end":         {fileSize + 1, 4096, 0},
		"nothing":                {0, 0, 0},
		"last byte":              {fileSize - 1, 1, 1},
		"F27 far behind":         {math.MaxInt64 - 1, 4096, 0},
		"F27 at the last offset": {math.MaxInt64, math.MaxUint32 &^ 4095 >> 12, 0},
	} {
		r := c.Read(nodeFile, tt.off, tt.size)
		if r.Errno != 0 || len(r.Body) != tt.want {
			t.Errorf("READ %s: %v and %d bytes, want %d", name, r.Errno, len(r.Body), tt.want)
		} else if tt.want > 0 {
			sameBytes(t, "READ "+name, r.Body, fileData[tt.off:][:tt.want])
		}
	}
	if r := c.Read(nodeFile, math.MaxInt64+1, 4096); r.Errno != syscall.EINVAL {
		t.Errorf("READ at 2^63: %v, want EINVAL", r.Errno)
	}
}

func TestF24_ReadIsClampedToTheRoom(t *testing.T) {
	_, c := guest(t)
	for name, tt := range map[string]struct {
		size uint32
		room int
		want int
	}{
		"more asked than room": {4096, 100, 100},
		"2^32-1 asked":         {math.MaxUint32, 512, 512},
		"more room than asked": {100, 4096, 100},
		"no room for data":     {4096, 0, 0},
	} {
		r := c.Call(fuseproto.OpRead, nodeFile, tt.room, fusetest.ReadBody(0, 3, tt.size))
		if r.Errno != 0 {
			t.Errorf("%s: %v", name, r.Errno)
		}
		sameBytes(t, name, r.Body, fileData[3:3+tt.want])
	}
}

// A structure is never cut: with less room than it needs the answer is EIO, and
// with less than a header there is none.
func TestRoomTooSmallForTheReply(t *testing.T) {
	for _, o := range everyRequest() {
		_, c := guest(t)
		want := c.Send(o.message(2), 2)
		if want.None {
			continue
		}
		fixed := want.Errno == 0 && len(want.Body) > 0 && o.op != fuseproto.OpRead && o.op != fuseproto.OpReadDir && o.op != fuseproto.OpReadDirPlus
		for _, room := range []int{0, 1, 15, 16, 16 + len(want.Body) - 1} {
			tree, c := guest(t)
			m := o.message(2)
			m.Set(m.Readable()[0], room)
			r := c.Send(m, 2)
			if n := tree.Calls(o.op); room < 16 && n != 0 {
				t.Errorf("%v with room for %d bytes reached the file system", o.op, room)
			}
			switch {
			case room < 16:
				if !r.None {
					t.Errorf("%v with room for %d bytes: there is a reply", o.op, room)
				}
				if err := m.Untouched(0); err != nil {
					t.Errorf("%v with room for %d bytes: %v", o.op, room, err)
				}
			case fixed && r.Errno != syscall.EIO && r.Errno != syscall.ERANGE:
				t.Errorf("%v with room for %d bytes: %v, want EIO or ERANGE", o.op, room, r.Errno)
			}
		}
	}
}

func TestF21_Xattrs(t *testing.T) {
	_, c := guest(t)
	list := "user.name\x00user.other\x00"
	for name, tt := range map[string]struct {
		op    fuseproto.Opcode
		node  uint64
		size  uint32
		name  string
		errno syscall.Errno
		want  string // the body, or
		probe uint32 // the size it tells
	}{
		"value":                {fuseproto.OpGetXattr, nodeFile, 100, "user.name", 0, "value", 0},
		"value that just fits": {fuseproto.OpGetXattr, nodeFile, 5, "user.name", 0, "value", 0},
		"value too long":       {fuseproto.OpGetXattr, nodeFile, 4, "user.name", syscall.ERANGE, "", 0},
		"size of a value":      {fuseproto.OpGetXattr, nodeFile, 0, "user.name", 0, "", 5},
		"absent":               {fuseproto.OpGetXattr, nodeFile, 100, "user.absent", syscall.ENODATA, "", 0},
		"absent, its size":     {fuseproto.OpGetXattr, nodeFile, 0, "user.absent", syscall.ENODATA, "", 0},
		"list":                 {fuseproto.OpListXattr, nodeFile, 100, "", 0, list, 0},
		"list that just fits":  {fuseproto.OpListXattr, nodeFile, 21, "", 0, list, 0},
		"list too long":        {fuseproto.OpListXattr, nodeFile, 20, "", syscall.ERANGE, "", 0},
		"size of a list":       {fuseproto.OpListXattr, nodeFile, 0, "", 0, "", 21},
		"empty list":           {fuseproto.OpListXattr, nodeDir, 100, "", 0, "", 0},
		"size of no list":      {fuseproto.OpListXattr, nodeDir, 0, "", 0, "", 0},
	} {
		parts := []any{tt.size, uint32(0)}
		if tt.name != "" {
			parts = append(parts, tt.name)
		}
		room := int(tt.size)
		if tt.size == 0 {
			room = 8
		}
		r := c.Call(tt.op, tt.node, room, parts...)
		want := []byte(tt.want)
		if tt.size == 0 && tt.errno == 0 {
			want = binary.LittleEndian.AppendUint64(nil, uint64(tt.probe))
		}
		if r.Errno != tt.errno || !bytes.Equal(r.Body, want) {
			t.Errorf("%s: %v %q, want %v %q", name, r.Errno, r.Body, tt.errno, want)
		}
	}
}

func TestXattrSizeWithoutRoomForIt(t *testing.T) {
	_, c := guest(t)
	for _, op := range []fuseproto.Opcode{fuseproto.OpGetXattr, fuseproto.OpListXattr} {
		if r := c.Call(op, nodeFile, 7, uint64(0), "user.name"); r.Errno != syscall.EIO {
			t.Errorf("%v of size 0 into 7 bytes: %v, want EIO", op, r.Errno)
		}
	}
}

func TestLseekWithoutHoles(t *testing.T) {
	_, c := guest(t)
	for name, tt := range map[string]struct {
		off    uint64
		whence uint64
		errno  syscall.Errno
		want   uint64
	}{
		"data":            {17, fuseproto.SeekData, 0, 17},
		"hole":            {17, fuseproto.SeekHole, 0, fileSize},
		"data at the end": {fileSize, fuseproto.SeekData, syscall.ENXIO, 0},
		"hole at the end": {fileSize, fuseproto.SeekHole, syscall.ENXIO, 0},
		"set":             {17, 0, syscall.EINVAL, 0},
	} {
		r := c.Call(fuseproto.OpLseek, nodeFile, 8, uint64(0), tt.off, tt.whence)
		if r.Errno != tt.errno || r.Errno == 0 && binary.LittleEndian.Uint64(r.Body) != tt.want {
			t.Errorf("LSEEK %s: %v %x, want %v %d", name, r.Errno, r.Body, tt.errno, tt.want)
		}
	}
}

func TestF36_SyncFSIsAnswered(t *testing.T) {
	_, c := guest(t)
	if r := c.Call(fuseproto.OpSyncFS, 1, 0, uint64(0)); r.Errno != 0 || r.None {
		t.Errorf("SYNCFS: %v", r.Errno)
	}
}

func TestF19_OpenOnlyToRead(t *testing.T) {
	_, c := guest(t)
	const largeFile = 0o100000 // what every open of an x86-64 guest has
	for flags, want := range map[uint32]syscall.Errno{
		0:                                  0,
		largeFile:                          0,
		largeFile | 1:                      syscall.EROFS,
		largeFile | 2:                      syscall.EROFS,
		largeFile | 3:                      syscall.EROFS,
		largeFile | fuseproto.OpenTruncate: syscall.EROFS,
	} {
		r := c.Call(fuseproto.OpOpen, nodeFile, 16, flags, uint32(0))
		if r.Errno != want {
			t.Errorf("OPEN with flags %#o: %v, want %v", flags, r.Errno, want)
		}
		if want == 0 && r.Body[8] != fuseproto.FOpenKeepCache {
			t.Errorf("OPEN with flags %#o: reply flags %#x, want KEEP_CACHE", flags, r.Body[8])
		}
	}
}

func TestF26_TimesPass(t *testing.T) {
	_, c := guest(t)
	a, _ := c.GetAttr(nodeFile)
	if a.Mtime != -5 || a.MtimeNsec != 999_999_999 || a.Ctime != 1<<40 {
		t.Errorf("times: %+v", a)
	}
	if a.ValidSec != 1<<32 || a.ValidNsec != 0 {
		t.Errorf("valid for %d s and %d ns, want 2^32 and 0", a.ValidSec, a.ValidNsec)
	}
}

func TestF27_SizesAbove4GiB(t *testing.T) {
	tree, c := guest(t)
	tree.Change(nodeFile, func(a *fuseproto.Attr) { a.Size, a.Blocks = math.MaxInt64, 1<<54 })
	a, _ := c.GetAttr(nodeFile)
	if a.Size != math.MaxInt64 || a.Blocks != 1<<54 {
		t.Errorf("size %d, blocks %d", a.Size, a.Blocks)
	}
}

func TestF25_DeviceNumbers(t *testing.T) {
	tree, c := guest(t)
	major, minor := uint32(0xfff), uint32(0xabcde)
	rdev := minor&0xff | major<<8 | minor&^0xff<<12
	tree.Change(nodeFile, func(a *fuseproto.Attr) { a.Rdev = rdev })
	if a, _ := c.GetAttr(nodeFile); a.Rdev != rdev {
		t.Errorf("rdev %#x, want %#x", a.Rdev, rdev)
	}
}
