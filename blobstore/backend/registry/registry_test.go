package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/registry"
	"github.com/rafsd/rafsd/internal/testregistry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// data is a blob whose every range is different.
var data = func() []byte {
	b := make([]byte, 10000)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}()

func start(t *testing.T, o testregistry.Options) (r *testregistry.Registry, id string) {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, r.AddBlob(data)
}

func open(t *testing.T, r *testregistry.Registry, id string, change func(*registry.Options)) backend.Source {
	t.Helper()
	o := registry.Options{
		Scheme: r.Scheme(), Host: r.Host(), Repo: "library/test",
		Timeout: 5 * time.Second, ConnectTimeout: 5 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	b, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	src, err := b.Blob(id)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func read(ctx context.Context, src backend.Source, off, n int64) ([]byte, error) {
	rd, err := src.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	return io.ReadAll(rd)
}

// mustRead fails the test unless the range arrives, right.
func mustRead(t *testing.T, src backend.Source, off, n int64) {
	t.Helper()
	got, err := read(t.Context(), src, off, n)
	if err != nil {
		t.Fatalf("range %d+%d: %v", off, n, err)
	}
	if !bytes.Equal(got, data[off:off+n]) {
		t.Fatalf("range %d+%d: %d bytes, not those of the blob", off, n, len(got))
	}
}

func auth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func TestRanges(t *testing.T) {
	r, id := start(t, testregistry.Options{})
	src := open(t, r, id, nil)
	for _, s := range [][2]int64{{0, 1}, {0, 10000}, {9999, 1}, {17, 4096}} {
		mustRead(t, src, s[0], s[1])
	}
	if n, err := src.Size(t.Context()); err != nil || n != int64(len(data)) {
		t.Errorf("Size = %d, %v, want %d", n, err, len(data))
	}
	for _, s := range [][2]int64{{-1, 1}, {0, 0}, {0, -5}, {1 << 62, 1 << 62}} {
		if _, err := src.ReadRange(t.Context(), s[0], s[1]); err == nil {
			t.Errorf("range %d+%d was not refused", s[0], s[1])
		}
	}
	if got := r.Requests()[0].Header.Get("Accept-Encoding"); got != "identity" {
		t.Errorf("Accept-Encoding = %q, want identity", got)
	}
}

func TestWrongAnswersAreRefused(t *testing.T) {
	F := func(k testregistry.Kind) testregistry.Fault { return testregistry.Fault{Kind: k, Times: 1} }
	status := func(code int, after string) testregistry.Fault {
		return testregistry.Fault{Kind: testregistry.Status, Status: code, RetryAfter: after, Times: 1}
	}
	hang := F(testregistry.Hang)
	hang.Delay = time.Minute
	hangBody := F(testregistry.HangBody)
	hangBody.Delay = time.Minute
	tests := map[string]struct {
		fault testregistry.Fault
		kind  backend.Kind
		after time.Duration
		say   string
	}{
		"500":                           {status(500, ""), backend.Temporary, 0, "500 Internal Server Error"},
		"429 with a wait":               {status(429, "3"), backend.Temporary, 3 * time.Second, "429"},
		"503 with a wait":               {status(503, "2"), backend.Temporary, 2 * time.Second, "503"},
		"404":                           {status(404, ""), backend.Permanent, 0, "404"},
		"403":                           {status(403, ""), backend.Denied, 0, "403"},
		"416":                           {status(416, ""), backend.BadAnswer, 0, "no such bytes"},
		"304":                           {status(304, ""), backend.BadAnswer, 0, "304"},
		"truncated body":                {F(testregistry.Truncate), backend.Temporary, 0, "500 bytes before their end"},
		"a shorter range":               {F(testregistry.ShortRange), backend.BadAnswer, 0, "got bytes 1000-1499"},
		"another range":                 {F(testregistry.WrongRange), backend.BadAnswer, 0, "got bytes 1001-2000"},
		"the whole blob for a range":    {F(testregistry.Whole), backend.BadAnswer, 0, "whole blob"},
		"a page of a captive portal":    {F(testregistry.Page), backend.BadAnswer, 0, "whole blob"},
		"an encoded body":               {F(testregistry.Encoded), backend.BadAnswer, 0, "encoded"},
		"no answer in time":             {hang, backend.Temporary, 0, "timeout"},
		"a body that stands still":      {hangBody, backend.Temporary, 0, "stands still"},
		"connection closed":             {F(testregistry.Reset), backend.Temporary, 0, "EOF"},
		"connection closed in a body":   {F(testregistry.ResetBody), backend.Temporary, 0, "before their end"},
		"redirects that do not end":     {F(testregistry.RedirectLoop), backend.BadAnswer, 0, "redirects"},
		"a redirect without an address": {status(307, ""), backend.BadAnswer, 0, "nowhere"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, id := start(t, testregistry.Options{})
			src := open(t, r, id, func(o *registry.Options) { o.Timeout = 200 * time.Millisecond })
			if tt.fault.Kind == testregistry.RedirectLoop {
				tt.fault.Times = 10
			}
			stop := r.Fail(tt.fault)
			got, err := read(t.Context(), src, 1000, 1000)
			if err == nil {
				t.Fatalf("%d bytes and no error", len(got))
			}
			if kind, after := backend.Classify(err); kind != tt.kind || after != tt.after {
				t.Errorf("%v: is %v, wait %v; want %v, %v", err, kind, after, tt.kind, tt.after)
			}
			if !strings.Contains(err.Error(), tt.say) || !strings.Contains(err.Error(), id) {
				t.Errorf("error %q does not say %q and the blob", err, tt.say)
			}
			stop()
			mustRead(t, src, 1000, 1000) // nothing of it is remembered
		})
	}
}

func TestWholeBlobForARangeAtItsBeginning(t *testing.T) {
	r, id := start(t, testregistry.Options{})
	src := open(t, r, id, nil)
	r.Fail(testregistry.Fault{Kind: testregistry.Whole})
	mustRead(t, src, 0, 100)
}

func TestCredentials(t *testing.T) {
	tests := map[string]struct {
		server testregistry.Options
		client func(*registry.Options)
		ok     bool
	}{
		"basic":                     {testregistry.Options{Auth: testregistry.Basic, User: "u", Password: "p:q"}, func(o *registry.Options) { o.Auth = auth("u", "p:q") }, true},
		"basic, wrong password":     {testregistry.Options{Auth: testregistry.Basic, User: "u", Password: "p"}, func(o *registry.Options) { o.Auth = auth("u", "x") }, false},
		"basic, nothing to show":    {testregistry.Options{Auth: testregistry.Basic, User: "u", Password: "p"}, nil, false},
		"bearer, anonymous":         {testregistry.Options{Auth: testregistry.Bearer}, nil, true},
		"bearer, with a password":   {testregistry.Options{Auth: testregistry.Bearer, User: "u", Password: "p"}, func(o *registry.Options) { o.Auth = auth("u", "p") }, true},
		"bearer, wrong password":    {testregistry.Options{Auth: testregistry.Bearer, User: "u", Password: "p"}, func(o *registry.Options) { o.Auth = auth("u", "x") }, false},
		"a ready token that is bad": {testregistry.Options{Auth: testregistry.Bearer}, func(o *registry.Options) { o.RegistryToken = "old" }, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, id := start(t, tt.server)
			src := open(t, r, id, tt.client)
			_, err := read(t.Context(), src, 0, 10)
			if (err == nil) != tt.ok {
				t.Fatalf("error = %v, want ok %v", err, tt.ok)
			}
			if !tt.ok {
				if kind, _ := backend.Classify(err); kind != backend.Denied {
					t.Errorf("%v is %v, want denied", err, kind)
				}
				return
			}
			mustRead(t, src, 10, 10)
			if c := r.Counts(id); c.Denied > 1 {
				t.Errorf("credentials were asked for %d times, want once", c.Denied)
			}
		})
	}
}

