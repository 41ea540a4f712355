package mountapi

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/internal/version"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
	"github.com/rafsd/rafsd/vhostuser"
)

// Service is what the API is a door to; *daemon.Daemon describes the methods, which
// are called by many goroutines at once.
type Service interface {
	Info() daemon.Info
	Mount(ctx context.Context, r daemon.MountRequest) error
	Remount(ctx context.Context, r daemon.MountRequest) error
	Umount(ctx context.Context, mountpoint string) error
	Prefetch(mountpoint string, paths []string) error
	Watch() (*daemon.Watcher, error)
	FrontEndIsConnected() bool
	Counters() fuseproto.Counters
	Inflight() []daemon.InflightOp
	Vrings() []vhostuser.VringStats
	Summaries() ([]daemon.ImageSummary, []daemon.DirectorySummary)
	Blobs(mountpoint string) ([]string, error)
	Digest(mountpoint string) ([32]byte, error)
}

// Upgrader lets another program serve in the place of this process, which keeps the
// connection of the caller for the answer and then ends.
type Upgrader func(path string) (version string, pause time.Duration, err error)

// Server serves the API.
type Server struct {
	rpc *ttrpc.Server
	log *slog.Logger

	mu       sync.Mutex
	listener net.Listener // guarded by mu; nil before Serve
	left     bool         // guarded by mu
}

// NewServer returns a Server in front of service. upgrade may be nil.
func NewServer(service Service, upgrade Upgrader, l *slog.Logger) (*Server, error) {
	// ttrpc has a logger of its own, which would write to standard error past ours;
	// what it has to say is about callers that went away.
	if err := log.SetLevel("panic"); err != nil {
		return nil, fmt.Errorf("mount API: %w", err)
	}
	rpc, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(sameUser{l}))
	if err != nil {
		return nil, fmt.Errorf("mount API: %w", err)
	}
	s := &Server{rpc: rpc, log: l}
	mountv1.RegisterMountServiceService(rpc, &door{service, upgrade, l})
	return s, nil
}

// Serve answers on l until Close; it closes l. It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	err := s.rpc.Serve(context.Background(), apisock.Bound(l, "", s.log))
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, ttrpc.ErrServerClosed) || s.left {
		return nil
	}
	return err
}

// Leave stops listening: Serve returns, and calls that are being answered go on. It
// is called after Serve.
func (s *Server) Leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
	if s.listener == nil {
		return nil
	}
	return s.listener.Close()
}

// Close stops the server: calls that are being answered get a moment, then all
// connections are cut.
func (s *Server) Close() error {
	const grace = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if s.rpc.Shutdown(ctx) == nil {
		return nil
	}
	return s.rpc.Close()
}

// sameUser lets in who is the daemon's own user, or root.
type sameUser struct{ log *slog.Logger }

// Handshake implements ttrpc.Handshaker. It looks at what the kernel says of the
// other side, and at no byte from there.
func (h sameUser) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	inner := conn
	if b, ok := conn.(interface{ NetConn() net.Conn }); ok {
		inner = b.NetConn()
	}
	_, _, err := ttrpc.UnixCredentialsFunc(func(c *unix.Ucred) error {
		if c.Uid == 0 || c.Uid == uint32(os.Geteuid()) {
			return nil
		}
		h.log.Warn("mount API: a caller of another user was refused", "uid", c.Uid, "pid", c.Pid)
		return fmt.Errorf("user %d may not use the mount API: %w", c.Uid, unix.EPERM)
	}).Handshake(ctx, inner)
	return conn, nil, err
}

// door turns messages into calls and back.
type door struct {
	service Service
	upgrade Upgrader // nil if there is no keeper
	log     *slog.Logger
}

var _ mountv1.MountServiceService = (*door)(nil)

