package hostile_test

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/hostile"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
	"github.com/rafsd/rafsd/vhostuser"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a device in this process and returns a dialler.
func serve(t testing.TB, h vhostuser.Handler, queues int) hostile.Dial {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "h.sock")
	s, err := vhostuser.NewServer(h, vhostuser.Options{Queues: queues + 1, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	l, err := vhostuser.Listen(sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context, opts vmm.Options) (*vmm.VM, error) {
		opts.Wait = 10 * time.Second
		return vmm.Dial(ctx, sock, opts)
	}
}

func run(t *testing.T, dial hostile.Dial, a hostile.Attack) {
	t.Run(a.Name, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := a.Run(ctx, dial); err != nil {
			t.Error(err)
		}
	})
}

// TestTransport runs what needs no file system against our device library.
func TestTransport(t *testing.T) {
	dial := serve(t, nullfs.Handler{}, 2)
	for _, a := range hostile.All() {
		if !strings.HasPrefix(a.Name, "fuse: ") {
			run(t, dial, a)
		}
	}
	run(t, dial, hostile.Random(1, 10_000))
}
