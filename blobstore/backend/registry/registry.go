package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/internal/hostfs"
)

// Options are the keys of nydusd's registry backend, with its meanings. Times
// of 0 mean no limit.
type Options struct {
	Scheme string // "https" or "http"; empty is https
	Host   string // host or host:port
	Repo   string // such as library/alpine

	Auth          string // base64 of user:password
	RegistryToken string // a ready bearer token

	// SkipVerify accepts any certificate, and a registry that speaks plain HTTP
	// although its scheme is https.
	SkipVerify  bool
	CACertFiles []string // PEM, beside the system's

	Timeout        time.Duration // for the answer to begin, and between two pieces of its body
	ConnectTimeout time.Duration // for TCP, and again for TLS
	RetryLimit     int           // tries after the first, within one ReadRange

	// BlobURLScheme and BlobRedirectedHost replace the parts of the address to
	// which a registry redirects.
	BlobURLScheme      string
	BlobRedirectedHost string

	Proxy   Proxy
	Mirrors []Mirror

	UserAgent string       // empty = "rafsd"
	Log       *slog.Logger // nil = slog.Default()
}

// Proxy is an HTTP proxy on the way to the origin.
type Proxy struct {
	URL           string        // empty = none
	Fallback      bool          // without the proxy when it fails
	CheckInterval time.Duration // how long a failing proxy is left alone; 0 = 5 s
	UseHTTP       bool          // speak plain HTTP of https addresses to the proxy, so that it sees them
}

// Mirror is a registry that may be asked before the origin.
type Mirror struct {
	Host                string            // with scheme
	Headers             map[string]string // sent with each request
	HealthCheckInterval time.Duration     // how long a failing mirror is left alone; 0 = 5 s
	FailureLimit        int               // failures in a row until it is; 0 = 5
}

const (
	defaultCheckInterval = 5 * time.Second
	defaultFailureLimit  = 5
	maxConnsIdle         = 16
	idleConnTimeout      = 30 * time.Second
)

// New returns a backend. It asks nobody.
func New(o Options) (backend.Backend, error) {
	if o.Scheme == "" {
		o.Scheme = "https"
	}
	if o.UserAgent == "" {
		o.UserAgent = "rafsd"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := checkRepo(o.Repo); err != nil {
		return nil, err
	}
	origin, err := parseBase(o.Scheme + "://" + o.Host)
	if err != nil {
		return nil, fmt.Errorf("registry host: %w", err)
	}
	if s := o.BlobURLScheme; s != "" && s != "http" && s != "https" {
		return nil, fmt.Errorf("registry blob_url_scheme %q is neither http nor https", s)
	}
	login, err := decodeAuth(o.Auth)
	if err != nil {
		return nil, err
	}
	roots, err := loadRoots(o.CACertFiles)
	if err != nil {
		return nil, err
	}
	r := &registry{o: o, name: "registry " + origin.String() + "/" + o.Repo}
	direct := r.client(roots, nil)
	for _, m := range o.Mirrors {
		base, err := parseBase(m.Host)
		if err != nil {
			return nil, fmt.Errorf("registry mirror: %w", err)
		}
		rt := &route{r: r, what: "mirror", base: base, client: direct, headers: m.Headers}
		rt.health = health{limit: m.FailureLimit, pause: m.HealthCheckInterval}
		// The operator put the mirror beside the credentials; still they are not
		// sent in the clear where the origin would have got them under TLS.
		if base.Scheme == "https" || origin.Scheme == "http" || isLoopback(base.Hostname()) {
			rt.auth = newAuth(direct, login, o.RegistryToken, o.Repo)
		} else {
			rt.auth = newAuth(direct, login0, "", o.Repo)
		}
		r.routes = append(r.routes, rt)
	}
	originAuth := newAuth(direct, login, o.RegistryToken, o.Repo)
	if o.Proxy.URL != "" {
		p, err := url.Parse(o.Proxy.URL)
		if err != nil || p.Host == "" {
			return nil, errors.New("registry proxy: not an address with scheme and host")
		}
		base := *origin
		if o.Proxy.UseHTTP {
			base.Scheme = "http"
		}
		rt := &route{r: r, what: "proxy", base: &base, client: r.client(roots, p), via: p.Host}
		rt.auth = newAuth(rt.client, login, o.RegistryToken, o.Repo)
		rt.health = health{limit: 1, pause: o.Proxy.CheckInterval}
		r.routes = append(r.routes, rt)
	}
	if o.Proxy.URL == "" || o.Proxy.Fallback {
		r.routes = append(r.routes, &route{r: r, what: "registry", base: origin, client: direct, auth: originAuth})
	}
	last := r.routes[len(r.routes)-1]
	last.health = health{} // there is nothing behind it: it is never left alone
	for _, rt := range r.routes {
		rt.health.init()
	}
	return r, nil
}

// registry is the backend.
type registry struct {
	o       Options
	name    string
	routes  []*route // in the order in which they are tried
	clients []*http.Client
}

func (r *registry) Name() string { return r.name }

func (r *registry) Blob(id string) (backend.Source, error) {
	if err := backend.CheckID(id); err != nil {
		return nil, err
	}
	return &source{r: r, id: id, redirects: make([]redirect, len(r.routes))}, nil
}

func (r *registry) Close() error {
	for _, c := range r.clients {
		c.CloseIdleConnections()
	}
	return nil
}

// client makes a client that follows no redirect by itself.
func (r *registry) client(roots *x509.CertPool, proxy *url.URL) *http.Client {
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: r.o.ConnectTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   r.o.ConnectTimeout,
		ResponseHeaderTimeout: r.o.Timeout,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            roots,
			InsecureSkipVerify: r.o.SkipVerify,
		},
		DisableCompression:  true, // a range of an encoded body is not a range of the blob
		MaxIdleConnsPerHost: maxConnsIdle,
		IdleConnTimeout:     idleConnTimeout,
		// One connection per range: HTTP/2 would put all ranges of a host behind
		// each other's losses.
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if proxy != nil {
		t.Proxy = http.ProxyURL(proxy)
	}
	c := &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r.clients = append(r.clients, c)
	return c
}

// parseBase parses an address of scheme and host alone.
func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(s, "/"))
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want scheme and host alone, such as https://registry.example:5000")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("scheme %q is neither http nor https", u.Scheme)
	}
	return u, nil
}

func checkRepo(repo string) error {
	if repo == "" || len(repo) > 255 {
		return fmt.Errorf("registry repo: name of %d bytes", len(repo))
	}
	for part := range strings.SplitSeq(repo, "/") {
		ok := part != "" && part != "." && part != ".."
		for i := 0; ok && i < len(part); i++ {
			c := part[i]
			ok = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '.' || c == '_' || c == '-'
		}
		if !ok {
			return fmt.Errorf("registry repo %q: not a repository name", repo)
		}
	}
	return nil
}

func decodeAuth(s string) (login, error) {
	if s == "" {
		return login0, nil
	}
	raw, err := base64.StdEncoding.DecodeString(s)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return login0, errors.New("registry auth: not the base64 of user:password")
	}
	return login{user, password}, nil
}

// maxCA bounds a file of certificates.
const maxCA = 4 << 20

func loadRoots(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil // the system's
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, name := range files {
		f, err := hostfs.OpenRegular(name)
		if err != nil {
			return nil, fmt.Errorf("registry ca_cert_files: %w", err)
		}
		pem, err := io.ReadAll(io.LimitReader(f, maxCA))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("registry ca_cert_files: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("registry ca_cert_files: %s holds no certificate", name)
		}
	}
	return pool, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
