package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend/live"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// ErrNoMetrics reports an id that nothing is counted under, or that one was
// needed.
var ErrNoMetrics = errors.New("no metrics under that id")

// mountedImage is an image of the tree with what the daemon knows of it.
type mountedImage struct {
	*image
	at     string
	config *config.Config
}

// mountedImages lists the images of the tree, ordered by mountpoint.
func (d *Daemon) mountedImages() []mountedImage {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []mountedImage
	for _, m := range d.tree.List() {
		if i, ok := m.FS.(*image); ok && d.mounts[m.Path] != nil {
			out = append(out, mountedImage{i, m.Path, d.mounts[m.Path].Config})
		}
	}
	return out
}

// imageAt returns the image at a mountpoint; any one, if it is the only one, for
// "".
func (d *Daemon) imageAt(mountpoint string) (mountedImage, error) {
	all := d.mountedImages()
	if mountpoint == "" {
		if len(all) == 1 {
			return all[0], nil
		}
		return mountedImage{}, fmt.Errorf("%d images are mounted, name one: %w", len(all), ErrNoMetrics)
	}
	at, err := cleanMountpoint(mountpoint)
	if err != nil {
		return mountedImage{}, err
	}
	for _, m := range all {
		if m.at == at {
			return m, nil
		}
	}
	return mountedImage{}, fmt.Errorf("image at %.80q: %w", mountpoint, ErrNoMetrics)
}

// imagesOf returns the images whose configuration has an id. The id "" stands for
// the only one there is. Callers that know mountpoints only may name one instead.
func (d *Daemon) imagesOf(id string) ([]mountedImage, error) {
	all := d.mountedImages()
	var out []mountedImage
	ids := make(map[string]bool)
	for _, m := range all {
		ids[m.config.ID] = true
		if id == "" || m.config.ID == id {
			out = append(out, m)
		}
	}
	if id == "" && len(ids) != 1 {
		return nil, fmt.Errorf("%d configurations are in use, name one: %w", len(ids), ErrNoMetrics)
	}
	if len(out) == 0 {
		for _, m := range all {
			if m.at == id {
				return []mountedImage{m}, nil
			}
		}
		return nil, fmt.Errorf("configuration %.80q: %w", id, ErrNoMetrics)
	}
	return out, nil
}

// FSMetrics returns the counters of the image at a mountpoint, and that.
func (d *Daemon) FSMetrics(mountpoint string) (at string, m FSMetrics, err error) {
	i, err := d.imageAt(mountpoint)
	if err != nil {
		return "", FSMetrics{}, err
	}
	return i.at, i.meter.metrics(), nil
}

// FileMetrics returns the counters of the files of an image by inode, if its
// configuration asks for any.
func (d *Daemon) FileMetrics(mountpoint string) (map[uint64]FileMetrics, error) {
	i, err := d.imageAt(mountpoint)
	if err != nil {
		return nil, err
	}
	return i.meter.files.snapshot(), nil
}

// LatestFiles returns the inodes of an image that were read since it was last
// asked, in order, if its configuration has them kept.
func (d *Daemon) LatestFiles(mountpoint string) ([]uint64, error) {
	i, err := d.imageAt(mountpoint)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for node := range i.meter.files.takeLatest() {
		out = append(out, node)
	}
	slices.Sort(out)
	return out, nil
}

// BackendMetrics are the counters of a place that blobs come from.
type BackendMetrics struct {
	Type string
	live.Stats
}

// BackendMetrics returns the counters of the back-end of the images whose
// configuration has that id. Images that share one share its counters.
func (d *Daemon) BackendMetrics(id string) (BackendMetrics, error) {
	all, err := d.imagesOf(id)
	if err != nil {
		return BackendMetrics{}, err
	}
	return BackendMetrics{all[0].config.Backend.Type, all[0].store.backend.Stats()}, nil
}

// CacheMetrics are the counters of the cached blobs of images.
type CacheMetrics struct {
	Blobs    []string // ids, in order
	Dir      string
	Whole    uint64 // reads that found all they wanted
	Partial  uint64 // reads that had to wait for chunks
	AllReady bool   // every chunk of all blobs is here
	Prefetch PrefetchFigures
}

// PrefetchFigures tell what was fetched before anyone asked.
type PrefetchFigures struct {
	Bytes, Requests uint64
	Begin, End      time.Time // zero: not yet
}

// add joins the figures of two images.
func (f *PrefetchFigures) add(o PrefetchFigures) {
	f.Bytes += o.Bytes
	f.Requests += o.Requests
	if !o.Begin.IsZero() && (f.Begin.IsZero() || o.Begin.Before(f.Begin)) {
		f.Begin = o.Begin
	}
	if o.End.After(f.End) {
		f.End = o.End
	}
}

