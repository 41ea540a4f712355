package vmm

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for i := 1; i < buckets; i++ {
		if lo, hi := upper(i-1), upper(i); hi <= lo {
			t.Fatalf("bucket %d ends at %d, the one before at %d", i, hi, lo)
		}
		if got := bucket(upper(i)); got != i {
			t.Fatalf("the last value of bucket %d falls into %d", i, got)
		}
		if got := bucket(upper(i-1) + 1); got != i {
			t.Fatalf("the first value of bucket %d falls into %d", i, got)
		}
	}
	if got := bucket(^uint64(0)); got != buckets-1 {
		t.Errorf("the greatest value falls into bucket %d of %d", got, buckets)
	}
}

// TestQuantiles compares with sorting.
func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var h, a, b Histogram
	var all []time.Duration
	for i := range 5000 {
		d := time.Duration(rng.ExpFloat64() * 20_000)
		all = append(all, d)
		if i%2 == 0 {
			a.Add(d)
		} else {
			b.Add(d)
		}
	}
	h.Merge(&a)
	h.Merge(&b)
	slices.Sort(all)
	for _, q := range []float64{0, .01, .5, .9, .99, 1} {
		want := all[max(int(q*float64(len(all))), 1)-1]
		if got := h.Quantile(q); got < want || float64(got) > float64(want)*(1+1./32)+1 {
			t.Errorf("Quantile(%v) = %v, want %v or at most 1/32 more", q, got, want)
		}
	}
	if h.Count() != 5000 {
		t.Errorf("Count = %d, want 5000", h.Count())
	}
	var none Histogram
	none.Add(-time.Second)
	if got := none.Quantile(1); got != 0 {
		t.Errorf("a negative duration counts as %v, want 0", got)
	}
}
