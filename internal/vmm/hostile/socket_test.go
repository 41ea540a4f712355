package hostile_test

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/hostile"
)

// TestSocket runs every attack against whatever listens on the socket that
// RAFSD_ATTACK_SOCKET names, with RAFSD_ATTACK_REQUESTS random requests (10,000
// unless said otherwise) of the seed RAFSD_ATTACK_SEED. It is a tool, for a daemon
// that was started by hand.
func TestSocket(t *testing.T) {
	sock := os.Getenv("RAFSD_ATTACK_SOCKET")
	if sock == "" {
		t.Skip("RAFSD_ATTACK_SOCKET names no socket to attack")
	}
	dial := func(ctx context.Context, opts vmm.Options) (*vmm.VM, error) {
		opts.Wait = 10 * time.Second
		return vmm.Dial(ctx, sock, opts)
	}
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	for _, a := range append(hostile.All(), hostile.Random(uint64(number("RAFSD_ATTACK_SEED", 1)), number("RAFSD_ATTACK_REQUESTS", 10_000))) {
		run(t, dial, a)
	}
}
