package vhostuser

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// severalProcessors makes sure that there is one to poll with.
func severalProcessors(t *testing.T) {
	old := runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))
	t.Cleanup(func() { runtime.GOMAXPROCS(old) })
}

// TestPollBacksOff: a vring that polls in vain does so ever more seldom, and as
// before once it pays again.
func TestPollBacksOff(t *testing.T) {
	severalProcessors(t)
	var p poller
	var halt atomic.Uint32
	polls := 0
	never := func(uintptr) bool { polls++; return false }
	const sleeps = 4 * maxPollSkip
	tries := 0
	for range sleeps {
		before := polls
		if p.wait(never, &halt) {
			t.Fatal("work, where there is none")
		}
		if polls > before {
			tries++
		}
	}
	if tries < 10 || tries > 20 {
		t.Errorf("%d tries in %d sleeps, want about one for each doubling", tries, sleeps)
	}
	p.skip = 0
	found := func(uintptr) bool { return true }
	for range 10 {
		if !p.wait(found, &halt) {
			t.Fatal("no work, where there is some")
		}
	}
}

// TestPollLeavesAProcessor: the last processor is nobody's to poll with.
func TestPollLeavesAProcessor(t *testing.T) {
	severalProcessors(t)
	others := int32(runtime.GOMAXPROCS(0)) - 1
	polling.Add(others)
	defer polling.Add(-others)
	var p poller
	var halt atomic.Uint32
	if p.wait(func(uintptr) bool { t.Error("polls"); return true }, &halt) {
		t.Error("work without a look")
	}
	if got := polling.Load(); got != others {
		t.Errorf("%d are counted as polling, want %d", got, others)
	}
}

// TestPollEndsAtHalt: a vring that is told to end does not finish its time.
func TestPollEndsAtHalt(t *testing.T) {
	severalProcessors(t)
	var p poller
	var halt atomic.Uint32
	looks := 0
	p.wait(func(uintptr) bool { looks++; halt.Store(haltPause); return false }, &halt)
	if looks > looksPerTime {
		t.Errorf("%d looks after the halt, want at most %d", looks, looksPerTime)
	}
}
