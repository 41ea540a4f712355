package packaging_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/rafs/packaging"
)

// fuzzPlace is a place that answers everything with the fuzzer's bytes.
type fuzzPlace struct{ manifest, referrers, layer []byte }

func (p *fuzzPlace) Manifest(_ context.Context, reference string) (string, []byte, error) {
	if reference == "" {
		return "", nil, errors.New("no reference")
	}
	return "", p.manifest, nil
}
func (p *fuzzPlace) Referrers(context.Context, string) ([]byte, error) { return p.referrers, nil }
func (p *fuzzPlace) Blob(string) (backend.Source, error)               { return p, nil }
func (p *fuzzPlace) Name() string                                      { return "fuzz" }
func (p *fuzzPlace) Close() error                                      { return nil }
func (p *fuzzPlace) Size(context.Context) (int64, error)               { return int64(len(p.layer)), nil }
func (p *fuzzPlace) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p.layer)), nil
}

// FuzzFind reads hostile manifests, indexes and lists of referrers, and the
// layers that they lead to.
func FuzzFind(f *testing.F) {
	good := layer("image/image.boot", gzipped)
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{descriptor(good, nydus)}}
	f.Add(encode(m), []byte(nil), good)
	f.Add(encode(v1.Manifest{}), encode(v1.Index{Manifests: []v1.Descriptor{{Digest: digest.FromBytes(good)}}}), good)
	f.Add(encode(v1.Index{Manifests: []v1.Descriptor{{Digest: "sha256"}, {Platform: &v1.Platform{}}}}), []byte("{}"), zstded(good))
	m.Layers[0].Digest = ":"
	f.Add(encode(m), []byte("[]"), plain(good))
	f.Fuzz(func(t *testing.T, manifest, referrers, layer []byte) {
		p := &fuzzPlace{manifest, referrers, layer}
		img, err := packaging.Find(t.Context(), p, "tag")
		if err != nil {
			return
		}
		b, err := img.ReadBootstrap(t.Context(), p, "name")
		if err == nil {
			err = b.Close()
			if img.Bootstrap.Digest != digest.FromBytes(layer) {
				t.Errorf("a bootstrap of a layer of another digest")
			}
		}
		if err != nil && strings.Contains(err.Error(), "\x00") {
			t.Errorf("%q", err)
		}
	})
}

// FuzzReference: what is a reference can be printed and read again.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"registry.example/app:v1", "localhost/a/b@sha256:" + strings.Repeat("0", 64), "a:b/c:d@e", "[::1]:5/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := packaging.ParseReference(s)
		if err != nil {
			return
		}
		if again, err := packaging.ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q is %+v, printed and read %+v, %v", s, r, again, err)
		}
	})
}
