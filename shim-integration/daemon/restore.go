package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/fuseproto/vfs"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
)

// restore makes everything as the earlier process left it: the same mounts under the
// same ids, from the files that one had open, and the guest's session over them.
// Nothing is served yet. A mount that cannot be made again does not keep the others
// from it: it answers EIO, and can be unmounted.
func (d *Daemon) restore(was *remembered) error {
	d.restored = len(was.mounts) > 0 || was.session != nil
	if level, ok := logsink.Levels[was.state.Level]; ok && d.opts.Level != nil {
		d.opts.Level.Set(level)
	}
	for i := range was.mounts {
		m := &was.mounts[i]
		if err := d.restoreMount(m, was.configs[m.place]); err != nil {
			return fmt.Errorf("go on with mount %s: %w", m.Mountpoint, err)
		}
	}
	if was.session != nil {
		if err := d.server.Restore(was.session); err != nil {
			return fmt.Errorf("go on with the guest's session: %w", err)
		}
	}
	if d.opts.Record != nil {
		d.server.OnChange(func(state []byte) error { return d.opts.Record.Put(keySession, state) })
	}
	return nil
}

// Restored tells whether the daemon goes on with what an earlier process left: what
// is mounted at the start is then mounted already.
func (d *Daemon) Restored() bool { return d.restored }

func (d *Daemon) restoreMount(m *rememberedMount, changed configRecord) error {
	start := time.Now()
	info := &MountInfo{Mountpoint: m.Mountpoint, ID: m.ID, FSType: m.FSType, Source: m.Source, Mounted: time.Unix(0, m.Since)}
	opts := vfs.MountOptions{ID: m.ID, Since: info.Mounted, Cookies: m.Cookies, Static: d.opts.Alone}
	var fs fuseproto.FileSystem
	var err error
	switch m.FSType {
	case FSRafs:
		fs, err = d.reopenImage(m, changed, info, &opts)
	case FSPassthrough:
		fs, err = d.reopenDirectory(m)
		opts.KeepIno, opts.Submounts = d.opts.Alone, d.opts.Directories.Submounts
	default:
		err = fmt.Errorf("its type %.32q is unknown", m.FSType)
	}
	if err != nil {
		d.log.Error("a mount cannot go on: it answers EIO until it is unmounted", "mountpoint", m.Mountpoint, "type", m.FSType, "source", m.Source, "err", err)
		fs, opts.Stop = &lost{root: m.Root}, nil
	}
	if _, err := d.tree.Mount(context.Background(), m.Mountpoint, fs, opts); err != nil {
		return errors.Join(err, closeFS(fs))
	}
	d.mounts[m.Mountpoint], d.places[m.Mountpoint] = info, m.place // nobody else is here yet
	if n, err := strconv.ParseUint(strings.Trim(strings.TrimPrefix(m.Share, sharePrefix), "/"), 10, 32); err == nil {
		d.shares.Store(max(d.shares.Load(), uint32(n)))
	}
	d.log.Info("mount goes on", "mountpoint", m.Mountpoint, "type", m.FSType, "source", m.Source, "took", time.Since(start))
	if i, ok := fs.(*image); ok {
		d.prefetchMounted(i, m.Mountpoint, orderOf(info.Config, m.Prefetch))
	}
	return nil
}

// reopenImage opens an image from the bootstrap that the earlier process had open,
// whatever its path leads to by now.
func (d *Daemon) reopenImage(m *rememberedMount, changed configRecord, info *MountInfo, opts *vfs.MountOptions) (fuseproto.FileSystem, error) {
	text := m.Config
	if changed.Since == m.Since && len(changed.Config) > 0 {
		text = changed.Config
	}
	c, err := config.DecodeClear(text)
	if err != nil {
		return nil, err
	}
	info.Config = c
	if m.file == nil {
		return nil, errors.New("its bootstrap was not kept open")
	}
	id, err := rafs.StatFile(m.file)
	if err != nil {
		return nil, err
	}
	// What was checked and has not changed since is not checked again.
	trusted := m.Bootstrap != nil && fileRecordOf(id) == *m.Bootstrap
	pin, err := parseDigest(m.Digest)
	if err != nil {
		return nil, err
	}
	fs, stop, err := d.open.openImage(context.Background(), bootstrap{path: m.Source, file: m.file, pin: pin, trusted: trusted}, c)
	if err != nil {
		return nil, err
	}
	if fs.Root() != m.Root {
		stop()
		return nil, errors.Join(errors.New("its bootstrap is another one now"), closeFS(fs))
	}
	opts.Stop = stop
	return fs, nil
}

func (d *Daemon) reopenDirectory(m *rememberedMount) (fuseproto.FileSystem, error) {
	if m.file == nil {
		return nil, errors.New("the directory was not kept open")
	}
	// Its path is preferred, if it still leads there: the descriptor may be of a mount
	// namespace that went with the earlier process, and all mounts below it too.
	root, err := hostfs.Open(m.Source, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil || !sameFile(root, m.file) {
		if err == nil {
			_ = root.Close()
		}
		fd, err := unix.FcntlInt(m.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		root = os.NewFile(uintptr(fd), m.Source)
	}
	fs, err := passthrough.New(root, d.directoryOptions(m.Share))
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return fs, nil
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// lost stands in the place of a mount that could not be made again: everything is
// EIO, but what tells that the guest is done with something.
type lost struct {
	fuseproto.ReadOnly
	root uint64
}

func (l *lost) Root() uint64 { return l.root }

func (l *lost) Lookup(*fuseproto.Op, uint64, []byte, *fuseproto.Entry) error { return unix.EIO }

func (l *lost) GetAttr(*fuseproto.Op, uint64, *fuseproto.GetAttrIn, *fuseproto.AttrOut) error {
	return unix.EIO
}

func (l *lost) Readlink(*fuseproto.Op, uint64, *fuseproto.Out) error { return unix.EIO }

func (l *lost) StatFS(*fuseproto.Op, uint64, *fuseproto.StatFSOut) error { return unix.EIO }

func (l *lost) Open(*fuseproto.Op, uint64, *fuseproto.OpenIn, *fuseproto.OpenOut) error {
	return unix.EIO
}

func (l *lost) OpenDir(*fuseproto.Op, uint64, *fuseproto.OpenIn, *fuseproto.OpenOut) error {
	return unix.EIO
}

func (l *lost) Read(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.Out) error { return unix.EIO }

func (l *lost) ReadDir(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.DirWriter) error {
	return unix.EIO
}

func (l *lost) GetXattr(*fuseproto.Op, uint64, []byte, *fuseproto.Out) error { return unix.EIO }

func (l *lost) ListXattr(*fuseproto.Op, uint64, *fuseproto.Out) error { return unix.EIO }
