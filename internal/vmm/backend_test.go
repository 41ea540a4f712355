package vmm_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backend is a small back-end for the tests of the front-end: one front-end,
// split rings with INDIRECT and EVENT_IDX, a file system of one file. It does
// things right except for the one fault that it is told, so that each check of
// the front-end can be seen to fail.
type backend struct {
	t        testing.TB
	fault    string
	offer    uint64 // protocol features
	eventIdx atomic.Bool
	mu       sync.Mutex
	regions  []mapped
	rings    [4]*backRing
	messages []uint32
}

type mapped struct {
	gpa, uva, size uint64
	bytes          []byte
}

type backRing struct {
	backend           *backend
	num               uint16
	addr              [3]uint64 // desc, used, avail: user addresses
	desc, avail, used []byte
	lastAvail, next   uint16
	signalled         uint16
	fresh             bool
	kick, call, quit  int
	kickFlags         int
	done              chan struct{}
}

const (
	backFeatures = 1<<32 | 1<<30 | 1<<29 | 1<<28
	backProtocol = 1<<0 | 1<<3 | 1<<5 | 1<<9 | 1<<13 | 1<<15
)

// startBackend listens and serves one front-end until it goes.
func startBackend(t testing.TB, fault string) (*backend, string) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "b.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{t: t, fault: fault, offer: backProtocol}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		b.serve(c)
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return b, sock
}

func (b *backend) serve(c *net.UnixConn) {
	defer b.end()
	le := binary.LittleEndian
	ack := false
	for {
		var head [12]byte
		oob := make([]byte, unix.CmsgSpace(8*4))
		n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
		if err != nil || n < len(head) {
			return
		}
		var fds []int
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for _, m := range msgs {
				got, _ := unix.ParseUnixRights(&m)
				fds = append(fds, got...)
			}
		}
		req, flags := le.Uint32(head[:]), le.Uint32(head[4:])
		p := make([]byte, le.Uint32(head[8:]))
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		b.mu.Lock()
		b.messages = append(b.messages, req)
		b.mu.Unlock()
		if req == 16 {
			ack = le.Uint64(p)&8 != 0
		}
		reply, own := b.message(req, p, fds)
		if !own {
			if flags&8 == 0 || !ack {
				continue
			}
			reply = make([]byte, 8)
			if b.fault == "refuse enable" && req == 18 {
				reply[0] = 1
			}
		}
		if !b.reply(c, req, reply) {
			return
		}
	}
}

func (b *backend) reply(c *net.UnixConn, req uint32, payload []byte) bool {
	flags := uint32(5)
	switch {
	case b.fault == "reply flags" && req == 11:
		flags = 0xd
	case b.fault == "reply size" && req == 11:
		payload = append(payload, 0, 0, 0, 0)
	case b.fault == "reply to another message" && req == 11:
		req = 1
	}
	out := binary.LittleEndian.AppendUint32(nil, req)
	out = binary.LittleEndian.AppendUint32(out, flags)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(payload)))
	_, err := c.Write(append(out, payload...))
	return err == nil
}

// message handles one message; own tells whether it has a reply of its own.
func (b *backend) message(req uint32, p []byte, fds []int) (reply []byte, own bool) {
	le := binary.LittleEndian
	u64 := func(v uint64) ([]byte, bool) { return le.AppendUint64(nil, v), true }
	ring := func() *backRing {
		i := p[0]
		if b.rings[i] == nil {
			b.rings[i] = &backRing{backend: b, kick: -1, call: -1}
		}
		return b.rings[i]
	}
	keep := func(old *int) {
		if *old >= 0 {
			unix.Close(*old)
		}
		*old = fds[0]
		fds = fds[1:]
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if req == 5 || req == 37 || req == 38 {
		defer b.halt()()
	}
	switch req {
	case 1:
		return u64(backFeatures)
	case 15:
		return u64(b.offer)
	case 17:
		return u64(uint64(len(b.rings)))
	case 36:
		return u64(32)
	case 24:
		config := append(make([]byte, 36), 3, 0, 0, 0)
		copy(config, "tag")
		copy(p[12:], config)
		return p, true
	case 5, 37:
		regions := p[8:]
		if req == 5 {
			b.unmap()
			regions = regions[:32*le.Uint32(p)]
		}
		for i := 0; len(regions) > 0; i++ {
			m := mapped{gpa: le.Uint64(regions), size: le.Uint64(regions[8:]), uva: le.Uint64(regions[16:])}
			var err error
			m.bytes, err = unix.Mmap(fds[i], int64(le.Uint64(regions[24:])), int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				b.t.Errorf("back-end: map region %#x: %v", m.gpa, err)
				return nil, false
			}
			b.regions = append(b.regions, m)
			regions = regions[32:]
		}
	case 38:
		for i, m := range b.regions {
			if m.gpa == le.Uint64(p[8:]) {
				unix.Munmap(m.bytes)
				b.regions = append(b.regions[:i:i], b.regions[i+1:]...)
				break
			}
		}
	case 2:
		b.eventIdx.Store(le.Uint64(p)&(1<<29) != 0)
	case 8:
		ring().num = le.Uint16(p[4:])
	case 10:
		ring().lastAvail = le.Uint16(p[4:])
	case 9:
		r := ring()
		r.addr = [3]uint64{le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])}
		r.translate()
		r.next = le.Uint16(r.used[2:])
		r.signalled, r.fresh = r.next, true
	case 12:
		r := ring()
		keep(&r.kick)
		r.kickFlags, _ = unix.FcntlInt(uintptr(r.kick), unix.F_GETFL, 0)
		if b.fault == "change flags" {
			unix.SetNonblock(r.kick, r.kickFlags&unix.O_NONBLOCK == 0)
		}
	case 13:
		r := ring()
		running := r.done != nil
		r.stop()
		keep(&r.call)
		if running {
			r.start()
		}
	case 18:
		r := ring()
		r.stop()
		if le.Uint32(p[4:]) == 1 && r.kick >= 0 {
			r.start()
		}
	case 11:
		r := ring()
		r.stop()
		if r.kick >= 0 {
			unix.Close(r.kick)
			r.kick = -1
		}
		le.PutUint32(p[4:], uint32(r.lastAvail))
		if b.fault == "wrong base" {
			le.PutUint32(p[4:], uint32(r.lastAvail)+1000)
		}
		return p, true
	}
	return nil, false
}

