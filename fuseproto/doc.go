// Package fuseproto speaks the FUSE protocol of a Linux guest: it decodes
// requests, hands them to a FileSystem, and encodes the replies. It knows
// neither virtqueues nor images.
//
//	transport (one goroutine a queue)
//	    │ Message: segments of guest memory          ┌─ Serve: never waits
//	    ▼                                            │
//	Server ── header and body copied once ──▶ Op ──▶ FileSystem method
//	    ▲                                            │ ErrWouldBlock
//	    │ ServeBlocking, a goroutine of its own ◀────┘ (the same Op again)
//	    │
//	    └── reply: data written in place by Out or DirWriter, fixed part, and
//	        the header last
//
// Ownership: an Op belongs to its transport's request object and serves one
// request at a time. While a method runs, Op, Out, DirWriter, names and bodies
// are its to use; nothing of them may be kept. A Server is shared by all queues
// of one device; the session that INIT negotiated is published by an atomic
// pointer and never changed in place.
//
// Lock order: Server.sessionMu, then whatever FileSystem.Init takes.
// Server.waiting and the limiters of log lines are leaves. No lock is held while
// a request is served, and a request that need not wait takes none.
//
// Hot path: no allocation and no lock for LOOKUP, GETATTR, READ and READDIRPLUS
// through Serve (TestServeAllocates holds it).
//
// Trust: every byte of a request is hostile and may change while it is read.
// Header, body and names are therefore copied to private memory once, and only
// the copy is checked and used. Reply memory is only written, never read. A
// request that makes a method panic is answered EIO; a fault on the reply's own
// memory is left to the transport, whose memory it is.
package fuseproto
