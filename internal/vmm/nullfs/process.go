package nullfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/vhostuser"
)

// The environment that makes a process of any program that calls RunIfAsked a null
// back-end.
const (
	socketVariable = "VMM_NULLFS_SOCKET"
	queuesVariable = "VMM_NULLFS_QUEUES"
	pollVariable   = "VMM_NULLFS_POLL"
	hollowVariable = "VMM_NULLFS_HOLLOW"
)

// Options of a null back-end.
type Options struct {
	Queues int           // request queues
	Poll   time.Duration // as vhostuser.Options.Poll
	Hollow bool          // READ says that it has filled the pages, and leaves them alone
}

// RunIfAsked turns this process into a null back-end if it was started as one by
// Start, and does not return then. Programs that use Start call it first thing.
func RunIfAsked() {
	sock := os.Getenv(socketVariable)
	if sock == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	vhostuser.Reserve()
	o := Options{Hollow: os.Getenv(hollowVariable) != ""}
	queues, err := strconv.Atoi(os.Getenv(queuesVariable))
	if err == nil {
		o.Queues = queues
		o.Poll, err = time.ParseDuration(os.Getenv(pollVariable))
	}
	if err == nil {
		err = Serve(ctx, sock, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nullfs:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Serve serves a null back-end at sock until ctx ends.
func Serve(ctx context.Context, sock string, o Options) error {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := vhostuser.NewServer(Handler{Hollow: o.Hollow}, vhostuser.Options{Queues: o.Queues + 1, Poll: o.Poll, Log: log})
	if err != nil {
		return err
	}
	l, err := vhostuser.Listen(sock)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Process is a null back-end in a process of its own.
type Process struct {
	cmd *exec.Cmd
}

// Start runs this program again as a null back-end at sock.
func Start(sock string, o Options) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("null back-end: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), socketVariable+"="+sock, queuesVariable+"="+strconv.Itoa(o.Queues), pollVariable+"="+o.Poll.String())
	if o.Hollow {
		cmd.Env = append(cmd.Env, hollowVariable+"=1")
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("null back-end: %w", err)
	}
	return &Process{cmd: cmd}, nil
}

// PID is the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop ends the process and waits for it.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return p.cmd.Wait()
}
