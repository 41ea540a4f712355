package ringmem_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// The stress test is a ring between two processes, reduced to what ordering is
// about: slots, two indexes, two event indexes, two eventfds. Each side sleeps
// as soon as it finds nothing to do, so that nearly every item races with a side
// that goes to sleep. A lost wake-up shows as a sleeper with work in its ring.
const (
	stressEnv   = "RINGMEM_STRESS_ITEMS" // set in the child: items to pass
	stressSlots = 64
	stressWait  = 20 * time.Second // a sleep this long is a lost wake-up
)

// stressRing is laid over the shared page. Index words share cache lines with
// their neighbours on purpose, as in a virtqueue.
type stressRing struct {
	slots      [stressSlots]uint64 // written by the producer
	prodIdx    uint16
	callEvent  uint16 // written by the producer: wake me at this consIdx
	_          [60]byte
	consIdx    uint16
	kickEvent  uint16 // written by the consumer: wake me at this prodIdx
	_          [60]byte
	echo       [stressSlots]uint64 // written by the consumer
	prodSleeps uint64
	consSleeps uint64
}

func TestMain(m *testing.M) {
	if n := os.Getenv(stressEnv); n != "" {
		items, err := strconv.Atoi(n)
		if err == nil {
			err = consume(items)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "consumer:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func mapStress(fd int) (*stressRing, []byte, error) {
	mem, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map: %w", err)
	}
	return (*stressRing)(unsafe.Pointer(&mem[0])), mem, nil
}

// passed reports whether idx went past event while moving from old to new.
func passed(event, new, old uint16) bool { return new-event-1 < new-old }

func signal(fd int) error {
	_, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// sleep waits for an eventfd and drains it.
func sleep(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(stressWait.Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("no wake-up within %v", stressWait)
		}
		var b [8]byte
		_, err = unix.Read(fd, b[:])
		return err
	}
}

func dawdle(rng *rand.Rand, sink *atomic.Uint64) {
	for range rng.IntN(64) {
		sink.Add(1)
	}
}

// consume is the device side: it echoes each slot. Descriptors 3, 4, 5 are the
// memory, the kick and the call.
func consume(items int) error {
	r, _, err := mapStress(3)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(2, uint64(items)))
	var sink atomic.Uint64
	var next, called uint16
	for done := 0; done < items; {
		for next == ringmem.LoadAcquire16(&r.prodIdx) {
			ringmem.StoreFence16(&r.kickEvent, next)
			if next != ringmem.LoadAcquire16(&r.prodIdx) {
				break
			}
			r.consSleeps++
			if err := sleep(4); err != nil {
				return fmt.Errorf("item %d of %d, producer at %d, we at %d: %w", done, items, ringmem.LoadAcquire16(&r.prodIdx), next, err)
			}
		}
		for idx := ringmem.LoadAcquire16(&r.prodIdx); next != idx; next++ {
			v := r.slots[next%stressSlots]
			if v != uint64(done) {
				return fmt.Errorf("slot %d holds %d, want item %d", next%stressSlots, v, done)
			}
			r.echo[next%stressSlots] = ^v
			done++
		}
		dawdle(rng, &sink)
		ringmem.StoreRelease16(&r.consIdx, next)
		ringmem.Fence()
		if passed(ringmem.LoadAcquire16(&r.callEvent), next, called) {
			if err := signal(5); err != nil {
				return err
			}
		}
		called = next
	}
	return nil
}

// produce is the driver side. It keeps a random number of items in the ring.
func produce(r *stressRing, items, kick, call int) error {
	rng := rand.New(rand.NewPCG(1, uint64(items)))
	var sink atomic.Uint64
	var next, reaped, kicked uint16
	sent, back := 0, 0
	for back < items {
		room := stressSlots - int(next-reaped)
		for n := min(rng.IntN(4), room, items-sent); n > 0; n-- {
			r.slots[next%stressSlots] = uint64(sent)
			next, sent = next+1, sent+1
		}
		if next != kicked {
			ringmem.StoreRelease16(&r.prodIdx, next)
			ringmem.Fence()
			if passed(ringmem.LoadAcquire16(&r.kickEvent), next, kicked) {
				if err := signal(kick); err != nil {
					return err
				}
			}
			kicked = next
		}
		dawdle(rng, &sink)
		idx := ringmem.LoadAcquire16(&r.consIdx)
		if idx == reaped && next != reaped && rng.IntN(2) == 0 {
			ringmem.StoreFence16(&r.callEvent, reaped)
			if idx = ringmem.LoadAcquire16(&r.consIdx); idx == reaped {
				r.prodSleeps++
				if err := sleep(call); err != nil {
					return fmt.Errorf("item %d of %d, consumer at %d, we at %d: %w", back, items, ringmem.LoadAcquire16(&r.consIdx), reaped, err)
				}
				idx = ringmem.LoadAcquire16(&r.consIdx)
			}
		}
		for ; reaped != idx; reaped++ {
			if v := r.echo[reaped%stressSlots]; v != ^uint64(back) {
				return fmt.Errorf("echo %d is %#x, want that of item %d", reaped%stressSlots, v, back)
			}
			back++
		}
	}
	return nil
}

// TestTransportL39_NoLostWakeUps passes items between two processes. RAFSD_LONG=1 passes
// 10^8 of them.
func TestTransportL39_NoLostWakeUps(t *testing.T) {
	items := 150_000
	if os.Getenv("RAFSD_LONG") == "1" {
		items = 100_000_000
	}
	memfd, err := unix.MemfdCreate("ringmem-stress", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(memfd), "memory")
	defer mem.Close()
	if err := mem.Truncate(int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	r, mapped, err := mapStress(memfd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	var events [2]*os.File
	for i := range events {
		// Blocking eventfds: os.NewFile leaves them so and out of the poller.
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		events[i] = os.NewFile(uintptr(fd), "eventfd")
		defer events[i].Close()
	}
	child := exec.Command(os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d", stressEnv, items))
	child.ExtraFiles = []*os.File{mem, events[0], events[1]}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	perr := produce(r, items, int(events[0].Fd()), int(events[1].Fd()))
	if perr != nil {
		// Best effort: the child ends by itself when it waits in vain.
		_ = child.Process.Kill()
	}
	cerr := child.Wait()
	if perr != nil || cerr != nil {
		t.Fatalf("producer: %v; consumer: %v", perr, cerr)
	}
	t.Logf("%d items, the producer slept %d times, the consumer %d times", items, r.prodSleeps, r.consSleeps)
	if r.prodSleeps+r.consSleeps < uint64(items)/1000 {
		t.Errorf("too few sleeps for a test of wake-ups: %d + %d", r.prodSleeps, r.consSleeps)
	}
}
