// Package mountapi serves the mount API over ttrpc on a unix socket: how a shim
// drives the daemon of its sandbox, typed, versioned and watchable. It is thin over
// the daemon's one service.
//
//	shim ── client ──ttrpc, unix socket──▶ Server ──▶ Service (daemon.Daemon)
//	          │                                        │
//	          └──── Watch: a stream of events ◀────────┘ bounded queue for each watcher
//
// v1/mount.proto describes it. Package client is what a shim links.
//
// Trust: a caller is the user that the daemon runs as, or root, by the credentials
// that the kernel tells of its connection; anybody else is cut off before a byte of
// his is looked at. Callers are not trusted to be sane: messages are bounded by the
// transport, a watcher that does not read loses events and harms nobody.
package mountapi

//go:generate ./generate.sh
