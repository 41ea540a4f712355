package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// Images is what the backend of this package can do besides handing over blobs:
// read what names them. A backend that New returned implements it.
type Images interface {
	backend.Backend
	// Manifest returns the manifest or index under a tag or a digest
	// ("sha256:…"), and its media type. Of a digest, the content is what it names.
	// What the registry does not have is a Permanent error.
	Manifest(ctx context.Context, reference string) (mediaType string, content []byte, err error)
	// Referrers returns the index of what refers to the manifest of that digest:
	// by the referrers API, or, at registries that have none, under the tag that
	// stands for it. nil if nothing refers to it.
	Referrers(ctx context.Context, digest string) ([]byte, error)
}

var _ Images = (*registry)(nil)

// MaxManifest bounds manifests and indexes.
const MaxManifest = 8 << 20

// manifestTypes are the kinds of manifests that are asked for.
var manifestTypes = []string{
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}

// Manifest implements Images.
func (r *registry) Manifest(ctx context.Context, reference string) (string, []byte, error) {
	if !validReference(reference) {
		return "", nil, backend.Errorf(backend.Permanent, "%q is neither a tag nor a sha256 digest", short(reference))
	}
	mediaType, content, err := r.document(ctx, "/manifests/"+reference, manifestTypes)
	if err != nil {
		return "", nil, err
	}
	if want, ok := strings.CutPrefix(reference, "sha256:"); ok {
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != want {
			return "", nil, backend.Errorf(backend.BadAnswer, "%s/%s: the manifest has the digest sha256:%x, not the one asked for", r.name, reference, sum)
		}
	}
	return mediaType, content, nil
}

// Referrers implements Images.
func (r *registry) Referrers(ctx context.Context, digest string) ([]byte, error) {
	if !validReference(digest) || !strings.HasPrefix(digest, "sha256:") {
		return nil, backend.Errorf(backend.Permanent, "%q is no sha256 digest", short(digest))
	}
	_, content, err := r.document(ctx, "/referrers/"+digest, manifestTypes[1:2])
	if kind, _ := backend.Classify(err); err == nil || kind != backend.Permanent {
		return content, err
	}
	_, content, err = r.document(ctx, "/manifests/"+strings.Replace(digest, ":", "-", 1), manifestTypes)
	if kind, _ := backend.Classify(err); err != nil && kind == backend.Permanent {
		return nil, nil
	}
	return content, err
}

// validReference accepts tags and sha256 digests.
func validReference(s string) bool {
	if hex, ok := strings.CutPrefix(s, "sha256:"); ok {
		return len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
	}
	ok := s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '.' || c == '_' || c == '-'
	}
	return ok
}

// document reads a small document of the repository from the registry itself:
// mirrors know blobs, and may be behind with tags.
func (r *registry) document(ctx context.Context, path string, accept []string) (mediaType string, content []byte, err error) {
	rt := r.routes[len(r.routes)-1]
	u := *rt.base
	u.Path = "/v2/" + r.o.Repo + path
	for try := 0; ; try++ {
		mediaType, content, err = r.get(ctx, rt, &u, accept)
		kind, _ := backend.Classify(err)
		if err == nil || try >= r.o.RetryLimit || ctx.Err() != nil || kind != backend.Temporary {
			return mediaType, content, err
		}
		select {
		case <-time.After(retryDelay << min(try, 4)):
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
}

func (r *registry) get(ctx context.Context, rt *route, u *url.URL, accept []string) (string, []byte, error) {
	for hop := 0; ; hop++ {
		resp, err := rt.send(ctx, u, http.Header{"Accept": accept})
		if err != nil {
			return "", nil, err
		}
		if next := location(resp); next != nil {
			drain(resp)
			if u, err = (&source{r: r}).target(u, next, hop); err != nil {
				return "", nil, err
			}
			continue
		}
		return readDocument(resp, u)
	}
}

func readDocument(resp *http.Response, u *url.URL) (string, []byte, error) {
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", nil, statusError(resp, u)
	}
	defer time.AfterFunc(maxDocument, func() { _ = resp.Body.Close() }).Stop()
	content, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	switch {
	case err != nil:
		return "", nil, backend.Errorf(backend.Temporary, "%s: %w", show(u), err)
	case len(content) > MaxManifest:
		return "", nil, backend.Errorf(backend.Permanent, "%s: more than %d bytes", show(u), MaxManifest)
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(mediaType), content, nil
}

// maxDocument is how long the body of a manifest may take.
const maxDocument = time.Minute
