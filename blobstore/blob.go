package blobstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/foreign"
)

// Blob is one blob as one image describes it.
//
// All methods but Close are safe for concurrent use. Ready, Data and ReadAt take
// no lock and allocate nothing; they touch mapped files, so the caller runs them
// under debug.SetPanicOnFault and takes a fault for an error of this read (then
// Drop makes the next one fetch the chunk anew).
type Blob struct {
	s    *Store
	desc BlobDesc
	src  backend.Source

	view    atomic.Pointer[cache.View] // nil until the first Fetch opened the entry
	opening chan struct{}              // the token of who opens it, or resolves places
	group   *group                     // set before view

	places  atomic.Pointer[Places] // nil until the first chunk had to be fetched
	scratch []*cache.Scratch       // memory of places; guarded by opening
	used    int                    // of scratch: how many are of places that were accepted; guarded by opening
	// Places that were found in a file beside the cache are not the backend's
	// word: if bytes that they lead to are wrong, they are distrusted.
	local, distrusted atomic.Bool

	foreign *foreign.Data // nil if there is none; set before view

	counters counters
}

// ID is the blob's id.
func (b *Blob) ID() string { return b.desc.ID }

// Ready reports whether chunk i can be read without waiting.
func (b *Blob) Ready(i uint32) bool {
	v := b.view.Load()
	return v != nil && v.Ready(i)
}

// AllReady reports whether every chunk that the image knows of the blob can be read
// without waiting. It opens the cache entry, but asks no back-end.
func (b *Blob) AllReady(ctx context.Context) (all bool, err error) {
	v, err := b.open(ctx)
	if err != nil {
		return false, err
	}
	all = true
	err = cache.Guard(func() error {
		var c Chunk
		for i := range b.desc.Table.Len() {
			if v.Ready(i) {
				continue
			}
			if err := b.desc.Table.Chunk(i, &c); !errors.Is(err, ErrNoChunk) {
				all = false
				return err
			}
		}
		return nil
	})
	return all && err == nil, err
}

// Data returns n bytes at off of the uncompressed chunk i, as they lie in the
// mapped cache file, or false if the chunk is not ready, has no such bytes, or
// could not be mapped: then Fetch it and try again, and at last ReadAt. The
// slice is valid until Close and must not be written to.
func (b *Blob) Data(i, off, n uint32) ([]byte, bool) {
	v := b.view.Load()
	if v == nil {
		return nil, false
	}
	return v.Data(i, off, n)
}

// ReadAt copies len(p) bytes at off of the uncompressed chunk i from the cache
// file with pread: the slower way, for what Data cannot map. It returns
// cache.ErrNotReady if the chunk is not ready or has no such bytes.
func (b *Blob) ReadAt(i uint32, p []byte, off uint32) error {
	v := b.view.Load()
	if v == nil {
		return cache.ErrNotReady
	}
	return v.ReadAt(i, p, off)
}

// Drop makes chunk i absent, for everybody: the verb of a reader to whom its
// bytes could not be shown.
func (b *Blob) Drop(i uint32) error {
	v := b.view.Load()
	if v == nil {
		return nil
	}
	return v.Drop(i)
}

// MaxFetch is the most chunks of one Fetch.
const MaxFetch = 1 << 16

// Fetch returns when the chunks first to last, both included, are ready. It
// waits for disk and network until ctx ends or the store's Deadline is over.
// Errors are *ChunkError and concern one of the chunks; none is remembered.
func (b *Blob) Fetch(ctx context.Context, first, last uint32) error {
	if b.s.o.Deadline != Forever {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, b.s.o.Deadline, errDeadline)
		defer cancel()
	}
	for _, c := range []*counters{&b.counters, &b.s.counters} {
		c.waiting.Add(1)
		defer c.waiting.Add(-1)
	}
	err := b.fetch(ctx, first, last)
	if err != nil && b.distrusted.Load() && ctx.Err() == nil {
		// By the places of the backend now, whoever it was that had them resolved.
		err = b.fetch(ctx, first, last)
	}
	if err != nil {
		b.count(statFailed, 1)
	}
	return err
}

// count adds n to a counter of the blob and of its store.
func (b *Blob) count(which stat, n uint64) {
	b.counters.n[which].Add(n)
	b.s.counters.n[which].Add(n)
}

// errDeadline is the cause of a context that ended by the store's Deadline.
var errDeadline error = deadlineError{}

type deadlineError struct{}

func (deadlineError) Error() string        { return "deadline of the read is over" }
func (deadlineError) Timeout() bool        { return true }
func (deadlineError) Is(target error) bool { return target == context.DeadlineExceeded }

// open opens the blob's cache entry unless that was done.
func (b *Blob) open(ctx context.Context) (*cache.View, error) {
	if v := b.view.Load(); v != nil {
		return v, nil
	}
	select {
	case b.opening <- struct{}{}:
		defer func() { <-b.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if v := b.view.Load(); v != nil {
		return v, nil
	}
	if b.s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	t := &tableForCache{d: &b.desc, place: b.s.o.Backend.Name()}
	v, err := b.s.cache.Attach(ctx, b.desc.ID, t)
	if err != nil {
		return nil, err
	}
	if t.weak {
		b.s.o.Log.Warn("the image has no digest for chunks of a blob", "blob", b.desc.ID, "check", t.check())
	}
	b.openForeign()
	b.group = b.s.join(v.Entry())
	b.view.Store(v)
	return v, nil
}

// Close gives up the blob. Flights that only its readers waited for end. No
// other method may run during or after it, and no slice of Data may be read
// any more.
func (b *Blob) Close() error {
	b.s.mu.Lock()
	b.s.blobs--
	b.s.mu.Unlock()
	v := b.view.Swap(nil)
	if v == nil {
		return nil
	}
	b.s.leave(b.group)
	b.places.Store(nil)
	err := errors.Join(b.freeScratch(), v.Release())
	if b.foreign != nil {
		err = errors.Join(err, b.foreign.Close())
	}
	return err
}

// Stats returns the blob's counters.
func (b *Blob) Stats() Stats { return b.counters.stats() }

// chunkError makes the error of a chunk, unless it is one already.
func (b *Blob) chunkError(op string, c *Chunk, err error) error {
	var ce *ChunkError
	if errors.As(err, &ce) {
		return err
	}
	return &ChunkError{Op: op, Blob: b.desc.ID, Off: c.CompressedOffset, Len: c.CompressedSize, Err: err}
}

// gaveUp is the cause of a reader that ended its wait, with what it waited for.
func gaveUp(ctx context.Context, waited time.Duration, last error) error {
	cause := context.Cause(ctx)
	if last == nil {
		return fmt.Errorf("%w after %v", cause, waited.Round(time.Millisecond))
	}
	return fmt.Errorf("%w after %v: %w", cause, waited.Round(time.Millisecond), last)
}
