package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options says which VMM to be and what machine to build. The zero value is
// QEMU 7.2 with one request queue of 1,024 entries and 64 MiB of memory: the
// shape that Kata gives.
type Options struct {
	Sequence Sequence

	// RequestQueues is how many request queues the device has (default 1);
	// Configured how many of them the guest's driver sets up (default all): a
	// VMM enables all of them nevertheless.
	RequestQueues int
	Configured    int
	QueueSize     uint16 // default 1024

	// Memory is the guest's memory (default Flat of 64 MiB).
	Memory []Region

	// Call is what the back-end gets to signal with. UML always gives a socket.
	Call CallKind
	// BlockingKick gives blocking eventfds to be kicked by, as UML does always.
	BlockingKick bool

	// FeaturesOff and ProtocolOff are bits that this front-end does not know.
	FeaturesOff uint64
	ProtocolOff uint64

	// RequestTag makes the front-end read the configuration space, as generic
	// devices and UML do, whatever VMM it is.
	RequestTag bool

	// Patient makes Mount wait until the back-end has taken all messages of the
	// start. A real guest needs longer than that for its first request; virtiofsd,
	// for one, loses a request whose kick comes before SET_VRING_ENABLE. Ours must
	// not, so it is off unless a foreign back-end is driven.
	Patient bool

	// Wait is how long Dial tries again while nothing listens on the socket.
	Wait time.Duration

	// Trace, if set, sees each message that is sent.
	Trace func(req Request, needReply bool, payload []byte, fds int)
}

// VM is a virtual machine with one virtio-fs device on an external back-end.
type VM struct {
	Options
	Memory  *Memory
	Control *Control

	features uint64 // offered by the back-end
	acked    uint64
	protocol uint64 // acked protocol features
	maxQueue int    // GET_QUEUE_NUM
	config   []byte // configuration space, if it was read

	queues  []*Queue
	channel int // our end of the back-end's request channel, -1 if there is none

	inflight     []int  // the memory that the back-end keeps its table in; nil or one descriptor
	inflightArea []byte // and its description

	mu       sync.Mutex // serializes conversations; above Queue.mu
	state    vmState
	handed   []handed // descriptors in the back-end's hands
	detachs  []func() // clients that end with the rings
	announce bool     // the back-end has our memory
	broken   error    // first violation found in passing
}

type vmState int

const (
	realized vmState = iota // connected and negotiated, rings stopped
	running
	paused
	closed
)

// Dial connects to the back-end at path and does what the VMM does until the
// guest boots. The rings are not set up: that is Start.
func Dial(ctx context.Context, path string, opts Options) (*VM, error) {
	if opts.RequestQueues == 0 {
		opts.RequestQueues = 1
	}
	if opts.Configured == 0 {
		opts.Configured = opts.RequestQueues
	}
	if opts.QueueSize == 0 {
		opts.QueueSize = 1024
	}
	if s := opts.QueueSize; s&(s-1) != 0 || s < 2 || s > 32768 {
		return nil, fmt.Errorf("queue size %d is not a power of two of 2 to 32768", s)
	}
	if opts.Configured > opts.RequestQueues {
		return nil, fmt.Errorf("%d request queues to configure of %d", opts.Configured, opts.RequestQueues)
	}
	if opts.Memory == nil {
		opts.Memory = Flat(64 << 20)
		if opts.Sequence.uml() {
			opts.Memory = UMLMemory(64 << 20)
		}
	}
	if opts.Sequence.uml() {
		opts.BlockingKick, opts.Call = true, CallSocket
	}

	mem, err := NewMemory(opts.Memory)
	if err != nil {
		return nil, err
	}
	vm := &VM{Options: opts, Memory: mem, channel: -1}
	if vm.Control, err = dialWithin(ctx, path, opts.Wait); err != nil {
		mem.Close()
		return nil, err
	}
	vm.Control.Trace = opts.Trace
	for i := range opts.RequestQueues + 1 {
		q, err := newQueue(vm, i, opts.QueueSize)
		if err != nil {
			vm.Kill()
			return nil, err
		}
		vm.queues = append(vm.queues, q)
	}
	if err := opts.Sequence.talk(vm).realize(); err != nil {
		vm.Kill()
		return nil, fmt.Errorf("%v, realize: %w", opts.Sequence, err)
	}
	return vm, nil
}

