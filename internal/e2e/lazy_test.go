package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/testregistry"
)

// TestGuestReadsLazily: in a real guest the first small file costs one range read
// of the blob, of at most the amplification and one chunk; the second read costs
// none, and neither does one by another guest of another daemon on the same cache.
func TestGuestReadsLazily(t *testing.T) {
	const most = 1<<20 + 1<<20
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	v := namedVariant(t, "v6-dir-zstd-rootfs")
	registry, blob := serveBlob(t, v)
	cache := t.TempDir()
	conf := config(map[string]any{"type": "registry", "registry": map[string]any{
		"scheme": "http", "host": registry.Host(), "repo": "library/rootfs",
	}}, cache)

	read := func(script string) string {
		d := start(t, "--tag", tag)
		d.mount(t, "/image", v.Bootstrap, conf)
		if n := registry.Counts(blob).Ranges; n != 0 && script == first {
			t.Fatalf("the mount alone read %d ranges", n)
		}
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: tag, MountAt: "/mnt"}}
		c.Script = script
		out := boot(t, c).Output
		d.stop(t)
		return out
	}
	if out := read(first); strings.Count(out, "root:*:0:0") != 2 {
		t.Fatalf("the guest read %q", out)
	}
	if n := registry.Counts(blob); n.Ranges != 1 || n.Bytes > most {
		t.Errorf("one small file cost %d range reads and %d bytes, want 1 and at most %d", n.Ranges, n.Bytes, most)
	}
	if out := read("cat /mnt/image/etc/passwd"); strings.Count(out, "root:*:0:0") != 1 {
		t.Fatalf("the second guest read %q", out)
	}
	if n := registry.Counts(blob); n.Ranges != 1 {
		t.Errorf("after a restart: %d range reads, want the one of before", n.Ranges)
	}
}

// first reads one small file twice, the second time not from the guest's cache.
const first = `
cat /mnt/image/etc/passwd
echo 3 > /proc/sys/vm/drop_caches
cat /mnt/image/etc/passwd
`

func namedVariant(t *testing.T, name string) corpus.Variant {
	t.Helper()
	for _, v := range corpus.Variants(t) {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("the corpus has no %s", name)
	return corpus.Variant{}
}

// serveBlob starts a registry that holds the one blob of an image.
func serveBlob(t *testing.T, v corpus.Variant) (*testregistry.Registry, string) {
	t.Helper()
	r, err := testregistry.Start(testregistry.Options{Auth: testregistry.Bearer, Redirect: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	blobs, err := filepath.Glob(filepath.Join(filepath.Dir(v.Bootstrap), "blobs", "*"))
	if err != nil || len(blobs) != 1 {
		t.Fatalf("%s has %d blobs, %v", v.Name, len(blobs), err)
	}
	data, err := os.ReadFile(blobs[0])
	if err != nil {
		t.Fatal(err)
	}
	id := filepath.Base(blobs[0])
	r.AddBlobAs(id, data)
	return r, id
}
