package vmm

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are at most 1/32 wide. It never
// allocates; its zero value is empty.
type Histogram struct {
	counts [buckets]uint64
	total  uint64
}

const (
	subBits = 5 // 32 buckets for each power of two
	buckets = (65 - subBits) << subBits
)

func bucket(ns uint64) int {
	if ns < 1<<subBits {
		return int(ns)
	}
	shift := bits.Len64(ns) - subBits - 1
	return shift<<subBits + int(ns>>shift)
}

// upper is the largest value that falls into bucket i.
func upper(i int) uint64 {
	if i < 2<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	base := uint64(i&(1<<subBits-1) | 1<<subBits)
	return (base+1)<<shift - 1
}

// Add counts one duration; negative ones count as 0.
func (h *Histogram) Add(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.total++
}

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 { return h.total }

// Quantile is the duration that the share q of all does not exceed, to within
// the width of a bucket, and 0 when nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total))
	rank = min(max(rank, 1), h.total)
	for i, n := range h.counts {
		if n >= rank {
			return time.Duration(upper(i))
		}
		rank -= n
	}
	return 0
}
