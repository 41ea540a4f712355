package vhostuser_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// quiet is a logger for tests whose subject is not the log.
func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// poll waits until cond holds. It is for conditions that no channel tells.
func poll(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(frontWait); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, frontWait)
		}
	}
}

// bed is a server with its socket.
type bed struct {
	path   string
	server *vhostuser.Server
	echo   *echo
	gone   chan error // a value for each front-end that has left
	end    func()
}

func newBed(t testing.TB, h vhostuser.Handler, o vhostuser.Options) *bed {
	t.Helper()
	b := &bed{path: filepath.Join(t.TempDir(), "s"), gone: make(chan error, 64)}
	b.echo, _ = h.(*echo)
	if o.Queues == 0 {
		o.Queues = 4
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	o.OnDisconnect = func(err error) { b.gone <- err }
	var err error
	b.server, err = vhostuser.NewServer(h, o)
	check(t, err)
	l, err := vhostuser.Listen(b.path)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, l) }()
	ended := false
	b.end = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
	}
	t.Cleanup(b.end)
	return b
}

// connect returns a front-end whose vrings run.
func (b *bed) connect(t testing.TB, o frontOptions) *front {
	t.Helper()
	f := newFront(t, o)
	f.dial(b.path)
	f.negotiate()
	f.start()
	return f
}

// leave closes the front-end's connection and waits until the server is done with it.
func (b *bed) leave(t testing.TB, f *front) {
	t.Helper()
	check(t, f.conn.Close())
	select {
	case err := <-b.gone:
		if err != nil {
			t.Errorf("connection ended: %v", err)
		}
	case <-time.After(frontWait):
		t.Fatal("the server does not let go of a front-end that left")
	}
}

func TestEndToEnd(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, o := range map[string]frontOptions{
		"QEMU":                 {},
		"without EVENT_IDX":    {noEvent: true},
		"user-mode Linux":      {blocking: true, call: callSocket},
		"pipe as call":         {call: callPipe},
		"just below the wrap":  {start: 65500, size: 16},
		"one entry":            {size: 1},
		"largest queue":        {size: 1024},
		"blocking, no events":  {blocking: true, noEvent: true},
		"one queue of Kata's":  {queues: 1, size: 1024},
		"all the four queues ": {queues: 4},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newEcho(), vhostuser.Options{})
			f := b.connect(t, o)
			id := uint64(0)
			for round := range 200 {
				for _, q := range f.q {
					n := min(int(q.Size), 1+round%20)
					for h := range n {
						q.offer(uint16(h), opEcho, 0, id+uint64(h))
					}
					q.show()
					for range n {
						u := q.wait()
						q.reply(u, id+uint64(u.ID))
					}
					id += uint64(n)
				}
			}
			b.leave(t, f)
			var requests uint64
			for _, s := range b.server.Stats() {
				requests += s.Requests
				if s.Broken != 0 {
					t.Errorf("a vring broke: %+v", s)
				}
			}
			if requests != id {
				t.Errorf("%d requests counted, %d made", requests, id)
			}
			b.end()
		})
	}
}

func TestSecondFrontEndWaits(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBed(t, newEcho(), vhostuser.Options{})
	first := b.connect(t, frontOptions{})
	second := newFront(t, frontOptions{})
	second.dial(b.path)
	check(t, second.conn.Send(wire.GetFeatures, wire.FlagVersion, nil))
	check(t, second.conn.Socket().SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	if _, err := second.conn.Recv(); err == nil {
		t.Error("two front-ends at a time")
	}
	check(t, second.conn.Socket().SetReadDeadline(time.Now().Add(frontWait)))
	b.leave(t, first)
	if _, err := second.conn.Recv(); err != nil {
		t.Errorf("the second front-end is not served after the first has left: %v", err)
	}
	second.negotiate()
	second.start()
	q := second.q[1]
	q.offer(0, opEcho, 0, 5)
	q.show()
	q.reply(q.wait(), 5)
	b.leave(t, second)
	if n := b.echo.resets.Load(); n != 2 {
		t.Errorf("handler reset %d times, want once for each front-end", n)
	}
	b.end()
}

func TestListenReplacesAStaleSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	check(t, err)
	if l, err := vhostuser.Listen(path); err == nil {
		l.Close()
		t.Fatal("took the socket of a living process")
	}
	old.SetUnlinkOnClose(false)
	check(t, old.Close())
	l, err := vhostuser.Listen(path)
	check(t, err)
	checkMode(t, path)
	check(t, l.Close())
	check(t, l.Close())
	checkGone(t, path)
	writeFile(t, path)
	if l, err := vhostuser.Listen(path); err == nil {
		l.Close()
		t.Error("replaced a file that is no socket")
	}
}
