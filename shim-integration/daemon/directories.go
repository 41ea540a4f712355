package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/fuseproto/vfs"
	"github.com/rafsd/rafsd/internal/hostfs"
)

// MountDirectory mounts the directory source of the host.
func (d *Daemon) MountDirectory(ctx context.Context, mountpoint, source string) error {
	return d.mountAt(mountpoint, func(at string) (*MountInfo, error) {
		if source == "" {
			return nil, fmt.Errorf("%w: the source is empty", ErrInvalid)
		}
		root, err := hostfs.Open(source, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("directory of the host: %w", err)
		}
		share := fmt.Sprintf("%s%d/", sharePrefix, d.shares.Add(1))
		fs, err := passthrough.New(root, d.directoryOptions(share))
		if err != nil {
			return nil, errors.Join(err, root.Close())
		}
		opts := vfs.MountOptions{Static: d.opts.Alone, KeepIno: d.opts.Alone, Submounts: d.opts.Directories.Submounts}
		if err := d.remember(&opts, 0, mountRecord{Mountpoint: at, FSType: FSPassthrough, Source: source, Share: share}, nil, root); err != nil {
			return nil, errors.Join(err, fs.Close())
		}
		m, err := d.tree.Mount(ctx, at, fs, opts)
		if err != nil {
			return nil, errors.Join(classOf(err), fs.Close())
		}
		return &MountInfo{Mountpoint: at, ID: m.ID, FSType: FSPassthrough, Source: source, Mounted: m.Since}, nil
	})
}

// directoryOptions are those of a directory that the session record knows as share.
func (d *Daemon) directoryOptions(share string) passthrough.Options {
	o := d.opts.Directories
	o.Record, o.RecordKey = d.opts.Record, share
	return o
}

// releaseIdle makes every directory of the host give up the descriptors that
// nobody needs: the host is about to unmount something below one of them, and
// each would keep it busy.
func (d *Daemon) releaseIdle() {
	for _, m := range d.tree.List() {
		if fs, ok := m.FS.(*passthrough.FS); ok {
			fs.ReleaseIdle()
		}
	}
}

// sessionFlags returns what a guest's session may be granted. It is fixed when the
// guest mounts, long before the last mount is known.
func (o *Options) sessionFlags() uint64 {
	var flags uint64
	switch {
	case o.Alone && o.Directory:
		flags = o.Directories.SessionFlags()
	case o.Alone:
		flags = fuseproto.FlagsReadOnly
	default:
		flags = fuseproto.FlagsShared | o.Directories.SessionFlags()&^fuseproto.FlagCacheSymlinks
		if o.Directories.NoKillprivV2 {
			flags &^= fuseproto.FlagHandleKillprivV2
		}
	}
	return flags &^ o.RefuseFlags
}

// ProcFD opens what a Directories option needs of /proc, for a process that is
// about to lose sight of it.
func ProcFD() (*os.File, error) {
	return hostfs.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY, 0)
}
