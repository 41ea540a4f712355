package testguest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what a guest left.
type Result struct {
	Output   string        // of the script, stdout and stderr
	ExitCode int           // of the script
	Kernel   string        // the guest kernel's release
	BootTime time.Duration // from starting the program to the guest's first process
	Time     time.Duration // from starting the program to its end
	Console  string        // the kernel's messages and those of the program that ran it, their end at least
}

// Errors of Boot that a caller may want to tell apart.
var (
	// ErrMount says that a file system could not be mounted; the guest's reason
	// follows.
	ErrMount = errors.New("mount failed in the guest")
	// ErrDied says that the guest ended before its script did.
	ErrDied = errors.New("the guest ended before its script did")
	// ErrTimeout says that Config.Timeout was over before the script was.
	ErrTimeout = errors.New("the guest ran out of time")
)

const (
	maxOutput  = 256 << 20
	maxConsole = 256 << 10
	// maxPowerOff is how long a guest may take from the end of its script to the
	// end of the program that runs it.
	maxPowerOff = 10 * time.Second
)

// starter makes the command that runs a guest in the folder dir, where initrd is
// its initramfs and fs0, fs1 … are its sockets. What the guest writes on its output
// device goes to out, everything else to console.
type starter func(c Config, dir string, out, console *os.File) *exec.Cmd

// Boot runs a guest to its end. Whatever happens, nothing that it started is left
// when it returns, and no file but the cache. With an error, the result has what
// was there up to it; a script that fails is no error, but an exit code.
//
// A guest that dies before its first process, when no device can have been used,
// is booted once more. One emulated guest runs at a time on a host, others wait.
func Boot(ctx context.Context, c Config) (Result, error) {
	c, m, err := prepare(ctx, c)
	if err != nil {
		return Result{}, err
	}
	if m.exclusive {
		unlock, err := lock(ctx, "emulated-guest")
		if err != nil {
			return Result{}, err
		}
		defer unlock()
	}
	r, err := bootOnce(ctx, c, m)
	if errors.Is(err, ErrDied) && r.Kernel == "" && ctx.Err() == nil {
		first := err
		if r, err = bootOnce(ctx, c, m); err != nil {
			err = fmt.Errorf("%w (second try; first: %v)", err, first)
		}
	}
	return r, err
}

func bootOnce(ctx context.Context, c Config, m machine) (r Result, err error) {
	dir, err := os.MkdirTemp("", "testguest-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	rafsGuest, err := rafsGuestProgram(ctx, c)
	if err != nil {
		return r, err
	}
	nonce := "#" + rand.Text()
	if err := writeInitramfs(filepath.Join(dir, "initrd"), c, m, rafsGuest, nonce); err != nil {
		return r, fmt.Errorf("initramfs: %w", err)
	}
	// Links, because neither a kernel's nor QEMU's command line takes every path, and
	// a socket's address is short.
	for i, fs := range c.FS {
		socket, err := filepath.Abs(fs.Socket)
		if err != nil {
			return r, err
		}
		if err := os.Symlink(socket, filepath.Join(dir, fmt.Sprintf("fs%d", i))); err != nil {
			return r, err
		}
	}
	console, err := os.OpenFile(filepath.Join(dir, "console"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return r, err
	}
	defer console.Close()

	out := &output{nonce: nonce, limit: maxOutput, live: c.Output}
	runErr := run(ctx, c, m, dir, out, console, &r)
	release, text, done, exitCode, err := out.state()
	r.Kernel, r.Output, r.ExitCode = release, text, exitCode
	r.Console = tail(console, maxConsole)

	fsIndex, reason, mountFailed := out.mountFailure()
	switch {
	case err != nil:
		return r, err
	case done && mountFailed && fsIndex < len(c.FS):
		fs := c.FS[fsIndex]
		return r, fmt.Errorf("%w: %s at %s: %s", ErrMount, fs.Tag, fs.MountAt, reason)
	case done:
		return r, nil
	case ctx.Err() != nil:
		return r, fmt.Errorf("%s: %w", c, context.Cause(ctx))
	}
	if errors.Is(runErr, ErrTimeout) {
		return r, fmt.Errorf("%s: %w after %v%s", c, ErrTimeout, c.Timeout, hint(r.Console))
	}
	return r, fmt.Errorf("%s: %w (%v)%s", c, ErrDied, runErr, hint(r.Console))
}

// run starts the guest's program and waits for its end, which it brings about when
// the script is done, the time is over or ctx ends. The error is that of the
// program, or ErrTimeout.
func run(ctx context.Context, c Config, m machine, dir string, out *output, console *os.File, r *Result) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, ErrTimeout)
	defer cancel()
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	// A full pipe holds the guest up; not being able to enlarge it only costs time.
	_, _ = unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, 1<<20)

	watch := &stopwatch{start: time.Now()}
	out.began = watch.stop
	out.ended = func() { time.AfterFunc(maxPowerOff, cancel) }
	cmd := m.start(c, dir, writer, console)
	exited, err := start(cmd)
	if err != nil {
		writer.Close()
		return err
	}
	writer.Close() // the guest's program has it
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(out, reader) // out takes everything; reading ends with the program
	}()

	select {
	case err = <-exited:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	// What the program started itself is in its process group.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	if ctx.Err() != nil {
		<-exited
	}
	r.Time = time.Since(watch.start)
	_ = reader.SetReadDeadline(time.Now().Add(time.Second)) // for the case that somebody holds the pipe still
	<-copied
	r.BootTime = watch.elapsed()
	return err
}

// start starts a command that the kernel kills when this process dies. What its Wait
// returns comes through the channel.
func start(cmd *exec.Cmd) (exited <-chan error, err error) {
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The kernel acts on the end of the thread that started the process, so this
		// one must not be used, and ended, by others.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}

// hint is the line of a console that says most about a guest's end, behind ": ".
func hint(console string) string {
	for line := range strings.Lines(console) {
		if strings.Contains(line, "Kernel panic") {
			return ": " + strings.TrimSpace(line)
		}
	}
	return lastLines(console, 5)
}

// tail returns the last n bytes of a file, or as much of them as can be read.
func tail(f *os.File, n int64) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-n), n))
	return strings.ReplaceAll(string(b), "\r", "")
}
