package blobstore

import (
	"context"
	"errors"
	"fmt"
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

// plan reads the table and groups the chunks of [first, last] that are not
// ready into runs of neighbours, and adds to the last run what follows it. The
// loads are not yet registered anywhere.
func (b *Blob) plan(v *cache.View, first, last uint32) (runs [][]*load, err error) {
	err = cache.Guard(func() error {
		var run []*load
		for i := first; ; i++ {
			if !v.Ready(i) {
				l, err := b.load(v, i)
				if err != nil {
					return err
				}
				if len(run) > 0 && !b.follows(run, l) {
					runs = append(runs, run)
					run = nil
				}
				run = append(run, l)
			} else if len(run) > 0 {
				runs = append(runs, run)
				run = nil
			}
			if i == last {
				break
			}
		}
		if len(run) > 0 {
			runs = append(runs, b.extend(v, run))
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

// load reads and checks the description of chunk i.
func (b *Blob) load(v *cache.View, i uint32) (*load, error) {
	l := &load{index: i}
	if err := b.desc.Table.Chunk(i, &l.chunk); err != nil {
		return nil, b.chunkError("fetch", &Chunk{}, fmt.Errorf("chunk %d: %w", i, err))
	}
	if err := b.desc.check(&l.chunk); err != nil {
		return nil, b.chunkError("fetch", &l.chunk, fmt.Errorf("chunk %d: %w", i, err))
	}
	var d cache.Desc
	b.desc.desc(&l.chunk, &d)
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

// follows reports whether l can be brought by the request that brings run.
func (b *Blob) follows(run []*load, l *load) bool {
	begin, end := run[0].chunk.CompressedOffset, run[len(run)-1].end()
	return l.chunk.CompressedOffset >= end &&
		l.chunk.CompressedOffset-end <= maxGap &&
		l.end()-begin <= b.s.o.Amplification
}

// extend adds the chunks behind run that are not ready, as long as the request
// has room. Chunks that the image does not know, or describes badly, are passed
// over: who wants one of them will be told.
func (b *Blob) extend(v *cache.View, run []*load) []*load {
	n := b.desc.Table.Len()
	last := run[len(run)-1].index
	for i := last + 1; i < n && i-last <= MaxFetch; i++ {
		if v.Ready(i) {
			break
		}
		l, err := b.load(v, i)
		if err != nil {
			continue
		}
		if !b.follows(run, l) {
			break
		}
		run = append(run, l)
	}
	return run
}
