// Package session is the message half of a vhost-user back-end: it receives what
// a front-end sends, keeps what was said as the State of the device, drives the
// other half, a Device, and answers. It knows no rings and touches no guest
// memory, so it can live in another process than the Device does.
//
//	front-end ══▶ Serve ──▶ State (bytes + descriptors) ──▶ snapshot
//	                 │
//	                 └────▶ Device: memory, vrings start/stop, call, reset
//
// A vring is asked to run exactly while it is enabled and has a size, addresses
// and a kick; every message that changes one of these starts or stops it.
//
// Ownership: the Session owns all descriptors of its State until Close and lends
// them to the Device, which duplicates what it keeps.
//
// Concurrency: Serve handles one message after the other under Session.mu;
// Snapshot takes it too. Session.mu is held while the Device is called and is
// taken before any lock of a Device.
//
// Trust: every message may be wrong in any way. What is wrong is refused with
// acknowledgement 1 if the front-end waits for one, otherwise the connection
// ends; an unknown request is ignored. Nothing here panics on it. A fault that a
// guest can cause (rings at bad addresses) never ends the connection.
package session
