package vhostuser_test

import (
	"encoding/binary"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// What a back-end has to hold to, by the numbers of the transport sheet (section 9).
// Those that are not here have their tests beside what they are about.

// transportStatements is how many there are.
const transportStatements = 55

// TestTransportContractIsWhole: each statement has a test that bears its number. A test
// may bear several.
func TestTransportContractIsWhole(t *testing.T) {
	prefix := regexp.MustCompile(`^TestTransport(_?L\d\d)+`)
	number := regexp.MustCompile(`L(\d\d)`)
	found := map[int][]string{}
	for _, root := range []string{".", "../cmd/rafsd", "../internal", "../fuseproto", "../shim-integration"} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Recv != nil {
					continue
				}
				for _, m := range number.FindAllStringSubmatch(prefix.FindString(f.Name.Name), -1) {
					n, err := strconv.Atoi(m[1])
					if err != nil {
						return err
					}
					found[n] = append(found[n], fmt.Sprintf("%s in %s", f.Name.Name, path))
				}
			}
			return nil
		})
		check(t, err)
	}
	for n := 1; n <= transportStatements; n++ {
		if len(found[n]) == 0 {
			t.Errorf("statement L%02d has no test", n)
		}
		delete(found, n)
	}
	for n, tests := range found {
		t.Errorf("the sheet has no statement L%02d: %v", n, tests)
	}
}

// talk returns a server and a front-end that is connected and has said nothing.
func talk(t *testing.T, o vhostuser.Options) (*bed, *front) {
	t.Helper()
	b := newBed(t, newEcho(), o)
	f := newFront(t, frontOptions{})
	f.dial(b.path)
	return b, f
}

// ack makes the front-end one that may ask for acknowledgements.
func (f *front) ack() {
	f.t.Helper()
	f.tell(wire.SetProtocolFeatures, wire.AppendU64(nil, wire.ProtocolReplyAck|wire.ProtocolMQ))
}

// works fails unless the front-end's request vring serves.
func (f *front) works() {
	f.t.Helper()
	q := f.q[1]
	q.offer(0, opEcho, 0, 4711)
	q.show()
	q.reply(q.wait(), 4711)
}

func TestTransportL01_ReplyFlags(t *testing.T) {
	b, f := talk(t, vhostuser.Options{})
	f.ack()
	for _, req := range []wire.Request{wire.GetFeatures, wire.GetProtocolFeatures, wire.GetQueueNum, wire.GetMaxMemSlots, wire.SetOwner} {
		for _, flags := range []wire.Flags{wire.FlagVersion, wire.FlagVersion | wire.FlagNeedReply} {
			if req == wire.SetOwner && flags == wire.FlagVersion {
				continue // no reply
			}
			check(t, f.conn.Send(req, flags, nil))
			m, err := f.conn.Recv()
			check(t, err)
			if m.Request != req || m.Flags != 5 {
				t.Errorf("%v with flags %#x: answered by %v with flags %#x, want 0x5", req, flags, m.Request, m.Flags)
			}
		}
	}
	b.leave(t, f)
}

// TestTransportL02_L03_Replies: only what asks for a reply or always has one gets one,
// and one each.
func TestTransportL02_L03_Replies(t *testing.T) {
	b, f := talk(t, vhostuser.Options{})
	f.ack()
	quiet := func() {
		f.tell(wire.SetOwner, nil)
		f.tell(wire.SetFeatures, wire.AppendU64(nil, f.features()))
		f.tell(wire.SetVringNum, state(1, 64))
		f.tell(wire.SetVringBase, state(1, 0))
		f.tell(wire.SetVringEnable, state(1, 0))
	}
	quiet()
	const asked = 20
	for i := range uint32(asked) {
		check(t, f.conn.Send(wire.SetVringNum, wire.FlagVersion|wire.FlagNeedReply, state(i%2, 64)))
	}
	quiet()
	check(t, f.conn.Send(wire.GetFeatures, wire.FlagVersion, nil))
	replies := 0
	for {
		m, err := f.conn.Recv()
		check(t, err)
		if m.Request == wire.GetFeatures {
			break
		}
		if m.Request != wire.SetVringNum {
			t.Errorf("a reply to %v", m.Request)
		}
		replies++
	}
	if replies != asked {
		t.Errorf("%d replies to %d messages that asked for one", replies, asked)
	}
	b.leave(t, f)
}

