package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/fuseproto/vfs"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/rafs/open"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
	"github.com/rafsd/rafsd/vhostuser"
)

// Options are what a Daemon is told once.
type Options struct {
	ID, Supervisor string // shown to callers; "" = none
	PID            int    // of the process that callers watch; 0 = this one
	// FirstConnect and Linger say when Over ends the daemon; 0 = never.
	FirstConnect, Linger time.Duration
	// Alone promises that nothing is ever mounted but one image at "/", from the
	// start. The guest may then cache its root and open files without asking. With
	// Directory, it is a directory of the host instead.
	Alone, Directory bool
	// Directories says how directories of the host are shown.
	Directories passthrough.Options
	// RefuseFlags are bits of a FUSE session that no guest is granted.
	RefuseFlags uint64
	// Read and Cache hold for every mount.
	Read  config.ReadSettings
	Cache config.CacheSettings
	Log   *slog.Logger
	// Slow is from what age on a request that waits is logged; 0 = never.
	Slow time.Duration
	// Vrings, if set, are the counters of the device that serves Device's Handler,
	// for callers to see.
	Vrings *vhostuser.Counters
	// Level, if set, is what Log logs at, and Events what keeps its errors.
	Level  *slog.LevelVar
	Events *logsink.Events
	// Record, if set, is where the daemon writes what the process that goes on after
	// this one must know, before anybody can see it. If it holds something already,
	// New goes on with that: the same mounts under the same ids from the same files,
	// and the guest's session. See Restored and Leave.
	Record record.Record
}

// Daemon is the service: all methods are safe for concurrent use.
type Daemon struct {
	opts   Options
	log    *slog.Logger
	tree   *vfs.FS
	server *fuseproto.Server
	life   *lifetime
	open   opener

	restored bool // an earlier process has left something; immutable

	mu     sync.Mutex
	state  State                 // guarded by mu
	closed bool                  // guarded by mu
	mounts map[string]*MountInfo // by mountpoint; nil while being made; guarded by mu
	// changing are the mountpoints that a remount has taken; guarded by mu.
	changing map[string]bool
	// places are the places of mounts in the session record, by mountpoint; guarded
	// by mu.
	places map[string]uint32

	savedMu sync.Mutex    // held while saved is written to the record; taken after mu
	saved   stateRecord   // guarded by savedMu
	shares  atomic.Uint32 // directories ever shown; their numbers name them in the record

	watchers watchers
	frontEnd atomic.Bool // one is connected

	making  sync.WaitGroup // mounts being made; grows only under mu and before STOPPED
	closing sync.WaitGroup // goroutines of logClose
}

// opener opens what is mounted.
type opener interface {
	// openImage returns the file system of an image. It does not wait for a network.
	// stop makes requests that wait in it end soon. If the file system is an
	// io.Closer, whoever has it closes it.
	openImage(ctx context.Context, b bootstrap, c *config.Config) (fs fuseproto.FileSystem, stop func(), err error)
	// Close gives up what is shared by mounts; all of them are closed before.
	Close() error
}

// bootstrap says where an image is.
type bootstrap struct {
	path    string
	file    *os.File  // the bootstrap itself, if it is open; the caller's
	pin     *[32]byte // what its SHA-256 must be; nil = anything
	trusted bool      // it is as it was when an earlier process checked it
}

// New returns a Daemon in state INIT without mounts, or with those of an earlier
// process. Its clock for the first front-end runs from now.
func New(o Options) (*Daemon, error) {
	var d *Daemon
	images := newImages(o, func(failing bool, what string) { d.backendHealth(failing, what) })
	d, err := newDaemon(o, images)
	return d, err
}

// backendHealth tells watchers that a back-end began to fail, or works again.
func (d *Daemon) backendHealth(failing bool, what string) {
	kind := EventBackendRecovered
	if failing {
		kind = EventBackendFailing
	}
	d.watchers.tell(Event{Kind: kind, Message: what})
}

