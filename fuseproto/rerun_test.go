package fuseproto_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// Every change of the session is told before the guest hears of it, in the form that
// Restore takes.
func TestSessionChangesAreTold(t *testing.T) {
	s := serverOf(t, testTree(), fuseproto.Config{})
	var told [][]byte
	var fail error
	s.OnChange(func(state []byte) error {
		told = append(told, bytes.Clone(state))
		return fail
	})
	c := fusetest.NewClient(t, s)
	fail = errors.New("nobody remembers")
	if r := c.Call(fuseproto.OpInit, 0, 64, fusetest.InitBody(7, 45, fusetest.GuestFlags)); r.Errno != syscall.EIO {
		t.Errorf("INIT that nobody remembers: %v, want EIO", r.Errno)
	}
	if _, r := c.GetAttr(fuseproto.RootID); r.Errno != syscall.EIO {
		t.Errorf("GETATTR after it: %v, want EIO", r.Errno)
	}
	fail = nil
	c.Init()
	now, err := s.Snapshot()
	if err != nil || len(told) != 2 || !bytes.Equal(told[1], now) {
		t.Fatalf("told %x, the session is %x, %v", told, now, err)
	}
	next := serverOf(t, testTree(), fuseproto.Config{})
	if err := next.Restore(told[1]); err != nil {
		t.Fatal(err)
	}
	if _, r := fusetest.NewClient(t, next).GetAttr(fuseproto.RootID); r.Errno != 0 {
		t.Errorf("GETATTR in the next process: %v", r.Errno)
	}
	c.Call(fuseproto.OpDestroy, 0, 0)
	s.Reset() // ends nothing any more
	if now, _ = s.Snapshot(); len(told) != 3 || !bytes.Equal(told[2], now) {
		t.Errorf("after DESTROY: told %x, the session is %x", told, now)
	}
	c.Init()
	s.Reset()
	if now, _ = s.Snapshot(); len(told) != 5 || !bytes.Equal(told[4], now) {
		t.Errorf("after Reset: told %x, the session is %x", told, now)
	}
}

// A DESTROY whose reply was lost with the process is answered as the first one was to
// be, and an INIT begins one session more.
func TestSessionEndsOnceMore(t *testing.T) {
	tree := testTree()
	s := serverOf(t, tree, fuseproto.Config{})
	c := fusetest.NewClient(t, s)
	c.Init()
	c.Call(fuseproto.OpDestroy, 0, 0)
	c.Slot = &fusetest.Slot{Again: true}
	if r := c.Call(fuseproto.OpDestroy, 0, 0); r.Errno != 0 {
		t.Errorf("DESTROY run again: %v", r.Errno)
	}
	c.Slot = nil
	if r := c.Call(fuseproto.OpDestroy, 0, 0); r.Errno != syscall.EIO {
		t.Errorf("a second DESTROY: %v, want EIO", r.Errno)
	}
}
