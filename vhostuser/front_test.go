package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// The tests' front-end: guest memory in a memfd, one region, with guest and user
// addresses that differ from each other and from ours.
const (
	frontGPA    = 0x4000_0000
	frontUVA    = 0x7f12_0000_0000
	frontOffset = 0x10000 // of the region in the memfd
	frontSize   = 8 << 20

	ringStride = 0x10000 // rings of vring i at i * ringStride
	slotsAt    = 2 << 20 // per vring slotStride: per head an indirect table, a request and a reply
	slotStride = 1 << 20
	slotSize   = 512
	slotReq    = 128 // offset of the request in a slot
	slotRep    = 256 // offset of the reply
	replySize  = 64
	frontWait  = 10 * time.Second
	reqSize    = 16
)

// callKind is what a front-end hands over as call descriptor.
type callKind int

const (
	callEventfd callKind = iota
	callSocket           // as user-mode Linux: a blocking stream pair
	callPipe
)

type frontOptions struct {
	queues   int
	size     uint16
	start    uint16 // first position of the rings
	noEvent  bool   // without EVENT_IDX
	table    bool   // keeps the table of requests in flight, as Cloud Hypervisor does
	blocking bool   // kick eventfds without O_NONBLOCK
	call     callKind
}

type front struct {
	t    testing.TB
	o    frontOptions
	conn *wire.Conn
	fd   int // memfd
	mem  []byte
	q    []*frontQueue

	inflight int // memory of the table, with table; 0 before the first time
}

type frontQueue struct {
	f     *front
	index int
	*vqtest.Driver
	kick, call, callPeer, failure int // call is ours to wait on, callPeer goes to the back-end

	// Scratch of sleeps, so that they do not allocate.
	sleeps  [1]unix.PollFd
	counter [8]byte
}

