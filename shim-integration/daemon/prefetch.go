package daemon

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// Prefetching fetches chunks in the background that no guest has asked for yet. It
// goes through the same flights as a guest's reads, one piece at a time, and makes a
// pause while any guest waits for data: so a read waits for at most the pieces that
// are on their way.

const (
	// prefetchPiece is how many bytes of chunks one step asks for.
	prefetchPiece = 1 << 20
	// prefetchLook is how often a pause looks whether it is over.
	prefetchLook = 2 * time.Millisecond
	// maxPrefetchPaths bounds one list.
	maxPrefetchPaths = 1 << 16
	// maxOrders bounds the orders of one image that run or wait.
	maxOrders = 16
)

// prefetcher fetches for one image, one order after the other.
type prefetcher struct {
	bytes, requests atomic.Uint64

	turn sync.Mutex // held while an order runs; taken before mu

	mu         sync.Mutex
	begin, end time.Time // of all orders together; guarded by mu
	running    int       // orders that run or wait; guarded by mu
}

func (p *prefetcher) figures() PrefetchFigures {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := PrefetchFigures{Bytes: p.bytes.Load(), Requests: p.requests.Load(), Begin: p.begin}
	if p.running == 0 {
		f.End = p.end
	}
	return f
}

// order is what one call wants: in this order the image's own list, files, and
// everything.
type order struct {
	table bool
	paths []string
	all   bool
	limit uint32 // bytes per second, 0 = none
}

// Prefetch fetches data of the image at a mountpoint in the background: the files
// and folders that paths name, or the whole image if there are none. An event tells
// of the end.
func (d *Daemon) Prefetch(mountpoint string, paths []string) error {
	if err := checkPaths(paths); err != nil {
		return err
	}
	at, err := cleanMountpoint(mountpoint)
	if err != nil {
		return err
	}
	for _, m := range d.mountedImages() {
		if m.at == at {
			return d.prefetch(m.image, at, order{paths: paths, all: len(paths) == 0})
		}
	}
	return fmt.Errorf("prefetch %s: %w", at, ErrNotMounted)
}

func checkPaths(paths []string) error {
	if len(paths) > maxPrefetchPaths {
		return fmt.Errorf("%w: %d paths to prefetch, at most %d", ErrInvalid, len(paths), maxPrefetchPaths)
	}
	for _, p := range paths {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%w: path to prefetch %.80q is not absolute", ErrInvalid, p)
		}
	}
	return nil
}

// orderOf returns what a mount's configuration and its caller want prefetched.
func orderOf(c *config.Config, paths []string) order {
	o := order{paths: paths}
	if p := &c.RAFS.Prefetch; p.Enable {
		o.table, o.all, o.limit = true, p.PrefetchAll, p.BandwidthLimit
	}
	return o
}

// prefetch starts an order. It ends with the image.
func (d *Daemon) prefetch(m *image, at string, o order) error {
	if !o.table && !o.all && len(o.paths) == 0 {
		return nil
	}
	m.looked.RLock()
	defer m.looked.RUnlock()
	if m.closed {
		return fmt.Errorf("prefetch %s: %w", at, errUnmounted)
	}
	m.fetcher.mu.Lock()
	if m.fetcher.running >= maxOrders {
		m.fetcher.mu.Unlock()
		return fmt.Errorf("prefetch %s: %d orders are under way already: %w", at, maxOrders, ErrState)
	}
	if m.fetcher.begin.IsZero() {
		m.fetcher.begin = time.Now()
	}
	m.fetcher.running++
	m.fetcher.mu.Unlock()
	m.fetching.Go(func() {
		// An unmount ends the order that runs, then each that waits finds it so.
		m.fetcher.turn.Lock()
		err := m.mounted.Err()
		if err == nil {
			err = m.runOrder(o)
		}
		m.fetcher.turn.Unlock()
		m.fetcher.mu.Lock()
		m.fetcher.running--
		m.fetcher.end = time.Now()
		m.fetcher.mu.Unlock()
		if m.mounted.Err() != nil {
			return
		}
		e := Event{Kind: EventPrefetched, Mountpoint: at}
		if err != nil {
			e.Message = err.Error()
			d.log.Warn("prefetching ended early", "mountpoint", at, "err", err)
		} else {
			d.log.Info("prefetched", "mountpoint", at, "bytes", m.fetcher.bytes.Load())
		}
		d.watchers.tell(e)
	})
	return nil
}

// runOrder fetches what o wants. A path that cannot be had does not keep the others
// from it; the first error is returned.
func (m *image) runOrder(o order) error {
	var first error
	note := func(err error) bool {
		first = errors.Join(first, err)
		return m.mounted.Err() == nil
	}
	img := m.FS.Image()
	if o.table {
		for _, ino := range img.Prefetch() {
			if err := m.prefetchTree(ino, o.limit); !note(firstOf(first, err)) {
				return first
			}
		}
	}
	for _, p := range o.paths {
		ino, err := resolve(img, p)
		if err == nil {
			err = m.prefetchTree(ino, o.limit)
		}
		if err != nil {
			err = fmt.Errorf("prefetch %s: %w", p, err)
		}
		if !note(firstOf(first, err)) {
			return first
		}
	}
	if o.all {
		for i := range m.blobs {
			if err := m.prefetchBlob(i, o.limit); !note(firstOf(first, err)) {
				return first
			}
		}
	}
	return first
}

