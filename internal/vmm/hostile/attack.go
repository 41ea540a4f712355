package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// Dial connects a new machine to the back-end under attack.
type Dial func(ctx context.Context, opts vmm.Options) (*vmm.VM, error)

// Attack is one way to harm a back-end.
type Attack struct {
	Name string
	// Run attacks and verifies what is left. It leaves no connection behind.
	Run func(ctx context.Context, dial Dial) error
}

// All are all attacks but the one at volume, which is Random.
func All() []Attack {
	return slices.Concat(chainAttacks(), ringAttacks(), fuseAttacks(), memoryAttacks(), messageAttacks())
}

// patience is how long the back-end may take for anything that needs no network.
const patience = 5 * time.Second

// memorySize is the guest's memory in most attacks.
const memorySize = 8 << 20

// rig is a machine under a guest that has mounted the file system and then turned
// on its host: queue 1 belongs to the attack, the others to an honest client.
type rig struct {
	vm     *vmm.VM
	queue  *vmm.Queue
	honest *vmm.Client // nil when there is but one request queue
	forget *vmm.Client // on the high-priority queue
	in     vmm.Buffer  // a good GETATTR of the root
	out    vmm.Buffer  // and room for its reply
	unique uint64
}

const (
	getattrIn  = 40 + 16
	getattrOut = 16 + 104
)

// open builds the rig. It takes a second request queue if the back-end has one.
func open(ctx context.Context, dial Dial, opts vmm.Options) (*rig, error) {
	if opts.Memory == nil {
		opts.Memory = vmm.Flat(memorySize)
	}
	vm, err := dial(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if vm.MaxQueues() > 2 && opts.RequestQueues == 0 {
		vm.Kill()
		opts.RequestQueues = 2
		if vm, err = dial(ctx, opts); err != nil {
			return nil, fmt.Errorf("dial with two request queues: %w", err)
		}
	}
	r := &rig{vm: vm, queue: vm.Queue(1), unique: 1 << 40}
	if err := r.mount(ctx); err != nil {
		vm.Kill()
		return nil, err
	}
	return r, nil
}

func (r *rig) mount(ctx context.Context) error {
	c, err := r.vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	c.Close()
	if r.forget, err = r.vm.NewClient(vmm.Linux72, 0); err != nil {
		return err
	}
	if r.vm.Queues() > 2 {
		c, err := r.vm.NewClient(vmm.Linux72, 2)
		if err != nil {
			return err
		}
		r.honest = c.On(2)
	}
	if r.in, err = r.vm.Memory.Alloc(getattrIn); err != nil {
		return err
	}
	r.out, err = r.vm.Memory.Alloc(getattrOut)
	return err
}

// request writes a good GETATTR of the root into r.in and clears r.out.
func (r *rig) request() {
	r.unique += 2
	putHeader(r.in.Bytes, getattrIn, vmm.OpGetattr, r.unique, vmm.RootID)
	clear(r.in.Bytes[40:])
	clear(r.out.Bytes)
}

// putHeader writes a fuse_in_header.
func putHeader(b []byte, length uint32, op vmm.Opcode, unique, node uint64) {
	le := binary.LittleEndian
	clear(b[:40])
	le.PutUint32(b, length)
	le.PutUint32(b[4:], uint32(op))
	le.PutUint64(b[8:], unique)
	le.PutUint64(b[16:], node)
}

// broken verifies that queue 1 is given up: the err descriptor says so and nothing
// is published any more, not even for a good request.
func (r *rig) broken(ctx context.Context, used uint16) error {
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !r.queue.Faulted(wait) {
		return errors.New("no signal on the err descriptor of the broken queue")
	}
	if now := r.queue.UsedIdx(); now != used {
		return fmt.Errorf("used idx went from %d to %d on a broken queue", used, now)
	}
	return nil
}

// muted verifies that a chain without room for a reply got none: it came back with
// length 0, or the queue was given up.
func (r *rig) muted(ctx context.Context, used uint16) error {
	for end := time.Now().Add(patience); !time.Now().After(end); {
		if r.queue.UsedIdx() != used {
			if _, length := r.queue.UsedElem(used); length != 0 {
				return fmt.Errorf("used.len is %d where no reply fits", length)
			}
			return nil
		}
		if r.queue.Faulted(instant(ctx)) {
			return nil
		}
	}
	return errors.New("neither given up nor returned")
}

// answered waits until the used index is past used and returns the last element.
func (r *rig) answered(ctx context.Context, used uint16) (id, length uint32, err error) {
	for end := time.Now().Add(patience); r.queue.UsedIdx() == used; {
		if time.Now().After(end) {
			return 0, 0, errors.New("no answer")
		}
		if r.queue.Faulted(instant(ctx)) {
			return 0, 0, errors.New("the queue was given up")
		}
		time.Sleep(100 * time.Microsecond)
	}
	id, length = r.queue.UsedElem(used)
	return id, length, nil
}

// instant is a context that ends very soon.
func instant(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// reply checks that r.out holds a good reply to the last request.
func (r *rig) reply(length uint32) error {
	le := binary.LittleEndian
	switch {
	case length != getattrOut || le.Uint32(r.out.Bytes) != getattrOut:
		return fmt.Errorf("a reply of %d bytes, used.len %d, not %d", le.Uint32(r.out.Bytes), length, getattrOut)
	case le.Uint32(r.out.Bytes[4:]) != 0:
		return fmt.Errorf("errno %d", -int32(le.Uint32(r.out.Bytes[4:])))
	case le.Uint64(r.out.Bytes[8:]) != r.unique:
		return fmt.Errorf("unique %d, not %d", le.Uint64(r.out.Bytes[8:]), r.unique)
	}
	return nil
}

// othersAlive verifies that the other queues work.
func (r *rig) othersAlive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r.honest != nil {
		if _, err := r.honest.Getattr(ctx, vmm.RootID); err != nil {
			return fmt.Errorf("the other request queue: %w", err)
		}
	}
	before := r.vm.Queue(0).UsedIdx()
	if err := r.forget.Forget(ctx, 1<<43-1, 1); err != nil {
		return fmt.Errorf("the high-priority queue: %w", err)
	}
	for r.vm.Queue(0).UsedIdx() == before {
		if ctx.Err() != nil {
			return errors.New("the high-priority queue does not take a FORGET")
		}
		time.Sleep(100 * time.Microsecond)
	}
	return r.forget.Bad()
}

// recovers verifies that a reset of the device brings the broken queue back.
func (r *rig) recovers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := r.vm.Reset(); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	c, err := r.vm.Mount(ctx, vmm.Linux61)
	if err != nil {
		return fmt.Errorf("mount after the reset: %w", err)
	}
	if _, err := c.Getattr(ctx, vmm.RootID); err != nil {
		return fmt.Errorf("after the reset: %w", err)
	}
	return nil
}

