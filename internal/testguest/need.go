package testguest

import (
	"os"
	"testing"
)

// Need prepares a guest for a test and returns its configuration with the defaults
// filled in. Where its packages cannot be had, the test is skipped loudly; with
// RAFSD_REQUIRE_GUEST=1 it fails, so that a green run cannot mean that no guest was
// booted.
func Need(t testing.TB, c Config) Config {
	t.Helper()
	prepared, err := Prepare(t.Context(), c)
	if err == nil {
		return prepared
	}
	if os.Getenv("RAFSD_REQUIRE_GUEST") == "1" {
		t.Fatalf("guest %s is required and cannot be had: %v", c, err)
	}
	t.Skipf("SKIPPED, NO GUEST BOOTED: %s cannot be had: %v", c, err)
	return c
}
