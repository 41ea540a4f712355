package live

import (
	"sync/atomic"
	"time"
)

// Buckets of Stats, as nydusd's metrics have them: the last takes what is above
// all others.
const (
	SizeBuckets    = 8 // below 1 KiB, 4, 16, 64, 128, 512 KiB, 1 MiB, above
	LatencyBuckets = 8 // up to 1, 20, 50, 100, 500, 1000, 2000 ms, above
)

var (
	sizeLimits    = [SizeBuckets - 1]int64{1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20}
	latencyLimits = [LatencyBuckets - 1]time.Duration{1, 20, 50, 100, 500, 1000, 2000}
)

// SizeBucket returns the bucket of a number of bytes.
func SizeBucket(n int64) int {
	for i, limit := range sizeLimits {
		if n < limit {
			return i
		}
	}
	return SizeBuckets - 1
}

func latencyBucket(d time.Duration) int {
	for i, limit := range latencyLimits {
		if d <= limit*time.Millisecond {
			return i
		}
	}
	return LatencyBuckets - 1
}

// Stats are the counters since the Backend was made. A read counts when its reader
// is closed; one that failed counts as an error too.
type Stats struct {
	Reads, Errors uint64
	Bytes         uint64 // that came
	Millis        uint64 // all reads together, from the request to the close
	Latency       [LatencyBuckets]uint64
	Sizes         [SizeBuckets]uint64
	LatencyOfSize [SizeBuckets][LatencyBuckets]uint64
}

type counters struct {
	reads, errors, bytes, nanos atomic.Uint64
	byBoth                      [SizeBuckets][LatencyBuckets]atomic.Uint64
}

func (c *counters) add(asked, got int64, took time.Duration, failed bool) {
	c.reads.Add(1)
	if failed {
		c.errors.Add(1)
	}
	c.bytes.Add(uint64(got))
	c.nanos.Add(uint64(took))
	c.byBoth[SizeBucket(asked)][latencyBucket(took)].Add(1)
}

// Stats returns the counters, one by one while reads go on.
func (l *Backend) Stats() Stats {
	c := &l.counters
	s := Stats{
		Reads: c.reads.Load(), Errors: c.errors.Load(), Bytes: c.bytes.Load(),
		Millis: c.nanos.Load() / uint64(time.Millisecond),
	}
	for i := range c.byBoth {
		for j := range c.byBoth[i] {
			n := c.byBoth[i][j].Load()
			s.LatencyOfSize[i][j] = n
			s.Sizes[i] += n
			s.Latency[j] += n
		}
	}
	return s
}