func dialWithin(ctx context.Context, path string, wait time.Duration) (*Control, error) {
	for end := time.Now().Add(wait); ; {
		c, err := dialControl(ctx, path)
		retry := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
		if !retry || time.Now().After(end) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Queue returns queue i: 0 is the high-priority queue, 1 and up take requests.
func (vm *VM) Queue(i int) *Queue { return vm.queues[i] }

// Queues is the number of queues of the device, the high-priority one included.
func (vm *VM) Queues() int { return len(vm.queues) }

// MaxQueues is what the back-end answered to GET_QUEUE_NUM, 0 if not asked.
func (vm *VM) MaxQueues() int { return vm.maxQueue }

// Features returns the feature bits that were offered and that were acknowledged.
func (vm *VM) Features() (offered, acked uint64) { return vm.features, vm.acked }

// ProtocolFeatures returns the acknowledged protocol feature bits.
func (vm *VM) ProtocolFeatures() uint64 { return vm.protocol }

// Tag is the tag in the configuration space, "" if that was not read.
func (vm *VM) Tag() string {
	if len(vm.config) < 36 {
		return ""
	}
	n := 0
	for n < 36 && vm.config[n] != 0 {
		n++
	}
	return string(vm.config[:n])
}

// ConfigQueues is the number of request queues in the configuration space.
func (vm *VM) ConfigQueues() int {
	if len(vm.config) < 40 {
		return 0
	}
	return int(binary.LittleEndian.Uint32(vm.config[36:]))
}

// Broken returns the first violation that was found while talking, such as
// changed status flags of a descriptor.
func (vm *VM) Broken() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.broken
}

// Start sets the rings up and enables them: the guest's driver sets DRIVER_OK.
func (vm *VM) Start() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.startLocked()
}

func (vm *VM) startLocked() error {
	if vm.state == running || vm.state == closed {
		return errors.New("start: the rings run already or the machine is closed")
	}
	if vm.state == realized {
		for _, q := range vm.queues {
			q.wipe()
		}
		if err := vm.openSignals(); err != nil {
			return err
		}
	}
	if err := vm.Sequence.talk(vm).start(); err != nil {
		vm.dropRings()
		return fmt.Errorf("%v, start: %w", vm.Sequence, err)
	}
	vm.state = running
	return nil
}

// Stop ends the rings as the guest's driver does when it unbinds: requests in
// flight are lost, clients end, and the next Start begins with empty rings.
func (vm *VM) Stop() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.stopLocked()
}

func (vm *VM) stopLocked() error {
	if vm.state == realized || vm.state == closed {
		return nil
	}
	var err error
	if vm.state == running || vm.Sequence == CloudHypervisor {
		err = vm.Sequence.talk(vm).stop()
	}
	vm.dropRings()
	if err != nil {
		return fmt.Errorf("%v, stop: %w", vm.Sequence, err)
	}
	return vm.broken
}

// dropRings forgets the rings: the back-end has let go of them or is gone.
func (vm *VM) dropRings() {
	for _, detach := range vm.detachs {
		detach()
	}
	vm.detachs = nil
	for _, h := range vm.handed {
		if err := h.unchanged(); err != nil && vm.broken == nil {
			vm.broken = err
		}
	}
	vm.handed = nil
	for _, q := range vm.queues {
		for _, c := range q.forget() {
			if o, ok := c.Owner.(interface{ lost(error) }); ok {
				o.lost(ErrReset)
			}
		}
		q.closeSignals()
	}
	vm.state = realized
}

// Pause stops the machine as QMP "stop" or the API's pause do: requests in
// flight stay in the rings.
func (vm *VM) Pause() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.state != running {
		return errors.New("pause: the rings do not run")
	}
	if err := vm.Sequence.talk(vm).pause(); err != nil {
		return fmt.Errorf("%v, pause: %w", vm.Sequence, err)
	}
	vm.state = paused
	return nil
}

// Resume continues a paused machine with the same rings.
func (vm *VM) Resume() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.state != paused {
		return errors.New("resume: the machine is not paused")
	}
	if err := vm.Sequence.talk(vm).resume(); err != nil {
		return fmt.Errorf("%v, resume: %w", vm.Sequence, err)
	}
	vm.state = running
	return nil
}

// Reset is a reset of the machine: Stop, and RESET_DEVICE where the VMM sends it.
func (vm *VM) Reset() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.resetLocked()
}

func (vm *VM) resetLocked() error {
	if err := vm.stopLocked(); err != nil {
		return err
	}
	if err := vm.Sequence.talk(vm).reset(); err != nil {
		return fmt.Errorf("%v, reset: %w", vm.Sequence, err)
	}
	return nil
}

// Reboot is a reset and the start of the driver in the guest's next life, on
// the same connection.
func (vm *VM) Reboot() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if err := vm.resetLocked(); err != nil {
		return err
	}
	return vm.startLocked()
}

