package httpapi

import (
	"net/http"
)

// route is one line of the API. Adding an endpoint is adding a line to routes
// and its handler.
type route struct {
	method string
	path   string
	// body tells whether a request has one: it must be there if true and must
	// not be there if false.
	body bool
	// handle returns the payload of the answer, nil for none (204).
	handle func(s *Server, r *http.Request, body []byte) (payload any, err error)
}

// routes is the whole API.
var routes = []route{
	{http.MethodGet, "/api/v1/daemon", false, (*Server).getDaemon},
	{http.MethodPut, "/api/v1/daemon", true, (*Server).putDaemon},
	{http.MethodGet, "/api/v2/daemon", false, (*Server).getDaemonV2},
	{http.MethodPut, "/api/v2/daemon", true, (*Server).putDaemon},
	{http.MethodGet, "/api/v1/daemon/events", false, (*Server).getEvents},
	{http.MethodGet, "/api/v1/daemon/backend", false, (*Server).getSuperblock},
	{http.MethodPut, "/api/v1/daemon/start", false, (*Server).putStart},
	{http.MethodPut, "/api/v1/daemon/exit", false, (*Server).putExit},
	{http.MethodPut, "/api/v1/daemon/fuse/sendfd", false, (*Server).putSendFD},
	{http.MethodPut, "/api/v1/daemon/fuse/takeover", false, (*Server).putTakeover},

	{http.MethodPost, "/api/v1/mount", true, (*Server).postMount},
	{http.MethodPut, "/api/v1/mount", true, (*Server).putMount},
	{http.MethodDelete, "/api/v1/mount", false, (*Server).deleteMount},

	{http.MethodGet, "/api/v1/metrics", false, (*Server).getFSMetrics},
	{http.MethodGet, "/api/v1/metrics/files", false, (*Server).getFiles},
	{http.MethodGet, "/api/v1/metrics/pattern", false, (*Server).getPattern},
	{http.MethodGet, "/api/v1/metrics/inflight", false, (*Server).getInflight},
	{http.MethodGet, "/api/v1/metrics/backend", false, (*Server).getBackend},
	{http.MethodGet, "/api/v1/metrics/blobcache", false, (*Server).getBlobCache},

	// Ours: what nydusd has no answer to.
	{http.MethodGet, "/metrics", false, (*Server).getPrometheus},
	{http.MethodGet, "/debug/inflight", false, (*Server).getWaiting},

	{http.MethodGet, "/api/v1/config", false, (*Server).getConfig},
	{http.MethodPut, "/api/v1/config", true, (*Server).putConfig},

	{http.MethodGet, "/api/v2/blobs", false, (*Server).noBlobs},
	{http.MethodPut, "/api/v2/blobs", true, (*Server).putBlobs},
	{http.MethodDelete, "/api/v2/blobs", false, (*Server).noBlobs},
}

// byPath is routes by path and method.
var byPath = func() map[string]map[string]route {
	m := make(map[string]map[string]route)
	for _, r := range routes {
		if m[r.path] == nil {
			m[r.path] = make(map[string]route)
		}
		m[r.path][r.method] = r
	}
	return m
}()

func (s *Server) getDaemon(*http.Request, []byte) (any, error) {
	return daemonInfo(s.service.Info()), nil
}

func (s *Server) getDaemonV2(*http.Request, []byte) (any, error) {
	reply := daemonInfo(s.service.Info())
	reply.BackendCollection = nil
	return reply, nil
}

func (s *Server) putDaemon(_ *http.Request, body []byte) (any, error) {
	level, err := logLevel(body)
	if err != nil {
		return nil, err
	}
	return nil, s.service.SetLogLevel(level)
}

func (s *Server) getEvents(*http.Request, []byte) (any, error) {
	return events(s.service.Errors()), nil
}

func (s *Server) getSuperblock(r *http.Request, _ []byte) (any, error) {
	mountpoint, err := mountpoint(r)
	if err != nil {
		return nil, err
	}
	info, err := s.service.Superblock(mountpoint)
	if err != nil {
		return nil, err
	}
	return superblock(info), nil
}

