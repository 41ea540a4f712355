package vhostuser_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// fdOf returns a descriptor of its own for a socket, as a parent process hands it on.
func fdOf(t *testing.T, s interface{ File() (*os.File, error) }) int {
	t.Helper()
	f, err := s.File()
	check(t, err)
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	check(t, err)
	return fd
}

func TestInherit(t *testing.T) {
	defer goleak.VerifyNone(t)
	serve := func(t *testing.T, l *vhostuser.Listener, dial func(f *front)) {
		t.Helper()
		connected := 0
		gone := make(chan error, 1)
		s, err := vhostuser.NewServer(newEcho(), vhostuser.Options{Queues: 2, Log: quiet(),
			OnConnect: func() { connected++ }, OnDisconnect: func(err error) { gone <- err }})
		check(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		f := newFront(t, frontOptions{})
		dial(f)
		f.negotiate()
		f.start()
		q := f.q[1]
		q.offer(0, opEcho, 0, 3)
		q.show()
		q.reply(q.wait(), 3)
		check(t, f.conn.Close())
		check(t, <-gone)
		cancel()
		check(t, <-done)
		if connected != 1 {
			t.Errorf("OnConnect called %d times", connected)
		}
	}
	t.Run("a listening socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		parent, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		check(t, err)
		defer parent.Close()
		l, err := vhostuser.Inherit(fdOf(t, parent))
		check(t, err)
		serve(t, l, func(f *front) { f.dial(path) })
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the parent's socket was removed: %v", err)
		}
	})
	t.Run("a connection", func(t *testing.T) {
		a, b, err := wire.Pair()
		check(t, err)
		l, err := vhostuser.Inherit(fdOf(t, b))
		check(t, err)
		check(t, b.Close())
		serve(t, l, func(f *front) { f.attach(a) })
	})
	t.Run("a connection that ends the service", func(t *testing.T) {
		a, b, err := wire.Pair()
		check(t, err)
		l, err := vhostuser.Inherit(fdOf(t, b))
		check(t, err)
		check(t, b.Close())
		check(t, a.Close())
		s, err := vhostuser.NewServer(newEcho(), vhostuser.Options{Queues: 1, Log: quiet()})
		check(t, err)
		check(t, s.Serve(context.Background(), l)) // by itself
	})
	t.Run("no socket", func(t *testing.T) {
		before := openFDs(t)
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		check(t, err)
		if l, err := vhostuser.Inherit(fd); err == nil {
			l.Close()
			t.Error("an eventfd was taken for a socket")
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path)
	check(t, err)
	s, err := vhostuser.NewServer(newEcho(), vhostuser.Options{Queues: 1, Log: quiet()})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	cancel()
	check(t, <-done)
	checkGone(t, path)
}

func TestListenRefusesALongPath(t *testing.T) {
	_, err := vhostuser.Listen("/" + strings.Repeat("x", 120))
	if err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("path of 121 bytes: %v", err)
	}
}

func TestCloseLeavesAnotherSocketAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path)
	check(t, err)
	check(t, os.Remove(path))
	writeFile(t, path)
	check(t, l.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("removed a file that is not ours: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]vhostuser.Options{
		"no queue":           {},
		"too many queues":    {Queues: 257},
		"requests too large": {Queues: 1, MaxRequestBytes: 1 << 32},
		"no configuration":   {Queues: 1, Config: true},
		"polls too long":     {Queues: 1, Poll: vhostuser.MaxPoll + 1},
		"polls less than 0":  {Queues: 1, Poll: vhostuser.PollOff - 1},
		"other counters":     {Queues: 2, Counters: vhostuser.NewCounters(1)},
	} {
		if _, err := vhostuser.NewServer(null{}, o); err == nil {
			t.Errorf("%s: accepted by NewServer", name)
		}
		if d, err := vhostuser.NewDevice(null{}, o); err == nil {
			d.Close()
			t.Errorf("%s: accepted by NewDevice", name)
		}
	}
}

// TestClosedDeviceRefuses: nothing brings a device back to life.
func TestClosedDeviceRefuses(t *testing.T) {
	d, err := vhostuser.NewDevice(null{}, vhostuser.Options{Queues: 1, Log: quiet()})
	check(t, err)
	d.Close()
	d.Close()
	if d.SetMemory(nil) == nil || d.SetKick(0, -1) == nil || d.SetCall(0, -1) == nil {
		t.Error("a closed device takes memory or descriptors")
	}
	if _, _, err := d.Snapshot(); err == nil {
		t.Error("a closed device has a snapshot")
	}
}
