package hostile

import (
	"context"
	"fmt"

	"github.com/rafsd/rafsd/internal/vmm"
)

// outcome is what a back-end has to do with a chain.
type outcome int

const (
	breaks  outcome = iota // gives the queue up
	replies                // answers the GETATTR that it is
	empty                  // returns the chain with length 0
	fails                  // answers with an errno, 16 bytes
	mute                   // gives the queue up or returns the chain with length 0
	either                 // whatever, as long as all else works
)

// chainAttack offers one chain of the attacker's making.
type chainAttack struct {
	name   string
	opts   vmm.Options
	expect outcome
	// make writes descriptors and offers a head; r.in holds a good request.
	make func(r *rig) error
}

func (a chainAttack) attack() Attack {
	return Attack{Name: "chain: " + a.name, Run: func(ctx context.Context, dial Dial) error {
		r, err := open(ctx, dial, a.opts)
		if err != nil {
			return err
		}
		defer r.vm.Kill()
		r.request()
		used := r.queue.UsedIdx()
		if err := a.make(r); err != nil {
			return err
		}
		if err := r.queue.Kick(); err != nil {
			return err
		}
		if err := r.judge(ctx, a.expect, used); err != nil {
			return err
		}
		if err := r.othersAlive(ctx); err != nil {
			return err
		}
		if a.expect == breaks {
			if err := r.recovers(ctx); err != nil {
				return err
			}
		}
		if err := r.vm.Close(); err != nil {
			return err
		}
		return Survives(ctx, dial)
	}}
}

func (r *rig) judge(ctx context.Context, expect outcome, used uint16) error {
	switch expect {
	case breaks:
		return r.broken(ctx, used)
	case either:
		return nil
	case mute:
		return r.muted(ctx, used)
	}
	_, length, err := r.answered(ctx, used)
	if err != nil {
		return err
	}
	switch expect {
	case replies:
		return r.reply(length)
	case empty:
		if length != 0 {
			return fmt.Errorf("used.len is %d where nothing can be written", length)
		}
	case fails:
		if length != 16 {
			return fmt.Errorf("used.len is %d, not the 16 of an error", length)
		}
	}
	return nil
}

// read and write are descriptors of the good request's buffers.
func (r *rig) read() vmm.Desc { return vmm.Desc{Addr: r.in.GPA, Len: getattrIn} }

func (r *rig) write() vmm.Desc {
	return vmm.Desc{Addr: r.out.GPA, Len: getattrOut, Flags: vmm.DescWrite}
}

// direct puts descriptors into the ring's table, linked one to the next, and
// offers the first. Links that are set already are kept.
func (r *rig) direct(list ...vmm.Desc) error {
	for i, d := range link(list) {
		r.queue.PutDesc(i, d)
	}
	r.queue.Offer(0)
	return nil
}

func link(list []vmm.Desc) []vmm.Desc {
	for i := range list[:len(list)-1] {
		if d := &list[i]; d.Flags&vmm.DescNext == 0 {
			d.Flags |= vmm.DescNext
			d.Next = uint16(i + 1)
		}
	}
	return list
}

// table writes an indirect table and returns the descriptor for it.
func (r *rig) table(list ...vmm.Desc) (vmm.Desc, error) {
	b, err := r.vm.Memory.Alloc(16 * len(list))
	if err != nil {
		return vmm.Desc{}, err
	}
	putTable(b.Bytes, list)
	return vmm.Desc{Addr: b.GPA, Len: uint32(len(b.Bytes)), Flags: vmm.DescIndirect}, nil
}

func putTable(b []byte, list []vmm.Desc) {
	for i, d := range link(list) {
		d.Put(b[16*i:])
	}
}

// indirect offers a chain in an indirect table; change may spoil the descriptor
// that points to it.
func (r *rig) indirect(change func(*vmm.Desc), list ...vmm.Desc) error {
	d, err := r.table(list...)
	if err != nil {
		return err
	}
	if change != nil {
		change(&d)
	}
	return r.direct(d)
}

const outside = memorySize + 1<<20 // a guest address without memory