// CacheMetrics returns the counters of the images whose configuration has that id.
func (d *Daemon) CacheMetrics(ctx context.Context, id string) (CacheMetrics, error) {
	all, err := d.imagesOf(id)
	if err != nil {
		return CacheMetrics{}, err
	}
	out := CacheMetrics{AllReady: true, Dir: all[0].store.dir}
	for _, m := range all {
		f := m.meter.metrics()
		out.Whole += f.WholeHits
		out.Partial += f.Partial
		out.Prefetch.add(m.fetcher.figures())
		for _, b := range m.blobs {
			out.Blobs = append(out.Blobs, b.ID())
		}
		ready, err := m.allReady(ctx)
		if err != nil {
			return CacheMetrics{}, fmt.Errorf("blobs of %s: %w", m.at, err)
		}
		out.AllReady = out.AllReady && ready
	}
	slices.Sort(out.Blobs)
	out.Blobs = slices.Compact(out.Blobs)
	return out, nil
}

// Superblock returns what the superblock of the image at a mountpoint says.
func (d *Daemon) Superblock(mountpoint string) (*rafs.Info, error) {
	i, err := d.imageAt(mountpoint)
	if err == nil {
		return i.FS.Image().Info(), nil
	}
	at, cleanErr := cleanMountpoint(mountpoint)
	if cleanErr != nil {
		return nil, cleanErr
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mounts[at] != nil {
		return nil, fmt.Errorf("%s is no image: %w", at, ErrInvalid)
	}
	return nil, fmt.Errorf("image at %s: %w", at, ErrNotMounted)
}

// Keys of RuntimeConfig.
const (
	keyRegistryAuth = "registry_auth"
	keyProxyURL     = "proxy_url"
)

// RuntimeConfig returns what can be changed of the configuration with that id, or
// of all of them, each key with its id and a colon in front, for "". Secrets are
// masked.
func (d *Daemon) RuntimeConfig(id string) (map[string]string, error) {
	out := make(map[string]string)
	add := func(prefix string, c *config.Config) {
		if r := c.Backend.Registry; c.Backend.Type == "registry" && r != nil {
			out[prefix+keyRegistryAuth] = r.Auth.String()
			out[prefix+keyProxyURL] = r.Proxy.URL.String()
		}
	}
	if id == "" {
		for _, m := range d.mountedImages() {
			add(m.config.ID+":", m.config)
		}
		return out, nil
	}
	all, err := d.imagesOf(id)
	if err != nil {
		return nil, err
	}
	add("", all[0].config)
	return out, nil
}

// SetRuntimeConfig changes the configuration with that id while its images are in
// use: further requests to the registry go the new way. All of it is checked
// before any of it is done.
func (d *Daemon) SetRuntimeConfig(id string, values map[string]string) error {
	all, err := d.imagesOf(id)
	if err != nil {
		return err
	}
	for key := range values {
		if key != keyRegistryAuth && key != keyProxyURL {
			return fmt.Errorf("%w: key %.80q cannot be changed, only %s and %s", ErrInvalid, key, keyRegistryAuth, keyProxyURL)
		}
	}
	for _, m := range all {
		if m.config.Backend.Type != "registry" || m.config.Backend.Registry == nil {
			return fmt.Errorf("%w: the back-end of %.80q is no registry", ErrInvalid, id)
		}
	}
	for _, m := range all {
		changed := withRegistry(m.config, values)
		if err := m.store.replace(changed); err != nil {
			return fmt.Errorf("configuration %.80q: %w", id, err)
		}
		d.mu.Lock()
		now := d.mounts[m.at]
		if now != nil {
			info := *now
			info.Config = changed
			d.mounts[m.at] = &info
		}
		d.mu.Unlock()
		if now == nil {
			continue
		}
		if err := d.rememberConfig(m.at, now.Mounted, changed); err != nil {
			return fmt.Errorf("configuration %.80q: %w", id, err)
		}
	}
	var keys []string
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	d.log.Info("configuration changed", "id", id, "keys", strings.Join(keys, ", "))
	return nil
}

// withRegistry returns a copy of c with values in its registry.
func withRegistry(c *config.Config, values map[string]string) *config.Config {
	fresh, b, r := *c, *c.Backend, *c.Backend.Registry
	if auth, ok := values[keyRegistryAuth]; ok {
		r.Auth = config.NewSecret(auth)
		r.RegistryToken = config.Secret{} // it would be used first
	}
	if url, ok := values[keyProxyURL]; ok {
		r.Proxy.URL = config.NewURL(url)
	}
	b.Registry, fresh.Backend = &r, &b
	return &fresh
}