func TestTransportL04_NeedReplyBeforeItIsNegotiated(t *testing.T) {
	b, f := talk(t, vhostuser.Options{})
	check(t, f.conn.Send(wire.SetOwner, wire.FlagVersion|wire.FlagNeedReply, nil))
	f.getU64(wire.GetFeatures) // the next reply is that of the next question
	f.ack()
	f.ok(wire.SetOwner, nil)
	b.leave(t, f)
}

// TestTransportL09_LongMessages: the connection ends at the header; what it announces is
// not allocated for.
func TestTransportL09_LongMessages(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	for _, size := range []uint32{4097, 1 << 20, 1<<32 - 1} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c, err := net.Dial("unix", b.path)
		check(t, err)
		header := binary.LittleEndian.AppendUint32(nil, uint32(wire.SetConfig))
		header = binary.LittleEndian.AppendUint32(header, uint32(wire.FlagVersion))
		_, err = c.Write(binary.LittleEndian.AppendUint32(header, size))
		check(t, err)
		if err := <-b.gone; err == nil {
			t.Errorf("a message of %d bytes was taken", size)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<19 {
			t.Errorf("a message of %d bytes made the server allocate %d", size, got)
		}
		check(t, c.Close())
	}
	b.end()
}

// TestTransportL10_TooManyDescriptors: those that came are closed with the connection.
func TestTransportL10_TooManyDescriptors(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	before := openFDs(t)
	for range 3 {
		c, err := net.Dial("unix", b.path)
		check(t, err)
		fds := slices.Repeat([]int{int(null.Fd())}, 100)
		header := binary.LittleEndian.AppendUint32(nil, uint32(wire.GetFeatures))
		header = binary.LittleEndian.AppendUint32(header, uint32(wire.FlagVersion))
		header = binary.LittleEndian.AppendUint32(header, 0)
		_, _, err = c.(*net.UnixConn).WriteMsgUnix(header, unix.UnixRights(fds...), nil)
		check(t, err)
		if err := <-b.gone; err == nil {
			t.Error("100 descriptors were taken")
		}
		check(t, c.Close())
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
	b.end()
}

func TestTransportL11_L12_L13_L15_L31_Early(t *testing.T) {
	h := newEcho()
	h.space = make([]byte, 40)
	b := newBed(t, h, vhostuser.Options{Config: true})
	f := newFront(t, frontOptions{})
	f.dial(b.path)
	features := f.getU64(wire.GetFeatures)
	offered := f.getU64(wire.GetProtocolFeatures)
	f.tell(wire.SetProtocolFeatures, wire.AppendU64(nil, offered))
	f.ok(wire.ResetDevice, nil) // L31: nothing is set up
	for range 3 {
		if again := f.getU64(wire.GetFeatures); again != features {
			t.Errorf("L11: features %#x, before %#x", again, features)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	f.ok(wire.SetBackendReqFD, nil, pair[1]) // L12: before SET_OWNER
	for _, q := range f.q {                  // L13: before memory and features
		f.ok(wire.SetVringCall, wire.VringFD{Index: uint8(q.index)}.Append(nil), q.callPeer)
		f.ok(wire.SetVringErr, wire.VringFD{Index: uint8(q.index)}.Append(nil), q.failure)
	}
	f.ok(wire.SetOwner, nil)
	if again := f.getU64(wire.GetFeatures); again != features {
		t.Errorf("L11: features %#x after SET_OWNER, before %#x", again, features)
	}
	f.ok(wire.SetFeatures, wire.AppendU64(nil, f.features()))
	for i := range uint32(4) { // L15: none is configured
		f.ok(wire.SetVringEnable, state(i, 1))
		f.ok(wire.SetVringEnable, state(i, 0))
	}
	f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, f.region()), f.fd)
	f.start()
	f.works()
	b.leave(t, f)
}

func TestTransportL16_NoSuchVring(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{Queues: 2})
	f := b.connect(t, frontOptions{})
	for _, i := range []uint32{2, 3, 255, 256, 1 << 31, 1<<32 - 1} {
		f.refused(wire.SetVringNum, state(i, 64))
		f.refused(wire.SetVringBase, state(i, 0))
		f.refused(wire.SetVringEnable, state(i, 1))
		f.refused(wire.SetVringAddr, wire.VringAddr{Index: i, Desc: frontUVA, Used: frontUVA, Avail: frontUVA}.Append(nil))
	}
	for _, i := range []uint8{2, 255} {
		for _, req := range []wire.Request{wire.SetVringKick, wire.SetVringCall, wire.SetVringErr} {
			f.refused(req, wire.VringFD{Index: i}.Append(nil), f.q[1].kick)
		}
	}
	f.works()
	b.leave(t, f)
}

