package vhostuser

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Values of Options.Poll beside a time.
const (
	// PollAuto polls where it pays: for autoPoll before a sleep, and the less often
	// the more often that was in vain.
	PollAuto time.Duration = 0
	// PollOff sleeps at once.
	PollOff time.Duration = -1
	// MaxPoll is the longest time that a vring may be told to poll.
	MaxPoll = 10 * time.Millisecond
)

// A driver that has just got its replies often has the next request ready within
// microseconds. To sleep meanwhile costs both sides a wake-up, and on a machine
// whose processors halt when idle that is most of a small request's time. So a
// vring looks at its ring for autoPoll before it sleeps, under two conditions:
// it has paid lately, and a processor is left for everybody else.
//
// Measured with vmmbench on two processors, one request in flight: GETATTR took
// 3.6 µs of processor time instead of 10, and a fifth of the time. On one processor
// nothing is polled.
const autoPoll = 50 * time.Microsecond

// looksPerTime is how often the ring is looked at between two looks at the clock.
const looksPerTime = 64

// maxPollSkip bounds the sleeps between two tries of a vring that polls in vain.
const maxPollSkip = 1 << 10

// polling counts the vrings of the process that poll now.
var polling atomic.Int32

// poller is one vring's way of polling, and its record of whether that pays. It
// belongs to the vring's goroutine.
type poller struct {
	time     time.Duration // as Options.Poll
	skip     int           // sleeps to let pass before the next try; only with PollAuto
	nextSkip int           // as many after the next try in vain
}

// wait polls and reports whether there is work, and whether it looked at all. It
// returns at once while polling does not pay or would take the last processor, and
// soon once halt is set.
func (p *poller) wait(pending func(uintptr) bool, halt *atomic.Uint32) (found, polled bool) {
	if p.time == PollOff {
		return false, false
	}
	if p.skip > 0 {
		p.skip--
		return false, false
	}
	defer polling.Add(-1)
	if int(polling.Add(1)) >= min(runtime.NumCPU(), processors()) {
		return false, false
	}
	long := p.time
	if long == PollAuto {
		long = autoPoll
	}
	for start := time.Now(); halt.Load() == haltNo; {
		for range looksPerTime {
			if pending(0) {
				p.nextSkip = 0
				return true, true
			}
		}
		if time.Since(start) >= long {
			break
		}
	}
	if p.time == PollAuto {
		p.nextSkip = min(2*p.nextSkip+1, maxPollSkip)
		p.skip = p.nextSkip
	}
	return false, true
}
