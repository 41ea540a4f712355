package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// Server serves one Handler to front-ends, one after the other. Each front-end
// gets a Device of its own and finds a Handler that was Reset.
type Server struct {
	handler Handler
	opts    Options
	config  session.Config
	stats   []counters
}

// NewServer returns a Server of h.
func NewServer(h Handler, o Options) (*Server, error) {
	o, c, err := o.complete(h)
	if err != nil {
		return nil, err
	}
	return &Server{handler: h, opts: o, config: c, stats: make([]counters, o.Queues)}, nil
}

// Stats returns what the vrings have done, over all front-ends so far.
func (s *Server) Stats() []VringStats {
	all := make([]VringStats, len(s.stats))
	for i := range all {
		all[i] = s.stats[i].read()
	}
	return all
}

// acceptPause is how long to wait after accept failed for want of something, such
// as descriptors, that may be there again later.
const acceptPause = 100 * time.Millisecond

// Serve serves the front-ends that come to l until ctx ends, which is nil, or l
// has no more of them, which is nil too. While one is served, others wait. Serve
// closes l. When it returns, nothing of any front-end is left.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case err == io.EOF:
			return nil
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			s.opts.Log.Error("accept of a vhost-user front-end", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		s.serve(ctx, conn)
	}
}

// serve serves one front-end to its end.
func (s *Server) serve(ctx context.Context, sock *net.UnixConn) {
	conn := wire.NewConn(sock)
	dev := newDevice(s.handler, s.opts, s.stats)
	ses := session.New(s.config, dev)
	s.opts.Log.Info("vhost-user front-end connected")
	if s.opts.OnConnect != nil {
		s.opts.OnConnect()
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := ses.Serve(conn)
	if !stop() && ctx.Err() != nil {
		err = nil // we hung up ourselves
	}
	// The rings first, and only then the socket: whoever sees it closed may
	// expect that nobody writes to the guest's memory any more.
	dev.Close()
	ses.Close()
	_ = conn.Close()
	if err != nil {
		err = fmt.Errorf("vhost-user front-end: %w", err)
		s.opts.Log.Error("vhost-user connection ended", "err", err)
	} else {
		s.opts.Log.Info("vhost-user front-end gone")
	}
	if s.opts.OnDisconnect != nil {
		s.opts.OnDisconnect(err)
	}
}