// firstOf is err if there was no error before.
func firstOf(before, err error) error {
	if before != nil {
		return nil
	}
	return err
}

// resolve finds a path of an image, following no link.
func resolve(img rafs.Image, p string) (uint64, error) {
	ino := img.Root()
	for name := range strings.SplitSeq(strings.Trim(path.Clean(p), "/"), "/") {
		if name == "" {
			continue
		}
		var err error
		if ino, err = img.Lookup(ino, []byte(name)); err != nil {
			return 0, err
		}
	}
	return ino, nil
}

// prefetchTree fetches a file, or all files below a folder.
func (m *image) prefetchTree(ino uint64, limit uint32) error {
	img := m.FS.Image()
	var attr rafs.Attr
	if err := img.Attr(ino, &attr); err != nil {
		return err
	}
	switch attr.Mode & rafs.ModeType {
	case rafs.ModeRegular:
		return m.prefetchFile(ino, attr.Size, limit)
	case rafs.ModeDir:
	default:
		return nil // no data
	}
	// Depth first, without recursion: an image may be deep.
	stack := []uint64{ino}
	seen := map[uint64]struct{}{ino: {}}
	var c rafs.Cursor
	var e rafs.Dirent
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := img.ReadDir(dir, 0, &c); err != nil {
			return err
		}
		for {
			ok, err := c.Next(&e)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if err := m.mounted.Err(); err != nil {
				return err
			}
			if err := img.Attr(e.Ino, &attr); err != nil {
				return err
			}
			switch attr.Mode & rafs.ModeType {
			case rafs.ModeRegular:
				if err := m.prefetchFile(e.Ino, attr.Size, limit); err != nil {
					return err
				}
			case rafs.ModeDir:
				if _, ok := seen[e.Ino]; !ok {
					seen[e.Ino] = struct{}{}
					stack = append(stack, e.Ino)
				}
			}
		}
	}
	return nil
}

// prefetchFile fetches the chunks of a file.
func (m *image) prefetchFile(ino, size uint64, limit uint32) error {
	var extents []rafs.Extent
	for off := uint64(0); off < size; {
		var err error
		if extents, err = m.FS.Image().Extents(ino, off, prefetchPiece, extents[:0]); err != nil {
			return err
		}
		if len(extents) == 0 {
			return nil
		}
		for i := 0; i < len(extents); {
			e := extents[i]
			first, last := e.Chunk, e.Chunk
			for i++; i < len(extents) && extents[i].Blob == e.Blob && extents[i].Chunk == last+1; i++ {
				last++
			}
			if e.Blob >= 0 {
				if err := m.prefetchChunks(int(e.Blob), first, last, limit); err != nil {
					return err
				}
			}
		}
		end := extents[len(extents)-1]
		off = end.FileOffset + uint64(end.Length)
	}
	return nil
}

// prefetchBlob fetches all chunks of a blob that the image knows.
func (m *image) prefetchBlob(blob int, limit uint32) error {
	img := m.FS.Image()
	n, err := img.ChunkCount(blob)
	if err != nil {
		return err
	}
	var c rafs.Chunk
	for i := uint32(0); i < n; {
		first, size := i, uint64(0)
		for ; i < n && size < prefetchPiece; i++ {
			err := img.Chunk(blob, i, &c)
			if errors.Is(err, rafs.ErrNoChunk) {
				break
			}
			if err != nil {
				return err
			}
			size += uint64(c.UncompressedSize)
		}
		if i > first {
			if err := m.prefetchChunks(blob, first, i-1, limit); err != nil {
				return err
			}
		} else {
			i++
		}
	}
	return nil
}

// prefetchChunks fetches chunks of a blob, when no guest waits.
func (m *image) prefetchChunks(blob int, first, last, limit uint32) error {
	for m.demand.Load() > 0 {
		select {
		case <-time.After(prefetchLook):
		case <-m.mounted.Done():
			return errUnmounted
		}
	}
	b := m.blobs[blob]
	err := cache.Guard(func() error { // Ready looks at a mapped file
		for first <= last && b.Ready(first) {
			first++
		}
		return nil
	})
	if err != nil || first > last {
		return err
	}
	before, start := b.Stats().DecodedBytes, time.Now()
	if err := b.Fetch(m.mounted, first, last); err != nil {
		return err
	}
	got := b.Stats().DecodedBytes - before
	m.fetcher.bytes.Add(got)
	m.fetcher.requests.Add(1)
	if limit == 0 {
		return nil
	}
	pause := time.Duration(float64(got)/float64(limit)*float64(time.Second)) - time.Since(start)
	select {
	case <-time.After(max(pause, 0)):
		return nil
	case <-m.mounted.Done():
		return context.Cause(m.mounted)
	}
}
