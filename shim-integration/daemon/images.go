package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend/live"
	"github.com/rafsd/rafsd/fuseproto"
	rafsfs "github.com/rafsd/rafsd/rafs/fs"
	"github.com/rafsd/rafsd/rafs/open"
	"github.com/rafsd/rafsd/shim-integration/backends"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// images opens RAFS images over shared blob stores.
type images struct {
	opts   Options
	stores stores
	demand atomic.Int64 // reads that wait for data
	health func(failing bool, what string)

	mu   sync.Mutex
	temp string // folder for mounts without one, "" until needed; guarded by mu
}

func newImages(o Options, health func(failing bool, what string)) *images {
	i := &images{opts: o, health: health}
	i.stores = stores{open: i.openStore, refs: make(map[config.Key]*sharedStore)}
	return i
}

// image is a file system over one image that gives its store back when closed.
type image struct {
	*rafsfs.FS
	meter   fsMeter
	blobs   []*blobstore.Blob // the FS's
	store   *openStore
	stop    context.CancelFunc // ends mounted
	release func() error

	mounted  context.Context
	demand   *atomic.Int64 // reads of any guest that wait for data now
	fetcher  prefetcher
	paths    knownPaths
	fetching sync.WaitGroup // prefetches; grows only under looked and before closed

	// looked is held while somebody looks at blobs from outside of a request, and
	// closed is true once they are gone.
	looked sync.RWMutex
	closed bool // guarded by looked
}

// openImage implements opener.
func (i *images) openImage(_ context.Context, b bootstrap, c *config.Config) (fuseproto.FileSystem, func(), error) {
	o := open.Options{VerifyMetadata: c.RAFS.VerifyMetadata, Digest: b.pin, File: b.file}
	if b.trusted {
		o.VerifyMetadata, o.Digest = false, nil
	}
	img, err := open.Image(b.path, o)
	if err != nil {
		return nil, nil, err
	}
	store, release, err := i.stores.acquire(c)
	if err != nil {
		return nil, nil, errors.Join(err, img.Close())
	}
	mounted, stop := context.WithCancel(context.Background())
	var blobs []*blobstore.Blob
	openBlob := func(d blobstore.BlobDesc) (rafsfs.Blob, error) {
		b, err := store.Blob(d)
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, b)
		return &mountedBlob{b, mounted, &i.demand}, nil
	}
	f, err := rafsfs.New(img, openBlob, rafsfs.Options{EnableXattr: c.RAFS.EnableXattr})
	if err != nil {
		stop()
		return nil, nil, errors.Join(err, img.Close(), release())
	}
	m := &image{FS: f, blobs: blobs, store: store, stop: stop, release: release, mounted: mounted, demand: &i.demand}
	m.meter.files = newFileMeter(c.RAFS.IOStatsFiles, c.RAFS.AccessPattern, c.RAFS.LatestReadFiles)
	return m, stop, nil
}

// Close closes the image and ends its use of the store.
func (m *image) Close() error {
	m.stop()
	m.looked.Lock()
	m.closed = true
	m.looked.Unlock()
	m.fetching.Wait()
	return errors.Join(m.FS.Close(), m.release())
}

// allReady tells whether every chunk of the image's blobs is in the cache.
func (m *image) allReady(ctx context.Context) (bool, error) {
	m.looked.RLock()
	defer m.looked.RUnlock()
	if m.closed {
		return false, errUnmounted
	}
	for _, b := range m.blobs {
		if ready, err := b.AllReady(ctx); err != nil || !ready {
			return false, err
		}
	}
	return true, nil
}

// mountedBlob is a blob whose readers stop waiting when the mount goes.
type mountedBlob struct {
	*blobstore.Blob
	mounted context.Context
	demand  *atomic.Int64
}

// Fetch waits as the blob does, but no longer than the mount is there.
func (b *mountedBlob) Fetch(ctx context.Context, first, last uint32) error {
	b.demand.Add(1)
	defer b.demand.Add(-1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.mounted, func() { cancel(errUnmounted) })()
	return b.Blob.Fetch(ctx, first, last)
}

var errUnmounted = errors.New("the image was unmounted")

// openStore is a blob store and the place behind it.
type openStore struct {
	*blobstore.Store
	backend *live.Backend // the Store's
	dir     string        // of the cache
	log     *slog.Logger
}

// replace makes further requests go to the back-end that c describes.
func (s *openStore) replace(c *config.Config) error {
	b, err := backends.New(c.Backend, s.log)
	if err != nil {
		return err
	}
	return s.backend.Replace(b)
}

// openStore opens the blob store that a configuration describes.
func (i *images) openStore(c *config.Config) (*openStore, error) {
	place, err := backends.New(c.Backend, i.opts.Log)
	if err != nil {
		return nil, err
	}
	b := live.New(place, func(err error) {
		if err != nil {
			i.health(true, fmt.Sprintf("%s: %v", place.Name(), err))
		} else {
			i.health(false, place.Name())
		}
	})
	dir, err := i.cacheDir(c)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	o := blobstore.Options{
		Dir:           dir,
		Backend:       b,
		Amplification: c.RAFS.BatchSize,
		Deadline:      blobstore.Forever,
		Log:           i.opts.Log,
	}
	if a := i.opts.Read.Amplification; a >= 0 {
		o.Amplification = uint64(a)
	}
	if d := i.opts.Read.Deadline; d != config.Forever {
		o.Deadline = time.Duration(d)
	}
	if i.opts.Read.Verify == "off" {
		o.Verify = blobstore.VerifyOff
	}
	s, err := blobstore.Open(o)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &openStore{s, b, dir, i.opts.Log}, nil
}

// cacheDir returns the folder for the chunks of a mount: the configuration's,
// ours, or a temporary one.
func (i *images) cacheDir(c *config.Config) (string, error) {
	dir := c.Cache.WorkDir()
	if dir == "" {
		dir = i.opts.Cache.Dir
	}
	if dir != "" {
		return filepath.Abs(dir)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.temp == "" {
		temp, err := i.makeTemp()
		if err != nil {
			return "", fmt.Errorf("temporary cache folder: %w", err)
		}
		i.temp = temp
	}
	return i.temp, nil
}

// makeTemp makes the temporary folder, or finds that of the earlier process.
func (i *images) makeTemp() (temp string, err error) {
	r := i.opts.Record
	if r == nil {
		return os.MkdirTemp(tempDir(), "rafsd-cache-")
	}
	if err := r.Each(keyCache, func(_ string, value []byte, _ []int) error {
		temp = string(value)
		return nil
	}); err != nil {
		return "", err
	}
	if temp != "" && isTemp(temp) {
		return temp, nil
	}
	if temp, err = os.MkdirTemp(tempDir(), "rafsd-cache-"); err != nil {
		return "", err
	}
	return temp, r.Put(keyCache, []byte(temp))
}

// leave lets the temporary cache be: the next process goes on with it.
func (i *images) leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.temp = ""
}

// tempDir is where temporary files of some size belong: not in /tmp, which may be
// memory.
func tempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	if unix.Access("/var/tmp", unix.W_OK) == nil {
		return "/var/tmp"
	}
	return os.TempDir()
}

// Close removes the temporary cache. All images are closed.
func (i *images) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.temp == "" {
		return nil
	}
	return os.RemoveAll(i.temp)
}