// HotAddMemory plugs one more region of memory.
func (vm *VM) HotAddMemory(spec Region) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	r, err := vm.Memory.add(spec)
	if err != nil {
		return err
	}
	if !vm.announce {
		return nil
	}
	if vm.protocol&ProtocolMemSlots != 0 {
		return vm.addRegion(r)
	}
	return vm.sendMemTable(0)
}

// HotRemoveMemory unplugs the region at gpa. When it returns the back-end has
// let go of the region and it is unmapped here too.
func (vm *VM) HotRemoveMemory(gpa uint64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	r, err := vm.Memory.take(gpa)
	if err != nil {
		return err
	}
	defer r.unmap()
	if !vm.announce {
		return nil
	}
	if vm.protocol&ProtocolMemSlots != 0 {
		return vm.Control.Set(RemMemReg, true, append(make([]byte, 8), vm.regionPayload(r)...))
	}
	return vm.sendMemTable(0)
}

// Close ends the machine as a VMM does that is told to quit: the rings are
// stopped, then the socket is closed. It returns the first violation found.
func (vm *VM) Close() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.state == closed {
		return nil
	}
	err := vm.stopLocked()
	for _, q := range vm.queues {
		if q.fault != nil && err == nil {
			err = q.fault.unchanged()
		}
	}
	vm.release()
	return err
}

// Reconnect goes on with another process of the back-end, at path, as Cloud
// Hypervisor does when its connection has ended: requests in flight stay in the
// rings, and are to be answered by the other one. The new process is waited for as
// Options.Wait says.
func (vm *VM) Reconnect(ctx context.Context, path string) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.Sequence != CloudHypervisor || vm.state != running {
		return fmt.Errorf("reconnect of %v: only Cloud Hypervisor does, while its rings run", vm.Sequence)
	}
	c, err := dialWithin(ctx, path, vm.Wait)
	if err != nil {
		return err
	}
	vm.Control.Close()
	c.Trace = vm.Trace
	vm.Control = c
	if err := (cloudHypervisor{vm}).reconnect(); err != nil {
		return fmt.Errorf("%v, reconnect: %w", vm.Sequence, err)
	}
	return nil
}

// Kill ends the machine like a SIGKILL of the VMM: the socket closes, nothing
// else is said.
func (vm *VM) Kill() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.state == closed {
		return
	}
	vm.release()
}

func (vm *VM) release() {
	vm.Control.Close()
	if vm.channel >= 0 {
		unix.Close(vm.channel)
	}
	vm.dropRings()
	for _, q := range vm.queues {
		q.fault.close()
	}
	vm.Memory.Close()
	closeAll(vm.inflight)
	vm.state = closed
}

// BackendChannel is our end of the back-end's request channel, -1 if there is none.
func (vm *VM) BackendChannel() int { return vm.channel }

