package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/vhostuser"
)

// Service is what the API is a door to. Its methods are called by many
// goroutines at once; *daemon.Daemon describes them.
type Service interface {
	Info() daemon.Info
	// Mount, Remount and Umount return once the guest can see their effect; they
	// do not wait for a network.
	Mount(ctx context.Context, r daemon.MountRequest) error
	Remount(ctx context.Context, r daemon.MountRequest) error
	Umount(ctx context.Context, mountpoint string) error

	SetLogLevel(name string) error
	Errors() (texts []string, size int, total uint64)
	Begin() error
	Takeover() error
	Exit()

	Superblock(mountpoint string) (*rafs.Info, error)
	FSMetrics(mountpoint string) (at string, m daemon.FSMetrics, err error)
	FileMetrics(mountpoint string) (map[uint64]daemon.FileMetrics, error)
	LatestFiles(mountpoint string) ([]uint64, error)
	BackendMetrics(id string) (daemon.BackendMetrics, error)
	CacheMetrics(ctx context.Context, id string) (daemon.CacheMetrics, error)
	RuntimeConfig(id string) (map[string]string, error)
	SetRuntimeConfig(id string, values map[string]string) error

	FrontEndIsConnected() bool
	Counters() fuseproto.Counters
	Vrings() []vhostuser.VringStats
	Summaries() ([]daemon.ImageSummary, []daemon.DirectorySummary)
	Inflight() []daemon.InflightOp
}

// Server serves the API.
type Server struct {
	service Service
	log     *slog.Logger
	http    http.Server
}

// NewServer returns a Server in front of service.
func NewServer(service Service, log *slog.Logger) *Server {
	s := &Server{service: service, log: log}
	s.http = http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// No time-out of any kind, on purpose: see the package's comment.
	}
	return s
}

// Serve answers on l until Close; it closes l. It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(apisock.Bound(l, tooMany, s.log)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tooMany is the answer to a connection above the bound.
const tooMany = "HTTP/1.1 503 Service Unavailable\r\nServer: Nydus API\r\nConnection: close\r\n" +
	"Content-Type: application/json\r\nContent-Length: 62\r\n\r\n" +
	`{"code":"UNDEFINED","message":"too many connections are open"}`

// Close stops the server: requests being answered get a moment to finish, then
// all connections are cut.
func (s *Server) Close() error {
	const grace = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if s.http.Shutdown(ctx) == nil {
		return nil
	}
	return s.http.Close()
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	payload, err := s.dispatch(r)
	code := http.StatusNoContent
	var body []byte
	kind := "application/json"
	if err == nil && payload != nil {
		code = http.StatusOK
		if text, ok := payload.(plainText); ok {
			kind, body = prometheusText, text
		} else {
			body, err = json.Marshal(payload)
		}
	}
	if err != nil {
		code = status(err)
		kind = "application/json"
		body = errorBody(err.Error())
	}
	h := w.Header()
	h.Set("Server", "Nydus API")
	h.Set("Connection", "keep-alive")
	if body != nil {
		h.Set("Content-Type", kind)
	}
	w.WriteHeader(code)
	if body != nil {
		_, _ = w.Write(body) // the client is gone: nobody to tell
	}
	level := slog.LevelDebug
	if code >= 400 {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", code), slog.Duration("took", time.Since(start)),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.log.LogAttrs(r.Context(), level, "api", attrs...)
}

// dispatch finds the route of r, holds r to its shape, and runs it.
func (s *Server) dispatch(r *http.Request) (any, error) {
	methods, ok := byPath[r.URL.Path]
	if !ok {
		return nil, &statusError{http.StatusNotFound, "no such endpoint"}
	}
	route, ok := methods[r.Method]
	if !ok {
		return nil, badRequest("method %.16q is not for this endpoint", r.Method)
	}
	body, err := readBody(r)
	switch {
	case err != nil:
		return nil, err
	case route.body && body == nil:
		return nil, badRequest("%s needs a body", route.method)
	case !route.body && body != nil:
		return nil, badRequest("%s takes no body", route.method)
	}
	return route.handle(s, r, body)
}
