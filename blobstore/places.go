package blobstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/cache"
)

// smallPlaces is how much memory of places is taken from the heap. What is larger
// (dictionaries of gzip streams are) lies in a file, so that the kernel can take the
// memory back.
const smallPlaces = 1 << 20

// resolve loads the places of the blob's chunks, unless that was done or the
// image has them. It tries as a flight does: again and again while the backend
// fails, a few times when what it hands over is wrong.
func (b *Blob) resolve(ctx context.Context) error {
	if b.desc.Places == nil || b.places.Load() != nil && !b.mayResolveAnew() {
		return nil
	}
	select {
	case b.opening <- struct{}{}:
		defer func() { <-b.opening }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if b.places.Load() == nil && b.resolveLocally() {
		return nil
	}
	began, bad := time.Now(), 0
	for try := 0; b.places.Load() == nil || b.mayResolveAnew(); try++ {
		err := b.load1(ctx, try)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return gaveUp(ctx, time.Since(began), err)
		}
		var classed *backend.Error
		kind, after := backend.Classify(err)
		switch {
		case !errors.As(err, &classed) || kind == backend.BadAnswer:
			if bad++; bad >= maxBad {
				return err
			}
		case kind == backend.Permanent || kind == backend.Denied:
			return err
		default:
			bad = 0
		}
		b.s.warn(err)
		d := min(minBackoff<<min(try, 10), maxBackoff)
		if wait(ctx, max(min(after, maxPause), d/2+rand.N(d/2+1))) != nil {
			return gaveUp(ctx, time.Since(began), err)
		}
	}
	return nil
}

// load1 tries once to load the places.
func (b *Blob) load1(ctx context.Context, try int) (err error) {
	b.count(statRequests, 1)
	if try > 0 {
		b.count(statRetries, 1)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("where the chunks are stored: %w", err), b.freeUnused())
		}
	}()
	var p Places
	err = cache.Guard(func() (err error) {
		p, err = b.desc.Places(ctx, b.s.o.Backend.Blob, b.alloc)
		return err
	})
	if err != nil {
		return err
	}
	b.places.Store(&p)
	b.local.Store(false)
	b.used = len(b.scratch)
	return nil
}

// resolveLocally takes the places from files that nydusd or who placed the image
// left, if they are there. Nobody need know why they are of no use.
func (b *Blob) resolveLocally() bool {
	if b.desc.LocalPlaces == nil {
		return false
	}
	var p Places
	err := cache.Guard(func() (err error) {
		p, err = b.desc.LocalPlaces(b.s.o.Foreign, b.alloc)
		return err
	})
	if err != nil || p == nil {
		b.s.o.Log.Debug("no chunk information beside the cache", "blob", b.desc.ID, "err", errors.Join(err, b.freeUnused()))
		return false
	}
	b.local.Store(true)
	b.places.Store(&p)
	b.used = len(b.scratch)
	return true
}

// distrust notes that the places are wrong, or the bytes that they led to, if they
// were not the backend's.
func (b *Blob) distrust() {
	if b.local.Load() {
		b.distrusted.Store(true)
	}
}

// mayResolveAnew reports whether the places are wrong and were not the backend's.
func (b *Blob) mayResolveAnew() bool { return b.local.Load() && b.distrusted.Load() }

// alloc returns memory for places.
func (b *Blob) alloc(n uint64) ([]byte, error) {
	if n <= smallPlaces {
		return make([]byte, n), nil
	}
	s, err := b.s.cache.NewScratch(int64(n))
	if err != nil {
		return nil, err
	}
	b.scratch = append(b.scratch, s)
	return s.Bytes(), nil
}

// freeUnused gives back the memory of places that were not accepted.
func (b *Blob) freeUnused() (err error) {
	for _, s := range b.scratch[b.used:] {
		err = errors.Join(err, s.Close())
	}
	b.scratch = b.scratch[:b.used]
	return err
}

// freeScratch gives back the memory of all places.
func (b *Blob) freeScratch() error {
	b.used = 0
	return b.freeUnused()
}
