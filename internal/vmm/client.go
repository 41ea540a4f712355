package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Guest is a kernel's way to speak FUSE: what it offers in INIT, and how.
type Guest struct {
	Name       string
	Minor      uint32
	Flags      uint32
	Flags2     uint32
	InitBytes  int  // the body of INIT: 16 until 7.35, 64 since
	MultiQueue bool // spreads requests over the queues (6.11 and later)
}

// Guests by kernel. The UML kernels are built without FUSE_DAX.
var (
	Linux510    = Guest{Name: "Linux 5.10", Minor: 32, Flags: 0x0bfffffb, InitBytes: 16}
	Linux61     = Guest{Name: "Linux 6.1", Minor: 38, Flags: 0x7bfffffb, Flags2: 0x00b, InitBytes: 64}
	Linux66     = Guest{Name: "Linux 6.6", Minor: 39, Flags: 0x7bfffffb, Flags2: 0x01f, InitBytes: 64}
	Linux612    = Guest{Name: "Linux 6.12", Minor: 41, Flags: 0x7bfffffb, Flags2: 0x1df, InitBytes: 64, MultiQueue: true}
	Linux72     = Guest{Name: "Linux 7.2", Minor: 45, Flags: 0x7bfffffb, Flags2: 0x5ff, InitBytes: 64, MultiQueue: true}
	Linux61UML  = Guest{Name: "Linux 6.1 UML", Minor: 38, Flags: 0x7bfffffb, Flags2: 0x009, InitBytes: 64}
	Linux612UML = Guest{Name: "Linux 6.12 UML", Minor: 41, Flags: 0x7bfffffb, Flags2: 0x1fd, InitBytes: 64, MultiQueue: true}
	Linux72UML  = Guest{Name: "Linux 7.2 UML", Minor: 45, Flags: 0x7bfffffb, Flags2: 0x5fd, InitBytes: 64, MultiQueue: true}

	// Guests are all of them.
	Guests = []Guest{Linux510, Linux61, Linux66, Linux612, Linux72, Linux61UML, Linux612UML, Linux72UML}
)

// offered are the guest's 64 flag bits.
func (g Guest) offered() uint64 { return uint64(g.Flags) | uint64(g.Flags2)<<32 }

// maxReadahead is what a guest with the default of 128 KiB announces.
const maxReadahead = 128 << 10

// Client is a guest's FUSE client on the queues of a VM. The copies that On, As
// and Umask make share one session.
type Client struct {
	*session
	queue int // 0: by the guest's way
	uid   uint32
	gid   uint32
	pid   uint32
	umask uint32
}

type session struct {
	vm     *VM
	guest  Guest
	unique atomic.Uint64
	spread atomic.Uint32
	init   InitOut

	queues  []*Queue        // that it listens on
	room    []chan struct{} // by index of queue: a chain came back
	reapers sync.WaitGroup

	noOpen, noOpendir atomic.Bool // ENOSYS was the answer: never ask again

	mu   sync.Mutex
	refs map[uint64]uint64 // nodeid to look-ups granted and not forgotten; guarded by mu
	bad  error             // guarded by mu
	over bool              // guarded by mu
}

// NewClient starts to listen on the VM's queues, or only on those that are named.
// Nothing is sent yet: the first request is Init. It is one client to a queue, and
// ends with the rings or with Close; the session that it had with the back-end goes
// on, so that another client may continue it without Init.
func (vm *VM) NewClient(guest Guest, queues ...int) (*Client, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.state != running {
		return nil, errors.New("a client needs running rings")
	}
	s := &session{vm: vm, guest: guest, refs: map[uint64]uint64{}}
	s.room = make([]chan struct{}, len(vm.queues))
	for _, q := range vm.queues[:vm.Configured+1] {
		if len(queues) > 0 && !slices.Contains(queues, q.index) {
			continue
		}
		s.queues = append(s.queues, q)
		s.room[q.index] = make(chan struct{}, 1)
		call := q.call
		s.reapers.Go(func() { s.reap(q, call) })
	}
	vm.detachs = append(vm.detachs, s.detach)
	return &Client{session: s}, nil
}

