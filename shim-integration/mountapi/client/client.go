// Package client is what a shim links to drive rafsd by its mount API.
//
// A Client is one connection. Its methods are safe for any number of goroutines; a
// call ends with its context. When the daemon ends, calls fail and watches end: who
// wants to go on dials anew.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// Classes of errors; those of the daemon wrap one of them, or none.
var (
	ErrExists       = errors.New("there is a mount already")
	ErrNotFound     = errors.New("no such mount or source")
	ErrInvalid      = errors.New("invalid argument")
	ErrPrecondition = errors.New("not possible as things are")
	ErrUnsupported  = errors.New("not supported by this daemon")
	ErrUnavailable  = errors.New("the daemon is stopping")
)

var classes = map[codes.Code]error{
	codes.AlreadyExists:      ErrExists,
	codes.NotFound:           ErrNotFound,
	codes.InvalidArgument:    ErrInvalid,
	codes.FailedPrecondition: ErrPrecondition,
	codes.Unimplemented:      ErrUnsupported,
	codes.Unavailable:        ErrUnavailable,
}

// Client is a connection to a daemon.
type Client struct {
	socket string
	rpc    *ttrpc.Client
	api    mountv1.MountServiceClient
	ended  context.Context // done after Close
	end    context.CancelFunc
}

// Dial connects to the mount API's socket.
func Dial(ctx context.Context, socket string) (*Client, error) {
	rpc, err := connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	ended, end := context.WithCancel(context.Background())
	return &Client{socket, rpc, mountv1.NewMountServiceClient(rpc), ended, end}, nil
}

func connect(ctx context.Context, socket string) (*ttrpc.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("mount API: %w", err)
	}
	return ttrpc.NewClient(conn), nil
}

// Close ends the connection, and all calls and watches.
func (c *Client) Close() error {
	c.end()
	return c.rpc.Close()
}

// failed turns a status into an error of a class.
func failed(method string, err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("mount API: %s: %w", method, err)
	}
	if class := classes[s.Code()]; class != nil {
		return fmt.Errorf("%s: %w", s.Message(), class)
	}
	return fmt.Errorf("mount API: %s: %s", method, s.Message())
}

// Mount mounts what r asks for; when it returns, the guest can see it.
func (c *Client) Mount(ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountInfo, error) {
	out, err := c.api.Mount(ctx, r)
	return out.GetMount(), failed("Mount", err)
}

// Remount puts another image, or another configuration, in the place of an image.
func (c *Client) Remount(ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountInfo, error) {
	out, err := c.api.Remount(ctx, r)
	return out.GetMount(), failed("Remount", err)
}

// Umount takes a mount out of the guest's tree.
func (c *Client) Umount(ctx context.Context, mountpoint string) error {
	_, err := c.api.Umount(ctx, &mountv1.UmountRequest{Mountpoint: mountpoint})
	return failed("Umount", err)
}

// List returns the mounts; with digests, the SHA-256 of each image's bootstrap too.
func (c *Client) List(ctx context.Context, digests bool) ([]*mountv1.MountInfo, error) {
	out, err := c.api.List(ctx, &mountv1.ListRequest{Digests: digests})
	return out.GetMounts(), failed("List", err)
}

// Info describes the daemon.
func (c *Client) Info(ctx context.Context) (*mountv1.InfoResponse, error) {
	out, err := c.api.Info(ctx, &mountv1.InfoRequest{})
	return out, failed("Info", err)
}

// Upgrade has the program at path, which is absolute, serve from now on. Watches and
// other calls of this client end; dial anew. The error wraps ErrPrecondition if the
// old program serves on.
func (c *Client) Upgrade(ctx context.Context, path string) (*mountv1.UpgradeResponse, error) {
	out, err := c.api.Upgrade(ctx, &mountv1.UpgradeRequest{Path: path})
	return out, failed("Upgrade", err)
}

// Prefetch fetches files and folders of an image in the background; all of it if
// none is named.
func (c *Client) Prefetch(ctx context.Context, mountpoint string, paths ...string) error {
	_, err := c.api.Prefetch(ctx, &mountv1.PrefetchRequest{Mountpoint: mountpoint, Paths: paths})
	return failed("Prefetch", err)
}

// Metrics returns counters.
func (c *Client) Metrics(ctx context.Context) (*mountv1.MetricsResponse, error) {
	out, err := c.api.Metrics(ctx, &mountv1.MetricsRequest{})
	return out, failed("Metrics", err)
}

// Inflight lists the guest's requests that wait.
func (c *Client) Inflight(ctx context.Context) ([]*mountv1.InflightOp, error) {
	out, err := c.api.Inflight(ctx, &mountv1.InflightRequest{})
	return out.GetOps(), failed("Inflight", err)
}

// Watch calls event for every event until it returns an error, which Watch returns,
// ctx ends, or the daemon does, which is io.EOF. The first event is the present
// state.
//
// A watch has a connection of its own: ttrpc tells a server nothing of a stream that
// its client has left, only of a connection that is gone.
func (c *Client) Watch(ctx context.Context, event func(*mountv1.Event) error) error {
	if c.ended.Err() != nil {
		return io.EOF
	}
	rpc, err := connect(ctx, c.socket)
	if err != nil {
		return err
	}
	defer rpc.Close()
	defer context.AfterFunc(c.ended, func() { rpc.Close() })()
	stream, err := mountv1.NewMountServiceClient(rpc).Watch(ctx, &mountv1.WatchRequest{})
	if err != nil {
		return failed("Watch", err)
	}
	for {
		e, err := stream.Recv()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, ttrpc.ErrClosed):
			return io.EOF
		case ctx.Err() != nil:
			return context.Cause(ctx)
		default:
			return failed("Watch", err)
		}
		if err := event(e); err != nil {
			return err
		}
	}
}
