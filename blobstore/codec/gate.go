package codec

import (
	"context"
	"runtime"
)

// gate holds one token for each piece of CPU-bound work that may run now. The
// process has one: processors are shared by all blobs of all mounts.
var gate = make(chan struct{}, runtime.GOMAXPROCS(0))

// Enter waits until a processor's worth of decoding may start. The caller then
// calls Leave; between the two it must not wait for network or disk.
func Enter(ctx context.Context) error {
	select {
	case gate <- struct{}{}:
		return nil
	default:
	}
	select {
	case gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Leave ends what Enter began.
func Leave() { <-gate }
