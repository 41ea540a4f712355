package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// upgrade is a wish for another program.
type upgrade struct{ path string }

// ask hands the wish of a worker to supervise.
func (k *Keeper) ask(w *worker, u *upgrade) {
	select {
	case k.upgrades <- u:
	case <-w.dead:
	}
}

// upgrade replaces the worker w by one of another program, and returns the one
// that serves afterwards, whatever happens. An error means that there is none.
//
// The new program is started and asked whether it understands us before anything
// changes: one that crashes or hangs at its start costs no pause. Then the old
// worker gives up everything but the connection of whoever asked, and the new one
// goes on as after a crash. If it does not come up, a worker of the old program
// does.
func (k *Keeper) upgrade(ctx context.Context, w *worker, u *upgrade) (*worker, error) {
	k.opts.Log.Info("upgrade", "to", u.path)
	refuse := func(err error) (*worker, error) {
		k.opts.Log.Error("upgrade failed, the old program serves on", "to", u.path, "err", err)
		_ = w.send((&message{Kind: kindUpgraded}).problem(fmt.Errorf("%s: %w; the old program serves on", u.path, err)))
		return w, nil
	}
	program, err := openProgram(u.path)
	if err != nil {
		return refuse(err)
	}
	// By the descriptor: what was looked at is what is started, now and whenever a
	// worker dies.
	next, err := k.standby(fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
	if err != nil {
		return refuse(errors.Join(err, program.Close()))
	}
	began := time.Now()
	k.setWorker(nil)
	if !k.quiesce(w) {
		k.awaitEnd(w, 0)
	}
	if err = k.commit(next, upgradeWithin, true); err != nil {
		err = errors.Join(err, program.Close())
		k.opts.Log.Error("upgrade failed, rolling back", "to", u.path, "err", err)
		back, fatal := k.relaunch(ctx, w.binary)
		if fatal != nil || back == nil {
			return nil, fatal
		}
		k.tell(w, (&message{}).problem(fmt.Errorf("%s: %w; the old program serves again", u.path, err)))
		return back, nil
	}
	if k.program != nil {
		_ = k.program.Close() // of an earlier upgrade; no worker runs it any more
	}
	k.program = program
	pause := time.Since(began)
	k.opts.Log.Info("upgraded", "pid", next.cmd.Process.Pid, "version", next.version, "pause", pause.Round(100*time.Microsecond))
	k.tell(w, &message{Text: next.version, Size: int64(pause)})
	return next, nil
}

// openProgram opens a program that may be started with our rights.
func openProgram(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		err = errors.New("is no program")
	case st.Mode&0o022 != 0:
		err = errors.New("may be written by others")
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("belongs to user %d", st.Uid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// quiesce makes w give up the device and everything else but the connection of
// whoever asked for the upgrade.
func (k *Keeper) quiesce(w *worker) bool {
	done := make(chan bool, 1)
	k.tasks.Go(func() {
		answer, err := w.call(&message{Kind: kindQuiesce})
		done <- err == nil && answer.failure() == nil
	})
	select {
	case ok := <-done:
		return ok
	case <-time.After(quiesceWithin):
		return false
	}
}

// tell lets a worker that was replaced say what came of it, and end.
func (k *Keeper) tell(w *worker, m *message) {
	m.Kind = kindUpgraded
	if err := w.send(m); err == nil {
		k.tasks.Go(func() { k.awaitEnd(w, quiesceWithin) })
	}
}
