package daemon

import (
	"fmt"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/vhostuser"
)

// What operators look at.

// FrontEndIsConnected tells whether a VMM is there.
func (d *Daemon) FrontEndIsConnected() bool { return d.frontEnd.Load() }

// Counters returns the counters of the guest's session.
func (d *Daemon) Counters() fuseproto.Counters { return d.server.Counters() }

// Vrings returns the counters of the device's vrings, the one for high priority first;
// nil if nobody counts.
func (d *Daemon) Vrings() []vhostuser.VringStats {
	if d.opts.Vrings == nil {
		return nil
	}
	return d.opts.Vrings.Read()
}

// ImageSummary are the counters of a mounted image and of what is behind it.
type ImageSummary struct {
	Mountpoint string
	FS         FSMetrics
	Prefetch   PrefetchFigures
	Backend    BackendMetrics // images that share one share its counters
}

// DirectorySummary are the figures of a directory of the host.
type DirectorySummary struct {
	Mountpoint string
	Requests   uint64 // that have come to it
	passthrough.Stats
}

// Summaries returns the counters of all mounts, ordered by mountpoint.
func (d *Daemon) Summaries() (images []ImageSummary, directories []DirectorySummary) {
	for _, m := range d.mountedImages() {
		images = append(images, ImageSummary{
			Mountpoint: m.at, FS: m.meter.metrics(), Prefetch: m.fetcher.figures(),
			Backend: BackendMetrics{m.config.Backend.Type, m.store.backend.Stats()},
		})
	}
	for _, m := range d.tree.List() {
		if fs, ok := m.FS.(*passthrough.FS); ok {
			directories = append(directories, DirectorySummary{m.Path, m.Requests, fs.Stats()})
		}
	}
	return images, directories
}

// Blobs returns the ids of the blobs of the image at a mountpoint.
func (d *Daemon) Blobs(mountpoint string) ([]string, error) {
	m, err := d.imageAt(mountpoint)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, b := range m.blobs {
		ids = append(ids, b.ID())
	}
	return ids, nil
}

// Digest returns the SHA-256 of the bootstrap of the image at a mountpoint, which it
// reads whole.
func (d *Daemon) Digest(mountpoint string) ([32]byte, error) {
	m, err := d.imageAt(mountpoint)
	if err != nil {
		return [32]byte{}, err
	}
	m.looked.RLock()
	defer m.looked.RUnlock()
	if m.closed {
		return [32]byte{}, fmt.Errorf("image at %s: %w", mountpoint, errUnmounted)
	}
	return m.digest()
}
