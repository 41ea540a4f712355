package blobstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// Verify says what is compared before a chunk is served.
type Verify uint8

const (
	// VerifyAlways: the digest, or the CRC where the image has no digest.
	VerifyAlways Verify = iota
	// VerifyOff: nothing. Chunks are kept apart from verified ones.
	VerifyOff
)

// Defaults of Options.
const (
	DefaultDeadline = 60 * time.Second
	DefaultMemory   = 40 << 20
	DefaultRequests = 16
)

// Forever is a Deadline that never comes.
const Forever time.Duration = -1

// Options configure a Store.
type Options struct {
	// Dir is the work_dir of the cache. All files are in a sub-folder of it.
	Dir string
	// Foreign are folders where nydusd's cache files may be; nil = Dir. They are
	// read, and never written.
	Foreign []string
	// Backend holds the blobs. The Store closes it.
	Backend backend.Backend
	// Amplification is the most bytes of a blob that one request asks for, a
	// single larger chunk excepted. Zero fetches each chunk by itself.
	Amplification uint64
	// Deadline is how long a Fetch waits for chunks; 0 = DefaultDeadline, or
	// Forever.
	Deadline time.Duration
	Verify   Verify
	// Memory is the most bytes of chunks in flight; 0 = DefaultMemory. Less than
	// the two forms of the largest chunk is raised to that.
	Memory int64
	// Requests is the most requests at a time for one blob; 0 = DefaultRequests.
	Requests int
	// SyncDelay is how long a chunk may be ready before it is made durable;
	// 0 = cache.DefaultSyncDelay.
	SyncDelay time.Duration
	// Log gets warnings; nil = slog.Default().
	Log *slog.Logger
}

// Store gives access to the blobs of one backend through one cache. Its methods
// are safe for concurrent use.
type Store struct {
	o     Options
	cache *cache.Cache
	mem   *semaphore.Weighted // bytes of chunks in flight

	ctx    context.Context // of all flights; ends in Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // flights

	start   time.Time
	calm    atomic.Int64          // time since start before which the backend asked us not to come again
	calmWhy atomic.Pointer[error] // what it asked that with
	spoke   atomic.Int64          // time since start of the last warning about a backend that fails

	mu     sync.Mutex
	groups map[string]*group // by cache entry; guarded by mu
	blobs  int               // open; guarded by mu

	counters counters
}

// ErrClosed reports the use of a Blob or Store that is closed.
var ErrClosed = errors.New("blob store is closed")

