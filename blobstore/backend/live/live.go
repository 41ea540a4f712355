// Package live wraps a Backend so that it is counted, and can be replaced by
// another way to the same blobs while it is used: when credentials are renewed or
// a proxy moves.
//
//	store ──ReadRange──▶ Source ──▶ generation 3 ──▶ registry with new credentials
//	                       │        generation 2 ──▶ the old one, until its last reader is closed
//	                       └─ counters: reads, errors, bytes, time by size
//
// Lock order: Backend.mu is a leaf; it is not held while a back-end works.
package live

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// Backend is a Backend that counts and can be replaced. Its methods are safe for
// concurrent use.
type Backend struct {
	counters counters
	health   func(error)
	failing  atomic.Bool

	mu     sync.Mutex
	now    *generation // guarded by mu; nil after Close
	number uint64      // of now; guarded by mu
}

// generation is one way to the blobs.
type generation struct {
	b     backend.Backend
	users int  // readers and calls; guarded by Backend.mu
	over  bool // replaced or closed; guarded by Backend.mu
}

// New wraps b, which belongs to the result from now on. health, unless it is nil, is
// called with an error when reads begin to fail, and with nil when one succeeds
// again; it must not wait.
func New(b backend.Backend, health func(error)) *Backend {
	if health == nil {
		health = func(error) {}
	}
	return &Backend{now: &generation{b: b}, health: health}
}

// feel tells of a change between reads that fail and reads that do not.
func (l *Backend) feel(err error) {
	if l.failing.Swap(err != nil) != (err != nil) {
		l.health(err)
	}
}

// Replace makes further reads of all blobs go to b, which belongs to the Backend
// from now on. Readers that are open go on; the old way is closed after the last.
func (l *Backend) Replace(b backend.Backend) error {
	l.mu.Lock()
	if l.now == nil {
		l.mu.Unlock()
		return errors.Join(errClosed, b.Close())
	}
	old := l.now
	old.over = true
	idle := old.users == 0
	l.now, l.number = &generation{b: b}, l.number+1
	l.mu.Unlock()
	if idle {
		return old.b.Close()
	}
	return nil
}

var errClosed = errors.New("the back-end is closed")

// enter takes the present way for one use.
func (l *Backend) enter() (*generation, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now == nil {
		return nil, 0, errClosed
	}
	l.now.users++
	return l.now, l.number, nil
}

// leave ends a use; the last one of a way that is over closes it.
func (l *Backend) leave(g *generation) error {
	l.mu.Lock()
	g.users--
	last := g.over && g.users == 0
	l.mu.Unlock()
	if last {
		return g.b.Close()
	}
	return nil
}

// Blob implements backend.Backend.
func (l *Backend) Blob(id string) (backend.Source, error) {
	g, number, err := l.enter()
	if err != nil {
		return nil, err
	}
	s, err := g.b.Blob(id)
	if err := errors.Join(err, l.leave(g)); err != nil {
		return nil, err
	}
	return &source{l: l, id: id, number: number, s: s}, nil
}

// Name implements backend.Backend.
func (l *Backend) Name() string {
	g, _, err := l.enter()
	if err != nil {
		return err.Error()
	}
	defer l.leave(g) //nolint:errcheck // of a way that has ended; nothing hangs on it
	return g.b.Name()
}

var errRejected = errors.New("the bytes that came were not the right ones")

// Close implements backend.Backend.
func (l *Backend) Close() error {
	l.mu.Lock()
	g := l.now
	l.now = nil
	if g == nil {
		l.mu.Unlock()
		return nil
	}
	g.over = true
	idle := g.users == 0
	l.mu.Unlock()
	if idle {
		return g.b.Close()
	}
	return nil
}

// source is one blob, whichever way leads there.
type source struct {
	l  *Backend
	id string

	mu     sync.Mutex
	number uint64         // guarded by mu
	s      backend.Source // of that generation; guarded by mu
}

// enter returns the blob's source on the present way.
func (s *source) enter() (*generation, backend.Source, error) {
	g, number, err := s.l.enter()
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number != number {
		fresh, err := g.b.Blob(s.id)
		if err != nil {
			return nil, nil, errors.Join(err, s.l.leave(g))
		}
		s.s, s.number = fresh, number
	}
	return g, s.s, nil
}

// ReadRange implements backend.Source.
func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	g, src, err := s.enter()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	r, err := src.ReadRange(ctx, off, n)
	if err != nil {
		s.l.counters.add(n, 0, time.Since(begin), true)
		if ctx.Err() == nil {
			s.l.feel(err)
		}
		return nil, errors.Join(err, s.l.leave(g))
	}
	return &reader{ReadCloser: r, ctx: ctx, l: s.l, g: g, want: n, begin: begin}, nil
}

// Size implements backend.Source.
func (s *source) Size(ctx context.Context) (int64, error) {
	g, src, err := s.enter()
	if err != nil {
		return 0, err
	}
	n, err := src.Size(ctx)
	return n, errors.Join(err, s.l.leave(g))
}

// reader counts what comes and ends the use of its way.
type reader struct {
	io.ReadCloser
	ctx       context.Context // of the read
	l         *Backend
	g         *generation
	want, got int64
	begin     time.Time
	failed    error
	closed    bool
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.got += int64(n)
	if err != nil && err != io.EOF {
		r.failed = err
	}
	return n, err
}

// Reject implements backend.Rejecter.
func (r *reader) Reject() {
	r.failed = errRejected
	if j, ok := r.ReadCloser.(backend.Rejecter); ok {
		j.Reject()
	}
}

func (r *reader) Close() error {
	err := r.ReadCloser.Close()
	if r.closed {
		return err
	}
	r.closed = true
	r.l.counters.add(r.want, r.got, time.Since(r.begin), r.failed != nil)
	if r.ctx.Err() == nil {
		r.l.feel(r.failed)
	}
	return errors.Join(err, r.l.leave(r.g))
}
