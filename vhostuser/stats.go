package vhostuser

import "sync/atomic"

// VringStats counts what one vring has done, over all front-ends of a Server.
type VringStats struct {
	Kicks    uint64 // wake-ups by the driver
	Requests uint64 // chains taken
	Waited   uint64 // of these, requests that left the vring's goroutine
	Batches  uint64 // publications of used elements
	Signals  uint64 // notifications sent to the driver
	Broken   uint64 // times that the vring was given up
}

// counters are the live form of VringStats. The vring's goroutine adds once a
// batch.
type counters struct {
	kicks, requests, waited, batches, signals, broken atomic.Uint64
}

func (c *counters) read() VringStats {
	return VringStats{
		Kicks: c.kicks.Load(), Requests: c.requests.Load(), Waited: c.waited.Load(),
		Batches: c.batches.Load(), Signals: c.signals.Load(), Broken: c.broken.Load(),
	}
}
