package main

import (
	"errors"
	"fmt"
	"log/syslog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/confine"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
)

// Started like virtiofsd, the process that the caller sees makes the socket and
// then only waits for a child, which is shut in the shared directory and does the
// work:
//
//	rafsd --shared-dir D --socket-path S        the same program again, as process 1 of
//	  lock S.pid, listen at S                   namespaces of its own, with the listening
//	  confine.Child.Run ───────── clone ──────▶ socket as descriptor 3: D becomes its root,
//	  ends with the child's exit code           capabilities go, the readiness line comes

// inSandbox marks the child in its environment. It counts only for process 1 of a
// pid namespace that shares no mounts with us: nobody can be shut in by accident.
const inSandbox = "RAFSD_IN_SANDBOX"

// sandboxSocket is the child's descriptor of the listening socket.
const sandboxSocket = 3

// serveVirtiofsd is the life of a daemon that was started like virtiofsd.
func serveVirtiofsd(v *virtiofsdArgs, stderr *os.File) error {
	if os.Getenv(inSandbox) != "" && os.Getpid() == 1 {
		os.Unsetenv(inSandbox)
		v.socket, v.fd = "", sandboxSocket
		return v.serve(stderr)
	}
	info, err := os.Stat(v.sharedDir)
	switch {
	case err != nil:
		return fmt.Errorf("--shared-dir: %w", err)
	case !info.IsDir():
		return fmt.Errorf("--shared-dir: %s is not a directory", v.sharedDir)
	}
	if v.socket != "" {
		unlock, err := lockSocket(v.socket)
		if err != nil {
			return err
		}
		defer unlock()
	}
	if v.sandbox != confine.None && os.Geteuid() != 0 {
		fmt.Fprintf(stderr, "rafsd: --sandbox=%s needs root: serving without it\n", v.sandbox)
		v.sandbox = confine.None
	}
	if v.sandbox == confine.Namespace {
		return v.serveInChild()
	}
	return v.serve(stderr)
}

// lockSocket takes the lock beside a socket, as virtiofsd does, and writes our
// process id into it. The file stays.
func lockSocket(socket string) (unlock func(), err error) {
	name := socket + ".pid"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock file %s: another process has it: %w", name, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock file: %w", err)
	}
	return func() { f.Close() }, nil
}

// serveInChild makes the socket and waits for the child that serves it.
func (v *virtiofsdArgs) serveInChild() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	l, err := listen(&virtiofsArgs{sock: v.socket, fd: v.fd, socketGroup: v.socketGroup})
	if err != nil {
		return err
	}
	socket, err := l.File()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer socket.Close()
	child := confine.Child{
		Path: "/proc/self/exe", Args: os.Args, Env: append(os.Environ(), inSandbox+"=1"),
		Files: []*os.File{socket},
	}
	code, err := child.Run(signals)
	switch {
	case err != nil:
		return errors.Join(err, l.Close())
	case code != 0:
		return exitCode(code) // the socket stays, as virtiofsd's does
	}
	return l.Close()
}

// serve serves in this process, shut in first if that is asked for.
func (v *virtiofsdArgs) serve(stderr *os.File) error {
	args, err := v.arguments(stderr)
	if err != nil {
		return err
	}
	return serve(args, stderr)
}

// arguments are those of the subcommand for the same job.
func (v *virtiofsdArgs) arguments(stderr *os.File) (*virtiofsArgs, error) {
	out := &virtiofsArgs{
		sock: v.socket, fd: v.fd, tag: v.tag, mountpoint: "/", sharedDir: v.sharedDir, as: asVirtiofsd,
		dirs: v.dirs, refuse: v.refuse, keep: v.capabilities(), settings: v.settings, ignored: v.ignored,
		socketGroup: v.socketGroup, sandbox: v.sandbox,
	}
	// The end of the VMM is ours, and there is no hurry before it comes.
	out.settings.Daemon.Linger, out.settings.Daemon.FirstConnect = config.Duration(time.Nanosecond), config.Forever
	if v.syslog {
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "virtiofsd")
		if err != nil {
			return nil, fmt.Errorf("--syslog: %w", err)
		}
		out.logTo = w
	}
	out.ready = func() {
		line := fmt.Sprintf("[%s INFO  virtiofsd] Waiting for vhost-user socket connection...\n", time.Now().UTC().Format(time.RFC3339))
		if v.syslog {
			_, _ = out.logTo.Write([]byte(line))
			return
		}
		// Kata's Rust runtime waits for this line without a time-out, whatever is
		// logged otherwise.
		_, _ = stderr.WriteString(line)
	}
	return out, nil
}

// enterSandbox shuts the process in its directory, which is then "/". What is
// needed from outside is opened before.
func (v *virtiofsArgs) enterSandbox() error {
	if v.sandbox == "" || v.sandbox == confine.None {
		return nil
	}
	proc, err := daemon.ProcFD()
	if err != nil {
		return err
	}
	v.dirs.Proc = proc
	if err := confine.EnterDir(v.sharedDir, v.sandbox); err != nil {
		return err
	}
	v.sharedDir = "/"
	return nil
}
