package packaging

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/internal/hostfs"
)

// maxDocument bounds manifests and indexes.
const maxDocument = 8 << 20

// Layout is a folder with an OCI layout: index.json, and blobs/sha256 with files
// that are named by their digests.
type Layout struct {
	backend.Backend // of blobs/sha256
	dir             string
}

var _ Place = (*Layout)(nil)

// OpenLayout opens a folder with an OCI layout.
func OpenLayout(dir string) (*Layout, error) {
	b, err := localfs.New(localfs.Options{Dir: filepath.Join(dir, "blobs", "sha256")})
	if err != nil {
		return nil, fmt.Errorf("%s is no OCI layout: %w", dir, err)
	}
	l := &Layout{Backend: b, dir: dir}
	if _, err := l.index(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return l, nil
}

// Manifest implements Place. An empty reference is the only image of the folder.
func (l *Layout) Manifest(_ context.Context, reference string) (string, []byte, error) {
	if strings.HasPrefix(reference, "sha256:") {
		content, err := l.document(reference)
		return "", content, err
	}
	index, err := l.index()
	if err != nil {
		return "", nil, err
	}
	var names []string
	var found *v1.Descriptor
	for i := range index.Manifests {
		d := &index.Manifests[i]
		name := d.Annotations[v1.AnnotationRefName]
		if name == "" {
			name = d.Digest.String()
		}
		names = append(names, name)
		if name == reference {
			found = d
		}
	}
	if reference == "" && len(index.Manifests) == 1 {
		found = &index.Manifests[0]
	}
	if found == nil {
		return "", nil, fmt.Errorf("%s: want one of its %d images: %s", l.dir, len(names), strings.Join(names[:min(len(names), 8)], ", "))
	}
	content, err := l.document(found.Digest.String())
	return found.MediaType, content, err
}

// Referrers implements Place: a folder lists all of its manifests in its index.
func (l *Layout) Referrers(_ context.Context, digest string) ([]byte, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var found v1.Index
	for _, d := range index.Manifests {
		content, err := l.document(d.Digest.String())
		if err != nil {
			continue // a manifest that is not there refers to nothing
		}
		var m v1.Manifest
		if json.Unmarshal(content, &m) == nil && m.Subject != nil && m.Subject.Digest.String() == digest {
			found.Manifests = append(found.Manifests, d)
		}
	}
	return json.Marshal(found)
}

func (l *Layout) index() (*v1.Index, error) {
	content, err := readFile(filepath.Join(l.dir, v1.ImageIndexFile))
	if err != nil {
		return nil, fmt.Errorf("%s is no OCI layout: %w", l.dir, err)
	}
	index := new(v1.Index)
	if err := json.Unmarshal(content, index); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(l.dir, v1.ImageIndexFile), err)
	}
	return index, nil
}

// document reads a manifest or index of the folder by its digest.
func (l *Layout) document(digest string) ([]byte, error) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || !isHex(hex) {
		return nil, fmt.Errorf("%s: digest %q is not sha256 and 64 hex digits", l.dir, digest)
	}
	content, err := readFile(filepath.Join(l.dir, "blobs", "sha256", hex))
	if err == nil && digestOf(content) != digest {
		err = fmt.Errorf("%s: the manifest %s has another digest", l.dir, digest)
	}
	return content, err
}

func readFile(path string) ([]byte, error) {
	f, err := hostfs.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(content) > maxDocument {
		err = fmt.Errorf("%s: more than %d bytes", path, maxDocument)
	}
	return content, err
}
