package fuseproto_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

var le = binary.LittleEndian

func grantedFlags(r fusetest.Reply) uint64 {
	return uint64(le.Uint32(r.Body[12:])) | uint64(le.Uint32(r.Body[32:]))<<32
}

// What guests offer, as seen from real ones: see the table of the sheet.
var guests = map[string]struct {
	minor uint32
	flags uint64
	size  int // of the body
}{
	"5.10":     {32, 0x0bfffffb, 16},
	"6.1":      {38, 0x00b<<32 | 0x7bfffffb, 64},
	"6.6":      {39, 0x01f<<32 | 0x7bfffffb, 64},
	"6.12":     {41, 0x1df<<32 | 0x7bfffffb, 64},
	"7.2":      {45, 0x5ff<<32 | 0x7bfffffb, 64},
	"UML 6.1":  {38, 0x009<<32 | 0x7bfffffb, 64},
	"UML 7.2":  {45, 0x5fd<<32 | 0x7bfffffb, 64},
	"all bits": {45, math.MaxUint64, 64},
	"no bits":  {27, 0, 16},
}

func TestNegotiation(t *testing.T) {
	configs := map[string]fuseproto.Config{
		"read only":   {},
		"passthrough": {Flags: fuseproto.FlagsPassthrough},
		"shared":      {Flags: fuseproto.FlagsShared},
		"greedy":      {Flags: math.MaxUint64, ZeroMessageOpen: true, MapAlignment: 21},
		"no opens":    {ZeroMessageOpen: true},
	}
	const never = 1<<2 | 1<<7 | 1<<8 | 1<<9 | 1<<19 | 1<<21 | 1<<31 | 1<<37 | 1<<39 | 1<<41 | 1<<42
	for gname, g := range guests {
		for cname, cfg := range configs {
			t.Run(gname+", "+cname, func(t *testing.T) {
				tree := testTree()
				c := fusetest.NewClient(t, serverOf(t, tree, cfg))
				r := c.Call(fuseproto.OpInit, 0, 64, fusetest.InitBody(7, g.minor, g.flags)[:g.size])
				if r.Errno != 0 || len(r.Body) != 64 {
					t.Fatalf("INIT: %v, %d bytes", r.Errno, len(r.Body))
				}
				got := grantedFlags(r)
				if extra := got &^ g.flags; extra != 0 { // F11
					t.Errorf("granted %#x that was not offered", extra)
				}
				if got&never != 0 { // F10
					t.Errorf("granted %#x", got&never)
				}
				if got>>32 != 0 && got&fuseproto.FlagInitExt == 0 { // F09
					t.Errorf("granted %#x without INIT_EXT", got)
				}
				if got&fuseproto.FlagAutoInvalData != 0 && got&fuseproto.FlagExplicitInvalData != 0 {
					t.Errorf("granted both ways to drop pages: %#x", got)
				}
				if got&(1<<26|1<<33) != 0 && le.Uint16(r.Body[30:]) == 0 {
					t.Errorf("granted DAX (%#x) without an alignment", got)
				}
				if le.Uint32(r.Body) != 7 || le.Uint32(r.Body[4:]) != g.minor {
					t.Errorf("version %d.%d, want 7.%d", le.Uint32(r.Body), le.Uint32(r.Body[4:]), g.minor)
				}
				write, pages := le.Uint32(r.Body[20:]), le.Uint16(r.Body[28:])
				if pages < 1 || write < 4096 || write != uint32(pages)*4096 { // F12
					t.Errorf("max_write %d, max_pages %d", write, pages)
				}
				if ra := le.Uint32(r.Body[8:]); ra != 128<<10 {
					t.Errorf("max_readahead %d, want what was asked", ra)
				}
				background, congestion := le.Uint16(r.Body[16:]), le.Uint16(r.Body[18:])
				if background < 64 || uint32(congestion) != uint32(background)*3/4 {
					t.Errorf("max_background %d, congestion %d", background, congestion)
				}
				if gran, depth, timeout := le.Uint32(r.Body[24:]), le.Uint32(r.Body[36:]), le.Uint16(r.Body[40:]); gran != 1 || depth != 0 || timeout != 0 {
					t.Errorf("time_gran %d, max_stack_depth %d, request_timeout %d", gran, depth, timeout)
				}
				if tree.Flags.Load() != got {
					t.Errorf("the file system was told %#x, the guest %#x", tree.Flags.Load(), got)
				}
			})
		}
	}
}