func TestTokensAreRenewed(t *testing.T) {
	t.Run("after they were refused", func(t *testing.T) {
		t.Parallel()
		r, id := start(t, testregistry.Options{Auth: testregistry.Bearer, HideExpiry: true})
		src := open(t, r, id, nil)
		for range 3 {
			mustRead(t, src, 0, 10)
			r.ExpireTokens()
		}
		if c := r.Counts(""); c.TokensIssued != 3 {
			t.Errorf("%d tokens issued, want 3", c.TokensIssued)
		}
	})
	t.Run("before they expire", func(t *testing.T) {
		t.Parallel()
		r, id := start(t, testregistry.Options{Auth: testregistry.Bearer, TokenTTL: 2 * time.Second})
		src := open(t, r, id, nil)
		deadline := time.Now().Add(20 * time.Second)
		for r.Counts("").TokensIssued < 2 {
			mustRead(t, src, 0, 10)
			if time.Now().After(deadline) {
				t.Fatal("the token was not renewed")
			}
		}
		if c := r.Counts(id); c.Denied != 1 {
			t.Errorf("%d requests denied, want only the first", c.Denied)
		}
	})
}

func TestRedirects(t *testing.T) {
	r, id := start(t, testregistry.Options{Redirect: true, Auth: testregistry.Bearer, User: "u", Password: "secret"})
	src := open(t, r, id, func(o *registry.Options) { o.Auth = auth("u", "secret") })
	for off := int64(0); off < 5; off++ {
		mustRead(t, src, off, 100)
	}
	if c := r.Counts(id); c.Redirected != 1 || c.Ranges != 5 {
		t.Errorf("counts = %+v, want 1 redirect for 5 ranges", c)
	}
	for _, q := range r.Requests() {
		if q.Server == "storage" && q.Authorization != "" {
			t.Errorf("credentials went to storage: %s", q.Authorization)
		}
	}
}

