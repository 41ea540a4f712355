package packaging_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/blobstore/backend/registry"
	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/packaging"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bootstrap stands for one: this package does not look into it.
var bootstrap = bytes.Repeat([]byte("bootstrap "), 1000)

// layer is a bootstrap layer: a tar with the bootstrap at path.
func layer(path string, compress func([]byte) []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "image/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "image/backend.json", Typeflag: tar.TypeReg, Size: 2, Mode: 0o444},
		{Name: path, Typeflag: tar.TypeReg, Size: int64(len(bootstrap)), Mode: 0o444},
	} {
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		content := []byte("{}")
		if h.Name == path {
			content = bootstrap
		}
		if _, err := w.Write(content[:h.Size]); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return compress(b.Bytes())
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func zstded(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func plain(b []byte) []byte { return b }

var nydus = map[string]string{"containerd.io/snapshot/nydus-bootstrap": "true", "containerd.io/snapshot/nydus-fs-version": "6"}

func descriptor(content []byte, annotations map[string]string) v1.Descriptor {
	return v1.Descriptor{
		MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(content), Size: int64(len(content)), Annotations: annotations,
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// stage is a registry to put images into, as a Place.
type stage struct {
	*testregistry.Registry
	place registry.Images
}

func newStage(t *testing.T, o testregistry.Options) *stage {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	p, err := registry.New(registry.Options{Scheme: "http", Host: r.Host(), Repo: "app"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return &stage{r, p.(registry.Images)}
}

// put adds an image of the layers, the last of which has annotations.
func (s *stage) put(tag string, last []byte, annotations map[string]string, change func(*v1.Manifest)) string {
	s.AddBlob(last)
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{descriptor([]byte("data"), nil), descriptor(last, annotations)}}
	if change != nil {
		change(&m)
	}
	return s.AddManifest("app", tag, m.MediaType, encode(m))
}

func (s *stage) index(tag string, entries ...v1.Descriptor) {
	s.AddManifest("app", tag, v1.MediaTypeImageIndex, encode(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: entries}))
}

func read(t *testing.T, p packaging.Place, reference string) (*packaging.Image, string, error) {
	t.Helper()
	img, err := packaging.Find(t.Context(), p, reference)
	if err != nil {
		return nil, "", err
	}
	b, err := img.ReadBootstrap(t.Context(), p, "name")
	if err != nil {
		return img, "", err
	}
	content := string(b.Data())
	if b.Path() != "name" {
		t.Errorf("the bootstrap is called %q", b.Path())
	}
	return img, content, b.Close()
}

func TestFind(t *testing.T) {
	s := newStage(t, testregistry.Options{})
	linux := func(arch string, features ...string) *v1.Platform {
		return &v1.Platform{OS: "linux", Architecture: arch, OSFeatures: features}
	}
	s.put("gzip", layer("image/image.boot", gzipped), nydus, nil)
	s.put("zstd", layer("./image/image.boot", zstded), nydus, nil)
	s.put("tar", layer("image/image.boot", plain), nydus, nil)
	s.put("old", layer("image.boot", gzipped), nydus, nil)
	s.put("docker", layer("image/image.boot", gzipped), nydus, func(m *v1.Manifest) {
		m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	})
	rafs6 := s.put("rafs", layer("image/image.boot", gzipped), nydus, func(m *v1.Manifest) { m.Annotations = map[string]string{"x": "y"} })
	other := s.put("other", layer("other", gzipped), nydus, nil)
	ordinary := s.put("ordinary", []byte("an ordinary layer"), nil, nil)
	entry := func(digestOf string, p *v1.Platform) v1.Descriptor {
		return v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(digestOf), Platform: p}
	}
	s.index("platform", entry(other, linux("s390x")), entry(rafs6, linux(runtime.GOARCH)))
	s.index("marked", entry(ordinary, linux(runtime.GOARCH)), entry(rafs6, linux(runtime.GOARCH, "nydus.remoteimage.v1")))
	s.index("single", entry(rafs6, nil))
	artifact := entry(rafs6, linux(runtime.GOARCH))
	artifact.ArtifactType = "application/vnd.nydus.image.manifest.v1+json"
	s.index("artifact", entry(ordinary, linux(runtime.GOARCH)), artifact)
	for _, tag := range []string{"gzip", "zstd", "tar", "old", "docker", "rafs", rafs6, "platform", "marked", "single", "artifact"} {
		img, content, err := read(t, s.place, tag)
		if err != nil {
			t.Errorf("%s: %v", tag, err)
		} else if content != string(bootstrap) || img.Version != "6" || img.Subject != "" {
			t.Errorf("%s: %+v with %d bytes", tag, img, len(content))
		}
	}
}

// TestReferrer: an ordinary image leads to the RAFS image that refers to it, by
// the API or by the tag that stands for it.
func TestReferrer(t *testing.T) {
	for _, without := range []bool{false, true} {
		s := newStage(t, testregistry.Options{NoReferrers: without})
		subject := s.put("app", []byte("an ordinary layer"), nil, nil)
		referrer := s.put("ref", layer("image/image.boot", gzipped), nydus, func(m *v1.Manifest) {
			m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(subject)}
		})
		s.put("signature", []byte("a signature"), nil, func(m *v1.Manifest) {
			m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(subject)}
		})
		if without {
			s.index(strings.Replace(subject, ":", "-", 1), v1.Descriptor{Digest: digest.Digest(referrer)})
		}
		img, content, err := read(t, s.place, "app")
		if err != nil {
			t.Fatal(err)
		}
		if img.Digest != referrer || img.Subject != subject || content != string(bootstrap) {
			t.Errorf("without the API: %v: %+v", without, img)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	s := newStage(t, testregistry.Options{})
	good := layer("image/image.boot", gzipped)
	s.put("ordinary", []byte("layer"), nil, nil)
	s.put("no-bootstrap", layer("other", gzipped), nydus, nil)
	s.put("encrypted", good, nydus, func(m *v1.Manifest) { m.Layers[1].MediaType += "+encrypted" })
	s.put("not-there", good, nydus, func(m *v1.Manifest) { m.Layers[1].Digest = digest.FromString("nothing") })
	s.put("cut", good[:len(good)/2], nydus, nil)
	s.put("no-digest", good, nydus, func(m *v1.Manifest) { m.Layers[1].Digest = "sha256" })
	s.put("huge", good, nydus, func(m *v1.Manifest) { m.Layers[1].Size = 1 << 40 })
	s.put("no-layers", good, nil, func(m *v1.Manifest) { m.Layers = nil })
	s.AddManifest("app", "text", v1.MediaTypeImageManifest, []byte("text"))
	s.index("foreign", v1.Descriptor{Digest: digest.FromString("x"), Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
		v1.Descriptor{Digest: digest.FromString("y"), Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}})
	s.index("nested", v1.Descriptor{Digest: digest.FromBytes(encode(v1.Index{MediaType: v1.MediaTypeImageIndex}))})
	s.AddManifest("app", "empty", v1.MediaTypeImageIndex, encode(v1.Index{MediaType: v1.MediaTypeImageIndex}))
	// A blob of that digest with other bytes.
	bad := append(bytes.Clone(good), 'x')
	sum := sha256.Sum256(bad)
	s.put("changed", bad, nydus, nil)
	s.AddBlobAs(hex.EncodeToString(sum[:]), append(bytes.Clone(good), 'y'))
	for reference, says := range map[string]string{
		"ordinary": "has no annotation containerd.io/snapshot/nydus-bootstrap", "no-bootstrap": "no image/image.boot",
		"encrypted": "is encrypted", "not-there": "404", "cut": "unexpected EOF", "no-digest": "want sha256", "huge": "want sha256 and at most",
		"no-layers": "has no annotation", "text": "its manifest", "foreign": "none of the 2 entries", "nested": "an index of indexes",
		"changed": "another digest", "none": "404", "a/b": "neither a tag", "sha256:00": "neither a tag",
	} {
		if _, _, err := read(t, s.place, reference); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line that says %q", reference, err, says)
		}
	}
	if _, _, err := read(t, s.place, "encrypted"); !errors.Is(err, rafs.ErrUnsupported) {
		t.Errorf("encrypted: %v", err)
	}
}

// TestLayout reads a folder with an OCI layout.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(content []byte) v1.Descriptor {
		d := descriptor(content, nil)
		if err := os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), content, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	writeIndex := func(manifests ...v1.Descriptor) {
		if err := os.WriteFile(filepath.Join(dir, "index.json"), encode(v1.Index{Manifests: manifests}), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	boot := put(layer("image/image.boot", gzipped))
	boot.Annotations = maps.Clone(nydus)
	ordinary := put(encode(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{put([]byte("layer"))}}))
	image := put(encode(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{boot}}))
	referrer := put(encode(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{boot}, Subject: &ordinary}))
	image.MediaType, ordinary.MediaType = "", ""
	writeIndex(image)
	l, err := packaging.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, reference := range []string{"", image.Digest.String()} {
		if _, content, err := read(t, l, reference); err != nil || content != string(bootstrap) {
			t.Errorf("%q: %v", reference, err)
		}
	}
	image.Annotations = map[string]string{v1.AnnotationRefName: "v1"}
	ordinary.Annotations = map[string]string{v1.AnnotationRefName: "v0"}
	writeIndex(image, ordinary, referrer)
	if img, _, err := read(t, l, "v1"); err != nil || img.Digest != image.Digest.String() {
		t.Errorf("v1: %+v, %v", img, err)
	}
	if img, _, err := read(t, l, "v0"); err != nil || img.Digest != referrer.Digest.String() {
		t.Errorf("v0: %+v, %v", img, err)
	}
	for reference, says := range map[string]string{"": "one of its 3 images: v1, v0, sha256:", "v9": "one of its 3 images", "sha256:../../etc/passwd": "not sha256"} {
		if _, _, err := read(t, l, reference); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", reference, err, says)
		}
	}
	if _, err := packaging.OpenLayout(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no OCI layout") {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for s, want := range map[string]string{
		"registry.example/app":                      "registry.example/app:latest",
		"registry.example/a/b/c:v1":                 "registry.example/a/b/c:v1",
		"localhost/app:1":                           "localhost/app:1",
		"registry.example:5000/app@sha256:" + hex:   "registry.example:5000/app@sha256:" + hex,
		"registry.example:5000/app:x@sha256:" + hex: "registry.example:5000/app@sha256:" + hex,
		"127.0.0.1:5000/app":                        "127.0.0.1:5000/app:latest",
	} {
		if r, err := packaging.ParseReference(s); err != nil || r.String() != want {
			t.Errorf("%s: %v, %v, want %s", s, r, err, want)
		}
	}
	for _, s := range []string{"", "app", "library/app:1", "registry.example/", "registry.example/app:", "registry.example/app@sha256:00", "registry.example/app@md5:" + hex} {
		if r, err := packaging.ParseReference(s); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, %v, want an error", s, r, err)
		}
	}
	var loopback []string
	for _, host := range []string{"localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000", "registry.example", "10.0.0.1:5000"} {
		if (packaging.Reference{Host: host}).Loopback() {
			loopback = append(loopback, host)
		}
	}
	if want := []string{"localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000"}; !slices.Equal(loopback, want) {
		t.Errorf("loopback: %v, want %v", loopback, fmt.Sprint(want))
	}
}
