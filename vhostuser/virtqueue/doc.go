// Package virtqueue is the device side of one split virtqueue: it takes
// descriptor chains from the available ring, turns them into segments of guest
// memory, and publishes used elements. INDIRECT_DESC and EVENT_IDX are known;
// packed rings and IN_ORDER are not.
//
//	        avail.idx ──▶ Pop ──▶ Chain{Readable, Writable} ──▶ (somebody serves)
//	                       │ in flight: head ▸ position                 │
//	used.idx ◀── Publish(batch of Used) ◀───────────────────────────────┘
//	                └─▶ signal? (used_event, or avail.flags)
//	sleep: EnableKicks (avail_event, or used.flags), then look once more
//
// A Queue may keep a table of what is in flight (Inflight) in memory that outlives
// the process; Recover goes on from it.
//
// Concurrency: one goroutine at a time pops (Pop, EnableKicks, DisableKicks);
// one at a time publishes, under a lock of the caller, and may do so while the
// other pops. All other methods need both to be at rest. The two share only the
// table of heads in flight, which is atomic.
//
// Cost: no allocation, no lock, no system call. A drained batch costs one store
// of used.idx and one notification test.
//
// Trust: everything in the rings is the guest's. Each field is read once into
// private memory, then checked, then used; positions in both rings are kept
// privately and never read back. What cannot be right is an error that wraps
// ErrBroken: the queue must not be popped any more. Memory that is gone faults,
// see package guestmem.
//
// Source of the layout and of the rules: virtio 1.3, section 2.7.
package virtqueue
