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

// BackEnd is the data half of a back-end as a Server drives it: a Device, or what
// stands for one in another process. Close ends it; it returns when nothing is
// served any more.
type BackEnd interface {
	session.Device
	Close()
}

// Server serves front-ends, one after the other. Each front-end gets a BackEnd of
// its own.
type Server struct {
	connect func() BackEnd // for each front-end
	opts    Options
	config  session.Config
}

// NewServer returns a Server of h in this process. Each front-end finds a Handler
// that was Reset.
func NewServer(h Handler, o Options) (*Server, error) {
	o, c, err := o.complete(h)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, config: c}
	s.connect = func() BackEnd { return newDevice(h, o) }
	return s, nil
}

// NewServerOf returns a Server that calls connect for the BackEnd of each
// front-end. space is the configuration space that is offered; nil is none, and
// Options.Config is of no meaning.
func NewServerOf(connect func() BackEnd, space []byte, o Options) (*Server, error) {
	o.Config = false
	o, c, err := o.complete(nil)
	if err != nil {
		return nil, err
	}
	c.ConfigSpace = space
	return &Server{connect: connect, opts: o, config: c}, nil
}

// Stats returns what the vrings have done, over all front-ends so far.
func (s *Server) Stats() []VringStats {
	return s.opts.Counters.Read()
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
	dev := s.connect()
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
