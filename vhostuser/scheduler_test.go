package vhostuser_test

import (
	"context"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
)

// endless is a Handler whose guest never runs out of requests and never wants to
// be signalled: while it serves one, it offers all that came back once more.
type endless struct {
	q      atomic.Pointer[frontQueue] // handed over when all is offered
	served atomic.Uint64
	over   atomic.Bool
}

func (e *endless) Serve(*vhostuser.Request) (uint32, bool) {
	e.served.Add(1)
	q := e.q.Load()
	for !e.over.Load() {
		u, ok, err := q.Reap()
		if err != nil {
			panic(err)
		}
		if !ok {
			break
		}
		q.Offer(uint16(u.ID))
		q.Show()
	}
	return 0, true
}

func (*endless) ServeBlocking(context.Context, *vhostuser.Request) (uint32, error) { return 0, nil }
func (*endless) Reset()                                                            {}
func (*endless) Snapshot() ([]byte, error)                                         { return nil, nil }
func (*endless) Restore([]byte) error                                              { return nil }

// timer returns a descriptor that becomes readable after d, with no part of the Go
// scheduler in it.
func timer(t *testing.T, d time.Duration) int {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	check(t, err)
	check(t, unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}, nil))
	return fd
}

// TestABusyVringStarvesNobody: the process sleeps, down to the scheduler's monitor,
// when a vring gets work that never ends. With one processor everybody else waits
// for the monitor then, which has to learn of it: it would look by itself once a
// minute.
func TestABusyVringStarvesNobody(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	e := &endless{}
	b := newBed(t, e, vhostuser.Options{})
	f := newFront(t, frontOptions{queues: 2})
	q := f.q[1]
	// What kicks is a timer: nobody in this process has to be awake for it.
	check(t, unix.Close(q.kick))
	q.kick = timer(t, 200*time.Millisecond)
	f.dial(b.path)
	f.negotiate()
	f.start()
	defer e.over.Store(true)
	for h := range q.Size {
		q.Offer(h)
	}
	q.Show() // and no kick
	e.q.Store(q)

	const later = 300 * time.Millisecond
	other := os.NewFile(uintptr(timer(t, later)), "timer")
	defer other.Close()
	start := time.Now()
	var buf [8]byte
	if _, err := other.Read(buf[:]); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 20*later {
		t.Errorf("another goroutine waited %v for what was there after %v", took, later)
	}
	e.over.Store(true)
	if n := e.served.Load(); n < 1000 {
		t.Fatalf("only %d requests were served meanwhile", n)
	}
	b.leave(t, f)
}
