package hostile

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// ringAttacks are those on the indexes and the life of a ring.
func ringAttacks() []Attack {
	list := []chainAttack{
		{name: "available index beyond the queue's size", make: func(r *rig) error {
			r.queue.PutAvailIdx(r.queue.AvailIdx() + uint16(r.queue.Size()) + 1)
			return nil
		}},
		{name: "available index going back", make: func(r *rig) error {
			r.queue.PutAvailIdx(r.queue.AvailIdx() - 1)
			return nil
		}},
		{name: "head beyond the table", make: func(r *rig) error {
			r.queue.Offer(uint16(r.queue.Size()))
			return nil
		}},
		{name: "head 65535", make: func(r *rig) error {
			r.queue.Offer(0xffff)
			return nil
		}},
		{name: "one head in every slot", expect: either, make: func(r *rig) error {
			if err := r.direct(r.read(), r.write()); err != nil {
				return err
			}
			for range r.queue.Size() - 1 {
				r.queue.Offer(0)
			}
			return nil
		}},
		{name: "used index overwritten", expect: replies, make: func(r *rig) error {
			used := r.queue.UsedIdx()
			r.queue.PutUsedIdx(used + 1000)
			defer r.queue.PutUsedIdx(used)
			return r.direct(r.read(), r.write())
		}},
		{name: "used event far ahead", expect: replies, make: func(r *rig) error {
			r.queue.PutUsedEvent(r.queue.UsedIdx() + 0x7fff)
			return r.direct(r.read(), r.write())
		}},
	}
	var out []Attack
	for _, a := range list {
		b := a.attack()
		b.Name = "ring: " + a.name
		out = append(out, b)
	}
	return append(out,
		Attack{"ring: kicks without work", kickStorm},
		Attack{"ring: request changed while it is read", doubleFetch},
		Attack{"ring: started and stopped with requests in it", startStop},
		Attack{"ring: machines that vanish", vanish},
	)
}

// kickStorm kicks without offering anything, and honest requests in between must
// be served.
func kickStorm(ctx context.Context, dial Dial) error {
	r, err := open(ctx, dial, vmm.Options{})
	if err != nil {
		return err
	}
	defer r.vm.Kill()
	for range 20 {
		for i := range r.vm.Queues() {
			for range 200 {
				if err := r.vm.Queue(i).Kick(); err != nil {
					return err
				}
			}
		}
		r.request()
		used := r.queue.UsedIdx()
		if err := r.direct(r.read(), r.write()); err != nil {
			return err
		}
		if err := r.queue.Kick(); err != nil {
			return err
		}
		if err := r.judge(ctx, replies, used); err != nil {
			return err
		}
	}
	if err := r.othersAlive(ctx); err != nil {
		return err
	}
	if err := r.vm.Close(); err != nil {
		return err
	}
	return Survives(ctx, dial)
}

// doubleFetch has a second thread of the guest change descriptors and header while
// the back-end works on them. Whatever it sees, it may give the queue up; it may not
// die of it.
func doubleFetch(ctx context.Context, dial Dial) error {
	for range 8 {
		r, err := open(ctx, dial, vmm.Options{})
		if err != nil {
			return err
		}
		err = r.race(ctx)
		if err == nil {
			err = r.othersAlive(ctx)
		}
		r.vm.Kill()
		if err != nil {
			return err
		}
	}
	return Survives(ctx, dial)
}

func (r *rig) race(ctx context.Context) error {
	table, err := r.vm.Memory.Alloc(4 * 16)
	if err != nil {
		return err
	}
	good := []vmm.Desc{r.read(), r.write()}
	bad := []vmm.Desc{
		{Addr: outside, Len: ^uint32(0), Flags: vmm.DescNext, Next: 0xffff},
		{Addr: ^uint64(0), Len: 1, Flags: vmm.DescIndirect | vmm.DescWrite},
	}
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%2 == 0 {
				putTable(table.Bytes, bad)
				putHeader(r.in.Bytes, ^uint32(0), vmm.Opcode(i), 1, ^uint64(0))
			} else {
				putTable(table.Bytes, good)
				putHeader(r.in.Bytes, getattrIn, vmm.OpGetattr, 2, vmm.RootID)
			}
		}
	})
	defer guest.Wait()
	defer close(stop)
	for range 500 {
		used := r.queue.UsedIdx()
		if err := r.direct(vmm.Desc{Addr: table.GPA, Len: 32, Flags: vmm.DescIndirect}); err != nil {
			return err
		}
		if err := r.queue.Kick(); err != nil {
			return err
		}
		for end := time.Now().Add(patience); r.queue.UsedIdx() == used; {
			if r.queue.Faulted(instant(ctx)) {
				return nil
			}
			if time.Now().After(end) {
				return fmt.Errorf("neither an answer nor a broken queue")
			}
		}
	}
	return nil
}

// startStop stops and starts the rings again and again while requests are in them.
func startStop(ctx context.Context, dial Dial) error {
	vm, err := dial(ctx, vmm.Options{Memory: vmm.Flat(memorySize)})
	if err != nil {
		return err
	}
	defer vm.Kill()
	for range 20 {
		c, err := vm.Mount(ctx, vmm.Linux61)
		if err != nil {
			return err
		}
		for range 32 {
			if _, err := c.Go(ctx, vmm.OpGetattr, vmm.RootID, make([]byte, 16), 104); err != nil {
				return err
			}
		}
		if err := vm.Reset(); err != nil {
			return err
		}
		if err := c.Bad(); err != nil {
			return err
		}
	}
	if err := vm.Close(); err != nil {
		return err
	}
	return Survives(ctx, dial)
}

// vanish closes the socket at once with requests in the rings, as a killed VMM.
func vanish(ctx context.Context, dial Dial) error {
	for i := range 15 {
		vm, err := dial(ctx, vmm.Options{Sequence: vmm.Sequences[i%3], Memory: vmm.Flat(memorySize)})
		if err != nil {
			return err
		}
		if i%5 != 0 {
			c, err := vm.Mount(ctx, vmm.Linux72)
			if err != nil {
				vm.Kill()
				return err
			}
			for range i {
				if _, err := c.Go(ctx, vmm.OpGetattr, vmm.RootID, make([]byte, 16), 104); err != nil {
					vm.Kill()
					return err
				}
			}
		}
		vm.Kill()
	}
	return Survives(ctx, dial)
}