func TestReadOnlyGrants(t *testing.T) {
	c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{}))
	var bits []int
	for bit, flags := 0, c.Init(); bit < 64; bit++ {
		if flags>>bit&1 != 0 {
			bits = append(bits, bit)
		}
	}
	if want := []int{0, 4, 5, 13, 14, 15, 18, 22, 23, 25, 30, 40}; !slices.Equal(bits, want) {
		t.Errorf("granted bits %v, want %v", bits, want)
	}
	c = fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{ZeroMessageOpen: true}))
	if flags := c.Init(); flags&(1<<17|1<<24) != 1<<17|1<<24 {
		t.Errorf("granted %#x, want bits 17 and 24 too", flags)
	}
}

func TestInitVersions(t *testing.T) {
	for name, tt := range map[string]struct {
		major, minor uint32
		errno        syscall.Errno
		live         bool
		replyMinor   uint32
	}{
		"ours":           {7, 45, 0, true, 45},
		"later minor":    {7, 99, 0, true, 45},
		"oldest":         {7, 27, 0, true, 27},
		"too old":        {7, 26, syscall.EPROTO, false, 0},
		"older major":    {6, 99, syscall.EPROTO, false, 0},
		"later major":    {8, 1, 0, false, 45},
		"nothing at all": {0, 0, syscall.EPROTO, false, 0},
	} {
		c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{}))
		r := c.Call(fuseproto.OpInit, 0, 64, fusetest.InitBody(tt.major, tt.minor, fusetest.GuestFlags))
		if r.Errno != tt.errno {
			t.Errorf("%s: %v, want %v", name, r.Errno, tt.errno)
		} else if r.Errno == 0 && (le.Uint32(r.Body) != 7 || le.Uint32(r.Body[4:]) != tt.replyMinor) {
			t.Errorf("%s: version %d.%d, want 7.%d", name, le.Uint32(r.Body), le.Uint32(r.Body[4:]), tt.replyMinor)
		}
		want := syscall.EIO
		if tt.live {
			want = 0
		}
		if _, r := c.GetAttr(1); r.Errno != want {
			t.Errorf("%s: GETATTR after it: %v, want %v", name, r.Errno, want)
		}
	}
}

// F09: the second word of flags counts only with INIT_EXT and if it is there.
func TestF09_SecondWordOfFlags(t *testing.T) {
	for name, tt := range map[string]struct {
		body []byte
		want uint64
	}{
		"64 bytes":             {fusetest.InitBody(7, 38, 1<<40|1<<30|1), 1<<40 | 1<<30 | 1},
		"64 bytes without bit": {fusetest.InitBody(7, 38, 1<<40|1), 1},
		"16 bytes with bit":    {fusetest.InitBody(7, 38, 1<<40|1<<30|1)[:16], 1<<30 | 1},
		"19 bytes with bit":    {fusetest.InitBody(7, 38, 1<<40|1<<30|1)[:19], 1<<30 | 1},
		"20 bytes":             {fusetest.InitBody(7, 38, 1<<40|1<<30|1)[:20], 1<<40 | 1<<30 | 1},
	} {
		c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{}))
		if r := c.Call(fuseproto.OpInit, 0, 64, tt.body); grantedFlags(r) != tt.want {
			t.Errorf("%s: granted %#x, want %#x", name, grantedFlags(r), tt.want)
		}
	}
}

func TestF08_BeforeInit(t *testing.T) {
	for _, o := range everyRequest() {
		if o.op == fuseproto.OpInit {
			continue
		}
		tree := testTree()
		c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{}))
		r := c.Send(o.message(2), 2)
		if !r.None && r.Errno != syscall.EIO {
			t.Errorf("%v before INIT: %v, want EIO", o.op, r.Errno)
		}
		if n := tree.Calls(o.op); n != 0 {
			t.Errorf("%v before INIT reached the file system", o.op)
		}
	}
}