// Open opens a store.
func Open(o Options) (*Store, error) {
	if o.Backend == nil {
		return nil, errors.New("blobstore: no backend")
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	o.Memory = max(o.Memory, MaxChunkSize+MaxStoredSize)
	if o.Requests <= 0 {
		o.Requests = DefaultRequests
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Foreign == nil {
		o.Foreign = []string{o.Dir}
	}
	if o.Verify != VerifyAlways {
		o.Log.Warn("chunks are not verified: whatever the backend answers is served", "backend", o.Backend.Name())
	}
	c, err := cache.Open(cache.Options{
		Dir: o.Dir, Unverified: o.Verify != VerifyAlways, SyncDelay: o.SyncDelay, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	s := &Store{
		o: o, cache: c,
		mem:    semaphore.NewWeighted(o.Memory),
		start:  time.Now(),
		groups: map[string]*group{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends all flights and closes cache and backend. All Blobs must have been
// closed. It does not wait for the disk, except for a sync that is under way.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	open := s.blobs
	s.mu.Unlock()
	var err error
	if open != 0 {
		err = fmt.Errorf("blob store closed with %d blobs open", open)
	}
	return errors.Join(err, s.cache.Close(), s.o.Backend.Close())
}

// Blob opens the blob that d describes. It asks nobody and opens no file yet.
// The caller closes it.
func (s *Store) Blob(d BlobDesc) (*Blob, error) {
	if err := backend.CheckID(d.ID); err != nil {
		return nil, fmt.Errorf("blob %w", err)
	}
	switch {
	case d.Table == nil:
		return nil, fmt.Errorf("blob %s: no chunk table", d.ID)
	case !codec.Algorithm(d.Compressor).Known():
		return nil, fmt.Errorf("blob %s: compressor %d is unknown", d.ID, d.Compressor)
	case !codec.Digester(d.Digester).Known():
		return nil, fmt.Errorf("blob %s: digest algorithm %d is unknown", d.ID, d.Digester)
	}
	src, err := s.o.Backend.Blob(d.ID)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.ID, err)
	}
	s.mu.Lock()
	s.blobs++
	s.mu.Unlock()
	return &Blob{s: s, desc: d, src: src, opening: make(chan struct{}, 1)}, nil
}

// now is the time since the store was opened.
func (s *Store) now() time.Duration { return time.Since(s.start) }

// pause keeps all flights from asking again before d from now; why is what those
// who give up meanwhile are told.
func (s *Store) pause(d time.Duration, why error) {
	until := int64(s.now() + d)
	s.calmWhy.Store(&why)
	for {
		old := s.calm.Load()
		if old >= until || s.calm.CompareAndSwap(old, until) {
			return
		}
	}
}

// paused returns why nothing is asked of the backend now, nil if it may be asked.
func (s *Store) paused() error {
	if why := s.calmWhy.Load(); why != nil && int64(s.now()) < s.calm.Load() {
		return *why
	}
	return nil
}

// warn logs that the backend fails, at most once in five seconds.
func (s *Store) warn(err error) {
	now := int64(s.now())
	last := s.spoke.Load()
	if last != 0 && now-last < int64(5*time.Second) || !s.spoke.CompareAndSwap(last, max(now, 1)) {
		return
	}
	s.o.Log.Warn("fetching chunks fails, trying again", "backend", s.o.Backend.Name(), "err", err)
}

// Stats are counters since the store or the blob was opened.
type Stats struct {
	Requests       uint64 // ranges asked of the backend
	Retries        uint64 // of these, how many repeated one that had failed
	FetchedBytes   uint64 // stored bytes of chunks that arrived
	FetchedChunks  uint64 // chunks that were verified and stored
	DecodedBytes   uint64 // their uncompressed bytes
	Mismatches     uint64 // chunks whose bytes were not those promised
	BackendErrors  uint64 // requests that failed, whatever the reason
	AdoptedChunks  uint64 // chunks that were verified and copied from nydusd's cache
	RefusedChunks  uint64 // chunks there that were not those promised
	StoreErrors    uint64 // chunks that could not be written to the cache
	FailedFetches  uint64 // calls of Fetch that returned an error
	WaitingFetches int64  // calls of Fetch that wait now
}

// stat names a counter.
type stat int

const (
	statRequests stat = iota
	statRetries
	statBytes
	statChunks
	statDecoded
	statMismatches
	statBackendErrors
	statAdopted
	statRefused
	statStoreErrors
	statFailed
	statCount
)

type counters struct {
	n       [statCount]atomic.Uint64
	waiting atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{
		Requests:       c.n[statRequests].Load(),
		Retries:        c.n[statRetries].Load(),
		FetchedBytes:   c.n[statBytes].Load(),
		FetchedChunks:  c.n[statChunks].Load(),
		DecodedBytes:   c.n[statDecoded].Load(),
		Mismatches:     c.n[statMismatches].Load(),
		BackendErrors:  c.n[statBackendErrors].Load(),
		AdoptedChunks:  c.n[statAdopted].Load(),
		RefusedChunks:  c.n[statRefused].Load(),
		StoreErrors:    c.n[statStoreErrors].Load(),
		FailedFetches:  c.n[statFailed].Load(),
		WaitingFetches: c.waiting.Load(),
	}
}

// Stats returns the store's counters.
func (s *Store) Stats() Stats { return s.counters.stats() }

// CacheStats returns the counters of the store's cache.
func (s *Store) CacheStats() cache.Stats { return s.cache.Stats() }
