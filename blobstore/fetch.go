package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rafsd/rafsd/blobstore/cache"
)

// maxGap is how many bytes of a blob that belong to no chunk we know may be
// fetched and thrown away to save a request.
const maxGap = 64 << 10

// fetch is Fetch without the deadline.
func (b *Blob) fetch(ctx context.Context, first, last uint32) error {
	if last < first || last-first >= MaxFetch {
		return b.chunkError("fetch", &Chunk{}, fmt.Errorf("chunks %d to %d: not a range of at most %d", first, last, MaxFetch))
	}
	began := time.Now()
	v, err := b.open(ctx)
	if err != nil {
		var c Chunk // where it is, if that can be said
		_ = b.desc.Table.Chunk(first, &c)
		return b.chunkError("store", &c, err)
	}
	ready, err := b.ready(v, first, last)
	if err != nil || ready {
		return err
	}
	if b.foreign != nil {
		b.adopt(ctx, v, first, last)
		if ready, err := b.ready(v, first, last); err != nil || ready {
			return err
		}
	}
	if err := b.resolve(ctx); err != nil {
		var c Chunk
		_ = b.desc.Table.Chunk(first, &c)
		return b.chunkError("fetch", &c, err)
	}
	runs, err := b.plan(v, first, last)
	if err != nil || len(runs) == 0 {
		return err
	}
	var wait []*load
	var start []*flight
	err = cache.Guard(func() error {
		wait, start = b.group.pick(b, v, runs, first, last)
		return nil
	})
	for _, f := range start {
		go f.run() // counted by Store.wg; ends with its loads or its context
	}
	if err != nil { // a fault: nothing was registered
		return b.chunkError("fetch", &runs[0][0].chunk, err)
	}
	for k, l := range wait {
		select {
		case <-l.done:
			err = l.err
		case <-ctx.Done():
			b.group.mu.Lock()
			last := l.last
			b.group.mu.Unlock()
			if last == nil {
				last = b.s.paused()
			}
			err = gaveUp(ctx, time.Since(began), last)
			err = b.chunkError("fetch", &l.chunk, err)
		}
		if err != nil {
			for _, l := range wait[k:] {
				b.group.abandon(l, err)
			}
			return err
		}
		b.group.mu.Lock()
		l.waiters--
		b.group.mu.Unlock()
	}
	return nil
}

// ready reports whether all chunks of [first, last] are.
func (b *Blob) ready(v *cache.View, first, last uint32) (ready bool, err error) {
	err = cache.Guard(func() error {
		for i := first; ; i++ {
			if !v.Ready(i) {
				return nil
			}
			if i == last {
				ready = true
				return nil
			}
		}
	})
	if err != nil {
		err = b.chunkError("fetch", &Chunk{}, err)
	}
	return ready, err
}

// plan reads the table and groups the chunks of [first, last] that are not
// ready into runs of neighbours. It adds to each run the chunks that share bytes
// with it, and to the last run what follows it. The loads are not yet registered
// anywhere.
func (b *Blob) plan(v *cache.View, first, last uint32) (runs [][]*load, err error) {
	err = cache.Guard(func() error {
		var run []*load
		for i := first; ; i++ {
			if !v.Ready(i) {
				var before *load
				if len(run) > 0 {
					before = run[len(run)-1]
				}
				l, err := b.load(v, i, before)
				if err != nil {
					return err
				}
				if len(run) > 0 && !b.follows(run, l) {
					runs = append(runs, run)
					run = nil
				}
				run = append(run, l)
			} else if n := len(run); n > 0 && run[n-1].ctx == nil {
				runs = append(runs, run)
				run = nil
			}
			if i == last {
				break
			}
		}
		if len(run) > 0 {
			runs = append(runs, run)
		}
		for k, run := range runs {
			runs[k] = b.extend(v, b.share(v, run), k == len(runs)-1)
		}
		return nil
	})
	if err != nil {
		var c Chunk
		_ = b.desc.Table.Chunk(first, &c)
		return nil, b.chunkError("fetch", &c, err)
	}
	return runs, nil
}

