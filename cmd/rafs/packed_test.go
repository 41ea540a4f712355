package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testregistry"
)

// bootstrapLayer is the last layer of a packed image.
func bootstrapLayer(t *testing.T, bootstrap string) []byte {
	t.Helper()
	content, err := os.ReadFile(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range []*tar.Header{
		{Name: "image/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "image/image.boot", Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o444},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func encode(t *testing.T, doc any) []byte {
	t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func descriptor(mediaType string, content []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// rafsManifest is the manifest of an image whose bootstrap is in layer.
func rafsManifest(t *testing.T, layer []byte, subject *v1.Descriptor) []byte {
	t.Helper()
	last := descriptor(v1.MediaTypeImageLayerGzip, layer)
	last.Annotations = map[string]string{"containerd.io/snapshot/nydus-bootstrap": "true", "containerd.io/snapshot/nydus-fs-version": "6"}
	return encode(t, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{last}, Subject: subject,
	})
}

// blobsOf returns all files of a variant's blobs.
func blobsOf(t *testing.T, v corpus.Variant) map[string][]byte {
	t.Helper()
	dir := v.Blobs(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[string][]byte{}
	for _, e := range entries {
		if blobs[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return blobs
}

// is compares the manifest of an image with the truth.
func isTruth(t *testing.T, v corpus.Variant, args ...string) {
	t.Helper()
	got, err := manifest.Parse([]byte(ok(t, append([]string{"manifest"}, args...)...)))
	if err != nil {
		t.Fatal(err)
	}
	if d := manifest.Compare(got, v.Truth(t), manifest.Options{MountTimes: manifest.MountTimesEpoch}); !d.Equal() {
		t.Error(d)
	}
}

// TestImageInRegistry reads an image by its name, from a registry that wants the
// credentials that docker keeps.
func TestImageInRegistry(t *testing.T) {
	const user, password = "reader", "CANARY-password"
	v := variant(t, "v6-merge3-zstd-oci")
	r, err := testregistry.Start(testregistry.Options{Auth: testregistry.Bearer, User: user, Password: password, Redirect: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for id, data := range blobsOf(t, v) {
		r.AddBlobAs(id, data)
	}
	layer := bootstrapLayer(t, v.Bootstrap)
	r.AddBlob(layer)
	pinned := r.AddManifest("team/app", "v1", v1.MediaTypeImageManifest, rafsManifest(t, layer, nil))
	login := func(password string) {
		dir := t.TempDir()
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		text := `{"auths":{"` + r.Host() + `":{"auth":"` + auth + `"}}}`
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_CONFIG", dir)
	}
	login(password)
	image := r.Host() + "/team/app:v1"
	isTruth(t, v, image)
	isTruth(t, v, r.Host()+"/team/app@"+pinned)
	isTruth(t, v, "-B", "docker://"+image)
	if out := ok(t, "check", image, "--data"); !strings.HasPrefix(out, image+": RAFS v6") || !strings.Contains(out, "metadata and data are sound") {
		t.Errorf("check: %q", out)
	}
	if out := ok(t, "ls", image, "/"); out != ok(t, "ls", "-B", v.Bootstrap, "/") || out == "" {
		t.Errorf("ls: %q", out)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if r := runRafs(t, "unpack", image, "-o", archive); r.code != 0 {
		t.Errorf("unpack: %+v", r)
	}
	fails(t, 1, []string{"404"}, "ls", r.Host()+"/team/app:none")
	fails(t, 1, []string{"404"}, "ls", r.Host()+"/team/none:v1")
	login("CANARY-wrong")
	if bad := runRafs(t, "ls", image); bad.code != 1 || strings.Contains(bad.stderr, "CANARY") || strings.Count(bad.stderr, "\n") != 1 {
		t.Errorf("wrong password: %+v", bad)
	}
	fails(t, 1, []string{"no such file, and no image"}, "ls", "app:v1")
}

// TestZranThroughReferrers reads an ordinary image by the RAFS image that refers
// to it and to its layers.
func TestZranThroughReferrers(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	v := variant(t, "v6-merge3-targz-ref-oci")
	r, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var layers []v1.Descriptor
	for id, data := range blobsOf(t, v) {
		r.AddBlobAs(id, data)
		if bytes.HasPrefix(data, []byte{0x1F, 0x8B}) {
			layers = append(layers, descriptor(v1.MediaTypeImageLayerGzip, data))
		}
	}
	ordinary := encode(t, v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.DescriptorEmptyJSON, Layers: layers})
	r.AddManifest("app", "v1", v1.MediaTypeImageManifest, ordinary)
	layer := bootstrapLayer(t, v.Bootstrap)
	r.AddBlob(layer)
	image := r.Host() + "/app:v1"
	fails(t, 1, []string{image, "not a RAFS image", "none of the 0 that refer to it"}, "ls", image)
	subject := descriptor(v1.MediaTypeImageManifest, ordinary)
	r.AddManifest("app", "zran", v1.MediaTypeImageManifest, rafsManifest(t, layer, &subject))
	isTruth(t, v, image)
	if out := ok(t, "check", image, "--data"); !strings.Contains(out, "metadata and data are sound") {
		t.Errorf("check: %q", out)
	}
}

// TestImageInLayout reads an image in a folder with an OCI layout.
func TestImageInLayout(t *testing.T) {
	v := variant(t, "v6-merge3-zstd-oci")
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	v.LinkBlobs(t, blobs)
	put := func(content []byte) v1.Descriptor {
		d := descriptor(v1.MediaTypeImageManifest, content)
		if err := os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), content, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer := bootstrapLayer(t, v.Bootstrap)
	put(layer)
	m := put(rafsManifest(t, layer, nil))
	m.Annotations = map[string]string{v1.AnnotationRefName: "v1"}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), encode(t, v1.Index{Manifests: []v1.Descriptor{m}}), 0o644); err != nil {
		t.Fatal(err)
	}
	isTruth(t, v, "oci:"+dir)
	isTruth(t, v, "-B", "oci:"+dir+":v1")
	fails(t, 1, []string{"want one of its 1 images: v1"}, "ls", "oci:"+dir+":v2")
	fails(t, 1, []string{"no OCI layout"}, "ls", "oci:"+t.TempDir())
}