// TestTransportL17_NoDescriptor: a vring without a kick is refused, one without a call
// is served and not signalled.
func TestTransportL17_NoDescriptor(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	f.refused(wire.SetVringKick, wire.VringFD{Index: 1, NoFD: true}.Append(nil))
	f.works()
	f.ok(wire.SetVringCall, wire.VringFD{Index: 1, NoFD: true}.Append(nil))
	for signalled(t, q.call) {
	}
	before := b.server.Stats()[1].Signals
	q.offer(0, opEcho, 0, 1)
	used := q.UsedIndex()
	q.show()
	poll(t, "the reply", func() bool { return q.UsedIndex() == used+1 })
	f.getU64(wire.GetFeatures)
	if signalled(t, q.call) || b.server.Stats()[1].Signals != before {
		t.Error("a signal to a descriptor that was taken back")
	}
	b.leave(t, f)
}

// TestTransportL18_L19_KicksDoNotCount: what stands in the ring when the vring starts is
// served without a kick, and kicks for nothing do nothing.
func TestTransportL18_L19_KicksDoNotCount(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := newFront(t, frontOptions{})
	f.dial(b.path)
	f.negotiate()
	q := f.q[1]
	q.offer(5, opEcho, 0, 8)
	q.Show()
	f.start()
	q.reply(q.wait(), 8)
	for range 100 {
		q.sendKick()
	}
	f.works()
	if _, err := q.next(10 * time.Millisecond); err != errNothing {
		t.Errorf("more came back: %v", err)
	}
	b.leave(t, f)
}

// TestTransportL20_StopIsQuick: GET_VRING_BASE is answered within 10 ms although requests
// hang. One of several tries counts: other tests share the processors.
func TestTransportL20_StopIsQuick(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	for h := range uint16(32) {
		q.offer(h, opWait, 1, uint64(h))
	}
	q.show()
	poll(t, "all requests wait", func() bool { return b.echo.inWait.Load() == 32 })
	best := time.Hour
	for range 20 {
		q.enable(0)
		start := time.Now()
		base := q.getBase()
		best = min(best, time.Since(start))
		q.setUp(base)
		q.enable(1)
	}
	if best > 10*time.Millisecond {
		t.Errorf("GET_VRING_BASE took %v at least", best)
	}
	close(b.echo.gate(1))
	for range 32 {
		u := q.wait()
		q.reply(u, uint64(u.ID))
	}
	b.leave(t, f)
}

// TestTransportL24_SecondStart: without a message about memory.
func TestTransportL24_SecondStart(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	for range 3 {
		f.works()
		for _, q := range f.q {
			q.setUp(q.stop())
			q.enable(1)
		}
	}
	f.works()
	b.leave(t, f)
}

// TestTransportL32_L34_Features: what was not offered is refused, LOG_ALL too, and the
// vrings run on.
func TestTransportL32_L34_Features(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	offered := f.getU64(wire.GetFeatures)
	for bit := range 64 {
		more := uint64(1) << bit
		if offered&more != 0 {
			continue
		}
		f.refused(wire.SetFeatures, wire.AppendU64(nil, f.features()|more))
		if more == wire.FeatureLogAll {
			f.works()
			f.ok(wire.SetFeatures, wire.AppendU64(nil, f.features()))
		}
	}
	f.works()
	b.leave(t, f)
}

