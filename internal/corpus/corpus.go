// Package corpus finds the corpus of reference images that lives beside the
// project, for tests only.
//
// A public clone has no corpus: tests that need it then skip and say so. Where
// the corpus must be there (our CI), RAFSD_REQUIRE_SHARED=1 turns the skip into
// a failure, so that a green run can never mean "nothing was compared".
package corpus

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Dir returns the folder of the corpus. It skips t when there is none, or fails
// it when RAFSD_REQUIRE_SHARED=1. RAFSD_SHARED names the folder that holds
// "corpus"; its default is "../shared" seen from the module's root.
func Dir(t testing.TB) string {
	t.Helper()
	shared := os.Getenv("RAFSD_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "shared")
	}
	if !filepath.IsAbs(shared) {
		shared = filepath.Join(moduleRoot(), shared)
	}
	dir := filepath.Join(shared, "corpus")
	if _, err := os.Stat(filepath.Join(dir, "images")); err != nil {
		if os.Getenv("RAFSD_REQUIRE_SHARED") == "1" {
			t.Fatalf("the corpus is required and not there: %v", err)
		}
		t.Skipf("SKIPPED, NOTHING COMPARED: no corpus of images (set RAFSD_SHARED): %v", err)
	}
	return dir
}

// moduleRoot is the folder of go.mod, found from the place of this file.
func moduleRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
