package vmm_test

import (
	"runtime"
	"testing"
	"time"
)

// waitFor waits for what another goroutine or process brings about.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}