// classes are the codes of errors; the first that fits counts.
var classes = []struct {
	class error
	code  codes.Code
}{
	{daemon.ErrStopping, codes.Unavailable},
	{daemon.ErrExists, codes.AlreadyExists},
	{daemon.ErrNotMounted, codes.NotFound},
	{daemon.ErrNoMetrics, codes.NotFound},
	{daemon.ErrPinned, codes.FailedPrecondition},
	{daemon.ErrState, codes.FailedPrecondition},
	{errUpgrade, codes.FailedPrecondition},
	{daemon.ErrUnsupported, codes.Unimplemented},
	{config.ErrUnsupported, codes.Unimplemented},
	{daemon.ErrInvalid, codes.InvalidArgument},
	{config.ErrInvalid, codes.InvalidArgument},
	{os.ErrNotExist, codes.NotFound},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// answer turns an error into a status.
func (d *door) answer(method string, err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unknown
	for _, c := range classes {
		if errors.Is(err, c.class) {
			code = c.code
			break
		}
	}
	d.log.Warn("mount API", "method", method, "code", code.String(), "err", err)
	return status.Error(code, err.Error())
}

func request(r *mountv1.MountRequest) daemon.MountRequest {
	fsType := r.GetFsType()
	if fsType == "" {
		fsType = string(daemon.FSRafs)
	}
	return daemon.MountRequest{
		Mountpoint: r.GetMountpoint(), FSType: fsType, Source: r.GetSource(), Config: r.GetConfig(),
		BootstrapDigest: r.GetBootstrapDigest(), PrefetchFiles: r.GetPrefetchFiles(),
	}
}

// Mount implements the method of that name.
func (d *door) Mount(ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountResponse, error) {
	if err := d.service.Mount(ctx, request(r)); err != nil {
		return nil, d.answer("Mount", err)
	}
	return &mountv1.MountResponse{Mount: d.mounted(r.GetMountpoint())}, nil
}

// Remount implements the method of that name.
func (d *door) Remount(ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountResponse, error) {
	if err := d.service.Remount(ctx, request(r)); err != nil {
		return nil, d.answer("Remount", err)
	}
	return &mountv1.MountResponse{Mount: d.mounted(r.GetMountpoint())}, nil
}

// mounted describes what was just mounted, unless it is gone already.
func (d *door) mounted(mountpoint string) *mountv1.MountInfo {
	at := daemon.CleanMountpoint(mountpoint)
	for _, m := range d.service.Info().Mounts {
		if m.Mountpoint == at {
			return d.info(m, false)
		}
	}
	return nil
}

func (d *door) info(m daemon.MountInfo, digest bool) *mountv1.MountInfo {
	out := &mountv1.MountInfo{
		Mountpoint: m.Mountpoint, FsType: string(m.FSType), Source: m.Source,
		MountedUnixNanos: m.Mounted.UnixNano(), MountId: m.ID,
	}
	if m.Config == nil {
		return out
	}
	out.ConfigId = m.Config.ID
	if m.Config.Backend != nil {
		out.BackendType = m.Config.Backend.Type
	}
	// It may be unmounted at any time; then there is nothing to tell.
	out.Blobs, _ = d.service.Blobs(m.Mountpoint)
	if digest {
		if sum, err := d.service.Digest(m.Mountpoint); err == nil {
			out.BootstrapDigest = hex.EncodeToString(sum[:])
		}
	}
	return out
}

// Umount implements the method of that name.
func (d *door) Umount(ctx context.Context, r *mountv1.UmountRequest) (*mountv1.UmountResponse, error) {
	if err := d.service.Umount(ctx, r.GetMountpoint()); err != nil {
		return nil, d.answer("Umount", err)
	}
	return &mountv1.UmountResponse{}, nil
}

// List implements the method of that name.
func (d *door) List(_ context.Context, r *mountv1.ListRequest) (*mountv1.ListResponse, error) {
	out := &mountv1.ListResponse{}
	for _, m := range d.service.Info().Mounts {
		out.Mounts = append(out.Mounts, d.info(m, r.GetDigests()))
	}
	return out, nil
}

// Info implements the method of that name.
func (d *door) Info(context.Context, *mountv1.InfoRequest) (*mountv1.InfoResponse, error) {
	i := d.service.Info()
	return &mountv1.InfoResponse{
		Version: version.Version, GitCommit: version.Commit, Id: i.ID, State: string(i.State),
		Pid: uint32(i.PID), WorkerPid: uint32(os.Getpid()), Mounts: uint32(len(i.Mounts)), FrontEndConnected: d.service.FrontEndIsConnected(),
	}, nil
}

// errUpgrade begins what the caller of a failed upgrade is told.
var errUpgrade = errors.New("upgrade failed")

// Upgrade implements the method of that name.
func (d *door) Upgrade(_ context.Context, r *mountv1.UpgradeRequest) (*mountv1.UpgradeResponse, error) {
	if d.upgrade == nil {
		return nil, d.answer("Upgrade", fmt.Errorf("%w: without a keeper (rafsd virtiofs --keeper off) there is nobody to hand over to", daemon.ErrUnsupported))
	}
	if !filepath.IsAbs(r.GetPath()) {
		return nil, d.answer("Upgrade", fmt.Errorf("%w: %.200q is not an absolute path of a program", daemon.ErrInvalid, r.GetPath()))
	}
	version, pause, err := d.upgrade(r.GetPath())
	if err != nil {
		return nil, d.answer("Upgrade", fmt.Errorf("%w: %w", errUpgrade, err))
	}
	return &mountv1.UpgradeResponse{Version: version, PauseMicros: uint64(pause.Microseconds())}, nil
}

// kinds are the wire's names of events.
var kinds = map[daemon.EventKind]mountv1.EventKind{
	daemon.EventState:             mountv1.EventKind_EVENT_KIND_STATE,
	daemon.EventMounted:           mountv1.EventKind_EVENT_KIND_MOUNTED,
	daemon.EventUmounted:          mountv1.EventKind_EVENT_KIND_UMOUNTED,
	daemon.EventRemounted:         mountv1.EventKind_EVENT_KIND_REMOUNTED,
	daemon.EventPrefetched:        mountv1.EventKind_EVENT_KIND_PREFETCHED,
	daemon.EventFrontEndConnected: mountv1.EventKind_EVENT_KIND_FRONT_END_CONNECTED,
	daemon.EventFrontEndGone:      mountv1.EventKind_EVENT_KIND_FRONT_END_GONE,
	daemon.EventBackendFailing:    mountv1.EventKind_EVENT_KIND_BACKEND_FAILING,
	daemon.EventBackendRecovered:  mountv1.EventKind_EVENT_KIND_BACKEND_RECOVERED,
	daemon.EventLost:              mountv1.EventKind_EVENT_KIND_LOST,
}

// Watch implements the method of that name. It ends with the caller's connection, or
// with the daemon.
func (d *door) Watch(ctx context.Context, _ *mountv1.WatchRequest, out mountv1.MountService_WatchServer) error {
	w, err := d.service.Watch()
	if err != nil {
		return d.answer("Watch", err)
	}
	defer w.Close()
	for {
		e, ok, err := w.Next(ctx)
		if err != nil {
			return d.answer("Watch", err)
		}
		if !ok {
			return nil
		}
		if err := out.Send(&mountv1.Event{
			Kind: kinds[e.Kind], UnixNanos: e.Time.UnixNano(), State: string(e.State),
			Mountpoint: e.Mountpoint, Message: e.Message, Lost: e.Lost,
		}); err != nil {
			return err
		}
	}
}

// Prefetch implements the method of that name.
func (d *door) Prefetch(_ context.Context, r *mountv1.PrefetchRequest) (*mountv1.PrefetchResponse, error) {
	if err := d.service.Prefetch(r.GetMountpoint(), r.GetPaths()); err != nil {
		return nil, d.answer("Prefetch", err)
	}
	return &mountv1.PrefetchResponse{}, nil
}

// Metrics implements the method of that name.
func (d *door) Metrics(context.Context, *mountv1.MetricsRequest) (*mountv1.MetricsResponse, error) {
	c := d.service.Counters()
	out := &mountv1.MetricsResponse{InFlight: c.InFlight, DroppedReplies: c.Dropped, UnixNanos: time.Now().UnixNano()}
	for i, q := range d.service.Vrings() {
		out.Queues = append(out.Queues, &mountv1.QueueMetrics{
			Queue: uint32(i), Requests: q.Requests, Waited: q.Waited, Kicks: q.Kicks, Signals: q.Signals, Batches: q.Batches,
			PollHits: q.PollHits, PollMisses: q.PollMisses, Broken: q.Broken, Waiting: uint32(q.Waiting), Latency: latency(&q.Latency),
		})
	}
	for op := range fuseproto.Opcode(256) {
		if n, ok := c.Ops[op]; ok {
			out.Ops = append(out.Ops, &mountv1.OpMetrics{Op: op.String(), Requests: n.Requests, Errors: n.Errors, Waited: n.WouldBlock})
		}
	}
	images, directories := d.service.Summaries()
	for _, m := range images {
		var requests, failed uint64
		for op := range m.FS.Hits {
			requests += m.FS.Hits[op]
			failed += m.FS.Errors[op]
		}
		out.Images = append(out.Images, &mountv1.ImageMetrics{
			Mountpoint: m.Mountpoint, DataRead: m.FS.DataRead, WholeHits: m.FS.WholeHits, PartialHits: m.FS.Partial,
			PrefetchedBytes: m.Prefetch.Bytes, BackendReads: m.Backend.Reads, BackendErrors: m.Backend.Errors, BackendBytes: m.Backend.Bytes,
			Requests: requests, Errors: failed, Latency: latency(&m.FS.Spread),
		})
	}
	for _, m := range directories {
		out.Directories = append(out.Directories, &mountv1.DirectoryMetrics{
			Mountpoint: m.Mountpoint, Nodes: uint64(m.Nodes), OpenFiles: uint64(m.OpenFiles), IdleDescriptors: uint64(m.Idle), Requests: m.Requests,
		})
	}
	return out, nil
}

func latency(h *vhostuser.Histogram) *mountv1.Latency {
	return &mountv1.Latency{Counts: slices.Clone(h.Count[:]), SumNanos: h.Nanos}
}

// Inflight implements the method of that name.
func (d *door) Inflight(context.Context, *mountv1.InflightRequest) (*mountv1.InflightResponse, error) {
	out := &mountv1.InflightResponse{}
	for _, w := range d.service.Inflight() {
		out.Ops = append(out.Ops, &mountv1.InflightOp{
			Op: w.Opcode.String(), Unique: w.Unique, NodeId: w.NodeID, GuestPid: w.PID, AgeNanos: int64(w.Age),
			Mountpoint: w.Mountpoint, Path: w.Path, Offset: w.Offset, Size: w.Size,
			Blob: w.Blob, Chunk: w.Chunk, BlobOffset: w.BlobOffset,
		})
	}
	return out, nil
}
