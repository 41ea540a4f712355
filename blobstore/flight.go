package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/codec"
)

const (
	// maxBad is how often in a row bytes or answers may be wrong.
	maxBad = 3
	// Bounds of the back-off. The upper one bounds how long after the end of an
	// outage the first read succeeds.
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
	// maxPause bounds what a backend may ask for by Retry-After: one that says
	// "in an hour" and is well in a minute shall be found well.
	maxPause = 30 * time.Second
)

// flight brings a run of chunks, in the order of their place in the blob. Its
// goroutine alone changes it after pick.
type flight struct {
	b      *Blob // who began it; may be closed before the flight ends
	v      *cache.View
	g      *group
	ctx    context.Context
	cancel context.CancelCauseFunc
	loads  []*load // immutable
}

// run brings the chunks and ends when all of them are decided.
func (f *flight) run() {
	s := f.b.s
	defer s.wg.Done()
	defer f.g.landed(f)
	defer f.cancel(nil)
	defer func() {
		if err := f.v.Release(); err != nil {
			s.o.Log.Warn("cache: close", "entry", f.g.name, "err", err)
		}
	}()
	bad, tries := 0, 0
	rest := f.loads
	for len(rest) > 0 {
		landed, err := f.pass(rest, tries > 0)
		if landed > 0 {
			bad, tries = 0, 0
		}
		kind, after := backend.Classify(err)
		switch {
		case err == nil:
		case f.ctx.Err() != nil:
			f.fail(context.Cause(f.ctx))
			return
		case kind == backend.Permanent || kind == backend.Denied:
			f.fail(err)
			return
		case kind == backend.BadAnswer:
			if bad++; bad >= maxBad {
				f.fail(err)
				return
			}
		}
		if rest = f.rest(err); len(rest) == 0 {
			return
		}
		if err == nil && landed > 0 && rest[0].tries == 0 {
			continue // only a gap ended the pass
		}
		tries++
		if err != nil {
			s.warn(err)
		}
		if f.sleep(tries, after, err) != nil {
			f.fail(context.Cause(f.ctx))
			return
		}
	}
}

// rest returns the chunks that are still to be brought: those that somebody
// waits for. The others are given up.
func (f *flight) rest(cause error) []*load {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	var rest []*load
	for _, l := range f.loads {
		switch {
		case l.gone:
		case l.waiters == 0:
			f.g.settleLocked(l, errNotWanted)
		default:
			if cause != nil {
				l.last = cause
			}
			rest = append(rest, l)
		}
	}
	return rest
}

// errNotWanted is the end of a chunk that was fetched along and did not come. No
// reader sees it.
var errNotWanted = errors.New("nobody waits for the chunk")

// fail decides all chunks that are left.
func (f *flight) fail(err error) {
	for _, l := range f.loads {
		f.g.settle(l, f.b.chunkError("fetch", &l.chunk, err))
	}
}