func TestExpiredRedirectIsAskedForAgain(t *testing.T) {
	t.Parallel()
	r, id := start(t, testregistry.Options{Redirect: true, RedirectTTL: 700 * time.Millisecond})
	src := open(t, r, id, nil)
	mustRead(t, src, 0, 100)
	deadline := time.Now().Add(20 * time.Second)
	for r.Counts(id).Redirected < 2 {
		mustRead(t, src, 100, 100) // never an error
		if time.Now().After(deadline) {
			t.Fatal("the signature never expired")
		}
	}
}

func TestStorageThatRefusesIsNotARegistryThatRefuses(t *testing.T) {
	r, id := start(t, testregistry.Options{Redirect: true})
	src := open(t, r, id, nil)
	r.Fail(testregistry.Fault{Kind: testregistry.Status, Status: 403, AtStorage: true})
	_, err := read(t.Context(), src, 0, 10)
	if kind, _ := backend.Classify(err); err == nil || kind != backend.BadAnswer {
		t.Errorf("%v is %v, want a bad answer, which is asked for again", err, kind)
	}
}

func TestSignaturesAreNotShown(t *testing.T) {
	r, id := start(t, testregistry.Options{Redirect: true})
	src := open(t, r, id, nil)
	r.Fail(testregistry.Fault{Kind: testregistry.Status, Status: 500, AtStorage: true})
	_, err := read(t.Context(), src, 0, 10)
	if err == nil || strings.Contains(err.Error(), "signature=") || !strings.Contains(err.Error(), r.StorageHost()) {
		t.Errorf("error = %v: want storage's host and no signature", err)
	}
	r.Fail(testregistry.Fault{Kind: testregistry.Reset, AtStorage: true})
	if _, err := read(t.Context(), src, 0, 10); err == nil || strings.Contains(err.Error(), "signature=") {
		t.Errorf("error = %v: want one without a signature", err)
	}
}

func TestMirrors(t *testing.T) {
	origin, id := start(t, testregistry.Options{})
	mirror, _ := start(t, testregistry.Options{})
	use := func(o *registry.Options) {
		o.Mirrors = []registry.Mirror{{
			Host: "http://" + mirror.Host(), Headers: map[string]string{"X-From": origin.Host()},
			FailureLimit: 2, HealthCheckInterval: time.Hour,
		}}
	}
	src := open(t, origin, id, use)
	mustRead(t, src, 0, 10)
	if got := mirror.Counts(id).Ranges; got != 1 || origin.Counts(id).Requests != 0 {
		t.Errorf("mirror served %d, origin asked %d times; want 1, 0", got, origin.Counts(id).Requests)
	}
	if got := mirror.Requests()[0].Header.Get("X-From"); got != origin.Host() {
		t.Errorf("the mirror's header = %q, want %q", got, origin.Host())
	}
	for _, code := range []int{404, 429, 403} { // whatever a mirror says, the origin decides
		mirror.Fail(testregistry.Fault{Kind: testregistry.Status, Status: code, Times: 1})
		mustRead(t, open(t, origin, id, use), 0, 10)
	}
	mirror.Down()
	before := origin.Counts(id).Ranges
	for range 5 {
		mustRead(t, src, 0, 10)
	}
	if got := origin.Counts(id).Ranges - before; got != 5 {
		t.Errorf("origin served %d of 5 ranges while the mirror is down", got)
	}
	if err := mirror.Up(); err != nil {
		t.Fatal(err)
	}
	before = mirror.Counts(id).Requests
	mustRead(t, src, 0, 10)
	if mirror.Counts(id).Requests != before {
		t.Error("a mirror that failed twice was asked within its check interval")
	}
}

