package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/vhostuser/session"
)

// pair returns both ends of a link.
func pair(t testing.TB) (a, b *link) {
	t.Helper()
	a, f, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	b, err = newLink(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.sock.Close()
		_ = b.sock.Close()
	})
	return a, b
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestMessagesArriveWhole: with bodies up to the largest and more descriptors than one
// packet holds, in order.
func TestMessagesArriveWhole(t *testing.T) {
	a, b := pair(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := openFiles(t)
	for _, n := range []int{0, 1, maxFDs, maxFDs + 1, 3*maxFDs + 7} {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		body := bytes.Repeat([]byte{byte(n)}, record.MaxValue*n/(3*maxFDs+7))
		sent := make(chan error, 1)
		go func() { sent <- a.send(&message{Kind: kindPut, Key: fmt.Sprint(n), body: body, fds: fds}) }()
		m, err := b.recv()
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}
		if m.Key != fmt.Sprint(n) || !bytes.Equal(m.body, body) || len(m.fds) != n {
			t.Errorf("%d descriptors: key %s, %d bytes of %d, %d descriptors", n, m.Key, len(m.body), len(body), len(m.fds))
		}
		closeAll(m.fds)
	}
	if now := openFiles(t); now != before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
	if err := a.send(&message{Kind: kindPut, body: make([]byte, record.MaxValue+1)}); !errors.Is(err, record.ErrTooLarge) {
		t.Errorf("a body that is too large: %v", err)
	}
	if err := a.sock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.recv(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// TestUnknownFieldsAndKindsPass: an old keeper takes what a new worker says.
func TestUnknownFieldsAndKindsPass(t *testing.T) {
	text := `{"kind":"of tomorrow","key":"k","what_is_new":{"a":1}}`
	m, err := parse(append([]byte{byte(len(text)), 0, 0}, text+"body"...))
	if err != nil || m.Key != "k" || string(m.body) != "body" {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestErrorsTravel: what went wrong is told, and whether it is the guest's fault.
func TestErrorsTravel(t *testing.T) {
	err := fmt.Errorf("ring at 0x10: %w", session.ErrVring)
	if got := new(message).problem(err).failure(); !errors.Is(got, session.ErrVring) || got.Error() != err.Error() {
		t.Errorf("%v", got)
	}
	if got := new(message).problem(unix.ENOMEM).failure(); errors.Is(got, session.ErrVring) || got.Error() != unix.ENOMEM.Error() {
		t.Errorf("%v", got)
	}
	if got := new(message).problem(nil).failure(); got != nil {
		t.Errorf("%v", got)
	}
}

// FuzzPacket: neither side trusts what the other sends to be in order.
func FuzzPacket(f *testing.F) {
	for _, text := range []string{"", "{}", `{"kind":"put","key":"x","size":-1}`, `{"regions":[{"GPA":1}],"ring":{"Size":3}}`} {
		f.Add(append([]byte{byte(len(text)), 0, 0}, text+"body"...))
	}
	f.Add([]byte{0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		k := &Keeper{store: record.NewStore()}
		defer k.store.Close()
		k.opts.Log = discard
		w := &worker{stage: make(chan *message, 1), calls: map[uint64]chan *message{}}
		if m.Kind == kindShared || m.Kind == kindUpgrade {
			return // they answer, over a link
		}
		k.handle(w, m)
		if s, err := session.UnmarshalState(m.body, nil); err == nil {
			s.Close()
		}
	})
}

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		os.Exit(beWorker())
	}
	goleak.VerifyTestMain(m)
}
