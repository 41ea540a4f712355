package vhostuser

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A vring that has just worked waits near by: in a system call of its own, on its
// thread, for nearTime, before it goes to sleep in the runtime's poller.
//
// The poller costs more than its system call: a goroutine is taken off its
// processor (a P), all others are looked through for work, and it is put back. And
// when with that the last P of the process became idle, the scheduler's monitor goes
// to sleep too, and the next system call that may wait, a write to a file, has to
// wake it: a futex and two context switches a request, and then the monitor, thus
// woken, looks around every 20 µs. A goroutine in a system call keeps its P, for
// 10 ms and as long as another P is idle: neither happens.
//
// It needs Ps of its own, so that as many as there are processors are left for
// everybody else and their goroutines start at once: Reserve makes one more. One
// vring at a time has it; the monitor is kept awake for all of them.
//
// Measured with vmmbench -passthrough on one core, one request in flight: random
// WRITE of 4 KiB went from 0.65 of virtiofsd's rate to 1.1, WRITE of 128 KiB from
// 0.8 to 1.2, rename from 0.85 to 1.2, unlink from 0.75 to 1.2 (docs/benchmarks.md).
// A goroutine that holds the P for the vrings, in a sleep, did half of it. In a raw
// system call, of which the scheduler knows nothing, it hangs the garbage collector.
const nearTime = 5 * time.Millisecond

// maxNearSkip bounds the sleeps between two tries of a vring that waits near by in
// vain: one whose requests come further apart than nearTime.
const maxNearSkip = 1 << 6

// yieldEvery is how often a vring that waits near by goes through the scheduler. A
// goroutine that has not for 10 ms is made to by a signal, and with its P in a system
// call the monitor takes that.
const yieldEvery = 4 * time.Millisecond

// near is a vring's part of it. It belongs to the vring's goroutine.
type near struct {
	holds    bool // the spare P
	skip     int  // sleeps to let pass before the next try
	nextSkip int  // as many after the next try in vain
	yielded  time.Time
}

// reserve is the P beyond those for everybody else.
var reserve struct {
	spare atomic.Bool // there is one
	taken atomic.Bool // by a vring

	mu      sync.Mutex   // a leaf
	usual   atomic.Int32 // GOMAXPROCS without it, 0 if it was never raised; written under mu
	counted atomic.Int64 // when that was found out, in ns since 1970; written under mu
}

// recountEvery bounds how often the number of processors is asked for again.
const recountEvery = time.Minute

// Reserve raises GOMAXPROCS by one, for a vring that waits for its next request: it
// makes small requests faster. It concerns the whole process and so is for a program to
// call, once. Where the environment says what GOMAXPROCS is, it does nothing.
//
// The runtime follows a limit of the control group that changes no more then; it is
// looked at again instead when a vring gets work, once a minute at most.
func Reserve() {
	if n, err := strconv.Atoi(os.Getenv("GOMAXPROCS")); err == nil && n > 0 {
		return
	}
	reserve.mu.Lock()
	defer reserve.mu.Unlock()
	if reserve.usual.Load() == 0 {
		raiseProcs()
	}
}

// raiseProcs counts the processors and adds one P to those that the runtime would have
// for them. reserve.mu is held.
func raiseProcs() {
	runtime.SetDefaultGOMAXPROCS()
	n := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(n + 1)
	reserve.usual.Store(int32(n))
	reserve.counted.Store(time.Now().UnixNano())
	reserve.spare.Store(true)
}

// recount counts the processors again if that is long ago.
func recount() {
	if !reserve.mu.TryLock() {
		return
	}
	defer reserve.mu.Unlock()
	if countedLongAgo(time.Now()) {
		raiseProcs()
	}
}

func countedLongAgo(now time.Time) bool {
	return now.UnixNano()-reserve.counted.Load() >= recountEvery.Nanoseconds()
}

// processors is how many Ps there are for everybody.
func processors() int {
	if n := reserve.usual.Load(); n > 0 {
		return int(n)
	}
	return runtime.GOMAXPROCS(0)
}

// take gets the spare P, unless another vring has it.
func (n *near) take(now time.Time) bool {
	if n.holds {
		return true
	}
	if !reserve.spare.Load() || !reserve.taken.CompareAndSwap(false, true) {
		return false
	}
	n.holds = true
	if countedLongAgo(now) {
		go recount() // it stops the world, and waits for the garbage collector
	}
	return true
}

// leave gives the spare P back.
func (n *near) leave() {
	if n.holds {
		n.holds = false
		reserve.taken.Store(false)
	}
}

// wait waits in k's own system call while that pays and reports whether there is
// work. If not, there is none, or k was interrupted.
func (n *near) wait(k *kick, ready func(uintptr) bool) bool {
	if n.skip > 0 {
		n.skip--
		return false
	}
	if now := time.Now(); !n.take(now) {
		return false
	} else if now.Sub(n.yielded) >= yieldEvery {
		n.yielded = now
		runtime.Gosched()
	}
	switch k.waitNear(ready, nearTime) {
	case nearWork:
		n.nextSkip = 0
		return true
	case nearQuiet:
		n.nextSkip = min(2*n.nextSkip+1, maxNearSkip)
		n.skip = n.nextSkip
	}
	n.leave()
	return false
}