func newDaemon(o Options, open opener) (_ *Daemon, err error) {
	was, err := recall(o.Record)
	if err != nil {
		return nil, err
	}
	defer was.close()
	tree := vfs.New(was.state.LastID)
	var d *Daemon
	server, err := fuseproto.NewServer(tree, fuseproto.Config{
		Flags: o.sessionFlags(), ZeroMessageOpen: o.Alone && !o.Directory, Logger: o.Log,
		Slow: o.Slow, OnSlow: func(w fuseproto.Waiting, over bool, suppressed uint64) { d.logSlow(w, over, suppressed) },
	})
	if err != nil {
		return nil, err
	}
	d = &Daemon{
		opts: o, log: o.Log, tree: tree, server: server, open: open,
		life:   newLifetime(o.FirstConnect, o.Linger, was.session != nil),
		state:  StateInit,
		mounts: make(map[string]*MountInfo), changing: make(map[string]bool), places: make(map[string]uint32),
		saved: was.state,
	}
	d.shares.Store(was.state.LastID)
	if err := d.restore(was); err != nil {
		return nil, errors.Join(err, d.Leave())
	}
	return d, nil
}

// Start makes the daemon RUNNING: its sockets are served.
func (d *Daemon) Start() error {
	if err := d.event(eventMount); err != nil {
		return err
	}
	return d.event(eventStart)
}

func (d *Daemon) event(e event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	to, err := d.state.after(e)
	if err != nil {
		return err
	}
	d.state = to
	d.watchers.tell(Event{Kind: EventState, State: to})
	return nil
}

// Info describes the daemon.
func (d *Daemon) Info() Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	info := Info{ID: d.opts.ID, Supervisor: d.opts.Supervisor, State: d.state, PID: d.opts.PID}
	if info.PID == 0 {
		info.PID = os.Getpid()
	}
	for _, m := range d.mounts {
		if m != nil {
			info.Mounts = append(info.Mounts, *m)
		}
	}
	slices.SortFunc(info.Mounts, func(a, b MountInfo) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	return info
}

// Mount mounts what r asks for. When it returns, the guest can see it.
func (d *Daemon) Mount(ctx context.Context, r MountRequest) error {
	at, err := cleanMountpoint(r.Mountpoint)
	if err != nil {
		return err
	}
	switch r.FSType {
	case "rafs":
	case "passthrough", "passthroughfs", "passthrough_fs":
		return d.MountDirectory(ctx, at, r.Source)
	default:
		return fmt.Errorf("mount %s: %w: fs_type %.32q is neither rafs nor passthrough_fs", at, ErrInvalid, r.FSType)
	}
	c, err := config.Parse(r.Config)
	if err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	if err := checkPaths(r.PrefetchFiles); err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return d.mountImageAt(ctx, r, at, c)
}