func TestRejectedBytesAreFetchedElsewhere(t *testing.T) {
	origin, id := start(t, testregistry.Options{})
	mirror, _ := start(t, testregistry.Options{})
	mirror.Fail(testregistry.Fault{Kind: testregistry.WrongBytes})
	src := open(t, origin, id, func(o *registry.Options) {
		o.Mirrors = []registry.Mirror{{Host: "http://" + mirror.Host()}}
	})
	rd, err := src.ReadRange(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rd); err != nil || bytes.Equal(got, data[:1000]) {
		t.Fatalf("the mirror's bytes: %v", err)
	}
	rd.(backend.Rejecter).Reject()
	if err := rd.Close(); err != nil {
		t.Error(err)
	}
	mustRead(t, src, 0, 1000)
}

func TestCredentialsAndMirrors(t *testing.T) {
	// A mirror without TLS on another machine than this gets no password. That
	// cannot be had on loopback, which is allowed; so this is the other half: a
	// mirror of the list that asks gets them.
	origin, id := start(t, testregistry.Options{})
	mirror, _ := start(t, testregistry.Options{Auth: testregistry.Basic, User: "u", Password: "p"})
	src := open(t, origin, id, func(o *registry.Options) {
		o.Auth = auth("u", "p")
		o.Mirrors = []registry.Mirror{{Host: "http://" + mirror.Host()}}
	})
	mustRead(t, src, 0, 10)
	if c := mirror.Counts(id); c.Ranges != 1 {
		t.Errorf("the mirror served %d ranges, want 1", c.Ranges)
	}
}

func TestTLS(t *testing.T) {
	r, id := start(t, testregistry.Options{TLS: true, Auth: testregistry.Bearer})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, r.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("unknown certificate", func(t *testing.T) {
		_, err := read(t.Context(), open(t, r, id, nil), 0, 10)
		if kind, _ := backend.Classify(err); err == nil || kind != backend.Denied {
			t.Errorf("error = %v (%v), want denied", err, kind)
		}
	})
	t.Run("certificate by ca_cert_files", func(t *testing.T) {
		mustRead(t, open(t, r, id, func(o *registry.Options) { o.CACertFiles = []string{ca} }), 0, 10)
	})
	t.Run("certificate not looked at", func(t *testing.T) {
		mustRead(t, open(t, r, id, func(o *registry.Options) { o.SkipVerify = true }), 0, 10)
	})
	t.Run("plain HTTP where https was said", func(t *testing.T) {
		plain, id := start(t, testregistry.Options{})
		https := func(o *registry.Options) { o.Scheme = "https" }
		if _, err := read(t.Context(), open(t, plain, id, https), 0, 10); err == nil {
			t.Error("fell back to http without skip_verify")
		}
		src := open(t, plain, id, func(o *registry.Options) { o.Scheme, o.SkipVerify = "https", true })
		mustRead(t, src, 0, 10)
		mustRead(t, src, 10, 10)
	})
}

func TestRedirectedAddressIsRewritten(t *testing.T) {
	r, id := start(t, testregistry.Options{Redirect: true})
	src := open(t, r, id, func(o *registry.Options) { o.BlobRedirectedHost = "127.0.0.1:1" })
	_, err := read(t.Context(), src, 0, 10)
	if err == nil || !strings.Contains(err.Error(), "http://127.0.0.1:1/data/") {
		t.Errorf("error = %v, want one of the host of blob_redirected_host", err)
	}
	src = open(t, r, id, func(o *registry.Options) { o.BlobURLScheme = "https" })
	if _, err = read(t.Context(), src, 0, 10); err == nil || !strings.Contains(err.Error(), "https://"+r.StorageHost()) {
		t.Errorf("error = %v, want one of https", err)
	}
}

