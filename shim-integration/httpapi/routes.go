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
	{http.MethodPost, "/api/v1/mount", true, (*Server).postMount},
	{http.MethodDelete, "/api/v1/mount", false, (*Server).deleteMount},
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

func (s *Server) postMount(r *http.Request, body []byte) (any, error) {
	mountpoint, err := mountpoint(r)
	if err != nil {
		return nil, err
	}
	request, err := mountBody(body)
	if err != nil {
		return nil, err
	}
	request.Mountpoint = mountpoint
	return nil, s.service.Mount(r.Context(), request)
}

func (s *Server) deleteMount(r *http.Request, _ []byte) (any, error) {
	mountpoint, err := mountpoint(r)
	if err != nil {
		return nil, err
	}
	return nil, s.service.Umount(r.Context(), mountpoint)
}