// MountImage mounts the image whose bootstrap is the file source, and fetches the
// files that prefetch names, and what the configuration wants, in the background.
func (d *Daemon) MountImage(ctx context.Context, mountpoint, source string, c *config.Config, prefetch []string) error {
	if err := checkPaths(prefetch); err != nil {
		return fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	return d.mountImageAt(ctx, MountRequest{Source: source, PrefetchFiles: prefetch}, mountpoint, c)
}

func (d *Daemon) mountImageAt(ctx context.Context, r MountRequest, mountpoint string, c *config.Config) error {
	var m *image
	err := d.mountAt(mountpoint, func(at string) (*MountInfo, error) {
		info, fs, err := d.mountImage(ctx, at, r, c)
		m, _ = fs.(*image)
		return info, err
	})
	if err != nil {
		return err
	}
	if ignored := c.Ignored(); len(ignored) > 0 {
		d.log.Warn("configuration: these keys have no effect", "mountpoint", mountpoint, "keys", strings.Join(ignored, ", "))
	}
	d.prefetchMounted(m, mountpoint, orderOf(c, r.PrefetchFiles))
	return nil
}

// prefetchMounted is prefetch for an image that was mounted just now, if it is one.
func (d *Daemon) prefetchMounted(m *image, at string, o order) {
	if m == nil {
		return
	}
	if err := d.prefetch(m, at, o); err != nil {
		d.log.Warn("nothing is prefetched", "mountpoint", at, "err", err) // it was unmounted already
	}
}

// mountAt takes the mountpoint, has make mount something there, and keeps what it
// says of it.
func (d *Daemon) mountAt(mountpoint string, make func(at string) (*MountInfo, error)) error {
	at, err := cleanMountpoint(mountpoint)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := d.reserve(at); err != nil {
		return err
	}
	defer d.making.Done()
	info, err := make(at)
	d.mu.Lock()
	if err != nil {
		delete(d.mounts, at)
	} else {
		d.mounts[at] = info
	}
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	d.watchers.tell(Event{Kind: EventMounted, Mountpoint: at})
	d.log.Info("mounted", "mountpoint", at, "type", info.FSType, "source", info.Source, "took", time.Since(start))
	return nil
}

// reserve takes a mountpoint for a mount that is being made.
func (d *Daemon) reserve(at string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == StateStopped {
		return fmt.Errorf("mount %s: %w", at, ErrStopping)
	}
	if _, ok := d.mounts[at]; ok {
		return fmt.Errorf("mount %s: %w", at, ErrExists)
	}
	d.mounts[at] = nil
	d.making.Add(1)
	return nil
}

func (d *Daemon) mountImage(ctx context.Context, at string, r MountRequest, c *config.Config) (*MountInfo, fuseproto.FileSystem, error) {
	boot, err := d.keptBootstrap(r)
	if err != nil {
		return nil, nil, err
	}
	defer closeKept(boot)
	fs, stop, err := d.openRequested(ctx, r, c, boot)
	if err != nil {
		return nil, nil, err
	}
	opts := vfs.MountOptions{Static: d.opts.Alone, Stop: stop}
	if err := d.remember(&opts, 0, r.record(at), c, boot); err != nil {
		return nil, nil, errors.Join(err, closeFS(fs))
	}
	m, err := d.tree.Mount(ctx, at, fs, opts)
	if err != nil {
		return nil, nil, errors.Join(classOf(err), closeFS(fs))
	}
	return &MountInfo{Mountpoint: at, ID: m.ID, FSType: FSRafs, Source: r.Source, Mounted: m.Since, Config: c}, fs, nil
}

// record returns what the session record keeps of a request for an image.
func (r *MountRequest) record(at string) mountRecord {
	return mountRecord{Mountpoint: at, FSType: FSRafs, Source: r.Source, Digest: r.BootstrapDigest, Prefetch: r.PrefetchFiles}
}

// keptBootstrap opens the bootstrap that r asks for, if it is to be kept in the
// record: the image is opened from that very file.
func (d *Daemon) keptBootstrap(r MountRequest) (*os.File, error) {
	if r.Source == "" {
		return nil, nil // openRequested says so
	}
	return d.keptFile(func() (*os.File, error) { return hostfs.OpenRegular(r.Source) })
}

// openRequested opens the image that r asks for; boot is its bootstrap if that is open.
func (d *Daemon) openRequested(ctx context.Context, r MountRequest, c *config.Config, boot *os.File) (fuseproto.FileSystem, func(), error) {
	if r.Source == "" {
		return nil, nil, fmt.Errorf("%w: the source is empty", ErrInvalid)
	}
	pin, err := parseDigest(r.BootstrapDigest)
	if err != nil {
		return nil, nil, err
	}
	if err := c.Supported(); err != nil {
		return nil, nil, err
	}
	fs, stop, err := d.open.openImage(ctx, bootstrap{path: r.Source, file: boot, pin: pin}, c)
	if errors.Is(err, open.ErrDigest) {
		err = fmt.Errorf("%w: %w", ErrPinned, err)
	}
	return fs, stop, err
}

// parseDigest reads a SHA-256 in hex, nil if there is none.
func parseDigest(s string) (*[32]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(strings.TrimPrefix(s, "sha256:"))
	if err != nil || len(b) != 32 {
		return nil, fmt.Errorf("%w: bootstrap digest %.80q is not a SHA-256 in hex", ErrInvalid, s)
	}
	return (*[32]byte)(b), nil
}

func closeFS(fs fuseproto.FileSystem) error {
	if c, ok := fs.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

// Umount takes a mount out of the guest's tree. Requests that are in it end
// soon; it is closed when the last one has, which is not waited for.
func (d *Daemon) Umount(_ context.Context, mountpoint string) error {
	at, err := cleanMountpoint(mountpoint)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mounts[at] == nil {
		return fmt.Errorf("umount %s: %w", at, ErrNotMounted)
	}
	if d.changing[at] {
		return fmt.Errorf("umount %s: a remount is under way: %w", at, ErrState)
	}
	closed, err := d.tree.Unmount(at)
	if err != nil {
		return fmt.Errorf("umount %s: %w", at, classOf(err))
	}
	delete(d.mounts, at)
	if err := d.forgetMount(at); err != nil {
		d.log.Error("unmounted, but the session record still has it", "mountpoint", at, "err", err)
	}
	d.releaseIdle()
	d.closing.Go(func() { d.logClose(at, closed) })
	d.watchers.tell(Event{Kind: EventUmounted, Mountpoint: at})
	d.log.Info("unmounted", "mountpoint", at)
	return nil
}

// logClose reports a mount that could not be closed well. closed yields once.
func (d *Daemon) logClose(at string, closed <-chan error) {
	if err := <-closed; err != nil {
		d.log.Error("closing an unmounted image", "mountpoint", at, "err", err)
	}
}

// classOf adds our class to an error of the tree.
func classOf(err error) error {
	for theirs, ours := range map[error]error{
		vfs.ErrExists:     ErrExists,
		vfs.ErrNotMounted: ErrNotMounted,
		vfs.ErrPath:       ErrInvalid,
		vfs.ErrStatic:     ErrState,
		vfs.ErrClosed:     ErrStopping,
	} {
		if errors.Is(err, theirs) {
			return fmt.Errorf("%w: %w", ours, err)
		}
	}
	return err
}

// maxMountpoint is the longest mountpoint in bytes, as PATH_MAX.
const maxMountpoint = 4096

// cleanMountpoint returns the one form of a mountpoint that all its spellings
// share.
func cleanMountpoint(mountpoint string) (string, error) {
	switch {
	case len(mountpoint) > maxMountpoint:
		return "", fmt.Errorf("%w: mountpoint of %d bytes, at most %d are possible", ErrInvalid, len(mountpoint), maxMountpoint)
	case !path.IsAbs(mountpoint):
		return "", fmt.Errorf("%w: mountpoint %.80q is not an absolute path", ErrInvalid, mountpoint)
	case strings.ContainsRune(mountpoint, 0) || !utf8.ValidString(mountpoint):
		return "", fmt.Errorf("%w: mountpoint %.80q holds bytes that no path may hold", ErrInvalid, mountpoint)
	}
	return path.Clean(mountpoint), nil
}

// CleanMountpoint returns the one form of a mountpoint that all its spellings share;
// what is no mountpoint stays as it is.
func CleanMountpoint(mountpoint string) string {
	if at, err := cleanMountpoint(mountpoint); err == nil {
		return at
	}
	return mountpoint
}

// FrontEndConnected and FrontEndGone tell the daemon of its VMM, for its end of
// life.
func (d *Daemon) FrontEndConnected() {
	d.life.connect()
	d.frontEnd.Store(true)
	d.watchers.tell(Event{Kind: EventFrontEndConnected})
}

// FrontEndGone is the counterpart of FrontEndConnected.
func (d *Daemon) FrontEndGone() {
	d.frontEnd.Store(false)
	d.watchers.tell(Event{Kind: EventFrontEndGone})
	d.life.disconnect(d.server.Counters().Ops[fuseproto.OpInit].Requests > 0)
}

// Over yields once the daemon has outlived its use: nil after the VMM was gone
// for the linger time, an error that wraps ErrNoFrontEnd if none ever came.
func (d *Daemon) Over() <-chan error { return d.life.over }

// Ending tells watchers of the end and ends their queues, so that the doors to the
// daemon can be closed behind them. Mounts are refused from now on.
func (d *Daemon) Ending() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != StateStopped {
		d.state = StateStopped
		d.watchers.tell(Event{Kind: EventState, State: StateStopped})
	}
	d.watchers.close()
}

// Leave is Close of a daemon that another process goes on with: what the session
// record holds stays as it is, and so do files that the other one needs. The device is
// closed before, and the record is written to no more.
func (d *Daemon) Leave() error {
	for _, m := range d.tree.List() {
		if fs, ok := m.FS.(interface{ Leave() }); ok {
			fs.Leave()
		}
	}
	if i, ok := d.open.(interface{ leave() }); ok {
		i.leave()
	}
	return d.Close()
}

// Close ends all mounts and waits until they are closed. No request may be served
// any more: the device is closed before. Afterwards mounts are refused.
func (d *Daemon) Close() error {
	d.life.stop()
	d.Ending()
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	d.making.Wait()
	d.server.Close()
	err := d.tree.Close()
	d.closing.Wait()
	d.mu.Lock()
	clear(d.mounts)
	d.mu.Unlock()
	return errors.Join(err, d.open.Close())
}
