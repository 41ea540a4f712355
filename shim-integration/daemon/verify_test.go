package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// TestVerifyMetadata: with the mount's own key, an image of v5 whose digests do
// not hold up to the root is not mounted, and one of v6, which has none, neither.
func TestVerifyMetadata(t *testing.T) {
	write := func(version testimage.Version) *testimage.Image {
		img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	sound, v6 := write(testimage.V5), write(testimage.V6)
	b, err := os.ReadFile(sound.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b[sound.Layout.Inodes.Offset] ^= 1 // of the root's digest
	bad := filepath.Join(t.TempDir(), "bad.boot")
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	images := newImages(Options{Log: slog.New(slog.DiscardHandler)}, func(bool, string) {})
	for _, tt := range []struct {
		bootstrap, blobs string
		verify           bool
		says             string // of the refusal; empty = mounted
	}{
		{sound.Bootstrap, sound.BlobDir, true, ""},
		{bad, sound.BlobDir, false, ""},
		{bad, sound.BlobDir, true, "digest"},
		{v6.Bootstrap, v6.BlobDir, false, ""},
		{v6.Bootstrap, v6.BlobDir, true, "inodes of v6 have no digests"},
	} {
		c, err := config.Parse(fmt.Sprintf(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":%q}},
			"cache":{"type":"blobcache","filecache":{"work_dir":%q}},"rafs":{"verify_metadata":%v}}`, tt.blobs, t.TempDir(), tt.verify))
		if err != nil {
			t.Fatal(err)
		}
		fs, stop, err := images.openImage(t.Context(), bootstrap{path: tt.bootstrap}, c)
		if err == nil {
			stop()
			err = fs.(*image).Close()
			if err == nil && tt.says == "" {
				continue
			}
		}
		if tt.says == "" || err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s, verify %v: %v, want %q", filepath.Base(tt.bootstrap), tt.verify, err, tt.says)
		}
	}
	if err := images.Close(); err != nil {
		t.Error(err)
	}
}
