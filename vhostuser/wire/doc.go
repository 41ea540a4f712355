// Package wire is the vhost-user protocol as it stands on the socket: message
// numbers, feature bits, payload layouts, and the framing of messages with
// their descriptors. It holds no state beyond one connection and knows neither
// what a message means nor which side of the conversation uses it, so the
// back-end and the test front-end are built on the same code.
//
//	          request u32 │ flags u32 │ size u32 │ payload (size bytes)
//	          ◀──────── header, 12 bytes ───────▶
//	front-end ══ message (+ descriptors with its first byte) ══▶ back-end
//	front-end ◀══ reply: same request, flags 0x5 ═══════════════ back-end
//
// All integers are little endian: the protocol says native, and rafsd runs on
// little-endian hosts only (amd64, arm64).
//
// Ownership: the descriptors of a received Message belong to whoever received
// it; Message.CloseFDs or Message.TakeFD must account for each of them.
// Descriptors handed to Send stay the caller's.
//
// Concurrency: one goroutine may receive while others send; Send is serialised
// inside, Recv must not be called by two goroutines at once.
//
// Trust: every received byte is hostile. A size above MaxPayload is refused
// before anything is allocated, a truncated set of descriptors is refused, and
// on every error path each descriptor that arrived is closed.
//
// Layouts: QEMU docs/interop/vhost-user.rst.
package wire
