package daemon

import (
	"errors"
	"sync"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// stores shares blob stores between mounts whose configurations agree on where
// blobs come from and where their chunks are kept.
type stores struct {
	open func(*config.Config) (*openStore, error) // does not wait for a network

	mu   sync.Mutex
	refs map[config.Key]*sharedStore // guarded by mu; those with users
}

// sharedStore is one store and who uses it.
type sharedStore struct {
	users int // guarded by stores.mu
	once  sync.Once
	store *openStore // after once
	err   error      // after once
}

// acquire returns the store for c. Each success is matched by one release.
func (s *stores) acquire(c *config.Config) (*openStore, func() error, error) {
	key := c.StoreKey()
	s.mu.Lock()
	e := s.refs[key]
	if e == nil {
		e = new(sharedStore)
		s.refs[key] = e
	}
	e.users++
	s.mu.Unlock()
	e.once.Do(func() { e.store, e.err = s.open(c) })
	release := sync.OnceValue(func() error { return s.release(key, e) })
	if e.err != nil {
		return nil, nil, errors.Join(e.err, release())
	}
	return e.store, release, nil
}

// release ends one use of e; the last one closes its store.
func (s *stores) release(key config.Key, e *sharedStore) error {
	s.mu.Lock()
	e.users--
	last := e.users == 0
	if last {
		delete(s.refs, key)
	}
	s.mu.Unlock()
	if last && e.store != nil {
		return e.store.Close()
	}
	return nil
}