// newFront makes a front-end that has guest memory and rings but is not connected.
func newFront(t testing.TB, o frontOptions) *front {
	t.Helper()
	if o.queues == 0 {
		o.queues = 2
	}
	if o.size == 0 {
		o.size = 64
	}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	check(t, err)
	check(t, unix.Ftruncate(fd, frontOffset+frontSize))
	mem, err := unix.Mmap(fd, frontOffset, frontSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	f := &front{t: t, o: o, fd: fd, mem: mem}
	t.Cleanup(func() {
		unix.Munmap(mem)
		unix.Close(fd)
	})
	for i := range o.queues {
		f.q = append(f.q, f.newQueue(i))
	}
	return f
}

func (f *front) newQueue(i int) *frontQueue {
	f.t.Helper()
	q := &frontQueue{f: f, index: i, Driver: vqtest.New(f.mem, uint64(i)*ringStride, f.o.size, f.o.start, !f.o.noEvent)}
	flags := unix.EFD_CLOEXEC
	if !f.o.blocking {
		flags |= unix.EFD_NONBLOCK
	}
	var err error
	q.kick, err = unix.Eventfd(0, flags)
	check(f.t, err)
	q.failure, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(f.t, err)
	fds := []int{q.kick, q.failure}
	switch f.o.call {
	case callEventfd:
		q.call, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		check(f.t, err)
		q.callPeer = q.call
		fds = append(fds, q.call)
	case callSocket:
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(f.t, err)
		q.call, q.callPeer = pair[0], pair[1]
		fds = append(fds, pair[0], pair[1])
	case callPipe:
		pair := make([]int, 2)
		check(f.t, unix.Pipe2(pair, unix.O_CLOEXEC))
		q.call, q.callPeer = pair[0], pair[1]
		fds = append(fds, pair[0], pair[1])
	}
	f.t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	return q
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects to path.
func (f *front) dial(path string) {
	f.t.Helper()
	c, err := net.Dial("unix", path)
	check(f.t, err)
	f.attach(c.(*net.UnixConn))
}

func (f *front) attach(c *net.UnixConn) {
	check(f.t, c.SetDeadline(time.Now().Add(time.Minute)))
	f.conn = wire.NewConn(c)
	f.t.Cleanup(func() { f.conn.Close() })
}

// call sends a message with need_reply and returns the payload of the answer.
func (f *front) call(req wire.Request, payload []byte, fds ...int) []byte {
	f.t.Helper()
	p, err := f.try(req, payload, fds...)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *front) try(req wire.Request, payload []byte, fds ...int) ([]byte, error) {
	if err := f.conn.Send(req, wire.FlagVersion|wire.FlagNeedReply, payload, fds...); err != nil {
		return nil, err
	}
	m, err := f.conn.Recv()
	if err != nil {
		return nil, fmt.Errorf("%v: answer: %w", req, err)
	}
	if m.Request != req || m.Flags != wire.ReplyFlags || len(m.FDs) != 0 {
		return nil, fmt.Errorf("%v: answered by %v, flags %#x, %d descriptors", req, m.Request, m.Flags, len(m.FDs))
	}
	return append([]byte(nil), m.Payload...), nil
}

// ok sends a message that must be acknowledged with 0.
func (f *front) ok(req wire.Request, payload []byte, fds ...int) {
	f.t.Helper()
	if v, err := wire.ParseU64(f.call(req, payload, fds...)); err != nil || v != 0 {
		f.t.Fatalf("%v: acknowledged with %d, %v, want 0", req, v, err)
	}
}

// refused sends a message that must be acknowledged with another value than 0.
func (f *front) refused(req wire.Request, payload []byte, fds ...int) {
	f.t.Helper()
	if v, err := wire.ParseU64(f.call(req, payload, fds...)); err != nil || v == 0 {
		f.t.Errorf("%v: acknowledged with %d, %v, want a refusal", req, v, err)
	}
}

func (f *front) getU64(req wire.Request) uint64 {
	f.t.Helper()
	v, err := wire.ParseU64(f.call(req, nil))
	check(f.t, err)
	return v
}

func (f *front) region() wire.MemRegion {
	return wire.MemRegion{GuestAddr: frontGPA, Size: frontSize, UserAddr: frontUVA, MmapOffset: frontOffset}
}

func (f *front) features() uint64 {
	v := wire.FeatureVersion1 | wire.FeatureIndirectDesc | wire.FeatureEventIdx | wire.FeatureProtocolFeatures
	if f.o.noEvent {
		v &^= wire.FeatureEventIdx
	}
	return v
}

// negotiate does what comes before the driver is ready, as QEMU does.
func (f *front) negotiate() {
	f.t.Helper()
	f.getU64(wire.GetFeatures)
	offered := f.getU64(wire.GetProtocolFeatures)
	f.ok(wire.SetProtocolFeatures, wire.AppendU64(nil, offered))
	if n := f.getU64(wire.GetQueueNum); int(n) < len(f.q) {
		f.t.Fatalf("%d queues offered, want %d", n, len(f.q))
	}
	f.ok(wire.SetOwner, nil)
	for _, q := range f.q {
		f.ok(wire.SetVringErr, wire.VringFD{Index: uint8(q.index)}.Append(nil), q.failure)
	}
	f.ok(wire.SetFeatures, wire.AppendU64(nil, f.features()))
	f.ok(wire.AddMemReg, wire.AppendSingleRegion(nil, f.region()), f.fd)
	if f.o.table || withTable {
		f.exchangeInflight()
	}
}

// withTable makes every front-end keep a table.
var withTable bool

// exchangeInflight gives the back-end the table that the front-end has, or has just
// asked for.
func (f *front) exchangeInflight() {
	f.t.Helper()
	area := wire.Inflight{Queues: uint16(len(f.q)), QueueSize: f.o.size}
	if f.inflight == 0 {
		check(f.t, f.conn.Send(wire.GetInflightFD, wire.FlagVersion, area.Append(nil)))
		m, err := f.conn.Recv()
		check(f.t, err)
		if len(m.FDs) != 1 {
			f.t.Fatalf("GET_INFLIGHT_FD: answered with %d descriptors", len(m.FDs))
		}
		f.inflight = m.FDs[0]
		f.t.Cleanup(func() { unix.Close(f.inflight) })
	}
	var st unix.Stat_t
	check(f.t, unix.Fstat(f.inflight, &st))
	area.MmapSize = uint64(st.Size)
	f.ok(wire.SetInflightFD, area.Append(nil), f.inflight)
}

// setUp tells all about the vring but does not enable it.
func (q *frontQueue) setUp(base uint16) {
	f := q.f
	f.t.Helper()
	i := uint32(q.index)
	f.ok(wire.SetVringNum, wire.VringState{Index: i, Num: uint32(q.Size)}.Append(nil))
	f.ok(wire.SetVringBase, wire.VringState{Index: i, Num: uint32(base)}.Append(nil))
	f.ok(wire.SetVringAddr, wire.VringAddr{Index: i,
		Desc: frontUVA + q.DescAt, Avail: frontUVA + q.AvailAt, Used: frontUVA + q.UsedAt}.Append(nil))
	f.ok(wire.SetVringCall, wire.VringFD{Index: uint8(i)}.Append(nil), q.callPeer)
	f.ok(wire.SetVringKick, wire.VringFD{Index: uint8(i)}.Append(nil), q.kick)
}

func (q *frontQueue) enable(on uint32) {
	q.f.t.Helper()
	q.f.ok(wire.SetVringEnable, wire.VringState{Index: uint32(q.index), Num: on}.Append(nil))
}

// stop disables the vring and returns its base.
func (q *frontQueue) stop() uint16 {
	q.f.t.Helper()
	q.enable(0)
	return q.getBase()
}

func (q *frontQueue) getBase() uint16 {
	q.f.t.Helper()
	p := q.f.call(wire.GetVringBase, wire.VringState{Index: uint32(q.index)}.Append(nil))
	st, err := wire.ParseVringState(p)
	check(q.f.t, err)
	if st.Index != uint32(q.index) {
		q.f.t.Fatalf("base of vring %d, asked for %d", st.Index, q.index)
	}
	return uint16(st.Num)
}

func (f *front) start() {
	f.t.Helper()
	for _, q := range f.q {
		q.setUp(f.o.start)
	}
	for _, q := range f.q {
		q.enable(1)
	}
}

// slot returns the memory of a head.
func (q *frontQueue) slot(head uint16) (at uint64) {
	return slotsAt + uint64(q.index)*slotStride + uint64(head)*slotSize
}

// offer makes a request available: op, arg and id, with room for a reply. The
// reply is filled with guard bytes.
func (q *frontQueue) offer(head uint16, op, arg uint32, id uint64) {
	at := q.slot(head)
	m := q.f.mem
	req := m[at+slotReq : at+slotReq+reqSize]
	binary.LittleEndian.PutUint32(req, op)
	binary.LittleEndian.PutUint32(req[4:], arg)
	binary.LittleEndian.PutUint64(req[8:], id)
	rep := m[at+slotRep : at+slotRep+replySize]
	for i := range rep {
		rep[i] = 0xee
	}
	q.Desc(head, q.Table(at, frontGPA+at,
		vqtest.Desc{Addr: frontGPA + at + slotReq, Len: 7},
		vqtest.Desc{Addr: frontGPA + at + slotReq + 7, Len: reqSize - 7},
		vqtest.Desc{Addr: frontGPA + at + slotRep, Len: 24, Flags: vqtest.Write},
		vqtest.Desc{Addr: frontGPA + at + slotRep + 24, Len: replySize - 24, Flags: vqtest.Write}))
	q.Offer(head)
}

// show publishes what was offered and kicks if the device asks for it.
func (q *frontQueue) show() {
	if q.Show() {
		q.sendKick()
	}
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func (q *frontQueue) sendKick() {
	_, err := unix.Write(q.kick, one)
	check(q.f.t, err)
}

// wait returns the next used element, sleeping on the call descriptor. A sleep
// with an element in the ring is a lost signal, and fails.
func (q *frontQueue) wait() vqtest.Used {
	q.f.t.Helper()
	u, err := q.next(frontWait)
	if err != nil {
		q.f.t.Fatalf("vring %d: %v", q.index, err)
	}
	return u
}

var errNothing = errors.New("nothing came back")

func (q *frontQueue) next(d time.Duration) (vqtest.Used, error) {
	deadline := time.Now().Add(d)
	for {
		u, ok, err := q.Reap()
		if err != nil || ok {
			return u, err
		}
		if q.Arm() {
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return u, errNothing
		}
		q.sleeps[0] = unix.PollFd{Fd: int32(q.call), Events: unix.POLLIN}
		n, err := unix.Poll(q.sleeps[:], int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue // nothing is said about the call
		}
		if err != nil {
			return u, err
		}
		if n > 0 {
			if _, err := unix.Read(q.call, q.counter[:]); err != nil {
				return u, fmt.Errorf("call: %w", err)
			}
		} else if _, ok, _ := q.Reap(); ok {
			return u, errors.New("a reply without a signal")
		}
	}
}

// reply checks the reply of a request that was served by echo.
func (q *frontQueue) reply(u vqtest.Used, id uint64) {
	q.f.t.Helper()
	at := q.slot(uint16(u.ID)) + slotRep
	rep := q.f.mem[at : at+replySize]
	if u.Len != echoSize {
		q.f.t.Fatalf("vring %d head %d: used length %d, want %d", q.index, u.ID, u.Len, echoSize)
	}
	if got := binary.LittleEndian.Uint64(rep); got != ^id {
		q.f.t.Fatalf("vring %d head %d: reply %#x, want %#x", q.index, u.ID, got, ^id)
	}
	for i, b := range rep[echoSize:] {
		if b != 0xee {
			q.f.t.Fatalf("vring %d head %d: byte %d behind the reply was written", q.index, u.ID, i)
		}
	}
}

// signalled reports whether an eventfd has a signal, and takes it.
func signalled(t testing.TB, fd int) bool {
	t.Helper()
	var b [8]byte
	_, err := unix.Read(fd, b[:])
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return err == nil
}

// openFDs returns how many descriptors the process has.
func openFDs(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(e)
}

// reset makes the rings those of a driver that has just started, both indexes at
// start, at the same place.
func (q *frontQueue) reset(start uint16) {
	q.Driver = vqtest.New(q.f.mem, uint64(q.index)*ringStride, q.f.o.size, start, !q.f.o.noEvent)
}

// move makes rings of a fresh driver elsewhere.
func (q *frontQueue) move(start uint16) {
	q.Driver = vqtest.New(q.f.mem, uint64(len(q.f.q)+q.index)*ringStride, q.f.o.size, start, !q.f.o.noEvent)
}

// offerAt makes a request available whose reply goes to guest address room.
func (q *frontQueue) offerAt(head uint16, room uint64, op, arg uint32, id uint64) {
	at := q.slot(head)
	q.offer(head, op, arg, id)
	q.Desc(head, q.Table(at, frontGPA+at,
		vqtest.Desc{Addr: frontGPA + at + slotReq, Len: reqSize},
		vqtest.Desc{Addr: room, Len: replySize, Flags: vqtest.Write}))
}
