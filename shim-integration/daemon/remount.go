package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/vfs"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// Remount puts what r asks for in the place of the image that is mounted there. If
// the bootstrap is the same to the last byte, only the configuration changes: what
// the guest has open goes on. With another one its old files and folders are stale.
// If Remount fails, everything is as it was.
func (d *Daemon) Remount(ctx context.Context, r MountRequest) error {
	at, err := cleanMountpoint(r.Mountpoint)
	if err != nil {
		return err
	}
	if r.FSType != "" && r.FSType != string(FSRafs) {
		return fmt.Errorf("remount %s: %w: only images can be remounted, not %.32q", at, ErrInvalid, r.FSType)
	}
	if err := checkPaths(r.PrefetchFiles); err != nil {
		return fmt.Errorf("remount %s: %w", at, err)
	}
	c, err := config.Parse(r.Config)
	if err != nil {
		return fmt.Errorf("remount %s: %w", at, err)
	}
	if err := d.beginRemount(at); err != nil {
		return err
	}
	defer d.making.Done()
	info, fs, err := d.remountImage(ctx, at, r, c)
	d.mu.Lock()
	delete(d.changing, at)
	if err == nil {
		d.mounts[at] = info
	}
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remount %s: %w", at, err)
	}
	d.watchers.tell(Event{Kind: EventRemounted, Mountpoint: at})
	d.log.Info("remounted", "mountpoint", at, "source", r.Source)
	m, _ := fs.(*image)
	d.prefetchMounted(m, at, orderOf(c, r.PrefetchFiles))
	return nil
}

// beginRemount takes the mountpoint of an image: until it is given back nobody else
// remounts or unmounts there.
func (d *Daemon) beginRemount(at string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.mounts[at]
	switch {
	case d.state == StateStopped:
		return fmt.Errorf("remount %s: %w", at, ErrStopping)
	case m == nil:
		return fmt.Errorf("remount %s: %w", at, ErrNotMounted)
	case m.FSType != FSRafs:
		return fmt.Errorf("remount %s: %w: it is a %s, only images can be remounted", at, ErrInvalid, m.FSType)
	case d.changing[at]:
		return fmt.Errorf("remount %s: another remount is under way: %w", at, ErrState)
	}
	d.changing[at] = true
	d.making.Add(1)
	return nil
}

func (d *Daemon) remountImage(ctx context.Context, at string, r MountRequest, c *config.Config) (*MountInfo, fuseproto.FileSystem, error) {
	boot, err := d.keptBootstrap(r)
	if err != nil {
		return nil, nil, err
	}
	defer closeKept(boot)
	fs, stop, err := d.openRequested(ctx, r, c, boot)
	if err != nil {
		return nil, nil, err
	}
	same, err := d.sameBootstrap(at, fs)
	if err != nil {
		return nil, nil, errors.Join(err, closeFS(fs))
	}
	opts := vfs.MountOptions{Stop: stop}
	if err := d.remember(&opts, d.placeAt(at), r.record(at), c, boot); err != nil {
		return nil, nil, errors.Join(err, closeFS(fs))
	}
	m, closed, err := d.tree.Remount(ctx, at, fs, same, opts)
	if err != nil {
		return nil, nil, errors.Join(classOf(err), closeFS(fs))
	}
	d.closing.Go(func() { d.logClose(at, closed) })
	return &MountInfo{Mountpoint: at, ID: m.ID, FSType: FSRafs, Source: r.Source, Mounted: m.Since, Config: c}, fs, nil
}

// digester is an image that can tell the digest of its bootstrap.
type digester interface{ digest() ([32]byte, error) }

// sameBootstrap tells whether the image at a mountpoint has the bootstrap of fs. The
// mountpoint is taken, so that the image is not closed meanwhile.
func (d *Daemon) sameBootstrap(at string, fs any) (bool, error) {
	for _, m := range d.tree.List() {
		if m.Path != at {
			continue
		}
		old, ok := m.FS.(digester)
		fresh, also := fs.(digester)
		if !ok || !also {
			return false, nil
		}
		a, err := old.digest()
		if err != nil {
			return false, nil // it has changed under us, so it is another one
		}
		b, err := fresh.digest()
		return err == nil && a == b, err
	}
	return false, fmt.Errorf("image at %s: %w", at, ErrNotMounted)
}

// digest returns the SHA-256 of the image's bootstrap.
func (m *image) digest() ([32]byte, error) { return m.FS.Image().Digest() }
