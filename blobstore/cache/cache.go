package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/hostfs"
)

// Folders of work_dir. What was stored without verification must never be
// believed by somebody who verifies, so it is kept apart.
const (
	folder           = "rafsd-v1"
	folderUnverified = "rafsd-v1-unverified"
)

// DefaultSyncDelay is how long a chunk may be ready before it becomes durable.
const DefaultSyncDelay = 2 * time.Second

// Options configure a Cache.
type Options struct {
	// Dir is the work_dir; it is made if it is missing. All files are in a
	// sub-folder of it.
	Dir string
	// Unverified says that the chunks to be stored are not verified.
	Unverified bool
	// SyncDelay is the time in which durable marks are gathered; 0 = DefaultSyncDelay.
	SyncDelay time.Duration
	// Log gets what is repaired or lost; nil = slog.Default().
	Log *slog.Logger

	// BootID and Fdatasync stand in for the kernel's, in tests of power cuts.
	BootID    string
	Fdatasync func(*os.File) error
}

// Cache is a folder of entries. Its methods are safe for concurrent use.
type Cache struct {
	o    Options
	dir  *hostfs.Dir
	lock *os.File
	boot bootID

	attaching chan struct{} // the token: one Attach at a time in this process

	mu    sync.Mutex
	files map[string]*file   // by entry name; guarded by mu; inserted only under the token
	dirty map[*View]struct{} // views with chunks that wait to become durable; guarded by mu; each holds a reference

	kick   chan struct{} // capacity 1: dirty is no longer empty
	done   chan struct{} // closed by Close
	synced chan struct{} // closed when the syncer has ended

	stats struct {
		stored, durable, syncErrors, rebuilt atomic.Uint64
	}
}

// Stats counts what happened since Open.
type Stats struct {
	Stored     uint64 // chunks written and marked ready
	Durable    uint64 // chunks marked durable
	SyncErrors uint64 // batches lost to an error of fdatasync
	Rebuilt    uint64 // entries replaced since they were damaged or foreign
}

// Open opens the cache in o.Dir.
func Open(o Options) (_ *Cache, err error) {
	if o.SyncDelay == 0 {
		o.SyncDelay = DefaultSyncDelay
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Fdatasync == nil {
		o.Fdatasync = fdatasync
	}
	boot, err := readBootID(o.BootID)
	if err != nil {
		return nil, err
	}
	if err := hostfs.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	parent, err := hostfs.OpenDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	defer parent.Close()
	name := folder
	if o.Unverified {
		name = folderUnverified
	}
	dir, err := parent.Subdir(name, 0o700)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Close())
		}
	}()
	st, err := dir.Stat()
	if err != nil {
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, fmt.Errorf("cache folder %s: mode %#o, owner %d: it must be 0700 and owned by user %d, since its marks are believed",
			dir.Path(), st.Mode&0o7777, st.Uid, os.Geteuid())
	}
	lock, err := dir.Open("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	c := &Cache{
		o: o, dir: dir, lock: lock, boot: boot,
		attaching: make(chan struct{}, 1),
		files:     map[string]*file{},
		dirty:     map[*View]struct{}{},
		kick:      make(chan struct{}, 1),
		done:      make(chan struct{}),
		synced:    make(chan struct{}),
	}
	go c.syncer() // ended and awaited by Close
	return c, nil
}

// Close gives up the folder. It waits for a sync that is under way, and starts
// none: chunks that are not durable yet stay ready in this boot. All views must
// have been released.
func (c *Cache) Close() error {
	close(c.done)
	<-c.synced
	c.mu.Lock()
	open := len(c.files)
	c.mu.Unlock()
	var err error
	if open != 0 {
		err = fmt.Errorf("cache closed with %d entries in use", open)
	}
	return errors.Join(err, c.lock.Close(), c.dir.Close())
}

// Dir is the folder that holds the entries, for messages.
func (c *Cache) Dir() string { return c.dir.Path() }

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	return Stats{
		Stored:     c.stats.stored.Load(),
		Durable:    c.stats.durable.Load(),
		SyncErrors: c.stats.syncErrors.Load(),
		Rebuilt:    c.stats.rebuilt.Load(),
	}
}

// enter takes the token and the folder's lock.
func (c *Cache) enter(ctx context.Context) error {
	select {
	case c.attaching <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := c.flock(ctx); err != nil {
		<-c.attaching
		return err
	}
	return nil
}

// flock polls for the lock: waiting in the kernel could not be ended, and the
// process that holds it may be stopped.
func (c *Cache) flock(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
		default:
			return &os.PathError{Op: "flock", Path: c.lock.Name(), Err: err}
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%s is held by another process: %w", c.lock.Name(), context.Cause(ctx))
		}
	}
}

// leave ends what enter began.
func (c *Cache) leave() {
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_UN); err != nil {
		c.o.Log.Error("cache: unlock", "file", c.lock.Name(), "err", err)
	}
	<-c.attaching
}

func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// readBootID decodes id, or the kernel's boot id if id is empty.
func readBootID(id string) (b bootID, err error) {
	const path = "/proc/sys/kernel/random/boot_id"
	if id == "" {
		f, err := hostfs.OpenRegular(path)
		if err != nil {
			return b, fmt.Errorf("which boot this is: %w", err)
		}
		p, err := io.ReadAll(io.LimitReader(f, 64))
		if err = errors.Join(err, f.Close()); err != nil {
			return b, fmt.Errorf("which boot this is: %w", err)
		}
		id = string(p)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(id), "-", ""))
	if err != nil || len(raw) != len(b) {
		return b, fmt.Errorf("which boot this is: %s holds %q, not a UUID", path, id)
	}
	return bootID(raw), nil
}
