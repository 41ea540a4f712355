package hostile

import (
	"context"
	"fmt"

	"github.com/rafsd/rafsd/internal/vmm"
)

// memoryAttacks take the memory away that the back-end works on.
func memoryAttacks() []Attack {
	return []Attack{
		{"memory: request in a file that was truncated", truncatedRequest},
		{"memory: rings in a file that was truncated", truncatedRings},
		{"memory: regions that come and go", comingAndGoing},
	}
}

func truncatedRequest(ctx context.Context, dial Dial) error {
	layout := vmm.Adjacent(memorySize)
	layout[1].Backing = vmm.Unsealed
	r, err := open(ctx, dial, vmm.Options{Memory: layout})
	if err != nil {
		return err
	}
	defer r.vm.Kill()
	if err := r.vm.Memory.Truncate(1, 0); err != nil {
		return err
	}
	used := r.queue.UsedIdx()
	if err := r.direct(vmm.Desc{Addr: layout[1].GPA, Len: getattrIn}, r.write()); err != nil {
		return err
	}
	if err := r.queue.Kick(); err != nil {
		return err
	}
	if err := r.broken(ctx, used); err != nil {
		return err
	}
	r.vm.Kill()
	return Survives(ctx, dial)
}

func truncatedRings(ctx context.Context, dial Dial) error {
	layout := vmm.Flat(memorySize)
	layout[0].Backing = vmm.Unsealed
	r, err := open(ctx, dial, vmm.Options{Memory: layout})
	if err != nil {
		return err
	}
	defer r.vm.Kill()
	// From here on nothing of ours may look at the rings either.
	r.forget.Close()
	if r.honest != nil {
		r.honest.Close()
	}
	if err := r.vm.Memory.Truncate(0, 0); err != nil {
		return err
	}
	for i := range r.vm.Queues() {
		if err := r.vm.Queue(i).Kick(); err != nil {
			return err
		}
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !r.queue.Faulted(wait) {
		return fmt.Errorf("no signal on the err descriptor of a ring that is gone")
	}
	r.vm.Kill()
	return Survives(ctx, dial)
}

func comingAndGoing(ctx context.Context, dial Dial) error {
	r, err := open(ctx, dial, vmm.Options{Sequence: vmm.QEMU11})
	if err != nil {
		return err
	}
	defer r.vm.Kill()
	const gpa = 1 << 40
	for range 50 {
		if err := r.vm.HotAddMemory(vmm.Region{GPA: gpa, UVA: 1 << 41, Size: 2 << 20}); err != nil {
			return err
		}
		r.request()
		if err := r.vm.Memory.WriteAt(gpa, r.in.Bytes); err != nil {
			return err
		}
		used := r.queue.UsedIdx()
		if err := r.direct(vmm.Desc{Addr: gpa, Len: getattrIn}, r.write()); err != nil {
			return err
		}
		if err := r.queue.Kick(); err != nil {
			return err
		}
		if err := r.judge(ctx, replies, used); err != nil {
			return err
		}
		if err := r.vm.HotRemoveMemory(gpa); err != nil {
			return err
		}
	}
	// What is gone is gone: the old address must not be read from an old mapping.
	used := r.queue.UsedIdx()
	if err := r.direct(vmm.Desc{Addr: gpa, Len: getattrIn}, r.write()); err != nil {
		return err
	}
	if err := r.queue.Kick(); err != nil {
		return err
	}
	if err := r.broken(ctx, used); err != nil {
		return err
	}
	if err := r.othersAlive(ctx); err != nil {
		return err
	}
	if err := r.vm.Close(); err != nil {
		return err
	}
	return Survives(ctx, dial)
}
