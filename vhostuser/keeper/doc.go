// Package keeper makes a vhost-user back-end outlive itself: the process that
// callers and VMMs see is a keeper, which holds everything that a crash must not
// take away, and the work is done by a worker that it replaces.
//
//	        callers watch this pid
//	                 │
//	┌───────────── Keeper ─────────────┐   socket pair    ┌──────── Worker ────────┐
//	│ VMM's socket, session, memory    │  device, entries │ guest memory, vrings   │
//	│ and vring descriptors, in-flight │ ───────────────▶ │ Handler (FUSE, images) │
//	│ table, session record, sockets   │ ◀─────────────── │ APIs                   │
//	│ of the APIs, parked descriptors  │  entries, ready  │                        │
//	└──────────────────────────────────┘                  └────────────────────────┘
//	                 └── starts the next one when it dies: same device, same record
//
// The keeper runs the vhost-user state machine (session.Session) with a device
// that lives in the worker. What the front-end was told is done, is in the
// keeper's copy of the device's state first. When the worker dies, the keeper
// starts another with that state, the session record and the table of requests in
// flight; the front-end notices nothing but a pause, and the guest gets each answer
// once. A message that was on its way to the dead worker is sent to the next one:
// all of them may be repeated.
//
// The keeper maps no guest memory, parses nothing that comes from a guest, and has
// no network. Keeper and worker are one program; the versions of their protocol
// need not be equal, since an upgrade replaces the worker only (proto.go).
//
// Processes: the worker ends with the keeper, however that ends: by the kernel's
// signal, and because its end of the socket pair closes. Its standard output is
// nobody's and its standard error goes through the keeper, so that who reads the
// keeper's until its end does not wait for a worker.
//
// Lock order: device.mu, then worker.mu. Keeper.mu is a leaf. device.mu is held
// while a worker takes up the device, so that its state does not change meanwhile;
// no other lock is held while a worker is waited for.
package keeper
