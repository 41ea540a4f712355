package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/shim-integration/config"
)

func localConfig(t *testing.T, workDir string) *config.Config {
	t.Helper()
	c, err := config.Parse(fmt.Sprintf(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/b"}},
		"cache":{"type":"filecache","filecache":{"work_dir":%q}},"rafs":{}}`, workDir))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStoresAreShared(t *testing.T) {
	i := newImages(Options{Log: slog.New(slog.DiscardHandler)}, func(bool, string) {})
	dir, other := t.TempDir(), t.TempDir()
	a, releaseA, err := i.stores.acquire(localConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	b, releaseB, err := i.stores.acquire(localConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	c, releaseC, err := i.stores.acquire(localConfig(t, other))
	if err != nil {
		t.Fatal(err)
	}
	if a != b || a == c {
		t.Errorf("equal configurations share a store: %v; different ones do: %v", a == b, a == c)
	}
	for _, release := range []func() error{releaseA, releaseA, releaseC} { // twice is once
		if err := release(); err != nil {
			t.Error(err)
		}
	}
	if d, releaseD, err := i.stores.acquire(localConfig(t, dir)); err != nil || d != b {
		t.Errorf("the store was closed although it has a user: %v", err)
	} else if err := releaseD(); err != nil {
		t.Error(err)
	}
	if err := releaseB(); err != nil {
		t.Error(err)
	}
	if n := len(i.stores.refs); n != 0 {
		t.Errorf("%d stores are left", n)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

func TestAStoreThatDoesNotOpen(t *testing.T) {
	i := newImages(Options{Log: slog.New(slog.DiscardHandler)}, func(bool, string) {})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, _, err := i.stores.acquire(localConfig(t, "/proc/nothing/here")); err == nil || !strings.Contains(err.Error(), "/proc/nothing") {
				t.Errorf("acquire: %v, want an error that names the folder", err)
			}
		})
	}
	wg.Wait()
	if n := len(i.stores.refs); n != 0 {
		t.Errorf("%d stores are left", n)
	}
}

func TestCacheDir(t *testing.T) {
	none, err := config.Parse(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/b"}},"rafs":{}}`)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("the configuration's", func(t *testing.T) {
		i := newImages(Options{Cache: config.CacheSettings{Dir: "/ours"}}, func(bool, string) {})
		if dir, err := i.cacheDir(localConfig(t, "/theirs")); err != nil || dir != "/theirs" {
			t.Errorf("%s, %v", dir, err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		i := newImages(Options{Cache: config.CacheSettings{Dir: "/ours"}}, func(bool, string) {})
		if dir, err := i.cacheDir(none); err != nil || dir != "/ours" {
			t.Errorf("%s, %v", dir, err)
		}
	})
	t.Run("temporary", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		i := newImages(Options{}, func(bool, string) {})
		first, err := i.cacheDir(none)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := i.cacheDir(none); err != nil || second != first {
			t.Errorf("a second one, %s after %s, %v", second, first, err)
		}
		if info, err := os.Stat(first); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(first); err == nil {
			t.Error("it is still there after Close")
		}
	})
}

// TestSecretsStayInTheBackend: no error of a configuration that a back-end
// refuses repeats its credentials.
func TestConfigSpace(t *testing.T) {
	long := strings.Repeat("x", 36)
	if got, want := string(ConfigSpace("tag", 0x01020304)), "tag"+strings.Repeat("\x00", 33)+"\x04\x03\x02\x01"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := ConfigSpace(long, 1); len(got) != 40 || string(got[:36]) != long {
		t.Errorf("a tag of 36 bytes: %q", got)
	}
}