func TestF34_DestroyEndsTheSession(t *testing.T) {
	tree, c := guest(t)
	if r := c.Call(fuseproto.OpDestroy, 0, 0); r.Errno != 0 || r.None {
		t.Fatalf("DESTROY: %v, no reply %v", r.Errno, r.None)
	}
	if _, r := c.GetAttr(1); r.Errno != syscall.EIO {
		t.Errorf("GETATTR after DESTROY: %v, want EIO", r.Errno)
	}
	if r := c.Call(fuseproto.OpDestroy, 0, 0); r.Errno != syscall.EIO {
		t.Errorf("second DESTROY: %v, want EIO", r.Errno)
	}
	c.Init()
	if _, r := c.GetAttr(1); r.Errno != 0 {
		t.Errorf("GETATTR in a new session: %v", r.Errno)
	}
	if i, d := tree.Inits.Load(), tree.Destroys.Load(); i != 2 || d != 1 {
		t.Errorf("Init %d times, Destroy %d times, want 2 and 1", i, d)
	}
}

// F07: a second INIT begins a new session with a number of its own; a request
// of the old one that still runs keeps that one's.
func TestF07_SecondInit(t *testing.T) {
	tree, c := guest(t)
	var before, during, after uint64
	tree.Fail = func(op *fuseproto.Op) error {
		if op.Opcode == fuseproto.OpGetAttr {
			after = op.Session()
		}
		return nil
	}
	c.GetAttr(1)
	before = after
	tree.MustBlock = func(op *fuseproto.Op) bool { return op.Opcode == fuseproto.OpRead }
	tree.Wait = func(op *fuseproto.Op) error {
		other := fusetest.NewClient(t, c.Server)
		other.Init()
		other.GetAttr(1)
		during = op.Session()
		return nil
	}
	if r := c.Read(nodeFile, 0, 100); r.Errno != 0 {
		t.Errorf("READ over the second INIT: %v", r.Errno)
	}
	if before == 0 || during != before || after != before+1 {
		t.Errorf("sessions %d, then %d for a request of it, then %d", before, during, after)
	}
	if refs := tree.Refs(); len(refs) != 0 {
		t.Errorf("references %v outlived their session", refs)
	}
	if i, d := tree.Inits.Load(), tree.Destroys.Load(); i != 2 || d != 0 {
		t.Errorf("Init %d times, Destroy %d times, want 2 and 0", i, d)
	}
}

func TestReset(t *testing.T) {
	tree, c := guest(t)
	c.Server.Reset()
	if _, r := c.GetAttr(1); r.Errno != syscall.EIO {
		t.Errorf("GETATTR after a reset: %v, want EIO", r.Errno)
	}
	c.Server.Reset()
	if n := tree.Destroys.Load(); n != 1 {
		t.Errorf("Destroy %d times, want 1", n)
	}
}

// A guest of the other byte order gets no reply it could mistake for one.
func TestSwappedInit(t *testing.T) {
	c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{}))
	b := fusetest.Request(fuseproto.OpInit, 2, 0, fusetest.InitBody(7, 45, 0))
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	le.PutUint32(b, uint32(len(b))) // the length checks must not be what stops it
	if r := c.Send(fusetest.NewMessage(b, 80), 2); !r.None {
		t.Errorf("there is a reply: %v", r.Errno)
	}
}

