package testregistry

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serveFront is the registry and its token service.
func (r *Registry) serveFront(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.answer(w, req, "registry", http.StatusNotFound, "NOT_FOUND")
		return
	}
	blob := ""
	if _, id, ok := strings.Cut(rest, "/blobs/sha256:"); ok {
		blob = id
		r.count(blob, func(c *Counts) { c.Requests++ })
	}
	if !r.allowed(req) {
		if blob != "" {
			r.count(blob, func(c *Counts) { c.Denied++ })
		}
		w.Header().Set("WWW-Authenticate", r.challenge(req))
		r.answer(w, req, "registry", http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	switch {
	case rest == "":
		r.answer(w, req, "registry", http.StatusOK, "")
	case blob != "":
		r.serveBlob(w, req, blob)
	default:
		r.serveManifest(w, req, rest)
	}
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, rest string) {
	if repo, digest, ok := strings.Cut(rest, "/referrers/"); ok && !r.o.NoReferrers {
		r.serveReferrers(w, req, repo, digest)
		return
	}
	repo, ref, ok := strings.Cut(rest, "/manifests/")
	r.mu.Lock()
	m, found := r.manifests[repo+" "+ref]
	r.mu.Unlock()
	if !ok || !found {
		r.answer(w, req, "registry", http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	sum := sha256.Sum256(m.data)
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", "sha256:"+hex.EncodeToString(sum[:]))
	r.note(req, "registry", http.StatusOK)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(m.data))
}

// serveReferrers lists the manifests whose subject is the one of that digest.
func (r *Registry) serveReferrers(w http.ResponseWriter, req *http.Request, repo, digest string) {
	type descriptor struct {
		MediaType    string            `json:"mediaType"`
		Digest       string            `json:"digest"`
		Size         int               `json:"size"`
		ArtifactType string            `json:"artifactType,omitempty"`
		Annotations  map[string]string `json:"annotations,omitempty"`
	}
	index := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", []descriptor{}}
	r.mu.Lock()
	for key, m := range r.manifests {
		var doc struct {
			Subject      struct{ Digest string }
			ArtifactType string
			Annotations  map[string]string
		}
		in, ref, _ := strings.Cut(key, " ")
		if in != repo || !strings.HasPrefix(ref, "sha256:") || json.Unmarshal(m.data, &doc) != nil || doc.Subject.Digest != digest {
			continue
		}
		index.Manifests = append(index.Manifests, descriptor{m.mediaType, ref, len(m.data), doc.ArtifactType, doc.Annotations})
	}
	r.mu.Unlock()
	slices.SortFunc(index.Manifests, func(a, b descriptor) int { return strings.Compare(a.Digest, b.Digest) })
	body, err := json.Marshal(index)
	if err != nil {
		r.answer(w, req, "registry", http.StatusInternalServerError, "")
		return
	}
	w.Header().Set("Content-Type", index.MediaType)
	r.note(req, "registry", http.StatusOK)
	_, _ = w.Write(body)
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, blob string) {
	r.mu.Lock()
	data, found := r.blobs[blob]
	r.mu.Unlock()
	if f := r.fault(blob, false); f != nil {
		r.count(blob, func(c *Counts) { c.Faults++ })
		if r.play(w, req, "registry", blob, data, f) {
			return
		}
	}
	if !found {
		r.answer(w, req, "registry", http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	if r.o.Redirect {
		until := strconv.FormatInt(time.Now().Add(r.o.RedirectTTL).UnixNano(), 10)
		r.count(blob, func(c *Counts) { c.Redirected++ })
		w.Header().Set("Location", fmt.Sprintf("http://%s/data/%s?until=%s&signature=%s", r.storage.addr, blob, until, r.sign(blob, until)))
		r.answer(w, req, "registry", http.StatusTemporaryRedirect, "")
		return
	}
	r.serveBytes(w, req, "registry", blob, data)
}

func (r *Registry) sign(blob, until string) string {
	m := hmac.New(sha256.New, r.secret[:])
	m.Write([]byte(blob + " " + until))
	return hex.EncodeToString(m.Sum(nil))
}

// serveStorage is the server behind redirects. It refuses credentials, as object
// stores do that see two of them.
func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	blob, ok := strings.CutPrefix(req.URL.Path, "/data/")
	q := req.URL.Query()
	until, err := strconv.ParseInt(q.Get("until"), 10, 64)
	switch {
	case !ok || err != nil:
		r.answer(w, req, "storage", http.StatusNotFound, "")
		return
	case req.Header.Get("Authorization") != "":
		r.answer(w, req, "storage", http.StatusBadRequest, "")
		return
	case q.Get("signature") != r.sign(blob, q.Get("until")) || time.Now().UnixNano() > until:
		r.answer(w, req, "storage", http.StatusForbidden, "")
		return
	}
	r.mu.Lock()
	data := r.blobs[blob]
	r.mu.Unlock()
	if f := r.fault(blob, true); f != nil {
		r.count(blob, func(c *Counts) { c.Faults++ })
		if r.play(w, req, "storage", blob, data, f) {
			return
		}
	}
	r.serveBytes(w, req, "storage", blob, data)
}

// serveBytes answers a GET or HEAD of a blob as it should be.
func (r *Registry) serveBytes(w http.ResponseWriter, req *http.Request, server, blob string, data []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&countingWriter{w, r, req, server, blob}, req, "", time.Time{}, bytes.NewReader(data))
}

// countingWriter counts an answer while it is sent, each part before the client
// can have seen it: whoever has read an answer finds it counted.
type countingWriter struct {
	http.ResponseWriter
	r      *Registry
	req    *http.Request
	server string
	blob   string
}

func (c *countingWriter) WriteHeader(status int) {
	c.r.note(c.req, c.server, status)
	c.r.count(c.blob, func(n *Counts) {
		switch {
		case c.req.Method == http.MethodHead:
		case status == http.StatusPartialContent:
			n.Ranges++
		case status == http.StatusOK:
			n.Whole++
		}
	})
	c.ResponseWriter.WriteHeader(status)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.r.count(c.blob, func(n *Counts) { n.Bytes += int64(len(p)) })
	return c.ResponseWriter.Write(p)
}

// play answers a request with a fault. It returns false if the usual answer is
// to follow.
func (r *Registry) play(w http.ResponseWriter, req *http.Request, server, blob string, data []byte, f *Fault) bool {
	var first, last int
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil || first < 0 || last < first || last >= len(data) {
		first, last = 0, len(data)-1
	}
	part := func(first, last int) []byte { // of the blob, or zeros behind its end
		p := make([]byte, last-first+1)
		if first < len(data) {
			copy(p, data[first:])
		}
		return p
	}
	send := func(status, first, last, length int, body []byte) {
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		if status == http.StatusPartialContent {
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		}
		h.Set("Content-Length", strconv.Itoa(length))
		r.note(req, server, status)
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}
	n := last - first + 1
	switch f.Kind {
	case Status:
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		r.answer(w, req, server, f.Status, "")
	case Truncate:
		send(http.StatusPartialContent, first, last, n, part(first, last)[:n/2])
	case ShortRange:
		l := first + (n-1)/2
		send(http.StatusPartialContent, first, l, l-first+1, part(first, l))
	case WrongRange:
		send(http.StatusPartialContent, first+1, last+1, n, part(first+1, last+1))
	case LyingRange:
		send(http.StatusPartialContent, first, last, n, part(first+1, last+1))
	case WrongBytes:
		p := part(first, last)
		for i := 0; i < len(p); i += 512 {
			p[i] ^= 0x10
		}
		send(http.StatusPartialContent, first, last, n, p)
	case Whole:
		send(http.StatusOK, 0, 0, len(data), data)
	case Page:
		w.Header().Set("Content-Type", "text/html")
		r.note(req, server, http.StatusOK)
		page := "<html><body>Please sign in to use this network.</body></html>"
		_, _ = io.WriteString(w, page+strings.Repeat(" ", max(0, n-len(page))))
	case Encoded:
		w.Header().Set("Content-Encoding", "gzip")
		send(http.StatusPartialContent, first, last, n, part(first, last))
	case Hang:
		if !sleep(req, f.Delay) {
			panic(http.ErrAbortHandler)
		}
		return false
	case HangBody:
		send(http.StatusPartialContent, first, last, n, part(first, last)[:n/2])
		_ = http.NewResponseController(w).Flush()
		if !sleep(req, f.Delay) {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(part(first, last)[n/2:])
	case Reset:
		r.note(req, server, 0)
		panic(http.ErrAbortHandler)
	case ResetBody:
		send(http.StatusPartialContent, first, last, n, part(first, last)[:n/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case RedirectLoop:
		w.Header().Set("Location", req.URL.RequestURI())
		r.answer(w, req, server, http.StatusTemporaryRedirect, "")
	}
	return true
}

// sleep waits for d, or until the client goes or the server is closed.
func sleep(req *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-req.Context().Done():
		return false
	}
}

// serveToken is the token service.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if r.o.User != "" {
		user, password, _ := req.BasicAuth()
		if user != r.o.User || password != r.o.Password {
			r.answer(w, req, "token", http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
	}
	token := randomHex(20)
	r.mu.Lock()
	r.tokens[token] = time.Now().Add(r.o.TokenTTL)
	r.issued++
	r.mu.Unlock()
	doc := map[string]any{"token": token}
	if !r.o.HideExpiry {
		doc["expires_in"] = r.o.TokenTTL.Seconds()
	}
	r.note(req, "token", http.StatusOK)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

// allowed checks the credentials of a request.
func (r *Registry) allowed(req *http.Request) bool {
	switch r.o.Auth {
	case Basic:
		user, password, ok := req.BasicAuth()
		return ok && user == r.o.User && password == r.o.Password
	case Bearer:
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		r.mu.Lock()
		defer r.mu.Unlock()
		return ok && time.Now().Before(r.tokens[token])
	}
	return true
}

func (r *Registry) challenge(req *http.Request) string {
	if r.o.Auth == Basic {
		return `Basic realm="test registry"`
	}
	repo, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/blobs/")
	repo, _, _ = strings.Cut(repo, "/manifests/")
	return fmt.Sprintf(`Bearer realm="%s://%s/token",service="test registry",scope="repository:%s:pull"`, r.Scheme(), r.front.addr, repo)
}

// answer sends a status with the JSON body that registries send with errors.
func (r *Registry) answer(w http.ResponseWriter, req *http.Request, server string, status int, code string) {
	r.note(req, server, status)
	if code != "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	if code != "" {
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"said the test registry"}]}`, code)
	}
}

// note remembers a request with its answer.
func (r *Registry) note(req *http.Request, server string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, Request{
		Server: server, Method: req.Method, Path: req.URL.Path,
		Range: req.Header.Get("Range"), Authorization: req.Header.Get("Authorization"),
		Header: req.Header.Clone(), Status: status,
	})
}
