// Package vmm is a virtual machine monitor without a machine: a vhost-user
// front-end and the Linux guest's virtio-fs driver on top of it, for tests and
// benchmarks. It knows nothing of our back-end's insides, shares no code with
// it, and drives foreign back-ends the same way, so that it is an independent
// witness of what goes over the socket and through the rings.
//
//	Client  FUSE requests laid out as Linux does      Load  the same, measured
//	   │  Call, Read, ReadDirPlus, Walk …               │
//	   ▼                                                ▼
//	Queue 0..n  split ring, driver side: INDIRECT, EVENT_IDX; verifies replies
//	   │                                   ▲
//	   ▼ kick                              │ call
//	VM  message order of QEMU, Cloud Hypervisor or UML ──socket──▶ back-end
//	   │
//	   ▼
//	Memory  regions of guest memory, buffers, scattered 4 KiB pages
//
// # What it checks
//
// The back-end is the one under test, so each of its answers is held against
// the rules: a reply's flags are exactly 0x5 and its size is the message's; the
// used index never skips, each head comes back once, used.len equals the
// length in the FUSE reply, "unique" is echoed, fixed replies have their full
// size, error replies 16 bytes, nothing was written behind used.len or into a
// readable descriptor, and the status flags of the descriptors that were handed
// over are what they were. A broken rule is a [Violation].
//
// # Ownership and locks
//
// A VM owns its socket, memory, queues and descriptors until Close or Kill. The
// methods that talk over the socket (Start, Stop, HotAddMemory …) are serialized
// by VM.mu. Queue.mu guards a ring; Memory.mu, the allocator, is a leaf below
// it. No lock is held while something waits for the back-end's used entries.
//
// # Ordering in the rings
//
// The driver lays its rings out so that each word it writes stands in an aligned
// 32-bit word of its own: sync/atomic suffices and no 16-bit primitive is needed.
// Go's atomic stores and loads are sequentially consistent, so the store of
// avail.idx is ordered before the load of avail_event, and the store of
// used_event before the load of used.idx: the two places where a wake-up could
// be lost.
package vmm
