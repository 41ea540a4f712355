package vhostuser

import "context"

// Handler serves the requests of one device. It is what a device plugs into
// this package: the package moves requests between the rings and the Handler
// and knows nothing of their content.
//
// Serve is called by one goroutine per vring, ServeBlocking by as many
// goroutines as there are requests that wait; a Handler is safe for all of them
// at once. No lock of this package is held during a call.
type Handler interface {
	// Serve handles r on the goroutine of its vring and must not wait for
	// anything slow (network, disk, other requests): all later requests of the
	// vring stand behind it. It returns the number of bytes it wrote to the
	// front of r.Writable() and true; or false when it cannot finish without
	// waiting. It must then have written nothing, keeps no slice of the
	// request's segments, and is called again through ServeBlocking.
	Serve(r *Request) (written uint32, done bool)

	// ServeBlocking finishes a request that Serve gave back, on a goroutine of
	// its own. The request's segments are not valid until r.Attach has
	// succeeded, and nothing may be waited for after that. ctx ends when the
	// device is reset, its front-end is gone, or the daemon ends; the Handler
	// then returns soon. An error (ErrGone from Attach) means that no reply can
	// be delivered; the request is dropped.
	ServeBlocking(ctx context.Context, r *Request) (written uint32, err error)

	// Reset tells that the front-end is gone or that the device was reset with
	// all rings at zero: what the guest negotiated inside its requests (a FUSE
	// session) has ended. No request is being served meanwhile.
	Reset()

	// Snapshot returns the handler's own state that another process needs to go
	// on serving the same guest; Restore takes it there, before any request.
	// No request is being served during Snapshot, but some may wait in
	// ServeBlocking: they will be served again from the start, by the other one.
	// The bytes are opaque to this package and carry their own version.
	Snapshot() ([]byte, error)
	Restore(state []byte) error
}

// Stateful is what a Handler may also implement whose Snapshot is to survive this
// process even if the front-end alone keeps anything (INFLIGHT_SHMFD).
type Stateful interface {
	// SaveState says where each new state goes: save is called with what Snapshot
	// would return, before the reply to the request that has changed it. nil is
	// nowhere.
	SaveState(save func(state []byte) error)
}

// Refuser is what a Handler may also implement to answer requests that are not served
// because processes have ended of them.
type Refuser interface {
	// Refuse writes a reply that says so and returns its length.
	Refuse(r *Request) (written uint32)
}

// ConfigSpace is what a Handler may also implement to answer GET_CONFIG: the
// device's configuration space. It is asked only when Options.Config is set.
type ConfigSpace interface {
	// Config returns the whole configuration space; it never changes.
	Config() []byte
}
