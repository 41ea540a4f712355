package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/vhostuser"
)

// TuneProcess sets what holds for the whole process. Nothing it does can fail
// the start: what the system refuses is a warning.
func TuneProcess(s config.Settings, log *slog.Logger) {
	// Whoever reads our output may go: that is no reason to die of the signal.
	signal.Ignore(unix.SIGPIPE)

	// A container is counted for every byte of ours; most of what we touch is
	// mapped files, so that a small heap costs little.
	debug.SetGCPercent(s.Memory.GCPercent)
	if s.Memory.LimitMiB > 0 {
		debug.SetMemoryLimit(int64(s.Memory.LimitMiB) << 20)
	}
	vhostuser.Reserve()
	if want := s.Daemon.RlimitNofile; want > 0 {
		if err := raiseNofile(want); err != nil {
			log.Warn("raising the limit of open files", "want", want, "err", err)
		}
	}
}

// raiseNofile asks for the limit of open files, but leaves room in the system's
// own. If it may not raise the hard limit, it goes as far as that.
func raiseNofile(want uint64) error {
	const leave = 16384
	if most, err := fileMax(); err == nil && most > leave {
		want = min(want, most-leave)
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	if now.Cur >= want {
		return nil
	}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(want, now.Max)})
	if err == nil {
		return nil
	}
	if hard := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(want, now.Max), Max: now.Max}); hard != nil {
		return hard
	}
	return fmt.Errorf("only %d are allowed: %w", now.Max, err)
}

// fileMax returns how many files the whole system may open.
func fileMax() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/fs/file-max")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
