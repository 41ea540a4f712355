package testregistry

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Auth says what a client must show.
type Auth int

// The kinds of authentication.
const (
	Anonymous Auth = iota
	Basic
	Bearer
)

// Options of a registry.
type Options struct {
	// Listen is the address of the registry; empty is a free port on loopback.
	Listen string
	// TLS makes the registry (and its token service) speak https with a
	// certificate of its own, see CertPEM. Storage stays http.
	TLS bool

	Auth           Auth
	User, Password string        // what Basic, or the token service, wants to see; empty = nothing
	TokenTTL       time.Duration // how long a bearer token is good; 0 = an hour
	HideExpiry     bool          // do not tell clients of TokenTTL

	// NoReferrers makes a registry without the referrers API.
	NoReferrers bool

	// Redirect sends requests for blobs to a second server with signed addresses.
	Redirect    bool
	RedirectTTL time.Duration // how long a signature is good; 0 = an hour
}

// Registry is a running registry.
type Registry struct {
	o       Options
	front   *server
	storage *server
	cert    *certificate
	secret  [16]byte // of signatures

	mu        sync.Mutex
	blobs     map[string][]byte    // by hex digest or whatever the id is
	manifests map[string]manifest  // by repo and reference
	tokens    map[string]time.Time // good until
	issued    int
	counts    map[string]*Counts // by blob
	total     Counts
	faults    []*rule
	log       []Request
}

type manifest struct {
	mediaType string
	data      []byte
}

// Counts is what was asked for, of one blob or of all.
type Counts struct {
	Requests     int   // GET and HEAD of a blob at the registry, whatever the answer
	Denied       int   // of these, answered 401
	Redirected   int   // of these, answered with the address of storage
	Ranges       int   // answers 206, at the registry or at storage
	Whole        int   // answers 200 to a GET, likewise
	Bytes        int64 // of blobs written to clients
	Faults       int   // requests for which a fault was played
	TokensIssued int   // in all only
}

// Request is one request that reached a server.
type Request struct {
	Server        string // "registry", "storage" or "token"
	Method        string
	Path          string
	Range         string
	Authorization string // the header, whole
	Header        http.Header
	Status        int
}

// Start starts a registry. The caller closes it.
func Start(o Options) (*Registry, error) {
	if o.TokenTTL == 0 {
		o.TokenTTL = time.Hour
	}
	if o.RedirectTTL == 0 {
		o.RedirectTTL = time.Hour
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	r := &Registry{
		o:         o,
		blobs:     map[string][]byte{},
		manifests: map[string]manifest{},
		tokens:    map[string]time.Time{},
		counts:    map[string]*Counts{},
	}
	copy(r.secret[:], random(16))
	var tc *tls.Config
	if o.TLS {
		var err error
		if r.cert, err = newCertificate(); err != nil {
			return nil, err
		}
		tc = &tls.Config{Certificates: []tls.Certificate{r.cert.tls}}
	}
	var err error
	if r.front, err = startServer(o.Listen, tc, http.HandlerFunc(r.serveFront)); err != nil {
		return nil, err
	}
	if r.storage, err = startServer("127.0.0.1:0", nil, http.HandlerFunc(r.serveStorage)); err != nil {
		r.front.close()
		return nil, err
	}
	return r, nil
}

// Close ends both servers and every request.
func (r *Registry) Close() {
	r.front.close()
	r.storage.close()
}

// Scheme is "http" or "https".
func (r *Registry) Scheme() string {
	if r.o.TLS {
		return "https"
	}
	return "http"
}

// Host is the registry's host:port.
func (r *Registry) Host() string { return r.front.addr }

// StorageHost is the host:port of the second server.
func (r *Registry) StorageHost() string { return r.storage.addr }

// CertPEM is the certificate of a TLS registry.
func (r *Registry) CertPEM() []byte { return r.cert.pem }

// Down closes the registry's port and all its connections, until Up.
func (r *Registry) Down() { r.front.close() }

// Up opens the port again that Down closed.
func (r *Registry) Up() error { return r.front.listen() }

// AddBlob adds a blob and returns its id, the sha256 of data.
func (r *Registry) AddBlob(data []byte) string {
	sum := sha256.Sum256(data)
	id := hex.EncodeToString(sum[:])
	r.AddBlobAs(id, data)
	return id
}

// AddBlobAs adds a blob under an id of its own. data is kept, not copied.
func (r *Registry) AddBlobAs(id string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[id] = data
}

// AddManifest adds a manifest under a reference (and its digest) of a repository.
func (r *Registry) AddManifest(repo, reference, mediaType string, data []byte) (digest string) {
	sum := sha256.Sum256(data)
	digest = "sha256:" + hex.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range []string{reference, digest} {
		r.manifests[repo+" "+ref] = manifest{mediaType, data}
	}
	return digest
}

// ExpireTokens makes all tokens bad that were issued so far.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// Counts returns the counters of one blob, or of all for "".
func (r *Registry) Counts(blob string) Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	if blob == "" {
		c := r.total
		c.TokensIssued = r.issued
		return c
	}
	if c := r.counts[blob]; c != nil {
		return *c
	}
	return Counts{}
}

// Requests returns all requests so far, in the order of their answers.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.log...)
}

// count changes the counters of a blob and of all.
func (r *Registry) count(blob string, change func(*Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts[blob]
	if c == nil {
		c = new(Counts)
		r.counts[blob] = c
	}
	change(c)
	change(&r.total)
}

// server is a listener with its connections, which can go and come back at one
// address.
type server struct {
	addr    string
	tls     *tls.Config
	handler http.Handler

	mu   sync.Mutex
	http *http.Server // nil while it is down; guarded by mu
	wg   sync.WaitGroup
}

func startServer(addr string, tc *tls.Config, h http.Handler) (*server, error) {
	s := &server{addr: addr, tls: tc, handler: h}
	return s, s.listen()
}

func (s *server) listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("test registry: %w", err)
	}
	s.addr = l.Addr().String()
	if s.tls != nil {
		l = tls.NewListener(l, s.tls)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hs := &http.Server{Handler: s.handler, ErrorLog: log.New(io.Discard, "", 0), BaseContext: func(net.Listener) context.Context { return ctx }}
	s.http = hs
	s.wg.Go(func() {
		_ = hs.Serve(l) // ends by close
		cancel()        // and with it whoever sleeps in a fault
	})
	return nil
}

// close ends the listener and all requests.
func (s *server) close() {
	s.mu.Lock()
	hs := s.http
	s.http = nil
	s.mu.Unlock()
	if hs == nil {
		return
	}
	_ = hs.Close()
	s.wg.Wait()
}