// halt stops the rings that run; what it returns starts them again.
func (b *backend) halt() func() {
	var running []*backRing
	for _, r := range b.rings {
		if r != nil && r.done != nil {
			r.stop()
			running = append(running, r)
		}
	}
	return func() {
		for _, r := range running {
			r.translate()
			r.start()
		}
	}
}

func (r *backRing) translate() {
	n := int(r.num)
	r.desc = r.backend.user(r.addr[0], 16*n)
	r.used = r.backend.user(r.addr[1], 6+8*n)
	r.avail = r.backend.user(r.addr[2], 6+2*n)
}

func (b *backend) unmap() {
	for _, m := range b.regions {
		unix.Munmap(m.bytes)
	}
	b.regions = nil
}

func (b *backend) end() {
	for _, r := range b.rings {
		if r == nil {
			continue
		}
		r.stop()
		for _, fd := range []int{r.kick, r.call} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	b.unmap()
}

func (b *backend) seen() []uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]uint32(nil), b.messages...)
}

func (b *backend) user(addr uint64, n int) []byte {
	for _, m := range b.regions {
		if addr >= m.uva && addr+uint64(n) <= m.uva+m.size {
			return m.bytes[addr-m.uva:][:n:n]
		}
	}
	b.t.Errorf("back-end: no region for user address %#x", addr)
	return make([]byte, n)
}

// guest returns the pieces of guest memory that a range lies in.
func (b *backend) guest(addr uint64, n uint64) (out [][]byte) {
	for n > 0 {
		found := false
		for _, m := range b.regions {
			if addr >= m.gpa && addr < m.gpa+m.size {
				piece := m.bytes[addr-m.gpa:]
				piece = piece[:min(uint64(len(piece)), n)]
				out = append(out, piece)
				addr, n, found = addr+uint64(len(piece)), n-uint64(len(piece)), true
				break
			}
		}
		if !found {
			b.t.Errorf("back-end: no region for guest address %#x", addr)
			return out
		}
	}
	return out
}

func (r *backRing) start() {
	quit, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		r.backend.t.Error(err)
		return
	}
	r.quit, r.done = quit, make(chan struct{})
	go r.run(r.quit, r.done)
}