func TestSnapshot(t *testing.T) {
	_, c := guest(t)
	state, err := c.Server.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	tree := testTree()
	// The new process would grant other values; the guest was promised these.
	s := serverOf(t, tree, fuseproto.Config{Flags: 1, MaxWrite: 4096})
	if err := s.Restore(state); err != nil {
		t.Fatal(err)
	}
	other := fusetest.NewClient(t, s)
	var session, flags uint64
	tree.Fail = func(op *fuseproto.Op) error { session, flags = op.Session(), op.SessionFlags(); return nil }
	if _, r := other.GetAttr(1); r.Errno != 0 {
		t.Fatalf("GETATTR in the restored session: %v", r.Errno)
	}
	if session != 1 || flags != fuseproto.FlagsReadOnly || tree.Flags.Load() != flags {
		t.Errorf("session %d, flags %#x, told %#x", session, flags, tree.Flags.Load())
	}
	body := make([]byte, 40+8192)
	le.PutUint32(body[16:], 8192)
	if r := other.Call(fuseproto.OpWrite, nodeFile, 8, body); r.Errno != syscall.EROFS {
		t.Errorf("WRITE within the promised size: %v, want EROFS", r.Errno)
	}
	again, err := s.Snapshot()
	if err != nil || !slices.Equal(again, state) {
		t.Errorf("snapshot of the restored session: %v\ngot  %x\nwant %x", err, again, state)
	}
	other.Init()
	if _, r := other.GetAttr(1); r.Errno != 0 || session != 2 {
		t.Errorf("session after INIT %d, want 2", session)
	}
}

func TestSnapshotBeforeInit(t *testing.T) {
	s := serverOf(t, testTree(), fuseproto.Config{})
	state, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	tree := testTree()
	s = serverOf(t, tree, fuseproto.Config{})
	if err := s.Restore(state); err != nil {
		t.Fatal(err)
	}
	if _, r := fusetest.NewClient(t, s).GetAttr(1); r.Errno != syscall.EIO {
		t.Errorf("GETATTR: %v, want EIO", r.Errno)
	}
	if tree.Inits.Load() != 0 {
		t.Error("Init without a session")
	}
}

