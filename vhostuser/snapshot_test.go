package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// The other process of these tests is this test binary, told by workerEnv. It
// gets the state on standard input, the descriptors behind it (the connection
// first), and serves until the connection ends.
const workerEnv = "VHOSTUSER_TEST_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		if err := worker(); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// firstExtra is the number of the first descriptor that exec.Cmd.ExtraFiles sets.
const firstExtra = 3

// worker goes on from a snapshot. Its gates are open: nothing waits any more.
func worker() error {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	n := int(binary.LittleEndian.Uint32(raw))
	fds := make([]int, n)
	for i := range fds {
		fds[i] = firstExtra + 1 + i
	}
	st, err := session.UnmarshalState(raw[4:], fds)
	if err != nil {
		return err
	}
	h := newEcho()
	close(h.gate(1))
	o := vhostuser.Options{Queues: len(st.Vrings), Log: quiet()}
	dev, err := vhostuser.NewDeviceFromSnapshot(h, o, st)
	if err != nil {
		return err
	}
	defer dev.Close()
	if string(h.state) != "echo state" {
		return fmt.Errorf("handler restored with %q", h.state)
	}
	ses, err := session.Restore(session.Config{Queues: o.Queues, Log: o.Log}, dev, st)
	if err != nil {
		return err
	}
	defer ses.Close()
	sock, err := wire.ConnFromFD(firstExtra)
	if err != nil {
		return err
	}
	c := wire.NewConn(sock)
	defer c.Close()
	return ses.Serve(c)
}

// startWorker hands a snapshot and the connection to another process.
func startWorker(t *testing.T, st *session.State, conn *net.UnixConn) *exec.Cmd {
	t.Helper()
	raw, fds := st.Marshal()
	raw = append(binary.LittleEndian.AppendUint32(nil, uint32(len(fds))), raw...)
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), workerEnv+"=1")
	cmd.Stdin = strings.NewReader(string(raw))
	cmd.Stderr = os.Stderr
	file, err := conn.File()
	check(t, err)
	cmd.ExtraFiles = []*os.File{file}
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(dup), "state"))
	}
	err = cmd.Start()
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	check(t, err)
	return cmd
}

// TestDeviceMovesToAnotherProcess: a device under load stops at some moment, with
// requests in flight, and another process goes on with it. Each request is
// answered once. The front-end notices nothing and goes on talking to the new
// process over the same connection.
func TestDeviceMovesToAnotherProcess(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, o := range map[string]frontOptions{
		"QEMU":            {size: 64, start: 65000},
		"user-mode Linux": {size: 64, blocking: true, call: callSocket},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, err := wire.Pair()
			check(t, err)
			f := newFront(t, o)
			f.attach(a)
			h := newEcho()
			opts := vhostuser.Options{Queues: 2, Log: quiet()}
			dev, err := vhostuser.NewDevice(h, opts)
			check(t, err)
			ses := session.New(session.Config{Queues: 2, Log: opts.Log}, dev)
			served := make(chan error, 1)
			c := wire.NewConn(b)
			go func() { served <- ses.Serve(c) }()
			f.negotiate()
			f.start()

			// Load on one vring, every eighth request waits in the first process;
			// the other vring has only requests that wait, and is stopped later.
			q, idle := f.q[1], f.q[0]
			for head := range uint16(3) {
				idle.offer(head, opWait, 1, 900+uint64(head))
			}
			idle.show()
			poll(t, "three requests wait", func() bool { return h.inWait.Load() >= 3 })
			const total = 4000
			load := make(chan error, 1)
			started := make(chan struct{})
			go func() { load <- runLoad(q, total, started) }()
			<-started

			// The session's goroutine must be out of the way before another
			// process reads the socket: a deadline stops it between messages.
			check(t, b.SetReadDeadline(time.Unix(1, 0)))
			if err := <-served; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("Serve: %v", err)
			}
			st, err := ses.Snapshot()
			check(t, err)
			inFlight := len(st.Vrings[1].Stopped.InFlight)
			if got := len(st.Vrings[0].Stopped.InFlight); got != 3 {
				t.Errorf("%d requests in flight on vring 0, want 3", got)
			}
			cmd := startWorker(t, st, b)
			dev.Close()
			ses.Close()
			c.Close()

			if err := <-load; err != nil {
				t.Fatal(err)
			}
			for range 3 {
				u := idle.wait()
				idle.reply(u, 900+uint64(u.ID))
			}
			// Messages go on too: stop, go on, hang up.
			check(t, f.conn.Socket().SetDeadline(time.Now().Add(frontWait)))
			if base, want := q.stop(), f.o.start+uint16(total); base != want {
				t.Errorf("base %d, want %d", base, want)
			}
			q.setUp(f.o.start + uint16(total))
			q.enable(1)
			q.offer(0, opEcho, 0, 1)
			q.show()
			q.reply(q.wait(), 1)
			check(t, f.conn.Close())
			if err := cmd.Wait(); err != nil {
				t.Errorf("worker: %v", err)
			}
			t.Logf("%d requests were in flight on the loaded vring", inFlight)
		})
	}
}