// Mount starts the rings, makes a client and sends INIT: what a guest does
// between loading the driver and having a mount.
func (vm *VM) Mount(ctx context.Context, guest Guest) (*Client, error) {
	if err := vm.Start(); err != nil {
		return nil, err
	}
	if vm.Patient {
		if err := vm.settle(); err != nil {
			return nil, err
		}
	}
	c, err := vm.NewClient(guest)
	if err != nil {
		return nil, err
	}
	if _, err := c.Init(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// settle waits until the back-end has handled all messages so far.
func (vm *VM) settle() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.Control.Quiet()
}

// Close stops listening; requests in flight fail with ErrReset.
func (c *Client) Close() {
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	c.detach()
}

func (s *session) detach() {
	s.mu.Lock()
	over := s.over
	s.over = true
	s.mu.Unlock()
	if over {
		return
	}
	for _, q := range s.queues {
		if q.call != nil {
			q.call.ours.SetReadDeadline(time.Unix(1, 0))
		}
	}
	s.reapers.Wait()
	for _, q := range s.queues {
		if q.call != nil {
			q.call.ours.SetReadDeadline(time.Time{})
		}
	}
	s.fail(ErrReset)
}

// fail ends every request that waits, with err.
func (s *session) fail(err error) {
	for _, q := range s.queues {
		for _, c := range q.outstanding() {
			if p, ok := c.Owner.(*Pending); ok && p.session == s {
				p.finish(err)
			}
		}
	}
}

// outstanding lists the chains in flight.
func (q *Queue) outstanding() []*Chain {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []*Chain
	for _, c := range q.inflight {
		if c != nil {
			out = append(out, c)
		}
	}
	return out
}

// reap hands what one queue returns to those who wait for it, until the call
// descriptor's deadline passes or it is closed.
func (s *session) reap(q *Queue, call *signal) {
	var batch []*Chain
	for {
		q.DisableCalls()
		for {
			var err error
			if batch, err = q.Reap(batch[:0]); err != nil {
				s.setBad(err)
				return
			}
			for _, c := range batch {
				if p, ok := c.Owner.(*Pending); ok {
					p.complete()
				}
			}
			if len(batch) > 0 {
				select {
				case s.room[q.index] <- struct{}{}:
				default:
				}
			}
			if q.EnableCalls() {
				break
			}
		}
		n, err := call.wait()
		q.calls.Add(n)
		if err != nil {
			return
		}
	}
}

// setBad records a broken rule; nothing goes on after it.
func (s *session) setBad(err error) {
	s.mu.Lock()
	if s.bad == nil {
		s.bad = err
	}
	s.mu.Unlock()
	s.fail(err)
}

// Bad is the first violation that was found, nil while there is none.
func (s *session) Bad() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

// On returns the client with all its requests on queue i.
func (c *Client) On(i int) *Client {
	d := *c
	d.queue = i
	return &d
}

// As returns the client with requests by another user of the guest.
func (c *Client) As(uid, gid uint32) *Client {
	d := *c
	d.uid, d.gid, d.pid = uid, gid, 1000
	return &d
}

// pick chooses the queue for the next request: queue 1, as guests do that know
// no better, or one after the other.
func (c *Client) pick() *Queue {
	i := c.queue
	if i == 0 {
		i = 1
		if n := c.vm.Configured; c.guest.MultiQueue && n > 1 {
			i = 1 + int(c.spread.Add(1)-1)%n
		}
	}
	return c.vm.queues[i]
}

// shape is what the client expects of a reply.
type shape struct {
	fixed    int  // bytes that a good reply has, exactly; or
	variable int  // bytes that it has room for, in one buffer; or
	pages    int  // bytes that it has room for, in pages
	none     bool // there is no reply
}

// Pending is a request on its way.
type Pending struct {
	Chain
	session *session
	queue   *Queue
	op      Opcode
	nodeID  uint64
	unique  uint64
	shape   shape
	sent    []byte // header and arguments, to see that they were left alone
	pages   []Buffer
	err     error
	errno   syscall.Errno
	data    []byte
	done    chan struct{}
	state   atomic.Int32
}

const (
	waiting int32 = iota
	finished
	abandoned // nobody waits any more; the buffers stay the back-end's
)

// start sends a request. args are its arguments as the wire has them, data is
// what Linux sends from pages (WRITE).
func (c *Client) start(ctx context.Context, op Opcode, nodeID uint64, args, data []byte, want shape) (*Pending, error) {
	q := c.pick()
	if op == OpForget && c.queue == 0 {
		q = c.vm.queues[0]
	}
	return c.startOn(ctx, q, op, nodeID, args, data, want)
}

func (c *Client) startOn(ctx context.Context, q *Queue, op Opcode, nodeID uint64, args, data []byte, want shape) (*Pending, error) {
	if !slices.Contains(c.queues, q) {
		return nil, fmt.Errorf("%v: the client does not listen on queue %d", op, q.index)
	}
	p := &Pending{session: c.session, queue: q, op: op, nodeID: nodeID, shape: want, done: make(chan struct{})}
	p.unique = c.unique.Add(2)
	p.Owner = p
	p.Guard = true
	head := pack(header{
		Len: uint32(inHeaderSize + len(args) + len(data)), Opcode: op, Unique: p.unique, NodeID: nodeID,
		UID: c.uid, GID: c.gid, PID: c.pid,
	})
	if err := p.build(head, args, data); err != nil {
		p.free()
		return nil, err
	}
	if err := c.submit(ctx, q, p); err != nil {
		p.free()
		return nil, fmt.Errorf("%v of node %d: %w", op, nodeID, err)
	}
	return p, nil
}

// build lays the request out as virtio_fs_enqueue_req does: header, all plain
// arguments together, pages; then the same for the reply.
func (p *Pending) build(head, args, data []byte) error {
	mem := p.session.vm.Memory
	put := func(b []byte) error {
		buf, err := mem.Alloc(len(b))
		if err != nil {
			return err
		}
		copy(buf.Bytes, b)
		p.Readable = append(p.Readable, buf)
		return nil
	}
	room := func(n int) error {
		buf, err := mem.Alloc(n)
		if err != nil {
			return err
		}
		p.Writable = append(p.Writable, buf)
		return nil
	}
	p.sent = append(append([]byte{}, head...), args...)
	switch {
	case p.op == OpForget && p.queue.index == 0: // one piece on the high-priority queue
		if err := put(p.sent); err != nil {
			return err
		}
	default:
		if err := put(head); err != nil {
			return err
		}
		if len(args) > 0 {
			if err := put(args); err != nil {
				return err
			}
		}
	}
	inPages := (len(data) + PageSize - 1) / PageSize
	outPages := (p.shape.pages + PageSize - 1) / PageSize
	var err error
	if p.pages, err = mem.Pages(nil, inPages+outPages); err != nil {
		return err
	}
	for i := range inPages {
		part := data[i*PageSize : min(len(data), (i+1)*PageSize)]
		page := p.pages[i]
		page.Bytes = page.Bytes[:copy(page.Bytes, part)]
		p.Readable = append(p.Readable, page)
	}
	if p.shape.none {
		return nil
	}
	if err := room(outHeaderSize); err != nil {
		return err
	}
	if n := p.shape.fixed + p.shape.variable; n > 0 {
		if err := room(n); err != nil {
			return err
		}
	}
	left := p.shape.pages
	for i := range outPages {
		page := p.pages[inPages+i]
		page.Bytes = page.Bytes[:min(left, PageSize)]
		left -= len(page.Bytes)
		p.Writable = append(p.Writable, page)
	}
	return nil
}

// free gives the buffers back.
func (p *Pending) free() {
	mem := p.session.vm.Memory
	mem.FreePages(p.pages)
	pages := map[uint64]bool{}
	for _, b := range p.pages {
		pages[b.GPA] = true
	}
	for _, list := range [][]Buffer{p.Readable, p.Writable} {
		for _, b := range list {
			if !pages[b.GPA] {
				mem.Free(b)
			}
		}
	}
	p.queue.Release(&p.Chain)
	p.pages, p.Readable, p.Writable = nil, nil, nil
}

// submit adds the request, waiting for room as the guest does.
func (s *session) submit(ctx context.Context, q *Queue, p *Pending) error {
	for {
		s.mu.Lock()
		bad, over := s.bad, s.over
		s.mu.Unlock()
		switch {
		case bad != nil:
			return bad
		case over:
			return ErrReset
		}
		err := q.Submit(&p.Chain)
		if !errors.Is(err, ErrFull) {
			return err
		}
		select {
		case <-s.room[q.index]:
			// Others may wait too: pass the token on once this one is in.
			defer func() {
				select {
				case s.room[q.index] <- struct{}{}:
				default:
				}
			}()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// complete is called by the reaper: it takes the reply out of guest memory and
// holds it against the rules.
func (p *Pending) complete() {
	err := p.verify()
	if p.state.CompareAndSwap(waiting, finished) {
		p.err = err
		p.free()
		close(p.done)
	} else {
		p.free()
	}
	if err != nil {
		p.session.setBad(err)
	}
}

// finish ends the request without a reply. Its buffers stay out of use: the
// back-end may still write to them.
func (p *Pending) finish(err error) {
	if p.state.CompareAndSwap(waiting, finished) {
		p.err = err
		close(p.done)
	}
}

// lost is what the VM calls when the ring is dropped with the request in it: the
// back-end has let go of the buffers.
func (p *Pending) lost(err error) {
	p.finish(err)
	p.free()
}

func (p *Pending) verify() error {
	name := fmt.Sprintf("%v of node %d (unique %d, queue %d)", p.op, p.nodeID, p.unique, p.queue.index)
	at := 0
	for _, b := range p.Readable {
		if at >= len(p.sent) {
			break
		}
		if !bytes.Equal(b.Bytes, p.sent[at:at+len(b.Bytes)]) {
			return violation("%s: the request's own bytes were written to", name)
		}
		at += len(b.Bytes)
	}
	if p.shape.none {
		if p.used != 0 {
			return violation("%s: used.len is %d, it has no reply", name, p.used)
		}
		return nil
	}
	if p.used < outHeaderSize {
		return violation("%s: used.len is %d, less than a reply's header", name, p.used)
	}
	reply := make([]byte, 0, p.used)
	for _, b := range p.Writable {
		reply = append(reply, b.Bytes[:min(len(b.Bytes), int(p.used)-len(reply))]...)
	}
	head := unpack[outHeader](reply)
	body := reply[outHeaderSize:]
	switch {
	case head.Len != p.used:
		return violation("%s: the reply says %d bytes, used.len is %d", name, head.Len, p.used)
	case head.Unique != p.unique:
		return violation("%s: the reply's unique is %d", name, head.Unique)
	case head.Error > 0 || head.Error <= -512:
		return violation("%s: the reply's error is %d", name, head.Error)
	case head.Error != 0 && len(body) != 0:
		return violation("%s: an error reply of %d bytes", name, head.Len)
	case head.Error == 0 && p.shape.fixed > 0 && len(body) != p.shape.fixed:
		return violation("%s: a reply of %d bytes where the guest expects %d", name, head.Len, outHeaderSize+p.shape.fixed)
	case head.Error == 0 && p.shape == shape{} && len(body) != 0:
		return violation("%s: a reply of %d bytes, it has only a header", name, head.Len)
	}
	if head.Error == 0 {
		if err := p.CheckGuard(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	p.errno = syscall.Errno(-head.Error)
	p.data = body
	return nil
}

// Wait waits for the reply. The error is a syscall.Errno if that was the answer.
// When ctx ends first the request stays with the back-end: FUSE over virtio has
// no way to take it back.
func (p *Pending) Wait(ctx context.Context) ([]byte, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		if p.state.CompareAndSwap(waiting, abandoned) {
			return nil, fmt.Errorf("%v of node %d: no reply: %w", p.op, p.nodeID, ctx.Err())
		}
		<-p.done
	}
	if p.err != nil {
		return nil, p.err
	}
	if p.errno != 0 {
		return nil, p.errno
	}
	return p.data, nil
}

// call is start and Wait.
func (c *Client) call(ctx context.Context, op Opcode, nodeID uint64, args []byte, want shape) ([]byte, error) {
	p, err := c.start(ctx, op, nodeID, args, nil, want)
	if err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// Raw sends any request with room bytes for what follows the reply's header, and
// returns that. A negative room is no reply at all.
func (c *Client) Raw(ctx context.Context, op Opcode, nodeID uint64, body []byte, room int) ([]byte, error) {
	p, err := c.Go(ctx, op, nodeID, body, room)
	if err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// Go is Raw without the wait.
func (c *Client) Go(ctx context.Context, op Opcode, nodeID uint64, body []byte, room int) (*Pending, error) {
	want := shape{variable: room}
	if room <= 0 {
		want = shape{none: room < 0}
	}
	return c.start(ctx, op, nodeID, body, nil, want)
}

// Init begins a session. The look-ups and the sticky ENOSYS of the one before
// are forgotten, as by a new mount.
func (c *Client) Init(ctx context.Context) (InitOut, error) {
	body := pack(uint32(7), c.guest.Minor, uint32(maxReadahead), c.guest.Flags)
	if c.guest.InitBytes > 16 {
		body = append(body, pack(c.guest.Flags2, make([]byte, 44))...)
	}
	b, err := c.call(ctx, OpInit, 0, body, shape{fixed: initOutSize})
	if err != nil {
		return InitOut{}, err
	}
	out := unpack[InitOut](b)
	if out.Major != 7 {
		return out, violation("INIT was answered with major %d", out.Major)
	}
	if granted := out.AllFlags() &^ c.guest.offered(); granted != 0 {
		return out, violation("INIT grants %#x, which was not offered", granted)
	}
	c.mu.Lock()
	c.init = out
	clear(c.refs)
	c.mu.Unlock()
	c.noOpen.Store(false)
	c.noOpendir.Store(false)
	return out, nil
}

// InitReply is what the back-end granted.
func (c *Client) InitReply() InitOut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.init
}

// Destroy ends the session, as an unmount does.
func (c *Client) Destroy(ctx context.Context) error {
	_, err := c.call(ctx, OpDestroy, 0, nil, shape{})
	return err
}

// granted counts a look-up that the back-end gave with an entry.
func (s *session) granted(nodeID uint64) {
	if nodeID == 0 {
		return
	}
	s.mu.Lock()
	s.refs[nodeID]++
	s.mu.Unlock()
}

// Refs returns how many look-ups of each node were granted and not forgotten.
func (c *Client) Refs() map[uint64]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[uint64]uint64, len(c.refs))
	for id, n := range c.refs {
		out[id] = n
	}
	return out
}

// Forget gives n look-ups of a node back, on the high-priority queue unless On
// says otherwise. It does not wait.
func (c *Client) Forget(ctx context.Context, nodeID, n uint64) error {
	_, err := c.start(ctx, OpForget, nodeID, pack(n), nil, shape{none: true})
	if err != nil {
		return err
	}
	c.mu.Lock()
	if have := c.refs[nodeID]; have > n {
		c.refs[nodeID] = have - n
	} else {
		delete(c.refs, nodeID)
	}
	c.mu.Unlock()
	return nil
}

// ForgetAll forgets every node that the client knows, as "echo 2 >drop_caches".
func (c *Client) ForgetAll(ctx context.Context) error {
	for id, n := range c.Refs() {
		if err := c.Forget(ctx, id, n); err != nil {
			return err
		}
	}
	return nil
}

// BatchForget forgets several nodes with one request, which Linux never sends.
func (c *Client) BatchForget(ctx context.Context, counts map[uint64]uint64) error {
	body := le32s(uint32(len(counts)), 0)
	for id, n := range counts {
		body = binary.LittleEndian.AppendUint64(body, id)
		body = binary.LittleEndian.AppendUint64(body, n)
	}
	_, err := c.start(ctx, OpBatchForget, 0, body, nil, shape{none: true})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, n := range counts {
		if have := c.refs[id]; have > n {
			c.refs[id] = have - n
		} else {
			delete(c.refs, id)
		}
	}
	return nil
}