// openSignals makes fresh notification descriptors for the queues that the guest
// sets up, as VMMs do at each start.
func (vm *VM) openSignals() error {
	for _, q := range vm.queues[:vm.Configured+1] {
		if err := q.openSignals(vm.Call, vm.BlockingKick); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) openSignals(call CallKind, blockingKick bool) (err error) {
	name := func(what string) string { return fmt.Sprintf("the %s descriptor of queue %d", what, q.index) }
	if q.kick, err = newEventfd(name("kick"), blockingKick); err != nil {
		return err
	}
	if q.call, err = newCall(name("call"), call); err != nil {
		return err
	}
	if q.masked, err = newEventfd(name("masked call"), false); err != nil {
		return err
	}
	from, to := q.masked, q.call
	q.forward.Go(func() { forward(from, to) })
	return nil
}

// forward passes signals of the masked notifier on to the guest's until it is
// closed. QEMU looks at the masked one when it switches to the other; where
// SET_VRING_CALL is not acknowledged, a signal may still come to it afterwards.
func forward(masked, call *signal) {
	for {
		if _, err := masked.wait(); err != nil {
			return
		}
		ready := []unix.PollFd{{Fd: int32(call.fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(ready, 0); n == 1 { // a full one wakes its reader anyhow
			unix.Write(call.fd, one[:])
		}
	}
}

func (q *Queue) closeSignals() {
	q.masked.close()
	q.forward.Wait()
	q.masked = nil
	for _, s := range []**signal{&q.kick, &q.call} {
		(*s).close()
		*s = nil
	}
}

// hand sends a descriptor's message and remembers the descriptor's flags.
func (vm *VM) hand(req Request, ack bool, q *Queue, s *signal) error {
	vm.handed = append(vm.handed, s.handed)
	return vm.Control.Set(req, ack, le64(uint64(q.index)), s.fd)
}

func (vm *VM) userAddress(gpa uint64) (uint64, error) {
	if vm.protocol&protocolGPAAddresses != 0 {
		return gpa, nil
	}
	return vm.Memory.userAddress(gpa)
}

// regionPayload is the 32-byte description of a region.
func (vm *VM) regionPayload(r *region) []byte {
	uva := r.UVA
	if vm.protocol&protocolGPAAddresses != 0 {
		uva = r.GPA
	}
	var b []byte
	for _, v := range []uint64{r.GPA, r.Size, uva, r.Offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func (vm *VM) addRegion(r *region) error {
	return vm.Control.Set(AddMemReg, true, append(make([]byte, 8), vm.regionPayload(r)...), fdOf(r.file))
}

// sendMemTable sends all regions in one message, with slots region slots in the
// payload if that is more than there are regions.
func (vm *VM) sendMemTable(slots int) error {
	payload := le32s(uint32(len(vm.Memory.regions)), 0)
	var fds []int
	for _, r := range vm.Memory.regions {
		payload = append(payload, vm.regionPayload(r)...)
		fds = append(fds, fdOf(r.file))
	}
	if want := 8 + slots*memRegionSize; len(payload) < want {
		payload = append(payload, make([]byte, want-len(payload))...)
	}
	if err := vm.Control.Set(SetMemTable, true, payload, fds...); err != nil {
		return err
	}
	vm.announce = true
	return nil
}

// fdOf returns a file's descriptor without a side effect on its flags.
func fdOf(f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	n := -1
	raw.Control(func(fd uintptr) { n = int(fd) })
	return n
}

// setNum, setBase, setAddr and enable send one ring's messages.
func (vm *VM) setNum(q *Queue, ack bool) error {
	return vm.Control.Set(SetVringNum, ack, le32s(uint32(q.index), uint32(q.size)))
}

func (vm *VM) setBase(q *Queue, ack bool, base uint16) error {
	return vm.Control.Set(SetVringBase, ack, le32s(uint32(q.index), uint32(base)))
}

func (vm *VM) setAddr(q *Queue, ack bool) error {
	desc, err := vm.userAddress(q.ring.GPA)
	if err != nil {
		return err
	}
	payload := le32s(uint32(q.index), 0)
	for _, a := range []uint64{desc, desc + uint64(q.usedAt), desc + uint64(q.availAt), q.ring.GPA + uint64(q.usedAt)} {
		payload = binary.LittleEndian.AppendUint64(payload, a)
	}
	return vm.Control.Set(SetVringAddr, ack, payload)
}

func (vm *VM) enable(q *Queue, ack bool, on uint32) error {
	return vm.Control.Set(SetVringEnable, ack, le32s(uint32(q.index), on))
}

// getBase stops a ring and remembers where the back-end says it stopped.
func (vm *VM) getBase(q *Queue, flags uint32) error {
	if err := vm.Control.Send(GetVringBase, flags, le32s(uint32(q.index), 0)); err != nil {
		return err
	}
	b, fds, err := vm.Control.Receive(GetVringBase, 8)
	if err != nil {
		return err
	}
	closeAll(fds)
	index, base := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case index != uint32(q.index):
		return violation("GET_VRING_BASE of queue %d was answered for queue %d", q.index, index)
	case base > 0xffff:
		return violation("GET_VRING_BASE of queue %d answered %#x: a split ring's index has 16 bits", q.index, base)
	case q.availIdx-uint16(base) > q.size && !q.abused:
		return violation("GET_VRING_BASE of queue %d answered %d, avail idx is %d", q.index, base, q.availIdx)
	}
	q.base = uint16(base)
	return nil
}

// Base is where the back-end said it had stopped the ring.
func (q *Queue) Base() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.base
}

// readConfig reads size bytes of the configuration space from its beginning.
func (vm *VM) readConfig(size uint32) ([]byte, error) {
	payload := append(le32s(0, size, 0), make([]byte, size)...)
	b, err := vm.Control.Get(GetConfig, payload, len(payload))
	if err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint32(b[4:]); got != size {
		return nil, violation("GET_CONFIG of %d bytes was answered with %d", size, got)
	}
	return b[12:], nil
}

// giveChannel makes the back-end's request channel.
func (vm *VM) giveChannel() error {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("back-end channel: %w", err)
	}
	vm.channel = p[0]
	err = vm.Control.Set(SetBackendReqFd, true, nil, p[1])
	unix.Close(p[1])
	return err
}
