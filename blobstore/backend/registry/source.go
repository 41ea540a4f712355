package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

const (
	maxRedirects = 5
	retryDelay   = 100 * time.Millisecond
)

// source is one blob.
type source struct {
	r         *registry
	id        string
	redirects []redirect // by route
}

// redirect is where a route sent us for a blob last time it was asked.
type redirect = atomic.Pointer[url.URL]

func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > 1<<62-n {
		return nil, backend.Errorf(backend.Permanent, "blob %s: no range %d+%d", s.id, off, n)
	}
	b, err := s.read(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (s *source) Size(ctx context.Context) (int64, error) {
	b, err := s.read(ctx, 0, 1)
	if err != nil {
		return 0, err
	}
	total := b.total
	if err := b.Close(); err != nil {
		return 0, err
	}
	if total < 0 {
		return 0, backend.Errorf(backend.BadAnswer, "%s does not say how large blob %s is", b.rt, s.id)
	}
	return total, nil
}

// read asks the routes in their order until one answers right.
func (s *source) read(ctx context.Context, off, n int64) (*body, error) {
	for try := 0; ; try++ {
		b, err := s.routes(ctx, off, n)
		if err == nil {
			return b, nil
		}
		kind, after := backend.Classify(err)
		if try >= s.r.o.RetryLimit || ctx.Err() != nil || kind != backend.Temporary || after > 0 {
			return nil, err
		}
		t := time.NewTimer(retryDelay << min(try, 4))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// routes tries each route once. The error is that of the last one tried, which
// counts most, with what went wrong on the way there.
func (s *source) routes(ctx context.Context, off, n int64) (*body, error) {
	var before error
	for k, rt := range s.r.routes {
		last := k == len(s.r.routes)-1
		if !last && !rt.health.usable() {
			continue
		}
		b, err := s.ask(ctx, k, off, n)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		rt.health.fail(1)
		if last {
			if before != nil {
				kind, after := backend.Classify(err)
				err = &backend.Error{Kind: kind, RetryAfter: after, Err: fmt.Errorf("%w (before that: %v)", err, before)}
			}
			return nil, err
		}
		s.r.o.Log.Debug("registry: next route", "failed", rt.String(), "blob", s.id, "err", err)
		before = fmt.Errorf("%s: %w", rt, err)
	}
	return nil, errors.New("registry has no routes")
}

// ask sends one request along route k: to where it sent us before, if it did,
// and if that no longer works, from the start.
func (s *source) ask(ctx context.Context, k int, off, n int64) (*body, error) {
	known := s.redirects[k].Load()
	if known != nil {
		b, err := s.follow(ctx, k, known, off, n)
		if err == nil {
			return b, nil
		}
		s.redirects[k].CompareAndSwap(known, nil)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return s.follow(ctx, k, s.r.routes[k].blobURL(s.id), off, n)
}

// follow asks u for a range, and goes where it is sent. The body's own context
// ends with it, so that a body that stands still can be cut.
func (s *source) follow(ctx context.Context, k int, u *url.URL, off, n int64) (*body, error) {
	rt := s.r.routes[k]
	span := fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	bodyCtx, cancel := context.WithCancelCause(ctx)
	for hop := 0; ; hop++ {
		resp, err := rt.get(bodyCtx, u, span)
		if err != nil {
			cancel(nil)
			return nil, err
		}
		if next := location(resp); next != nil {
			drain(resp)
			if next, err = s.target(u, next, hop); err != nil {
				cancel(nil)
				return nil, err
			}
			u = next
			continue
		}
		total, err := checkRange(resp, u, off, n)
		if kind, _ := backend.Classify(err); hop > 0 && kind == backend.Denied && !sameOrigin(u, rt.base) {
			// Storage knows no credentials of ours: a signature of the registry's
			// ran out, or its clock is wrong. The next one may be good.
			err = &backend.Error{Kind: backend.BadAnswer, Err: err}
		}
		if err != nil {
			drain(resp)
			cancel(nil)
			return nil, err
		}
		if hop > 0 {
			s.redirects[k].Store(u)
		}
		return &body{s: s, k: k, rt: rt, u: u, r: resp.Body, ctx: bodyCtx, cancel: cancel,
			off: off, n: n, left: n, total: total, exact: resp.ContentLength == n, idle: s.r.o.Timeout}, nil
	}
}

// location is where a response redirects to, or nil. It may be relative.
func location(resp *http.Response) *url.URL {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil
	}
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		return &url.URL{} // of no use, as target will find
	}
	return u
}

// target is the address of redirect number hop+1.
func (s *source) target(from, to *url.URL, hop int) (*url.URL, error) {
	if hop+1 > maxRedirects {
		return nil, backend.Errorf(backend.BadAnswer, "%s: more than %d redirects", show(from), maxRedirects)
	}
	if *to == (url.URL{}) {
		return nil, backend.Errorf(backend.BadAnswer, "%s redirects nowhere", show(from))
	}
	u := from.ResolveReference(to)
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, backend.Errorf(backend.BadAnswer, "%s redirects to an address of scheme %q that is not followed", show(from), u.Scheme)
	}
	if hop == 0 {
		if s.r.o.BlobURLScheme != "" {
			u.Scheme = s.r.o.BlobURLScheme
		}
		if s.r.o.BlobRedirectedHost != "" {
			u.Host = s.r.o.BlobRedirectedHost
		}
	}
	return u, nil
}