// runLoad makes total requests and checks that each comes back once, in any order.
// started is closed when a third of them is through.
func runLoad(q *frontQueue, total int, started chan struct{}) error {
	ids := make(map[uint32]uint64)
	free := make([]uint16, q.Size)
	for i := range free {
		free[i] = uint16(i)
	}
	next := uint64(0)
	for back := 0; back < total; {
		for len(free) > 0 && next < uint64(total) {
			head := free[len(free)-1]
			free = free[:len(free)-1]
			op := uint32(opEcho)
			// Not so many that only waiting ones are left before the move.
			if next%100 == 7 {
				op = opWait
			}
			q.offer(head, op, 1, next)
			ids[uint32(head)] = next
			next++
		}
		q.show()
		if back >= total/3 && started != nil {
			close(started)
			started = nil
		}
		u, err := q.next(frontWait)
		if err != nil {
			return fmt.Errorf("%d of %d back: %w", back, total, err)
		}
		id, ok := ids[u.ID]
		if !ok {
			return fmt.Errorf("head %d came back twice", u.ID)
		}
		delete(ids, u.ID)
		at := q.slot(uint16(u.ID)) + slotRep
		if got := binary.LittleEndian.Uint64(q.f.mem[at:]); u.Len != echoSize || got != ^id {
			return fmt.Errorf("head %d: length %d, reply %#x, want %#x", u.ID, u.Len, got, ^id)
		}
		free = append(free, uint16(u.ID))
		back++
	}
	return nil
}

// TestSnapshotOfAStoppedVring: requests that wait in a stopped vring are answered
// by the next device once the driver starts the vring where it stopped, and
// forgotten if it starts anew.
func TestSnapshotOfAStoppedVring(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, anew := range []bool{false, true} {
		t.Run(fmt.Sprintf("anew=%v", anew), func(t *testing.T) {
			f := newFront(t, frontOptions{})
			base, st := stoppedWithWaiting(t, f)
			q := f.q[1]
			h := newEcho()
			close(h.gate(1))
			dev, ses := restored(t, h, st)
			a, b, err := wire.Pair()
			check(t, err)
			f.attach(a)
			done := make(chan error, 1)
			c := wire.NewConn(b)
			go func() { done <- ses.Serve(c) }()
			if anew {
				base = 0
				q.reset(0)
			}
			q.setUp(base)
			q.enable(1)
			if !anew {
				for range 2 {
					u := q.wait()
					q.reply(u, 50+uint64(u.ID))
				}
			}
			q.offer(9, opEcho, 0, 1)
			q.show()
			u := q.wait()
			if u.ID != 9 {
				t.Errorf("head %d came back, want 9", u.ID)
			}
			check(t, f.conn.Close())
			check(t, <-done)
			dev.Close()
			ses.Close()
			c.Close()
		})
	}
}

