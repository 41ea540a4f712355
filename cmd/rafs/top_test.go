package main

import (
	"testing"

	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
	"github.com/rafsd/rafsd/vhostuser"
)

// TestView: what is shown is the difference of two looks, and a daemon that began anew
// between them counts from 0.
func TestView(t *testing.T) {
	spread := func(class int, n uint64) *mountv1.Latency {
		counts := make([]uint64, vhostuser.LatencyBuckets)
		counts[class] = n
		return &mountv1.Latency{Counts: counts}
	}
	before := &mountv1.MetricsResponse{
		UnixNanos: 1e9,
		Queues:    []*mountv1.QueueMetrics{{}, {Queue: 1, Requests: 1000, Batches: 500, Latency: spread(3, 1000)}},
		Images:    []*mountv1.ImageMetrics{{Mountpoint: "/a", Requests: 10, DataRead: 4096}},
	}
	now := &mountv1.MetricsResponse{
		UnixNanos: 3e9,
		Queues:    []*mountv1.QueueMetrics{{}, {Queue: 1, Requests: 3000, Batches: 1000, Waiting: 2, PollHits: 6, PollMisses: 2, Latency: spread(3, 3000)}},
		Images:    []*mountv1.ImageMetrics{{Mountpoint: "/a", Requests: 30, DataRead: 8192}, {Mountpoint: "/b", Requests: 4}},

		Directories: []*mountv1.DirectoryMetrics{{Mountpoint: "/d", Requests: 6}},
	}
	v := newView(before, now)
	q := v.Queues[1]
	if v.Seconds != 2 || v.Rate != 1000 || v.Waiting != 2 || q.Rate != 1000 || q.Batch != 4 || q.PollHits != 3 || q.PollMiss != 1 {
		t.Errorf("view %+v", v)
	}
	if low, high := vhostuser.LatencyLimit(2).Seconds(), vhostuser.LatencyLimit(3).Seconds(); q.P50 < low || q.P50 > high || q.P99 < q.P50 || q.P99 > high {
		t.Errorf("p50 %v, p99 %v, want from %v to %v", q.P50, q.P99, low, high)
	}
	if len(v.Mounts) != 3 || v.Mounts[2].Rate != 3 || v.Mounts[0].Rate != 10 || v.Mounts[0].Read != 2048 || v.Mounts[1].Rate != 2 {
		t.Errorf("mounts %+v", v.Mounts)
	}
	again := newView(now, &mountv1.MetricsResponse{UnixNanos: 4e9, Queues: []*mountv1.QueueMetrics{{}, {Queue: 1, Requests: 7, Latency: spread(1, 7)}}})
	if q := again.Queues[1]; q.Rate != 7 || q.P50 > vhostuser.LatencyLimit(1).Seconds() || q.P50 == 0 {
		t.Errorf("after a new start: %+v", q)
	}
}

func TestShort(t *testing.T) {
	for seconds, want := range map[float64]string{0: "-", 12.3e-6: "12\u00b5s", 0.98765e-3: "990\u00b5s", 1.234: "1.2s"} {
		if got := short(seconds); got != want {
			t.Errorf("%v s is %q, want %q", seconds, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0 B", 1536: "1.5 KiB", 3 << 30: "3 GiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%v bytes are %q, want %q", n, got, want)
		}
	}
}