// startProxy starts an HTTP proxy that serves from a registry whatever host it is
// asked for, and counts.
func startProxy(t *testing.T, status *atomic.Int32) (url string, seen *atomic.Int32) {
	t.Helper()
	seen = new(atomic.Int32)
	out := &http.Transport{DisableKeepAlives: true}
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen.Add(1)
		if s := status.Load(); s != 0 {
			w.WriteHeader(int(s))
			return
		}
		req.RequestURI = ""
		resp, err := out.RoundTrip(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	t.Cleanup(p.Close)
	return p.URL, seen
}

func TestProxy(t *testing.T) {
	r, id := start(t, testregistry.Options{})
	var status atomic.Int32
	proxy, seen := startProxy(t, &status)
	use := func(fallback bool) func(*registry.Options) {
		return func(o *registry.Options) {
			o.Proxy = registry.Proxy{URL: proxy, Fallback: fallback, CheckInterval: time.Hour}
		}
	}
	with, without := open(t, r, id, use(true)), open(t, r, id, use(false))
	mustRead(t, with, 0, 10)
	mustRead(t, without, 0, 10)
	if seen.Load() != 2 {
		t.Errorf("the proxy saw %d requests, want 2", seen.Load())
	}
	status.Store(429)
	mustRead(t, with, 0, 10) // refused by the proxy: not by the registry
	if _, err := read(t.Context(), without, 0, 10); err == nil {
		t.Error("without fallback the registry was reached around the proxy")
	}
	before := seen.Load()
	mustRead(t, with, 0, 10)
	if seen.Load() != before {
		t.Error("a proxy that failed was asked within its check interval")
	}
}

func TestRetryLimit(t *testing.T) {
	r, id := start(t, testregistry.Options{})
	r.Fail(testregistry.Fault{Kind: testregistry.Status, Status: 500, Times: 2})
	mustRead(t, open(t, r, id, func(o *registry.Options) { o.RetryLimit = 2 }), 0, 10)
	if c := r.Counts(id); c.Requests != 3 {
		t.Errorf("%d requests, want 3", c.Requests)
	}
}

func TestCancel(t *testing.T) {
	r, id := start(t, testregistry.Options{})
	r.Fail(testregistry.Fault{Kind: testregistry.HangBody, Delay: time.Minute})
	src := open(t, r, id, nil)
	ctx, cancel := context.WithCancel(t.Context())
	rd, err := src.ReadRange(ctx, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rd, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := rd.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Read after cancel = %v", err)
	}
	if err := rd.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	good := registry.Options{Scheme: "https", Host: "registry.example", Repo: "a/b"}
	if _, err := registry.New(good); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*registry.Options){
		"no host":                   func(o *registry.Options) { o.Host = "" },
		"host with a path":          func(o *registry.Options) { o.Host = "a/b" },
		"host with a user":          func(o *registry.Options) { o.Host = "u:hunter2@a" },
		"scheme":                    func(o *registry.Options) { o.Scheme = "ftp" },
		"no repo":                   func(o *registry.Options) { o.Repo = "" },
		"repo that climbs":          func(o *registry.Options) { o.Repo = "a/../b" },
		"repo with a query":         func(o *registry.Options) { o.Repo = "a?b" },
		"auth that is not base64":   func(o *registry.Options) { o.Auth = "hunter2%" },
		"auth without a password":   func(o *registry.Options) { o.Auth = base64.StdEncoding.EncodeToString([]byte("hunter2")) },
		"mirror without a scheme":   func(o *registry.Options) { o.Mirrors = []registry.Mirror{{Host: "mirror"}} },
		"proxy that is no address":  func(o *registry.Options) { o.Proxy.URL = "://hunter2" },
		"certificates not there":    func(o *registry.Options) { o.CACertFiles = []string{"/nonexistent"} },
		"certificates that are not": func(o *registry.Options) { o.CACertFiles = []string{os.DevNull} },
		"blob_url_scheme":           func(o *registry.Options) { o.BlobURLScheme = "gopher" },
	}
	for name, change := range tests {
		o := good
		change(&o)
		if _, err := registry.New(o); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows a secret: %v", name, err)
		}
	}
	b, err := registry.New(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "../x", "a/b", "a?b", strings.Repeat("a", 65)} {
		if _, err := b.Blob(id); !errors.Is(err, backend.ErrID) {
			t.Errorf("Blob(%q) = %v, want ErrID", id, err)
		}
	}
}
