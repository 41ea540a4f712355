package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/testregistry"
)

// shippedDir is the folder of what shipped built; TestMain removes it.
var shippedDir string

// shipped returns the path of rafsd as it is shipped: without race detector,
// which multiplies memory and time.
var shipped = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rafsd-bin")
	if err != nil {
		return "", err
	}
	shippedDir = dir
	path := filepath.Join(dir, "rafsd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func launchShipped(t *testing.T, args ...string) *process {
	t.Helper()
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	return launch(t, options{binary: binary}, args...)
}

const mib = 1 << 20

// TestMemory holds the daemon to what it may cost a pod: less than 32 MiB with
// one image, less than 128 MiB with a hundred, and no growth from images that
// come and go.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := launchShipped(t, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	t.Logf("ready %v after exec", p.ready())
	measure := func(what string, most int64) {
		t.Helper()
		got := rssAnon(t, p.cmd.Process.Pid)
		t.Logf("RssAnon %s: %.1f MiB", what, float64(got)/mib)
		if got > most {
			t.Errorf("RssAnon %s: %d, want at most %d", what, got, most)
		}
	}
	work := shortDir(t)
	p.mount("/one", v.bootstrap, registryConfig(r, work, ""))
	measure("with one image", 32*mib)
	_, c := p.guest()
	ctx := testContext(t)
	for _, file := range filesOfDifferentChunks(t, v) {
		if err := tryFile(ctx, c, "/one", file); err != nil {
			t.Fatal(err)
		}
	}
	measure("with one image that was read", 32*mib)
	p.info()
	measure("after its state was asked for", 32*mib)

	// A hundred images, each with a configuration of its own, as a node has them.
	// All are of one tree.
	variants, err := filepath.Glob(filepath.Join(corpus.Dir(t), "images", "v*-dir-*-*-small", "bootstrap"))
	if err != nil || len(variants) == 0 {
		t.Fatal(variants, err)
	}
	variants = slices.DeleteFunc(variants, func(path string) bool { return strings.Contains(path, "external") })
	var mounts []string
	for i := 0; len(mounts) < 99; i++ {
		bootstrap, at := variants[i%len(variants)], fmt.Sprintf("/rafs/c%d/lowerdir", i)
		config := localConfig(filepath.Join(filepath.Dir(bootstrap), "blobs"), filepath.Join(work, fmt.Sprint(i)))
		status, body := p.tryMount(at, bootstrap, config)
		switch {
		case status == 204:
			mounts = append(mounts, at)
		case i > 10*len(variants):
			t.Fatalf("%d mounts of %d tries, the last: %s", len(mounts), i, body)
		}
	}
	p.info()
	measure("with 100 images", 128*mib)
	for _, at := range mounts {
		if err := tryFile(ctx, c, at, someFile(t, v)); err != nil {
			t.Error(err)
		}
	}
	measure("with 100 images that were read", 128*mib)
	for range 50 { // L32
		p.mount("/again", v.bootstrap, registryConfig(r, work, ""))
		if status, body := p.call("DELETE", "/api/v1/mount?mountpoint=/again", ""); status != 204 {
			t.Fatalf("%d %s", status, body)
		}
	}
	measure("after 50 more came and went", 128*mib)
	p.stop(syscall.SIGTERM)
}

// TestBigImage: L26 and L27. 100,000 inodes, and a registry that nobody reaches.
func TestBigImage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and a big image")
	}
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			img, err := testimage.Wide(100_000, 500).Write(filepath.Join(t.TempDir(), "image"),
				testimage.Options{Version: version, ChunkSize: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			r, err := testregistry.Start(testregistry.Options{})
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			p := launchShipped(t, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
			p.ready()
			start := time.Now()
			p.mount("/big", img.Bootstrap, registryConfig(r, shortDir(t), ""))
			took := time.Since(start)
			t.Logf("mounted after %v, RssAnon %.1f MiB", took, float64(rssAnon(t, p.cmd.Process.Pid))/mib)
			if took > slack(time.Second) {
				t.Errorf("mount of 100,000 inodes took %v", took)
			}
			_, c := p.guest()
			if _, err := c.Resolve(testContext(t), "/big/00199/00099999"); err != nil {
				t.Error(err)
			}
			p.stop(syscall.SIGTERM)
		})
	}
}