// sleep waits before try n+1: with exponential back-off and jitter, and at least
// as long as the other side asked for with the answer why.
func (f *flight) sleep(n int, after time.Duration, why error) error {
	d := min(minBackoff<<min(n-1, 10), maxBackoff)
	d = d/2 + rand.N(d/2+1)
	if after > 0 {
		f.b.s.pause(min(after, maxPause), why)
	}
	return wait(f.ctx, d)
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter waits until a request may be made.
func (f *flight) enter() error {
	select {
	case f.g.requests <- struct{}{}:
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
	for {
		left := time.Duration(f.b.s.calm.Load()) - f.b.s.now()
		if left <= 0 {
			return nil
		}
		if err := wait(f.ctx, left); err != nil {
			<-f.g.requests
			return err
		}
	}
}

// pass makes one request for the first of rest that are neighbours, and decides
// each chunk as it arrives. It returns how many it brought. Chunks whose bytes
// are wrong are left undecided until they were wrong too often; an error is the
// backend's and concerns whatever is undecided.
func (f *flight) pass(rest []*load, again bool) (landed int, err error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer func() { <-f.g.requests }()
	run := neighbours(rest)
	off, end := run[0].chunk.CompressedOffset, run[len(run)-1].end()
	f.b.count(statRequests, 1)
	if again {
		f.b.count(statRetries, 1)
	}
	defer func() {
		if err != nil && f.ctx.Err() == nil {
			f.b.count(statBackendErrors, 1)
		}
	}()
	r, err := f.b.src.ReadRange(f.ctx, int64(off), int64(end-off))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	at := off
	for len(run) > 0 {
		l, n := run[0], 1
		for n < len(run) && run[n].chunk.sharesWith(&l.chunk) {
			n++
		}
		if gap := int64(l.chunk.CompressedOffset - at); gap > 0 {
			if _, err := io.CopyN(io.Discard, r, gap); err != nil {
				return landed, short(err)
			}
		}
		var brought int
		if l.ctx != nil {
			brought, err = f.bringShared(r, run[:n])
		} else {
			brought, err = f.bring(r, l)
		}
		landed += brought
		if err != nil {
			return landed, err
		}
		at = l.end()
		run = run[n:]
	}
	return landed, nil
}

// neighbours returns the first loads of rest that one request can bring without
// asking for bytes of a chunk that is not in it.
func neighbours(rest []*load) []*load {
	n := 1
	for n < len(rest) && rest[n].pos == rest[n-1].pos+1 {
		n++
	}
	return rest[:n]
}

// bring reads, decodes, verifies and stores the next chunk of r. It returns 1 if
// the chunk is ready then; an error is the backend's.
func (f *flight) bring(r io.Reader, l *load) (landed int, err error) {
	b, c := f.b, &l.chunk
	apart := c.Flags&ChunkCompressed != 0 || c.CompressedSize != c.UncompressedSize
	need := int64(c.UncompressedSize)
	if apart {
		need += int64(c.CompressedSize)
	}
	if err := b.s.mem.Acquire(f.ctx, need); err != nil {
		return 0, err
	}
	defer b.s.mem.Release(need)
	plain := getBuffer(int(c.UncompressedSize))
	defer putBuffer(plain)
	stored := plain
	if apart {
		stored = getBuffer(int(c.CompressedSize))
		defer putBuffer(stored)
	}
	if _, err := io.ReadFull(r, *stored); err != nil {
		return 0, short(err)
	}
	b.count(statBytes, uint64(c.CompressedSize))
	op, err := f.decode(c, func() (string, error) { return b.desc.Decode(c, *plain, *stored) })
	if err != nil {
		return 0, f.reject(r, []*load{l}, op, err)
	}
	b.count(statDecoded, uint64(c.UncompressedSize))
	return f.keep(r, l, *plain)
}

// bringShared reads and decodes the stored bytes that all of loads share, and
// verifies and stores each chunk. It returns how many are ready then.
func (f *flight) bringShared(r io.Reader, loads []*load) (landed int, err error) {
	b, c, x := f.b, &loads[0].chunk, loads[0].ctx
	size := x.Size
	if x.Inflate { // what is behind the last chunk is of no use
		size = 0
		for _, l := range loads {
			size = max(size, l.chunk.ContextOffset+l.chunk.UncompressedSize)
		}
	}
	need := int64(size) + int64(c.CompressedSize)
	if err := b.s.mem.Acquire(f.ctx, need); err != nil {
		return 0, err
	}
	defer b.s.mem.Release(need)
	plain, stored := getBuffer(int(size)), getBuffer(SharedBuffer(c.CompressedSize))
	defer putBuffer(plain)
	defer putBuffer(stored)
	if _, err := io.ReadFull(r, SharedBytes(*stored)); err != nil {
		return 0, short(err)
	}
	b.count(statBytes, uint64(c.CompressedSize))
	op, err := f.decode(c, func() (string, error) { return b.desc.DecodeShared(c, x, *plain, *stored) })
	if err != nil {
		return 0, f.reject(r, loads, op, err)
	}
	b.count(statDecoded, uint64(size))
	for _, l := range loads {
		n, err := f.keep(r, l, (*plain)[l.chunk.ContextOffset:][:l.chunk.UncompressedSize])
		landed += n
		if err != nil {
			return landed, err
		}
	}
	return landed, nil
}

// keep verifies and stores the plain bytes of a chunk. It returns 1 if the chunk
// is ready then; an error is that of the flight's end.
func (f *flight) keep(r io.Reader, l *load, plain []byte) (landed int, err error) {
	b, c := f.b, &l.chunk
	if b.s.o.Verify == VerifyAlways {
		if op, err := f.decode(c, func() (string, error) { return "verify", b.desc.Verify(c, plain) }); err != nil {
			return 0, f.reject(r, []*load{l}, op, err)
		}
	}
	if err := f.v.Store(l.index, plain); err != nil {
		b.count(statStoreErrors, 1)
		f.g.settle(l, b.chunkError("store", c, err))
		return 0, nil
	}
	b.count(statChunks, 1)
	f.g.settle(l, nil)
	return 1, nil
}

// reject notes that the bytes of chunks were wrong, or returns the error of a
// flight that was ended.
func (f *flight) reject(r io.Reader, loads []*load, op string, err error) error {
	if f.ctx.Err() != nil {
		return f.ctx.Err()
	}
	if j, ok := r.(backend.Rejecter); ok {
		j.Reject()
	}
	for _, l := range loads {
		f.wrong(l, f.b.chunkError(op, &l.chunk, err))
	}
	return nil
}

// wrong notes that the bytes of a chunk were not those that the image promises.
func (f *flight) wrong(l *load, err error) {
	f.b.count(statMismatches, 1)
	f.b.distrust()
	f.b.s.warn(err)
	if l.tries++; l.tries >= maxBad {
		f.g.settle(l, err)
		return
	}
	f.g.mu.Lock()
	l.last = err
	f.g.mu.Unlock()
}

// decode runs work that burns CPU on the bytes of a chunk, such as decoding. On
// error, op names the step that failed. A decoder that panics on hostile bytes is
// one that refuses them.
func (f *flight) decode(c *Chunk, work func() (op string, err error)) (op string, err error) {
	if err := codec.Enter(f.ctx); err != nil {
		return "decompress", err
	}
	defer codec.Leave()
	defer func() {
		if r := recover(); r != nil {
			f.b.s.o.Log.Error("decoder panics", "blob", f.b.desc.ID, "offset", c.CompressedOffset, "panic", r, "stack", string(debug.Stack()))
			op, err = "decompress", fmt.Errorf("decoder panics: %v", r)
		}
	}()
	return work()
}

// short makes sure that a body that ended early has a class.
func short(err error) error {
	var e *backend.Error
	if errors.As(err, &e) || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return backend.Errorf(backend.BadAnswer, "the body ends early: %w", io.ErrUnexpectedEOF)
}