func chainAttacks() []Attack {
	next := func(d vmm.Desc, to uint16) vmm.Desc {
		d.Flags |= vmm.DescNext
		d.Next = to
		return d
	}
	list := []chainAttack{
		{name: "a good request in one piece each way", expect: replies, make: func(r *rig) error {
			return r.direct(r.read(), r.write())
		}},
		{name: "a good request in an indirect table", expect: replies, make: func(r *rig) error {
			return r.indirect(nil, r.read(), r.write())
		}},
		{name: "cycle of two", make: func(r *rig) error {
			return r.direct(next(r.read(), 1), next(r.read(), 0))
		}},
		{name: "cycle of one", make: func(r *rig) error {
			return r.direct(next(r.read(), 0))
		}},
		{name: "cycle of writable descriptors", make: func(r *rig) error {
			return r.direct(r.read(), next(r.write(), 1))
		}},
		{name: "cycle of empty descriptors", make: func(r *rig) error {
			return r.direct(next(vmm.Desc{}, 0))
		}},
		{name: "cycle in an indirect table", make: func(r *rig) error {
			return r.indirect(nil, next(r.read(), 1), next(r.read(), 0))
		}},
		{name: "indirect table of length 0", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Len = 0 }, r.read(), r.write())
		}},
		{name: "indirect table of half a descriptor", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Len -= 8 }, r.read(), r.write())
		}},
		{name: "indirect table beyond memory", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Addr = outside }, r.read(), r.write())
		}},
		{name: "indirect table over the end of memory", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Addr = memorySize - 16 }, r.read(), r.write())
		}},
		{name: "indirect table at the end of the address space", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Addr = ^uint64(0) - 15 }, r.read(), r.write())
		}},
		{name: "indirect table of 4 GiB", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Len = 0xfffffff0 }, r.read(), r.write())
		}},
		{name: "indirect table of the whole memory", expect: either, make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Addr, d.Len = 0, memorySize }, r.read(), r.write())
		}},
		{name: "indirect table shorter than its chain", make: func(r *rig) error {
			return r.indirect(func(d *vmm.Desc) { d.Len = 16 }, r.read(), r.write())
		}},
		{name: "indirect table inside an indirect table", make: func(r *rig) error {
			inner, err := r.table(r.read(), r.write())
			if err != nil {
				return err
			}
			return r.indirect(nil, inner)
		}},
		{name: "indirect table in the middle of a chain", make: func(r *rig) error {
			d, err := r.table(r.write())
			if err != nil {
				return err
			}
			d.Flags |= vmm.DescNext
			d.Next = 2
			return r.direct(r.read(), d, r.write())
		}},
		{name: "indirect descriptor with a successor", make: func(r *rig) error {
			d, err := r.table(r.read(), r.write())
			if err != nil {
				return err
			}
			return r.direct(next(d, 1), r.write())
		}},
		{name: "indirect table longer than the queue", opts: vmm.Options{QueueSize: 64}, expect: replies, make: func(r *rig) error {
			return r.indirect(nil, append(pieces(r.read(), 200), r.write())...)
		}},
		{name: "next beyond the table", make: func(r *rig) error {
			return r.direct(next(r.read(), uint16(r.queue.Size())))
		}},
		{name: "next beyond the indirect table", make: func(r *rig) error {
			return r.indirect(nil, next(r.read(), 2), r.write())
		}},
		{name: "request outside memory", make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: outside, Len: getattrIn}, r.write())
		}},
		{name: "reply outside memory", make: func(r *rig) error {
			return r.direct(r.read(), vmm.Desc{Addr: outside, Len: getattrOut, Flags: vmm.DescWrite})
		}},
		{name: "request over the end of memory", make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: memorySize - 8, Len: getattrIn}, r.write())
		}},
		{name: "reply over the end of memory", make: func(r *rig) error {
			return r.direct(r.read(), vmm.Desc{Addr: memorySize - 8, Len: getattrOut, Flags: vmm.DescWrite})
		}},
		{name: "address that overflows", make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: ^uint64(0) - 7, Len: getattrIn}, r.write())
		}},
		{name: "request of 2^32-1 bytes", make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: r.in.GPA, Len: ^uint32(0)}, r.write())
		}},
		{name: "reply of 2^32-1 bytes", make: func(r *rig) error {
			return r.direct(r.read(), vmm.Desc{Addr: r.out.GPA, Len: ^uint32(0), Flags: vmm.DescWrite})
		}},
		{name: "lengths that add up to more than 4 GiB", make: func(r *rig) error {
			all := vmm.Desc{Addr: 0, Len: memorySize, Flags: vmm.DescWrite}
			list := []vmm.Desc{r.read()}
			for range 4<<30/memorySize + 1 {
				list = append(list, all)
			}
			return r.direct(list...)
		}},
		{name: "writable before readable", make: func(r *rig) error {
			return r.direct(r.write(), r.read())
		}},
		{name: "readable after writable", make: func(r *rig) error {
			return r.direct(r.read(), r.write(), r.read())
		}},
		{name: "room for 15 bytes", expect: mute, make: func(r *rig) error {
			d := r.write()
			d.Len = 15
			return r.direct(r.read(), d)
		}},
		{name: "room for 1 byte", expect: mute, make: func(r *rig) error {
			d := r.write()
			d.Len = 1
			return r.direct(r.read(), d)
		}},
		{name: "room for an error only", expect: fails, make: func(r *rig) error {
			d := r.write()
			d.Len = 16
			return r.direct(r.read(), d)
		}},
		{name: "room for all but one byte of the reply", expect: fails, make: func(r *rig) error {
			d := r.write()
			d.Len--
			return r.direct(r.read(), d)
		}},
		{name: "no room at all", expect: empty, make: func(r *rig) error {
			return r.direct(r.read())
		}},
		{name: "no request", expect: either, make: func(r *rig) error {
			return r.direct(r.write())
		}},
		{name: "a request of 39 bytes", expect: either, make: func(r *rig) error {
			d := r.read()
			d.Len = 39
			return r.direct(d, r.write())
		}},
		{name: "one empty descriptor", expect: either, make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: r.in.GPA})
		}},
		{name: "empty descriptors between", expect: replies, make: func(r *rig) error {
			in, out := r.read(), r.write()
			nothing := vmm.Desc{Addr: outside}
			room := vmm.Desc{Addr: outside, Flags: vmm.DescWrite}
			return r.direct(nothing, in, nothing, room, out, room)
		}},
		{name: "all flags", make: func(r *rig) error {
			d := r.read()
			d.Flags = 0xffff
			return r.direct(d, r.write())
		}},
		{name: "request in single bytes", expect: replies, make: func(r *rig) error {
			return r.direct(append(pieces(r.read(), getattrIn), pieces(r.write(), getattrOut)...)...)
		}},
		{name: "the ring itself as request and reply", expect: either, make: func(r *rig) error {
			// The attacker's own ring: a reply over another's would break that one
			// by the guest's hand.
			ring := r.queue.Ring()
			return r.direct(vmm.Desc{Addr: ring.GPA, Len: 64}, vmm.Desc{Addr: ring.GPA, Len: uint32(len(ring.Bytes)), Flags: vmm.DescWrite})
		}},
		{name: "request over the border of adjacent regions", opts: vmm.Options{Memory: vmm.Adjacent(memorySize)}, expect: replies, make: func(r *rig) error {
			at := uint64(memorySize/2 - 20)
			if err := r.vm.Memory.WriteAt(at, r.in.Bytes); err != nil {
				return err
			}
			return r.direct(vmm.Desc{Addr: at, Len: getattrIn}, r.write())
		}},
		{name: "request into the hole between regions", opts: vmm.Options{Memory: vmm.Hole(memorySize)}, make: func(r *rig) error {
			return r.direct(vmm.Desc{Addr: memorySize/2 - 20, Len: getattrIn}, r.write())
		}},
		{name: "reply into the hole between regions", opts: vmm.Options{Memory: vmm.Hole(memorySize)}, make: func(r *rig) error {
			return r.direct(r.read(), vmm.Desc{Addr: memorySize/2 - 20, Len: getattrOut, Flags: vmm.DescWrite})
		}},
		{name: "reply below the memory of UML", opts: vmm.Options{Memory: vmm.UMLMemory(memorySize)}, make: func(r *rig) error {
			return r.direct(r.read(), vmm.Desc{Addr: 0x10000, Len: getattrOut, Flags: vmm.DescWrite})
		}},
	}
	var out []Attack
	for _, a := range list {
		out = append(out, a.attack())
	}
	return out
}

// pieces cuts a descriptor into n.
func pieces(d vmm.Desc, n int) []vmm.Desc {
	var out []vmm.Desc
	at := uint32(0)
	for i := range n {
		end := uint32(uint64(d.Len) * uint64(i+1) / uint64(n))
		out = append(out, vmm.Desc{Addr: d.Addr + uint64(at), Len: end - at, Flags: d.Flags})
		at = end
	}
	return out
}