// TestTransportL36_UsedLength: it is what the handler wrote, whatever the room, and 0
// for what has no reply. That it is also what a reply's header says, internal/vmm
// checks of each request it makes.
func TestTransportL36_UsedLength(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	at := q.slot(0)
	for room := range uint32(2 * echoSize) {
		q.offer(0, opEcho, 0, 3)
		q.Desc(0, q.Table(at, frontGPA+at,
			vqtest.Desc{Addr: frontGPA + at + slotReq, Len: reqSize},
			vqtest.Desc{Addr: frontGPA + at + slotRep, Len: room, Flags: vqtest.Write}))
		q.show()
		if u := q.wait(); u.Len != min(room, echoSize) {
			t.Errorf("room %d: used length %d", room, u.Len)
		}
		if i := min(room, echoSize); f.mem[at+slotRep+uint64(i)] != 0xee {
			t.Errorf("room %d: the byte behind the reply was written", room)
		}
	}
	q.offer(0, opSilent, 0, 0)
	q.show()
	if u := q.wait(); u.Len != 0 {
		t.Errorf("no reply: used length %d", u.Len)
	}
	b.leave(t, f)
}

// TestTransportL43_L45_Shapes: descriptors without bytes anywhere, and requests and
// replies that are split at every byte.
func TestTransportL43_L45_Shapes(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	at := q.slot(0)
	req, rep := uint64(frontGPA+at+slotReq), uint64(frontGPA+at+slotRep)
	for split := range uint32(reqSize + 1) {
		q.offer(0, opEcho, 0, uint64(split))
		q.Desc(0, q.Table(at, frontGPA+at,
			vqtest.Desc{Addr: req, Len: 0},
			vqtest.Desc{Addr: req, Len: split},
			vqtest.Desc{Addr: req + uint64(split), Len: reqSize - split},
			vqtest.Desc{Addr: rep, Len: 0, Flags: vqtest.Write},
			vqtest.Desc{Addr: rep, Len: split, Flags: vqtest.Write},
			vqtest.Desc{Addr: rep + uint64(split), Len: 1, Flags: vqtest.Write},
			vqtest.Desc{Addr: rep + uint64(split) + 1, Len: replySize - split - 1, Flags: vqtest.Write}))
		q.show()
		q.reply(q.wait(), uint64(split))
	}
	b.leave(t, f)
}

// TestTransportL44_LongIndirectTable: longer than the queue.
func TestTransportL44_LongIndirectTable(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{size: 16})
	q := f.q[1]
	at, table := q.slot(0), uint64(slotsAt+3*slotStride)
	q.offer(0, opEcho, 0, 99)
	descs := []vqtest.Desc{{Addr: frontGPA + at + slotReq, Len: reqSize}}
	for i := range uint64(replySize) {
		descs = append(descs, vqtest.Desc{Addr: frontGPA + at + slotRep + i, Len: 1, Flags: vqtest.Write})
	}
	for len(descs) < 260 { // as Linux 5.10 sends in a queue of 128
		descs = append(descs, vqtest.Desc{Addr: frontGPA + table + 1<<16, Len: 1, Flags: vqtest.Write})
	}
	q.Desc(0, q.Table(table, frontGPA+table, descs...))
	q.show()
	q.reply(q.wait(), 99)
	b.leave(t, f)
}

// TestTransportL47_NoReplyOnARequestVring: FORGET may come there.
func TestTransportL47_NoReplyOnARequestVring(t *testing.T) {
	b := newBed(t, newEcho(), vhostuser.Options{})
	f := b.connect(t, frontOptions{})
	q := f.q[1]
	at := q.slot(2)
	q.offer(2, opSilent, 0, 0)
	q.Desc(2, q.Table(at, frontGPA+at, vqtest.Desc{Addr: frontGPA + at + slotReq, Len: reqSize})) // no room at all
	q.show()
	if u := q.wait(); u.ID != 2 || u.Len != 0 {
		t.Errorf("used %+v, want head 2 with length 0", u)
	}
	f.works()
	b.leave(t, f)
}
