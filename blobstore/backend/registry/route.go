package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// route is one way to ask for blobs.
type route struct {
	r       *registry
	what    string   // "mirror", "proxy" or "registry"
	base    *url.URL // immutable
	via     string   // host of the proxy, for messages
	client  *http.Client
	headers map[string]string
	auth    *auth
	health  health

	plain atomic.Bool // the host of an https base speaks plain HTTP (skip_verify only)
}

// String names the route for messages.
func (rt *route) String() string {
	s := rt.what + " " + rt.base.String()
	if rt.via != "" {
		s += " through " + rt.via
	}
	return s
}

// blobURL is the address of a blob, whose id is checked.
func (rt *route) blobURL(id string) *url.URL {
	u := *rt.base
	if rt.plain.Load() {
		u.Scheme = "http"
	}
	u.Path = "/v2/" + rt.r.o.Repo + "/blobs/sha256:" + id
	return &u
}

// get sends a GET for a range to u.
func (rt *route) get(ctx context.Context, u *url.URL, span string) (*http.Response, error) {
	return rt.send(ctx, u, http.Header{"Range": {span}})
}

// send sends a GET to u with a header that it may change. Credentials go along
// if u is of the route's own origin.
func (rt *route) send(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", rt.r.o.UserAgent)
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: header}).WithContext(ctx)
	own := sameOrigin(u, rt.base) || rt.plain.Load() && u.Host == rt.base.Host
	if own {
		for k, v := range rt.headers {
			req.Header.Set(k, v)
			if strings.EqualFold(k, "Host") {
				req.Host = v
			}
		}
	}
	var resp *http.Response
	var err error
	if own {
		resp, err = rt.auth.do(req)
	} else {
		resp, err = rt.client.Do(req)
	}
	if err == nil {
		return resp, nil
	}
	if own && rt.r.o.SkipVerify && u.Scheme == "https" && errors.Is(err, http.ErrSchemeMismatch) && !rt.plain.Swap(true) {
		rt.r.o.Log.Warn("registry speaks plain HTTP, and skip_verify allows that", "host", u.Host)
		return rt.send(ctx, &url.URL{Scheme: "http", Host: u.Host, Path: u.Path}, header)
	}
	return nil, transportError(ctx, u, err)
}

// transportError is the error of a request that got no answer.
func transportError(ctx context.Context, u *url.URL, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var classed *backend.Error
	if errors.As(err, &classed) {
		return err
	}
	// The client's own error holds the whole address.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	kind := backend.Temporary
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		kind = backend.Denied
	}
	return backend.Errorf(kind, "%s: %w", show(u), err)
}

// show is an address without what must not be shown.
func show(u *url.URL) string {
	s := u.Scheme + "://" + u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		s += "?..."
	}
	return s
}

// sameOrigin reports whether credentials for b may go to a.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && hostPort(a) == hostPort(b)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

// health remembers whether a route is worth a try.
type health struct {
	limit int           // failures in a row until the route is left alone; 0 = never
	pause time.Duration // for how long

	mu    sync.Mutex
	fails int       // guarded by mu
	until time.Time // the route is left alone until then; guarded by mu
}

func (h *health) init() {
	if h.limit == 0 {
		h.limit = defaultFailureLimit
	}
	if h.pause == 0 {
		h.pause = defaultCheckInterval
	}
}

// usable reports whether the route should be tried. After its pause one failure
// is enough to leave it alone again.
func (h *health) usable() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !time.Now().Before(h.until)
}

func (h *health) succeed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails, h.until = 0, time.Time{}
}

// fail notes n failures.
func (h *health) fail(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails += n; h.fails >= h.limit {
		h.fails = h.limit - 1
		h.until = time.Now().Add(h.pause)
	}
}