func TestRestoreRefuses(t *testing.T) {
	_, c := guest(t)
	good, err := c.Server.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	change := func(off int, b ...byte) []byte {
		s := slices.Clone(good)
		copy(s[off:], b)
		return s
	}
	for name, state := range map[string][]byte{
		"nothing":            nil,
		"cut":                good[:len(good)-1],
		"longer":             append(slices.Clone(good), 0),
		"another magic":      change(0, 'X'),
		"another version":    change(4, 2),
		"live 2":             change(8, 2),
		"minor 26":           change(12, 26),
		"minor 46":           change(12, 46),
		"a flag of never":    change(16, 1<<2),
		"max_write 0":        change(28, 0, 0, 0, 0),
		"max_write of 4 GiB": change(28, 255, 255, 255, 255),
	} {
		s := serverOf(t, testTree(), fuseproto.Config{})
		if s.Restore(state) == nil {
			t.Errorf("%s: taken", name)
		}
		if _, r := fusetest.NewClient(t, s).GetAttr(1); r.Errno != syscall.EIO {
			t.Errorf("%s: there is a session", name)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, n := range []uint32{1, 4095, 4097, 65536 * 4096} {
		if _, err := fuseproto.NewServer(testTree(), fuseproto.Config{MaxWrite: n}); err == nil {
			t.Errorf("MaxWrite %d was taken", n)
		}
	}
}

// What ends as ENOSYS in a file system becomes what the guest does not remember
// for its other mounts.
func TestENOSYSDoesNotStick(t *testing.T) {
	want := map[fuseproto.Opcode]syscall.Errno{
		fuseproto.OpOpen: syscall.EOPNOTSUPP, fuseproto.OpOpenDir: syscall.EOPNOTSUPP, fuseproto.OpCreate: syscall.EOPNOTSUPP,
		fuseproto.OpFlush: 0, fuseproto.OpRelease: 0, fuseproto.OpReleaseDir: 0, fuseproto.OpFsync: 0, fuseproto.OpFsyncDir: 0, fuseproto.OpSyncFS: 0,
		fuseproto.OpSetXattr: syscall.EOPNOTSUPP, fuseproto.OpGetXattr: syscall.EOPNOTSUPP,
		fuseproto.OpListXattr: syscall.EOPNOTSUPP, fuseproto.OpRemoveXattr: syscall.EOPNOTSUPP,
		fuseproto.OpFallocate: syscall.EOPNOTSUPP, fuseproto.OpTmpfile: syscall.EOPNOTSUPP,
		fuseproto.OpCopyFileRange: syscall.EOPNOTSUPP, fuseproto.OpCopyFileRange64: syscall.EOPNOTSUPP,
		fuseproto.OpRename2: syscall.EINVAL, fuseproto.OpIoctl: syscall.ENOTTY,
		fuseproto.OpInit: 0, fuseproto.OpDestroy: 0, fuseproto.OpForget: 0, fuseproto.OpBatchForget: 0, fuseproto.OpInterrupt: 0,
	}
	c := fusetest.NewClient(t, serverOf(t, stub{err: syscall.ENOSYS}, fuseproto.Config{}))
	c.Init()
	unique := uint64(10)
	for _, o := range everyRequest() {
		errno, ok := want[o.op]
		if !ok {
			errno = syscall.ENOSYS
		}
		unique += 2
		if r := c.Send(o.message(unique), unique); r.Errno != errno {
			t.Errorf("%v: %v, want %v", o.op, r.Errno, errno)
		}
	}
	c = fusetest.NewClient(t, serverOf(t, stub{err: syscall.ENOSYS}, fuseproto.Config{ZeroMessageOpen: true}))
	c.Init()
	for _, op := range []fuseproto.Opcode{fuseproto.OpOpen, fuseproto.OpOpenDir, fuseproto.OpFlush} {
		if r := c.Call(op, 1, 16, make([]byte, 24)); r.Errno != syscall.ENOSYS {
			t.Errorf("%v with opens of no message: %v, want ENOSYS", op, r.Errno)
		}
	}
}

func TestErrno(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want syscall.Errno
	}{
		"errno":                  {syscall.ESTALE, syscall.ESTALE},
		"wrapped errno":          {fmt.Errorf("open cache file: %w", syscall.ENOENT), syscall.EIO},
		"any other":              {errors.New("blob abc: digest mismatch"), syscall.EIO},
		"beyond what fits":       {syscall.Errno(512), syscall.EIO},
		"errno 0":                {syscall.Errno(0), syscall.EIO},
		"blocks though it may":   {fuseproto.ErrWouldBlock, syscall.EIO},
		"reply that did not fit": {fmt.Errorf("x: %w", fuseproto.ErrNoRoom), syscall.EIO},
	} {
		c := fusetest.NewClient(t, serverOf(t, stub{err: tt.err}, fuseproto.Config{}))
		c.Init()
		if _, r := c.GetAttr(1); r.Errno != tt.want {
			t.Errorf("%s: %v, want %v", name, r.Errno, tt.want)
		}
	}
}

// A session that holds images and host directories alike grants what neither of
// them is harmed by.
func TestFlagsShared(t *testing.T) {
	c := fusetest.NewClient(t, serverOf(t, testTree(), fuseproto.Config{Flags: fuseproto.FlagsShared}))
	got := c.Init()
	for name, bit := range map[string]uint64{
		"AUTO_INVAL_DATA": fuseproto.FlagAutoInvalData, "ATOMIC_O_TRUNC": fuseproto.FlagAtomicOTrunc,
		"HANDLE_KILLPRIV_V2": fuseproto.FlagHandleKillprivV2, "CREATE_SUPP_GROUP": fuseproto.FlagCreateSuppGroup,
		"READDIRPLUS_AUTO": fuseproto.FlagReadDirPlusAuto, "HAS_IOCTL_DIR": fuseproto.FlagHasIoctlDir,
	} {
		if got&bit == 0 {
			t.Errorf("%s is not granted", name)
		}
	}
	for name, bit := range map[string]uint64{
		"EXPLICIT_INVAL_DATA": fuseproto.FlagExplicitInvalData, "EXPORT_SUPPORT": fuseproto.FlagExportSupport,
		"CACHE_SYMLINKS": fuseproto.FlagCacheSymlinks, "NO_OPEN_SUPPORT": fuseproto.FlagNoOpenSupport,
		"POSIX_LOCKS": fuseproto.FlagPosixLocks, "WRITEBACK_CACHE": fuseproto.FlagWritebackCache, "DONT_MASK": fuseproto.FlagDontMask,
	} {
		if got&bit != 0 {
			t.Errorf("%s is granted", name)
		}
	}
}
