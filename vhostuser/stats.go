package vhostuser

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Counters are what the vrings of a device count, over all its front-ends. They may
// be given to one Device after the other. Safe for concurrent use.
type Counters struct{ vrings []counters }

// NewCounters returns Counters for so many vrings, all zero.
func NewCounters(queues int) *Counters { return &Counters{make([]counters, queues)} }

// Read returns what each vring has done so far.
func (c *Counters) Read() []VringStats {
	all := make([]VringStats, len(c.vrings))
	for i := range all {
		all[i] = c.vrings[i].read()
	}
	return all
}

// VringStats counts what one vring has done, over all front-ends.
type VringStats struct {
	Kicks      uint64 // wake-ups by the driver
	Requests   uint64 // chains taken
	Waited     uint64 // of these, requests that left the vring's goroutine
	Batches    uint64 // publications of used elements
	Signals    uint64 // notifications sent to the driver
	PollHits   uint64 // times that polling found work, which saved a sleep
	PollMisses uint64 // times that it was in vain
	Broken     uint64 // times that the vring was given up
	Waiting    int    // requests that wait now
	// Latency is from when a request was taken until its reply was ready.
	Latency Histogram
}

// A Histogram counts durations by powers of two: LatencyBuckets classes, of which
// class i has those shorter than LatencyLimit(i) and no shorter than the limit
// before it. The last one has no limit.
type Histogram struct {
	Count [LatencyBuckets]uint64
	Nanos uint64 // sum of all
}

// LatencyBuckets is how many classes a Histogram has: up to 256 ns, 512 ns, ...
// 2^36 ns (69 s), and above.
const (
	LatencyBuckets = 30
	firstLimit     = 8 // log2 of the first limit in ns
)

// LatencyLimit returns the upper limit of class i, exclusive.
func LatencyLimit(i int) time.Duration {
	if i >= LatencyBuckets-1 {
		return math.MaxInt64
	}
	return 1 << (firstLimit + i)
}

// Total returns how many durations were counted.
func (h *Histogram) Total() (n uint64) {
	for _, c := range h.Count {
		n += c
	}
	return n
}

// Add adds what o has counted.
func (h *Histogram) Add(o *Histogram) {
	for i := range h.Count {
		h.Count[i] += o.Count[i]
	}
	h.Nanos += o.Nanos
}

// Minus returns what was counted since before.
func (h *Histogram) Minus(before *Histogram) (d Histogram) {
	for i := range h.Count {
		d.Count[i] = h.Count[i] - before.Count[i]
	}
	d.Nanos = h.Nanos - before.Nanos
	return d
}

// Quantile estimates the duration that a part q (0 to 1) of all is not longer than,
// as if each class were spread evenly; 0 if nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := q * float64(h.Total())
	if rank == 0 {
		return 0
	}
	var below float64
	for i, c := range h.Count {
		if c == 0 || below+float64(c) < rank {
			below += float64(c)
			continue
		}
		var low time.Duration
		if i > 0 {
			low = LatencyLimit(i - 1)
		}
		high := LatencyLimit(i)
		if i == LatencyBuckets-1 {
			high = 2 * low
		}
		return low + time.Duration(float64(high-low)*(rank-below)/float64(c))
	}
	return LatencyLimit(LatencyBuckets - 2)
}

// A Recorder is a Histogram in the making. Its methods take no lock, do not
// allocate and may be called by any goroutine; the zero value is ready.
type Recorder struct {
	count [LatencyBuckets]atomic.Uint64
	nanos atomic.Uint64
}

// Add counts d weight times.
func (r *Recorder) Add(d time.Duration, weight uint64) {
	n := uint64(max(d, 0))
	i := min(max(bits.Len64(n)-firstLimit, 0), LatencyBuckets-1)
	r.count[i].Add(weight)
	r.nanos.Add(n * weight)
}

// Read returns what was counted so far. Classes are read one by one while others
// count.
func (r *Recorder) Read() (h Histogram) {
	for i := range r.count {
		h.Count[i] = r.count[i].Load()
	}
	h.Nanos = r.nanos.Load()
	return h
}

// timeOneIn is how many requests that need not wait share one look at the clock. To
// time each costs 170 ns (BenchmarkTimed), a quarter of such a request, and one in
// timeOneIn 11 ns. That one stands for all of them; those that wait are all timed.
const timeOneIn = 16

// counters are the live form of VringStats. The vring's goroutine adds once a
// batch.
type counters struct {
	kicks, requests, waited, batches, signals, pollHits, pollMisses, broken atomic.Uint64
	waiting                                                                 atomic.Int64
	latency                                                                 Recorder
}

func (c *counters) read() VringStats {
	return VringStats{
		Kicks: c.kicks.Load(), Requests: c.requests.Load(), Waited: c.waited.Load(),
		Batches: c.batches.Load(), Signals: c.signals.Load(), Broken: c.broken.Load(),
		PollHits: c.pollHits.Load(), PollMisses: c.pollMisses.Load(),
		Waiting: int(c.waiting.Load()), Latency: c.latency.Read(),
	}
}
