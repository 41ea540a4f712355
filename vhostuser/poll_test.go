package vhostuser

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// severalProcessors makes sure that there is one to poll with.
func severalProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("SKIPPED: one processor is never polled with")
	}
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
		found, polled := p.wait(never, &halt)
		if found || polled != (polls > before) {
			t.Fatalf("work %v, polled %v after %d looks", found, polled, polls-before)
		}
		if polled {
			tries++
		}
	}
	if tries < 10 || tries > 20 {
		t.Errorf("%d tries in %d sleeps, want about one for each doubling", tries, sleeps)
	}
	p.skip = 0
	found := func(uintptr) bool { return true }
	for range 10 {
		if ok, _ := p.wait(found, &halt); !ok {
			t.Fatal("no work, where there is some")
		}
	}
}

// TestPollLeavesAProcessor: the last processor is nobody's to poll with.
func TestPollLeavesAProcessor(t *testing.T) {
	severalProcessors(t)
	// More threads of the scheduler make no more processors.
	runtime.GOMAXPROCS(2 * runtime.NumCPU())
	others := int32(runtime.NumCPU()) - 1
	polling.Add(others)
	defer polling.Add(-others)
	var halt atomic.Uint32
	for _, d := range []time.Duration{PollAuto, MaxPoll} {
		p := poller{time: d}
		if found, polled := p.wait(func(uintptr) bool { t.Error("polls"); return true }, &halt); found || polled {
			t.Error("work without a look")
		}
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

// TestPollAsTold: off never looks, and a time is polled before every sleep.
func TestPollAsTold(t *testing.T) {
	severalProcessors(t)
	var halt atomic.Uint32
	off := poller{time: PollOff}
	if found, polled := off.wait(func(uintptr) bool { t.Error("polls"); return true }, &halt); found || polled {
		t.Error("work without a look")
	}
	const told = 200 * time.Microsecond
	p := poller{time: told}
	for range 10 {
		start := time.Now()
		if found, polled := p.wait(func(uintptr) bool { return false }, &halt); found || !polled {
			t.Fatalf("work %v, polled %v", found, polled)
		}
		if took := time.Since(start); took < told {
			t.Errorf("polled for %v, told %v", took, told)
		}
	}
}
