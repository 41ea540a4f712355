package confine

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mode is how a process that shows one directory is shut in there, in the words
// of virtiofsd's --sandbox.
type Mode string

// The modes.
const (
	Namespace Mode = "namespace" // own mounts and own pids; the directory is the root
	Chroot    Mode = "chroot"    // the directory is the root
	None      Mode = "none"
)

// EnterDir makes dir the root directory of the process. In Namespace mode the
// process must be in a mount namespace of its own (the child of Run is): mounts
// that the host makes below dir later still appear, none of ours ever leaves, and
// nothing outside of dir can be reached by any path. Descriptors that are open
// already stay good.
func EnterDir(dir string, mode Mode) error {
	switch mode {
	case None:
		return nil
	case Chroot:
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("sandbox %s: change to it: %w", dir, err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("sandbox %s: chroot: %w", dir, err)
		}
		return nil
	case Namespace:
		return pivot(dir)
	}
	return fmt.Errorf("sandbox mode %q is none of %s, %s, %s", mode, Namespace, Chroot, None)
}

func pivot(dir string) error {
	step := func(what string, err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("sandbox %s: %s: %w", dir, what, err)
	}
	// Slaves of the host's mounts, at every level: what the host mounts comes in,
	// what happens here stays here. A bind mount of a slave is a slave of the same.
	if err := step("make mounts slaves", unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")); err != nil {
		return err
	}
	if err := step("bind it", unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, "")); err != nil {
		return err
	}
	if err := step("change to it", unix.Chdir(dir)); err != nil {
		return err
	}
	// The old root lands on top of the new one, and is taken off from there.
	if err := step("pivot", unix.PivotRoot(".", ".")); err != nil {
		return err
	}
	if err := step("leave the old root", unix.Unmount(".", unix.MNT_DETACH)); err != nil {
		return err
	}
	return step("change to the root", unix.Chdir("/"))
}

// Child is the process that works inside of a sandbox for one that waits.
type Child struct {
	Path  string // the program
	Args  []string
	Env   []string
	Files []*os.File // its descriptors from 3 on
}

// Run starts c in mount and pid namespaces of its own, with this process's
// standard descriptors, passes the signals on that arrive, and waits for its end.
// It returns the exit code; 128 and the signal's number if a signal ended it. The
// child is killed if this process dies, however it does.
func (c *Child) Run(signals <-chan os.Signal) (code int, err error) {
	// The kernel sends the signal of a parent's death when the thread ends that
	// made the child: it must live as long as we do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := &exec.Cmd{
		Path: c.Path, Args: c.Args, Env: c.Env, ExtraFiles: c.Files,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the sandboxed process: %w", err)
	}
	done := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(done)
	<-passed
	state := cmd.ProcessState
	if state == nil {
		return 0, fmt.Errorf("wait for the sandboxed process: %w", err)
	}
	if w, ok := state.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal()), nil
	}
	return state.ExitCode(), nil
}