// stoppedWithWaiting connects f to a device, stops its vring 1 with two requests
// waiting, and ends the device. It returns the base of the vring and the snapshot,
// whose descriptors are its own.
func stoppedWithWaiting(t *testing.T, f *front) (base uint16, st *session.State) {
	t.Helper()
	a, b, err := wire.Pair()
	check(t, err)
	f.attach(a)
	h := newEcho()
	dev, err := vhostuser.NewDevice(h, vhostuser.Options{Queues: 2, Log: quiet()})
	check(t, err)
	ses := session.New(session.Config{Queues: 2, Log: quiet()}, dev)
	done := make(chan error, 1)
	c := wire.NewConn(b)
	go func() { done <- ses.Serve(c) }()
	f.negotiate()
	f.start()
	q := f.q[1]
	q.offer(4, opWait, 1, 54)
	q.offer(6, opWait, 1, 56)
	q.show()
	poll(t, "both wait", func() bool { return h.inWait.Load() == 2 })
	base = q.stop()
	st, err = ses.Snapshot()
	check(t, err)
	raw, fds := st.Marshal()
	own := make([]int, len(fds))
	for i, fd := range fds {
		own[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
	}
	check(t, f.conn.Close())
	check(t, <-done)
	dev.Close()
	ses.Close()
	c.Close()
	st, err = session.UnmarshalState(raw, own)
	check(t, err)
	return base, st
}

func restored(t *testing.T, h *echo, st *session.State) (*vhostuser.Device, *session.Session) {
	t.Helper()
	dev, err := vhostuser.NewDeviceFromSnapshot(h, vhostuser.Options{Queues: 2, Log: quiet()}, st)
	check(t, err)
	ses, err := session.Restore(session.Config{Queues: 2, Log: quiet()}, dev, st)
	check(t, err)
	return dev, ses
}

// TestRestoreRefuses: a state may be well-formed and still be no good.
func TestRestoreRefuses(t *testing.T) {
	defer goleak.VerifyNone(t)
	_, st := stoppedWithWaiting(t, newFront(t, frontOptions{}))
	defer st.Close()
	tests := map[string]func(s *session.State){
		"vring too many":         func(s *session.State) { s.Vrings = append(s.Vrings, session.Vring{Kick: -1, Call: -1, Err: -1}) },
		"feature not ours":       func(s *session.State) { s.Features |= wire.FeatureRingPacked },
		"rings outside memory":   func(s *session.State) { s.Vrings[1].Desc = 0 },
		"no memory":              func(s *session.State) { s.Regions = nil },
		"memory beyond the file": func(s *session.State) { s.Regions[0].Size = 1 << 40 },
		"kick is no eventfd":     func(s *session.State) { s.Vrings[1].Kick = s.Regions[0].FD },
		"call is a file":         func(s *session.State) { s.Vrings[1].Call = s.Regions[0].FD },
		"head twice":             func(s *session.State) { s.Vrings[1].Stopped.InFlight = []uint16{4, 4} },
		"head out of range":      func(s *session.State) { s.Vrings[1].Stopped.InFlight = []uint16{64} },
		"runs without progress":  func(s *session.State) { s.Vrings[1].Live, s.Vrings[1].Running = false, true },
		"runs without kick": func(s *session.State) {
			s.Vrings[1].Kick, s.Vrings[1].Running = -1, true
		},
	}
	before := openFDs(t)
	for name, spoil := range tests {
		bad := *st
		bad.Regions = append(bad.Regions[:0:0], st.Regions...)
		bad.Vrings = append(bad.Vrings[:0:0], st.Vrings...)
		spoil(&bad)
		if dev, err := vhostuser.NewDeviceFromSnapshot(newEcho(), vhostuser.Options{Queues: 2, Log: quiet()}, &bad); err == nil {
			dev.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
