package main

import (
	"os"
	"strings"
	"testing"
)

// TestManualHasEveryOption: docs/rafsd.md names every option of `rafsd virtiofs`.
func TestManualHasEveryOption(t *testing.T) {
	page, err := os.ReadFile("../../docs/rafsd.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range virtiofsOptions {
		if !strings.Contains(string(page), "--"+o.long) {
			t.Errorf("docs/rafsd.md does not describe --%s", o.long)
		}
	}
}