func (r *backRing) stop() {
	if r.done == nil {
		return
	}
	unix.Write(r.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-r.done
	unix.Close(r.quit)
	r.done = nil
}

func (r *backRing) run(quit int, done chan struct{}) {
	defer close(done)
	for {
		r.drain()
		fds := []unix.PollFd{{Fd: int32(r.kick), Events: unix.POLLIN}, {Fd: int32(quit), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != syscall.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			unix.Read(r.kick, make([]byte, 8))
		}
	}
}

// word is the aligned word at off; the one with used_event ends behind the ring.
func word(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }

func (r *backRing) drain() {
	le := binary.LittleEndian
	n := int(r.num)
	for {
		for uint16(atomic.LoadUint32(word(r.avail, 0))>>16) != r.lastAvail {
			head := le.Uint16(r.avail[4+2*int(r.lastAvail&(r.num-1)):])
			r.lastAvail++
			in, out := r.chain(head)
			r.put(head, r.backend.answer(in, out))
		}
		// The event word's upper half is not ours: two bytes, then a fence.
		if r.backend.eventIdx.Load() {
			le.PutUint16(r.used[4+8*n:], r.lastAvail)
		}
		var fence atomic.Uint32
		fence.Add(1)
		if uint16(atomic.LoadUint32(word(r.avail, 0))>>16) == r.lastAvail {
			return
		}
	}
}

func (r *backRing) put(head uint16, length uint32) {
	le := binary.LittleEndian
	times := 1
	id := uint32(head)
	switch r.backend.fault {
	case "head twice":
		times = 2
	case "unknown head":
		id++
	case "head out of range":
		id = uint32(r.num)
	}
	for range times {
		at := 4 + 8*int(r.next&(r.num-1))
		le.PutUint32(r.used[at:], id)
		le.PutUint32(r.used[at+4:], length)
		r.next++
	}
	if r.backend.fault == "skipped entry" {
		r.next++
	}
	atomic.StoreUint32(word(r.used, 0), uint32(r.next)<<16)
	event := uint16(atomic.LoadUint32(word(r.avail, 4+2*int(r.num))))
	wanted := r.next-event-1 < r.next-r.signalled
	if !r.backend.eventIdx.Load() {
		wanted = atomic.LoadUint32(word(r.avail, 0))&1 == 0
	}
	if r.fresh || wanted {
		unix.Write(r.call, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	r.signalled, r.fresh = r.next, false
}

// chain collects the readable bytes and the writable pieces.
func (r *backRing) chain(head uint16) (in []byte, out [][]byte) {
	le := binary.LittleEndian
	table, i := r.desc, head
	for {
		d := table[16*int(i):]
		addr, n, flags := le.Uint64(d), uint64(le.Uint32(d[8:])), le.Uint16(d[12:])
		switch {
		case flags&4 != 0:
			table, i = joined(r.backend.guest(addr, n)), 0
			continue
		case flags&2 != 0:
			out = append(out, r.backend.guest(addr, n)...)
		default:
			pieces := r.backend.guest(addr, n)
			in = append(in, joined(pieces)...)
			if r.backend.fault == "request written" {
				pieces[0][len(pieces[0])-1]++
			}
		}
		if flags&1 == 0 {
			return in, out
		}
		i = le.Uint16(d[14:])
	}
}

func joined(pieces [][]byte) (b []byte) {
	for _, p := range pieces {
		b = append(b, p...)
	}
	return b
}

const (
	backFileNode = 2
	backFileSize = 1 << 20
)

// backContent is the file's content.
func backContent(off uint64) byte { return byte(off*7 + off>>8) }

// answer is the file system. It returns used.len.
func (b *backend) answer(in []byte, out [][]byte) uint32 {
	le := binary.LittleEndian
	op, unique, node := le.Uint32(in[4:]), le.Uint64(in[8:]), le.Uint64(in[16:])
	room := 0
	for _, p := range out {
		room += len(p)
	}
	attr := make([]byte, 88)
	le.PutUint32(attr[60:], 0o40755)
	if node == backFileNode || op == 1 {
		le.PutUint64(attr, backFileNode)
		le.PutUint64(attr[8:], backFileSize)
		le.PutUint32(attr[60:], 0o100644)
	}
	var errno int32
	var body []byte
	switch op {
	case 2, 42:
		return 0
	case 26:
		body = make([]byte, 64)
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 38)
		le.PutUint32(body[12:], le.Uint32(in[40+12:]))
		le.PutUint16(body[28:], 256)
	case 1:
		body = make([]byte, 128)
		le.PutUint64(body, backFileNode)
		copy(body[40:], attr)
		if string(in[40:len(in)-1]) != "file" {
			errno, body = -int32(syscall.ENOENT), nil
		}
	case 3:
		body = append(make([]byte, 16), attr...)
	case 15:
		off, size := le.Uint64(in[48:]), uint64(le.Uint32(in[56:]))
		for i := off; i < min(off+size, backFileSize); i++ {
			body = append(body, backContent(i))
		}
	case 38:
	default:
		errno = -int32(syscall.ENOSYS)
	}
	if op == 3 {
		switch b.fault {
		case "wrong unique":
			unique += 2
		case "positive error":
			errno, body = 5, nil
		case "error with data":
			errno = -5
		case "short structure":
			body = body[:len(body)-8]
		}
	}
	reply := le.AppendUint32(nil, uint32(16+len(body)))
	reply = le.AppendUint32(reply, uint32(errno))
	reply = le.AppendUint64(reply, unique)
	reply = append(reply, body...)
	if len(reply) > room {
		b.t.Errorf("back-end: a reply of %d bytes to opcode %d with room for %d", len(reply), op, room)
		return 0
	}
	used := uint32(len(reply))
	if op == 3 {
		switch b.fault {
		case "used.len 0":
			used = 0
		case "used.len too long":
			used = uint32(room) + 1
		case "used.len not the reply's":
			used -= 4
		}
	}
	if op == 15 && b.fault == "bytes behind used.len" {
		used -= 4 // and the header says so
		le.PutUint32(reply, used)
	}
	for _, p := range out {
		reply = reply[copy(p, reply):]
	}
	return used
}
