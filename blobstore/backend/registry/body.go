package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// body is the reader of one range. It is cut when it yields nothing for idle.
type body struct {
	s      *source
	k      int // of the route
	rt     *route
	u      *url.URL
	r      io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc

	off, n, left int64
	total        int64 // of the blob, or -1
	exact        bool  // the body is as long as the range
	idle         time.Duration
	failed       bool
}

var errIdle = errors.New("the body stands still")

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if b.idle > 0 {
		t := time.AfterFunc(b.idle, func() { b.cancel(errIdle) })
		defer t.Stop()
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if n > 0 || err == nil {
		if b.left == 0 && !b.failed {
			b.rt.health.succeed()
		}
		return n, nil // an error comes back with the next call
	}
	return 0, b.fail(err)
}

// fail is the error of a body that broke off.
func (b *body) fail(err error) error {
	switch cause := context.Cause(b.ctx); {
	case cause == errIdle:
		err = fmt.Errorf("%w: nothing for %v", errIdle, b.idle)
	case cause != nil:
		return cause // the reader left
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	b.drop(1)
	return backend.Errorf(backend.Temporary, "%s: bytes %d-%d break off %d bytes before their end: %w",
		show(b.u), b.off, b.off+b.n-1, b.left, err)
}

// drop notes that what came this way was no good, once.
func (b *body) drop(failures int) {
	if b.failed {
		return
	}
	b.failed = true
	b.s.redirects[b.k].Store(nil)
	b.rt.health.fail(failures)
}

// Reject implements backend.Rejecter: the next request goes another way, if
// there is one.
func (b *body) Reject() { b.drop(b.rt.health.limit) }

// Close ends the request. A body that was read to its end leaves its connection
// to the next one.
func (b *body) Close() error {
	if b.left == 0 && b.exact {
		var p [1]byte
		_, _ = b.r.Read(p[:]) // the transport wants to see the end
	}
	b.cancel(nil)
	return b.r.Close()
}
