package vhostuser_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

func checkMode(t *testing.T, path string) {
	t.Helper()
	info, err := os.Lstat(path)
	check(t, err)
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, want a socket of the owner only", info.Mode())
	}
}

func checkGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte("precious"), 0o600))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}
