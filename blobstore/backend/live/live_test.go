package live_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/live"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a Backend whose every blob is its name, over and over.
type place struct {
	name   string
	err    error // of the next ReadRange
	closed atomic.Bool
	blobs  atomic.Int32
}

func (p *place) Blob(id string) (backend.Source, error) {
	if id == "bad" {
		return nil, backend.ErrID
	}
	p.blobs.Add(1)
	return p, nil
}
func (p *place) Name() string { return p.name }
func (p *place) Close() error {
	if p.closed.Swap(true) {
		return errors.New("closed twice")
	}
	return nil
}
func (p *place) Size(context.Context) (int64, error) { return 42, p.err }

type body struct {
	io.Reader
	rejected *atomic.Int32
}

func (b body) Close() error { return nil }
func (b body) Reject()      { b.rejected.Add(1) }

var rejected atomic.Int32

func (p *place) ReadRange(_ context.Context, _, n int64) (io.ReadCloser, error) {
	if p.err != nil {
		return nil, p.err
	}
	return body{strings.NewReader(strings.Repeat(p.name, int(n))[:n]), &rejected}, nil
}

func read(t *testing.T, s backend.Source, n int64) string {
	t.Helper()
	r, err := s.ReadRange(t.Context(), 0, n)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReplace: a source that was there before reads the new way; a reader that is
// open keeps the old one alive, and nothing else does.
func TestReplace(t *testing.T) {
	a, b := &place{name: "a"}, &place{name: "b"}
	l := live.New(a, nil)
	s, err := l.Blob("x")
	if err != nil {
		t.Fatal(err)
	}
	open, err := s.ReadRange(t.Context(), 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Replace(b); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, 3); got != "bbb" || l.Name() != "b" {
		t.Errorf("after the change it reads %q of %s", got, l.Name())
	}
	if a.closed.Load() {
		t.Error("the old way was closed under a reader")
	}
	if got, err := io.ReadAll(open); err != nil || string(got) != "aaa" {
		t.Errorf("the open reader yields %q, %v", got, err)
	}
	if err := open.Close(); err != nil || !a.closed.Load() {
		t.Errorf("the old way after its last reader: closed %v, %v", a.closed.Load(), err)
	}
	read(t, s, 1)
	if n := b.blobs.Load(); n != 1 {
		t.Errorf("the new way was asked for the blob %d times, want once", n)
	}
	if n, err := s.Size(t.Context()); n != 42 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil || !b.closed.Load() {
		t.Errorf("close: %v", err)
	}
	if _, err := s.ReadRange(t.Context(), 0, 1); err == nil {
		t.Error("a read after the close succeeds")
	}
	if err := l.Replace(&place{}); err == nil {
		t.Error("a replacement after the close succeeds")
	}
	if _, err := live.New(&place{}, nil).Blob("bad"); !errors.Is(err, backend.ErrID) {
		t.Errorf("a bad id: %v", err)
	}
}

func TestStats(t *testing.T) {
	p := &place{name: "p"}
	var health []error
	l := live.New(p, func(err error) { health = append(health, err) })
	s, err := l.Blob("x")
	if err != nil {
		t.Fatal(err)
	}
	read(t, s, 100)
	read(t, s, 64<<10)
	r, err := s.ReadRange(t.Context(), 0, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	r.(backend.Rejecter).Reject() // what came was wrong
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	p.err = backend.Errorf(backend.Denied, "no")
	if _, err := s.ReadRange(t.Context(), 0, 5000); !errors.As(err, new(*backend.Error)) {
		t.Errorf("an error of the back-end became %v", err)
	}
	got := l.Stats()
	if got.Reads != 4 || got.Errors != 2 || got.Bytes != 100+64<<10 || got.Sizes != [8]uint64{0: 1, 2: 1, 4: 1, 7: 1} {
		t.Errorf("%+v", got)
	}
	var sum uint64
	for _, n := range got.Latency {
		sum += n
	}
	p.err = nil
	read(t, s, 1)
	read(t, s, 1)
	if len(health) != 2 || health[0] == nil || health[1] != nil {
		t.Errorf("the health was %v, want an error and its end", health)
	}
	if sum != 4 || rejected.Load() != 1 {
		t.Errorf("%d reads by latency, want 4; %d rejected, want 1", sum, rejected.Load())
	}
	if kind, _ := backend.Classify(backend.Errorf(backend.Permanent, "x")); kind != backend.Permanent {
		t.Error(kind)
	}
}

func TestSizeBucket(t *testing.T) {
	for n, want := range map[int64]int{0: 0, 1023: 0, 1024: 1, 4096: 2, 16 << 10: 3, 64 << 10: 4, 128 << 10: 5, 512 << 10: 6, 1 << 20: 7, 1 << 40: 7} {
		if got := live.SizeBucket(n); got != want {
			t.Errorf("SizeBucket(%d) = %d, want %d", n, got, want)
		}
	}
}
