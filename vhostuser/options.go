package vhostuser

import (
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/rafsd/rafsd/vhostuser/session"
)

// DefaultMaxRequestBytes bounds what a guest may describe in one request.
const DefaultMaxRequestBytes = 64 << 20

// Options say what a device offers. The zero value of every field but Queues is
// good.
type Options struct {
	// Queues is the number of vrings, at least 1, at most 256. A virtio-fs
	// device has one high-priority vring and then its request vrings.
	Queues int

	// Config offers the configuration space, which the Handler must then have
	// (ConfigSpace), and with it the back-end channel, which user-mode Linux 6.x
	// asks for. Generic front-ends need it; QEMU's vhost-user-fs-pci has its own
	// configuration space and warns.
	Config bool

	// MaxRequestBytes bounds the length of a request and the room for its reply,
	// each, in bytes; 0 means DefaultMaxRequestBytes.
	MaxRequestBytes uint64

	// Poll is how long a vring looks at its empty ring before it sleeps: PollAuto,
	// PollOff, or a time up to MaxPoll for each sleep. Whatever it is, one of the
	// usable processors is always left to others, and a vring that sleeps costs
	// nothing.
	Poll time.Duration

	// Counters, if set, is what the vrings count in: one for each of Queues.
	Counters *Counters

	// Log receives what goes wrong; nil means slog.Default.
	Log *slog.Logger

	// OnConnect and OnDisconnect, if set, are called by Server.Serve for each
	// front-end: when it has connected, and when nothing of it is left. err is
	// nil if the front-end closed the connection in good order.
	OnConnect    func()
	OnDisconnect func(err error)
}

const maxQueues = 256 // a vring's index has 8 bits in some messages

// complete checks o and fills in what was left out.
func (o Options) complete(h Handler) (Options, session.Config, error) {
	if o.Queues < 1 || o.Queues > maxQueues {
		return o, session.Config{}, fmt.Errorf("vhost-user device with %d queues, want 1 to %d", o.Queues, maxQueues)
	}
	if o.MaxRequestBytes == 0 {
		o.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if o.MaxRequestBytes > math.MaxUint32 {
		return o, session.Config{}, fmt.Errorf("requests of %d bytes: a used element counts in 32 bits", o.MaxRequestBytes)
	}
	if o.Poll < PollOff || o.Poll > MaxPoll {
		return o, session.Config{}, fmt.Errorf("polling for %v, want at most %v", o.Poll, MaxPoll)
	}
	if o.Counters == nil {
		o.Counters = NewCounters(o.Queues)
	}
	if n := len(o.Counters.vrings); n != o.Queues {
		return o, session.Config{}, fmt.Errorf("counters for %d vrings, want %d", n, o.Queues)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	queues := o.Queues
	c := session.Config{Queues: queues, Log: o.Log, NewInflight: func() (int, int64, error) { return NewInflight(queues) }}
	if o.Config {
		space, ok := h.(ConfigSpace)
		if !ok {
			return o, c, fmt.Errorf("vhost-user device of %T is to offer a configuration space, and has none", h)
		}
		c.ConfigSpace = append(make([]byte, 0), space.Config()...)
	}
	return o, c, nil
}
