package daemon

import (
	"context"
	"encoding/binary"
	"sync/atomic"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/vhostuser"
)

// Device returns what a vhost-user server serves: the FUSE session over the
// daemon's tree. tag and queues are what the configuration space says, for
// front-ends that ask for it.
func (d *Daemon) Device(tag string, queues int) vhostuser.Handler {
	dev := &device{server: d.server, config: ConfigSpace(tag, queues)}
	d.server.OnChange(dev.stateChanged)
	return dev
}

// device joins the FUSE server to a vhost-user device. Each request of the
// transport keeps the FUSE server's scratch memory in its State, so that serving
// one allocates nothing.
type device struct {
	server *fuseproto.Server
	config []byte
	save   atomic.Pointer[func([]byte) error] // where the FUSE session is kept
}

func op(r *vhostuser.Request) *fuseproto.Op {
	o, ok := r.State.(*fuseproto.Op)
	if !ok {
		o = new(fuseproto.Op)
		r.State = o
	}
	return o
}

// Serve implements vhostuser.Handler.
func (d *device) Serve(r *vhostuser.Request) (written uint32, done bool) {
	return d.server.Serve(op(r), r)
}

// ServeBlocking implements vhostuser.Handler.
func (d *device) ServeBlocking(ctx context.Context, r *vhostuser.Request) (written uint32, err error) {
	return d.server.ServeBlocking(ctx, op(r), r)
}

// Refuse implements vhostuser.Refuser.
func (d *device) Refuse(r *vhostuser.Request) (written uint32) { return d.server.Refuse(op(r), r) }

// SaveState implements vhostuser.Stateful.
func (d *device) SaveState(save func(state []byte) error) { d.save.Store(&save) }

func (d *device) stateChanged(state []byte) error {
	if save := d.save.Load(); save != nil && *save != nil {
		return (*save)(state)
	}
	return nil
}

// Reset implements vhostuser.Handler.
func (d *device) Reset() { d.server.Reset() }

// Snapshot implements vhostuser.Handler.
func (d *device) Snapshot() ([]byte, error) { return d.server.Snapshot() }

// Restore implements vhostuser.Handler.
func (d *device) Restore(state []byte) error { return d.server.Restore(state) }

// Config implements vhostuser.ConfigSpace.
func (d *device) Config() []byte { return d.config }

// tagSize is the room for the tag in the configuration space.
const tagSize = 36

// ConfigSpace is struct virtio_fs_config: the tag, padded with zeros, and the
// number of request queues, little endian.
func ConfigSpace(tag string, queues int) []byte {
	b := make([]byte, tagSize+4)
	copy(b[:tagSize], tag)
	binary.LittleEndian.PutUint32(b[tagSize:], uint32(queues))
	return b
}
