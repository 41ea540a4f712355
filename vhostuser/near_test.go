package vhostuser

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// withReserve gives the process the spare P for the length of a test.
func withReserve(t *testing.T) {
	t.Helper()
	procs := runtime.GOMAXPROCS(0)
	reserve.mu.Lock()
	defer reserve.mu.Unlock()
	raiseProcs()
	t.Cleanup(func() {
		reserve.mu.Lock()
		defer reserve.mu.Unlock()
		if reserve.taken.Load() {
			t.Error("nobody gave the spare P back")
		}
		reserve.spare.Store(false)
		reserve.usual.Store(0)
		runtime.GOMAXPROCS(procs)
	})
}

// testKick returns a kick and a function that kicks it.
func testKick(t *testing.T, flags int) (*kick, func()) {
	t.Helper()
	fd, err := unix.Eventfd(0, flags|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKick(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.close()
		_ = unix.Close(fd)
	})
	return k, func() {
		if _, err := unix.Write(fd, one); err != nil {
			t.Error(err)
		}
	}
}

// TestReserve: one P more, also where it was asked for twice, and none where the
// environment says how many.
func TestReserve(t *testing.T) {
	procs := runtime.GOMAXPROCS(0)
	for _, n := range []string{"1", "7"} {
		t.Setenv("GOMAXPROCS", n)
		Reserve()
		if runtime.GOMAXPROCS(0) != procs || reserve.spare.Load() {
			t.Errorf("GOMAXPROCS=%s was not respected", n)
		}
	}
	t.Setenv("GOMAXPROCS", "")
	withReserve(t)
	usual := processors()
	Reserve()
	if n := runtime.GOMAXPROCS(0); n != usual+1 || usual > runtime.NumCPU() {
		t.Errorf("GOMAXPROCS is %d with %d processors of %d", n, usual, runtime.NumCPU())
	}
	reserve.counted.Store(time.Now().Add(-2 * recountEvery).UnixNano())
	recount()
	if n := runtime.GOMAXPROCS(0); n != usual+1 || countedLongAgo(time.Now()) {
		t.Errorf("GOMAXPROCS is %d after counting again, not %d", n, usual+1)
	}
}

// TestNearIsForOne: one vring at a time waits near by, until it gives that up.
func TestNearIsForOne(t *testing.T) {
	withReserve(t)
	var a, b near
	now := time.Now()
	for range 2 {
		if !a.take(now) {
			t.Fatal("nobody else has the spare P, and it cannot be had")
		}
	}
	if b.take(now) {
		t.Fatal("two have the spare P")
	}
	b.leave()
	a.leave()
	if !b.take(now) {
		t.Fatal("the spare P was not given back")
	}
	b.leave()
}

// TestNearGivesUp: a vring whose kicks come too seldom tries ever less, does not keep
// the spare P, and is near by again once it pays.
func TestNearGivesUp(t *testing.T) {
	withReserve(t)
	k, kick := testKick(t, unix.EFD_NONBLOCK)
	var n near
	ready := func(uintptr) bool { return false }
	tries := 0
	const sleeps = 3 * maxNearSkip
	for range sleeps {
		skips := n.skip > 0
		if n.wait(k, ready) {
			t.Fatal("work, where there is none")
		}
		if n.holds {
			t.Fatal("the spare P was kept")
		}
		if !skips {
			tries++
		}
	}
	if tries < 5 || tries > 10 {
		t.Errorf("%d tries in %d sleeps, want about one for each doubling", tries, sleeps)
	}
	n.skip = 0
	kick() // while it looks for the first time, so that no clock decides
	looks := 0
	if !n.wait(k, func(uintptr) bool { looks++; return looks > 1 }) || n.nextSkip != 0 || !n.holds {
		t.Errorf("the kick was not seen: %+v", n)
	}
	n.leave()
}

// TestInterruptedKick: both ways to wait end at once between interrupt and allow,
// whoever waits already, and go on afterwards.
func TestInterruptedKick(t *testing.T) {
	for _, flags := range []int{0, unix.EFD_NONBLOCK} {
		k, kick := testKick(t, flags)
		never := func(uintptr) bool { return false }
		ways := map[string]func(ready func(uintptr) bool) bool{
			"near": func(ready func(uintptr) bool) bool { return k.waitNear(ready, time.Hour) == nearWork },
			"far":  k.wait,
		}
		for name, wait := range ways {
			for _, before := range []bool{true, false} {
				if before {
					k.interrupt()
				} else {
					time.AfterFunc(5*time.Millisecond, k.interrupt)
				}
				if wait(never) {
					t.Errorf("%s: work, where there is none", name)
				}
				time.Sleep(time.Millisecond)
				k.allow()
			}
			var work atomic.Bool
			time.AfterFunc(5*time.Millisecond, func() { work.Store(true); kick() })
			if !wait(func(uintptr) bool { return work.Load() }) {
				t.Errorf("%s: interrupted, after that was taken back", name)
			}
		}
	}
}

// TestNoKickIsLost: who waits now near by, now far away, hears of everything.
func TestNoKickIsLost(t *testing.T) {
	k, kick := testKick(t, unix.EFD_NONBLOCK)
	var made atomic.Uint64
	const count = 20_000
	go func() {
		for i := range count {
			made.Add(1)
			kick()
			if i%64 == 0 {
				time.Sleep(rand.N(300 * time.Microsecond))
			}
		}
	}()
	deadline := time.AfterFunc(time.Minute, k.interrupt)
	defer deadline.Stop()
	for seen := uint64(0); seen < count; {
		ready := func(uintptr) bool { return made.Load() > seen }
		switch {
		case rand.N(2) == 0:
			if k.waitNear(ready, time.Millisecond) != nearWork {
				continue
			}
		case !k.wait(ready):
			t.Fatalf("hung after %d of %d", seen, count)
		}
		seen = made.Load()
	}
}
