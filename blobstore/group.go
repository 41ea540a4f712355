package blobstore

import (
	"context"
	"sync"

	"github.com/rafsd/rafsd/blobstore/cache"
)

// group is what the open blobs of one cache entry share: the flights that fill
// it.
type group struct {
	name     string
	requests chan struct{} // one token per request that may run

	blobs int // guarded by Store.mu

	mu      sync.Mutex
	loads   map[uint32]*load     // chunks in flight, by index; guarded by mu
	flights map[*flight]struct{} // guarded by mu
	idle    chan struct{}        // closed when flights is empty and blobs is 0; guarded by mu
}

// load is one chunk in flight.
type load struct {
	f     *flight
	pos   int // in f.loads
	index uint32
	chunk Chunk
	ctx   *Context // of a chunk that shares its stored bytes, its dictionary a copy; immutable
	ready bool     // as pick found it

	waiters int  // readers that wait for it; guarded by group.mu
	gone    bool // decided: err is final and done is closed; guarded by group.mu

	tries int           // times its bytes were wrong; the flight's goroutine only
	last  error         // why it is not ready yet; guarded by group.mu
	err   error         // set before done is closed
	done  chan struct{} // closed when the chunk is ready, or failed
}

// end is where the stored bytes of the chunk end in the blob.
func (l *load) end() uint64 { return l.chunk.CompressedOffset + uint64(l.chunk.CompressedSize) }

// join returns the group of a cache entry, with one blob more.
func (s *Store) join(entry string) *group {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[entry]
	if g == nil {
		g = &group{
			name:     entry,
			requests: make(chan struct{}, s.o.Requests),
			loads:    map[uint32]*load{},
			flights:  map[*flight]struct{}{},
		}
		s.groups[entry] = g
	}
	g.blobs++
	return g
}

// leave takes a blob from its group. The last one ends the group's flights and
// waits for them.
func (s *Store) leave(g *group) {
	s.mu.Lock()
	g.blobs--
	last := g.blobs == 0
	if last {
		delete(s.groups, g.name)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	g.mu.Lock()
	var idle chan struct{}
	if len(g.flights) > 0 {
		idle = make(chan struct{})
		g.idle = idle
		for f := range g.flights {
			f.cancel(ErrClosed)
		}
	}
	g.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// settle decides a load: its chunk is ready, or err says why not.
func (g *group) settle(l *load, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settleLocked(l, err)
}

func (g *group) settleLocked(l *load, err error) {
	if l.gone {
		return
	}
	l.gone = true
	if g.loads[l.index] == l {
		delete(g.loads, l.index)
	}
	l.err = err
	close(l.done)
}

// abandon takes a reader from a load for which it no longer waits. A flight
// without readers is cancelled: what it still carries is for nobody.
func (g *group) abandon(l *load, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.waiters--
	if l.gone {
		return
	}
	for _, other := range l.f.loads {
		if !other.gone && other.waiters > 0 {
			return
		}
	}
	// From here on its chunks are in flight no more: the next reader begins anew.
	for _, other := range l.f.loads {
		g.settleLocked(other, cause)
	}
	l.f.cancel(cause)
}

// pick registers the chunks of runs that are neither ready nor in flight, and
// returns the loads that a reader of [first, last] waits for, with the flights
// that are to be started. Each load returned counts the reader as a waiter.
func (g *group) pick(b *Blob, v *cache.View, runs [][]*load, first, last uint32) (wait []*load, start []*flight) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// All touches of mapped memory come first: a fault must not leave half of
	// the work behind.
	for _, run := range runs {
		for _, l := range run {
			l.ready = v.Ready(l.index)
		}
	}
	for _, run := range runs {
		var f *flight
		for k, l := range run {
			// What is left out of bytes that are shared saves nothing, so it ends no
			// request.
			shares := k > 0 && l.chunk.sharesWith(&run[k-1].chunk)
			demanded := first <= l.index && l.index <= last
			if other := g.loads[l.index]; other != nil {
				if demanded {
					other.waiters++
					wait = append(wait, other)
				}
				if !shares {
					f = nil // a chunk that is in flight or ready is not asked for again
				}
				continue
			}
			if l.ready {
				if !shares {
					f = nil
				}
				continue
			}
			if f == nil {
				if !demanded {
					if l.chunk.Flags&ChunkShared != 0 {
						continue // one that shares its bytes may be
					}
					break // what follows a gap would be a request of its own
				}
				f = &flight{b: b, v: v, g: g}
				f.ctx, f.cancel = context.WithCancelCause(b.s.ctx)
				v.Retain()
				g.flights[f] = struct{}{}
				b.s.wg.Add(1)
				start = append(start, f)
			}
			if demanded {
				l.waiters = 1
				wait = append(wait, l)
			}
			l.f, l.pos = f, len(f.loads)
			l.done = make(chan struct{})
			g.loads[l.index] = l
			f.loads = append(f.loads, l)
		}
	}
	return wait, start
}

// landed removes a flight whose goroutine ends.
func (g *group) landed(f *flight) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.flights, f)
	if len(g.flights) == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}
