package testguest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

var built struct {
	mu      sync.Mutex
	program []byte // rafs-guest, once it was built; guarded by mu
}

// rafsGuestProgram returns the rafs-guest that c wants, building it once in the
// life of this process.
func rafsGuestProgram(ctx context.Context, c Config) ([]byte, error) {
	if c.RafsGuest != "" {
		return os.ReadFile(c.RafsGuest)
	}
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.program != nil {
		return built.program, nil
	}
	dir, err := os.MkdirTemp("", "testguest-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "rafs-guest")
	cmd := command(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file, "github.com/rafsd/rafsd/cmd/rafs-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if _, source, _, ok := runtime.Caller(0); ok {
		if _, err := os.Stat(source); err == nil {
			cmd.Dir = filepath.Dir(source) // inside the module, wherever we were started
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build rafs-guest: %w%s", err, lastLines(string(out), 5))
	}
	built.program, err = os.ReadFile(file)
	return built.program, err
}