// load reads and checks the description of chunk i. before is a load whose
// context this one may have too, or nil.
func (b *Blob) load(v *cache.View, i uint32, before *load) (*load, error) {
	l := &load{index: i}
	if err := b.desc.Table.Chunk(i, &l.chunk); err != nil {
		return nil, b.chunkError("fetch", &Chunk{}, fmt.Errorf("chunk %d: %w", i, err))
	}
	var d cache.Desc
	b.desc.desc(&l.chunk, &d)
	err := b.desc.checkBytes(&l.chunk)
	if err == nil && b.desc.Places != nil {
		err = b.desc.Merge(*b.places.Load(), i, &l.chunk)
	}
	if err == nil {
		err = b.desc.checkStored(&l.chunk)
	}
	if err == nil && l.chunk.Flags&ChunkShared != 0 {
		err = b.context(l, before)
	}
	if err != nil {
		b.distrust()
		return nil, b.chunkError("fetch", &l.chunk, fmt.Errorf("chunk %d: %w", i, err))
	}
	ok, err := v.Matches(i, &d)
	if err == nil && !ok {
		err = errChanged
	}
	if err != nil {
		return nil, b.chunkError("fetch", &l.chunk, fmt.Errorf("chunk %d: %w", i, err))
	}
	return l, nil
}

var errChanged = errors.New("the image's chunk table changed under us")

// context fills in the context of l. The dictionary is copied: the places may go
// with the blob while the chunk is in flight.
func (b *Blob) context(l, before *load) error {
	if before != nil && before.chunk.sharesWith(&l.chunk) {
		l.ctx = before.ctx
		return nil
	}
	x := new(Context)
	if err := (*b.places.Load()).Context(l.chunk.Context, x); err != nil {
		return err
	}
	if x.Size > MaxChunkSize || l.chunk.UncompressedSize > x.Size || l.chunk.ContextOffset > x.Size-l.chunk.UncompressedSize {
		return fmt.Errorf("bytes %d+%d of its context, which has %d", l.chunk.ContextOffset, l.chunk.UncompressedSize, x.Size)
	}
	x.Window.Dict = bytes.Clone(x.Window.Dict)
	l.ctx = x
	return nil
}

// follows reports whether l can be brought by the request that brings run.
// Contexts of a gzip stream are brought one by one: they overlap, and each is large.
func (b *Blob) follows(run []*load, l *load) bool {
	last := &run[len(run)-1].chunk
	if l.chunk.sharesWith(last) {
		return true
	}
	if (l.chunk.Flags|last.Flags)&ChunkZran != 0 {
		return false
	}
	begin, end := run[0].chunk.CompressedOffset, run[len(run)-1].end()
	return l.chunk.CompressedOffset >= end &&
		l.chunk.CompressedOffset-end <= maxGap &&
		l.end()-begin <= b.s.o.Amplification
}

// maxSharing is how many chunks before or behind one that is asked for are looked
// at for chunks that come with it, having the same stored bytes.
const maxSharing = 1024

// share adds the chunks before run that share stored bytes with its first one
// and are not ready. They are put behind that one, so that a run begins with a
// chunk that was asked for.
func (b *Blob) share(v *cache.View, run []*load) []*load {
	first := run[0]
	if first.ctx == nil {
		return run
	}
	var more []*load
	for i := first.index; i > 0 && first.index-i < maxSharing; i-- {
		l, err := b.load(v, i-1, first)
		if err != nil {
			continue
		}
		if !l.chunk.sharesWith(&first.chunk) {
			break
		}
		if !v.Ready(i - 1) {
			more = append(more, l)
		}
	}
	return slices.Insert(run, 1, more...)
}

// extend adds the chunks behind run that are not ready: those that share stored
// bytes with the last one, and, if ahead is set, others as long as the request has
// room. Chunks that the image does not know, or describes badly, are passed over:
// who wants one of them will be told.
func (b *Blob) extend(v *cache.View, run []*load, ahead bool) []*load {
	n := b.desc.Table.Len()
	last := run[0].index
	for _, l := range run {
		last = max(last, l.index)
	}
	limit := uint32(MaxFetch)
	for i := last + 1; i < n && i-last <= limit; i++ {
		before := run[len(run)-1]
		ready := v.Ready(i)
		if ready && before.ctx == nil {
			break
		}
		l, err := b.load(v, i, before)
		if err != nil {
			continue
		}
		shares := l.chunk.sharesWith(&before.chunk)
		if shares && i-last > maxSharing || !shares && (ready || !ahead || !b.follows(run, l)) {
			break
		}
		if !ready {
			run = append(run, l)
		}
	}
	return run
}
