package packaging

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/rafs"
)

// Place is where an image is: a repository of a registry, or a folder.
type Place interface {
	backend.Backend
	// Manifest returns the manifest or index of that tag or digest. Of a digest,
	// the content is what it names.
	Manifest(ctx context.Context, reference string) (mediaType string, content []byte, err error)
	// Referrers returns the index of what refers to the manifest of that digest,
	// nil if nothing does.
	Referrers(ctx context.Context, digest string) ([]byte, error)
}

const (
	annotationBootstrap = "containerd.io/snapshot/nydus-bootstrap"
	annotationVersion   = "containerd.io/snapshot/nydus-fs-version"

	// What marks the RAFS image among the entries of an index.
	featureNydus  = "nydus.remoteimage.v1"
	artifactNydus = "application/vnd.nydus.image.manifest.v1+json"

	// maxReferrers is how many of those that refer to an image are looked at.
	maxReferrers = 16
)

// ErrNotRAFS reports an image of another kind.
var ErrNotRAFS = errors.New("not a RAFS image")

// Image is a RAFS image that was found.
type Image struct {
	Digest    string        // of its manifest
	Bootstrap v1.Descriptor // of the layer that holds the bootstrap
	Version   string        // of the format, as the manifest says; may be empty
	// Subject is the digest of the image that was asked for, if this one was
	// found among those that refer to it.
	Subject string
}

// Find returns the RAFS image that a tag or digest leads to: the manifest
// itself, the entry of an index for this host's architecture, or, where that is
// an ordinary image, the first RAFS image that refers to it.
func Find(ctx context.Context, p Place, reference string) (*Image, error) {
	mediaType, content, err := p.Manifest(ctx, reference)
	if err != nil {
		return nil, err
	}
	if isIndex(mediaType, content) {
		d, err := choose(content)
		if err != nil {
			return nil, err
		}
		if mediaType, content, err = p.Manifest(ctx, d.Digest.String()); err != nil {
			return nil, err
		}
		if isIndex(mediaType, content) {
			return nil, fmt.Errorf("%w: an index of indexes", ErrNotRAFS)
		}
	}
	img, err := ofManifest(content)
	if !errors.Is(err, errNoBootstrap) {
		return img, err
	}
	return referrer(ctx, p, img.Digest)
}

// errNoBootstrap: an ordinary image; others may refer to it.
var errNoBootstrap = errors.New("no bootstrap")

// ofManifest reads the manifest of a RAFS image. Of an ordinary image, only the
// digest is returned, with errNoBootstrap.
func ofManifest(content []byte) (*Image, error) {
	var m v1.Manifest
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrNotRAFS, err)
	}
	img := &Image{Digest: digestOf(content)}
	if len(m.Layers) == 0 {
		return img, errNoBootstrap
	}
	last := m.Layers[len(m.Layers)-1]
	if last.Annotations[annotationBootstrap] == "" {
		return img, errNoBootstrap
	}
	if strings.HasSuffix(last.MediaType, "+encrypted") {
		return nil, fmt.Errorf("%w: its bootstrap layer is encrypted (%s): whoever has the key must unpack it", rafs.ErrUnsupported, last.MediaType)
	}
	img.Bootstrap, img.Version = last, last.Annotations[annotationVersion]
	return img, nil
}

// referrer returns the first RAFS image among those that refer to a manifest.
func referrer(ctx context.Context, p Place, subject string) (*Image, error) {
	content, err := p.Referrers(ctx, subject)
	if err != nil {
		return nil, err
	}
	var index v1.Index
	if len(content) > 0 {
		if err := json.Unmarshal(content, &index); err != nil {
			return nil, fmt.Errorf("%w: the list of its referrers: %w", ErrNotRAFS, err)
		}
	}
	for _, d := range index.Manifests[:min(len(index.Manifests), maxReferrers)] {
		_, content, err := p.Manifest(ctx, d.Digest.String())
		if err != nil {
			return nil, err
		}
		switch img, err := ofManifest(content); {
		case err == nil:
			img.Subject = subject
			return img, nil
		case errors.Is(err, rafs.ErrUnsupported):
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: the last layer of its manifest has no annotation %s, and none of the %d that refer to it is a RAFS image",
		ErrNotRAFS, annotationBootstrap, len(index.Manifests))
}

// isIndex tells an index from a manifest; not every place knows media types.
func isIndex(mediaType string, content []byte) bool {
	switch mediaType {
	case v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
		return true
	case v1.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
		return false
	}
	var doc struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(content, &doc) == nil && doc.Manifests != nil
}

// choose picks the entry of an index: one for this architecture, rather one that
// is marked as RAFS; or the only one there is.
func choose(content []byte) (*v1.Descriptor, error) {
	var index v1.Index
	if err := json.Unmarshal(content, &index); err != nil {
		return nil, fmt.Errorf("%w: its index: %w", ErrNotRAFS, err)
	}
	var best *v1.Descriptor
	score := 0
	for i := range index.Manifests {
		d := &index.Manifests[i]
		s := 0
		switch p := d.Platform; {
		case p != nil && p.OS == "linux" && p.Architecture == runtime.GOARCH:
			s = 3
		case len(index.Manifests) == 1:
			s = 2
		case p == nil:
			s = 1
		}
		if s > 0 && (d.ArtifactType == artifactNydus || d.Platform != nil && slices.Contains(d.Platform.OSFeatures, featureNydus)) {
			s += 4
		}
		if s > score {
			best, score = d, s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: none of the %d entries of its index is for linux/%s", ErrNotRAFS, len(index.Manifests), runtime.GOARCH)
	}
	return best, nil
}
