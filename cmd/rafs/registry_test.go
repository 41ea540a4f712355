package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/testregistry"
)

// TestRegistry reads an image whose blob is in a registry that wants credentials,
// and tells nobody what they are.
func TestRegistry(t *testing.T) {
	const user, password = "reader", "CANARY-password"
	dir := t.TempDir()
	sampleImage(t, dir)
	r, err := testregistry.Start(testregistry.Options{Auth: testregistry.Bearer, User: user, Password: password, Redirect: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "*"))
	if err != nil || len(blobs) != 1 {
		t.Fatalf("blobs %v, %v", blobs, err)
	}
	data, err := os.ReadFile(blobs[0])
	if err != nil {
		t.Fatal(err)
	}
	r.AddBlobAs(filepath.Base(blobs[0]), data)
	boot := filepath.Join(dir, "image.boot")
	conf := func(name, password string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf(`{"version":2,"backend":{"type":"registry","registry":{"scheme":"http","host":%q,"repo":"app","auth":%q}},"rafs":{}}`,
			r.Host(), base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := conf("good.json", password)
	if out := ok(t, "cat", "-B", boot, "-C", good, "/etc/hosts"); out != "127.0.0.1 localhost\n" {
		t.Errorf("cat: %q", out)
	}
	if out := ok(t, "check", "-B", boot, "-C", good, "--data"); !strings.Contains(out, "metadata and data are sound") {
		t.Errorf("check: %q", out)
	}
	if !strings.Contains(ok(t, "manifest", "-B", boot, "-C", good), "/usr/bin/true f 0755 ") {
		t.Error("manifest lacks /usr/bin/true")
	}
	bad := runRafs(t, "cat", "-B", boot, "-C", conf("bad.json", "CANARY-wrong"), "/etc/hosts")
	if bad.code != 1 || strings.Contains(bad.stderr, "CANARY") || !strings.Contains(bad.stderr, filepath.Base(blobs[0])) {
		t.Errorf("wrong password: exit code %d, stderr %q", bad.code, bad.stderr)
	}
}

// TestEveryKindOfFile packs and lists images of every kind of file with gzip chunks,
// which the corpus lacks.
func TestEveryKindOfFile(t *testing.T) {
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Version: version, Compressor: testimage.Gzip})
		if err != nil {
			t.Fatal(err)
		}
		want, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		got, err := manifest.Parse([]byte(ok(t, "manifest", "-B", img.Bootstrap, "-D", img.BlobDir)))
		if err != nil {
			t.Fatal(err)
		}
		if d := manifest.Compare(got, want, manifest.Options{}); !d.Equal() {
			t.Errorf("v%d: manifest:\n%s", version, d)
		}
		r := runRafs(t, "unpack", "-B", img.Bootstrap, "-D", img.BlobDir, "-o", "-")
		if r.code != 0 {
			t.Fatalf("v%d: exit code %d: %s", version, r.code, r.stderr)
		}
		want = slices.DeleteFunc(want, func(e manifest.Entry) bool { return e.Type == manifest.Socket })
		if d := manifest.Compare(readTar(t, r.stdout), want, manifest.Options{}); !d.Equal() {
			t.Errorf("v%d: archive:\n%s", version, d)
		}
	}
}
