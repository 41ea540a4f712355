// Package vhostuser is a complete vhost-user back-end: it talks to a front-end
// (QEMU, Cloud Hypervisor, user-mode Linux), maps the guest's memory and moves
// requests between its virtqueues and a Handler. It knows nothing of what the
// requests say.
//
//	front-end ══ socket ══▶ Server ─▶ session.Session (messages, state)
//	    │                                  │ start, stop, memory, call
//	    │                                  ▼
//	    │                               Device ───── guestmem.Table
//	    │                                  │ one goroutine each
//	    └── kick ──▶ vring 0..n  pop ─▶ Handler.Serve ─▶ publish ─▶ call
//	                     └─ must wait ─▶ Handler.ServeBlocking ─▶ publish ─▶ call
//	                                     (a goroutine of its own)
//
// A vring's goroutine pops a chain, serves it, and goes on until the ring is
// empty; what it finished is published in batches, with one notification test
// each. A request that has to wait leaves that goroutine at once and finishes in
// any order. While it waits it holds no guest memory: its segments are gone, and
// Request.Attach translates them again. So a vring can be stopped at any time
// within the time that one Serve takes, whatever its requests wait for. If the
// vring then starts again exactly where it stopped, the waiting requests are
// answered there; otherwise they are forgotten.
//
// Requests outlive the process if there is memory that does (Device.SetInflight): the
// table in it tells the next Device what was taken and not answered, and that serves
// it again (Request.Rerun), with what the Handler has noted. Which start of a vring
// the table belongs to, session.Ring.Generation says. See package virtqueue.
//
// Ownership: Server owns the connection, a Session the received descriptors, a
// Device what it duplicated of them and the memory table. A vring's goroutine
// alone pops; it exists only while the vring runs. Two Servers share nothing but
// the processors: how many vrings poll, and which one waits near by (see near).
//
// Lock order: session.Session.mu, then Device.mu, then vring.mu. None is held
// while a Handler serves; Reset, Snapshot and Restore of a Handler run under
// Device.mu. A vring's goroutine and the goroutines of waiting requests take
// vring.mu only, never Device.mu, since Device.mu is held to wait for them. The
// former hold Device.trial while they serve what may end the process; nobody waits
// for it who is told to halt.
//
// Cost of a request that need not wait: no allocation, and per batch one mutex,
// one store of used.idx and at most one system call (the signal). Falling asleep
// and waking up is one more, while requests come often: see kick and near.
//
// Trust: every byte from the socket or from guest memory is hostile. A guest that
// breaks a ring loses that vring until it is set up again (its error descriptor
// is signalled). If the memory's file is truncated the fault becomes an error,
// and all vrings of that front-end stop.
package vhostuser
