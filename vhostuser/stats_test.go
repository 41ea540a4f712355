package vhostuser

import (
	"math"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var r Recorder
	for _, d := range []time.Duration{0, -5, 255, 256, 511, 512, time.Microsecond, time.Second, math.MaxInt64} {
		r.Add(d, 2)
	}
	h := r.Read()
	if h.Total() != 18 {
		t.Errorf("%d counted, want 18", h.Total())
	}
	var n uint64
	for i, c := range h.Count {
		n += c
		if i > 0 && LatencyLimit(i) <= LatencyLimit(i-1) {
			t.Errorf("limit %d is %v after %v", i, LatencyLimit(i), LatencyLimit(i-1))
		}
	}
	if h.Count[0] != 6 || h.Count[1] != 4 || h.Count[2] != 4 || h.Count[LatencyBuckets-1] != 2 {
		t.Errorf("classes %v", h.Count)
	}
}

// TestQuantile: a quantile lies in the class that has it, and grows with q.
func TestQuantile(t *testing.T) {
	var r Recorder
	for i := range 1000 {
		r.Add(time.Duration(i+1)*time.Microsecond, 1)
	}
	h := r.Read()
	var last time.Duration
	for _, q := range []float64{0.1, 0.5, 0.9, 0.99, 1} {
		got, want := h.Quantile(q), time.Duration(q*1000)*time.Microsecond
		if got < want/2 || got > 2*want || got < last {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
		last = got
	}
	var empty Histogram
	if empty.Quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
	before := h
	r.Add(time.Second, 1)
	h = r.Read()
	d := h.Minus(&before)
	if got := d.Quantile(0.5); d.Total() != 1 || got < time.Second/2 || got > 2*time.Second {
		t.Errorf("of the difference: %d counted, median %v", d.Total(), got)
	}
}

func TestRecorderAllocatesNothing(t *testing.T) {
	var r Recorder
	if n := testing.AllocsPerRun(100, func() { r.Add(time.Millisecond, 16) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkTimed is what it costs a request to be timed, each one and one in
// timeOneIn.
func BenchmarkTimed(b *testing.B) {
	for name, every := range map[string]int{"each": 1, "sampled": timeOneIn} {
		b.Run(name, func(b *testing.B) {
			var r Recorder
			left := 0
			for range b.N {
				if left--; left < 0 {
					left = every - 1
					r.Add(time.Since(time.Now()), uint64(every))
				}
			}
		})
	}
}