func (s *Server) putStart(*http.Request, []byte) (any, error)    { return nil, s.service.Begin() }
func (s *Server) putTakeover(*http.Request, []byte) (any, error) { return nil, s.service.Takeover() }

// putExit ends the daemon. Its stop waits for this answer to be sent.
func (s *Server) putExit(*http.Request, []byte) (any, error) {
	s.service.Exit()
	return nil, nil
}

func (s *Server) putSendFD(*http.Request, []byte) (any, error) {
	return nil, &statusError{http.StatusNotImplemented, "a daemon for virtual machines has no descriptor to hand over"}
}

func (s *Server) postMount(r *http.Request, body []byte) (any, error) {
	request, err := mountRequest(r, body)
	if err != nil {
		return nil, err
	}
	return nil, s.service.Mount(r.Context(), request)
}

func (s *Server) putMount(r *http.Request, body []byte) (any, error) {
	request, err := mountRequest(r, body)
	if err != nil {
		return nil, err
	}
	return nil, s.service.Remount(r.Context(), request)
}

func (s *Server) deleteMount(r *http.Request, _ []byte) (any, error) {
	mountpoint, err := mountpoint(r)
	if err != nil {
		return nil, err
	}
	return nil, s.service.Umount(r.Context(), mountpoint)
}

func (s *Server) getFSMetrics(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	at, m, err := s.service.FSMetrics(id)
	if err != nil {
		return nil, err
	}
	return fsMetrics(at, m), nil
}

func (s *Server) getFiles(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	latest, err := parameter(r, "latest")
	switch {
	case err != nil:
		return nil, err
	case latest == "true":
		inodes, err := s.service.LatestFiles(id)
		return ranges(inodes), err
	case latest != "" && latest != "false":
		return nil, badRequest("query: latest is neither true nor false")
	}
	files, err := s.service.FileMetrics(id)
	if err != nil {
		return nil, err
	}
	return fileMetrics(files), nil
}

func (s *Server) getPattern(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	_, m, err := s.service.FSMetrics(id)
	if err != nil {
		return nil, err
	}
	if !m.PatternAccounted {
		return []patternReply{}, nil
	}
	files, err := s.service.FileMetrics(id)
	if err != nil {
		return nil, err
	}
	return patterns(files), nil
}

// getInflight answers as nydusd does for virtual machines, 500 and all: clients
// know it.
func (s *Server) getInflight(*http.Request, []byte) (any, error) {
	return nil, &statusError{http.StatusInternalServerError, "requests in flight are shown in FUSE mode only; for virtual machines use: GET /debug/inflight, or rafs ctl inflight"}
}

func (s *Server) getBackend(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	m, err := s.service.BackendMetrics(id)
	if err != nil {
		return nil, err
	}
	return backendMetrics(m), nil
}

func (s *Server) getBlobCache(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	m, err := s.service.CacheMetrics(r.Context(), id)
	if err != nil {
		return nil, err
	}
	return cacheMetrics(m), nil
}

func (s *Server) getConfig(r *http.Request, _ []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	return s.service.RuntimeConfig(id)
}

func (s *Server) putConfig(r *http.Request, body []byte) (any, error) {
	id, err := parameter(r, "id")
	if err != nil {
		return nil, err
	}
	values, err := configValues(body)
	if err != nil {
		return nil, err
	}
	return nil, s.service.SetRuntimeConfig(id, values)
}

// errBlobs refuses what belongs to another mode of nydusd.
var errBlobs = &statusError{http.StatusNotImplemented, "blobs of fscache are not served; nydusd singleton does that, images for virtual machines are mounted by POST /api/v1/mount"}

func (s *Server) noBlobs(*http.Request, []byte) (any, error) { return nil, errBlobs }

func (s *Server) putBlobs(_ *http.Request, body []byte) (any, error) {
	if err := checkBlobEntry(body); err != nil {
		return nil, err
	}
	return nil, errBlobs
}