// Survives verifies that the back-end serves a new machine.
func Survives(ctx context.Context, dial Dial) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	vm, err := dial(ctx, vmm.Options{Memory: vmm.Flat(memorySize)})
	if err != nil {
		return fmt.Errorf("the next machine: dial: %w", err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		return fmt.Errorf("the next machine: mount: %w", err)
	}
	if _, err := c.Getattr(ctx, vmm.RootID); err != nil {
		return fmt.Errorf("the next machine: %w", err)
	}
	if err := vm.Stop(); err != nil {
		return fmt.Errorf("the next machine: %w", err)
	}
	for i := range vm.Queues() {
		for at, b := range vm.Queue(i).Behind() {
			if b != 0 {
				return fmt.Errorf("the next machine: byte %d behind the used ring of queue %d was written", at, i)
			}
		}
	}
	if err := vm.Close(); err != nil {
		return fmt.Errorf("the next machine: %w", err)
	}
	return nil
}

// RssAnon is the anonymous memory of a process in bytes: guest memory and mapped
// files are not in it.
func RssAnon(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fields := strings.Fields(rest)
			if len(fields) != 2 || fields[1] != "kB" {
				return 0, fmt.Errorf("/proc/%d/status: %q", pid, line)
			}
			n, err := strconv.ParseUint(fields[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no RssAnon", pid)
}
