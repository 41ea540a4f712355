package show

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startWithin is how long the daemon may take until its socket is there.
	startWithin = 30 * time.Second
	// stopWithin is how long it may take from SIGTERM to its end.
	stopWithin = 10 * time.Second
)

// daemon is a running rafsd.
type daemon struct {
	socket string // of vhost-user
	pid    int
	log    *tail
	exited chan struct{}
	err    error // after exited
}

// configuration is what rafsd is told about the image: a nydusd configuration of
// version 2.
func configuration(host, workDir string) ([]byte, error) {
	type object = map[string]any
	return json.MarshalIndent(object{
		"version": 2,
		"id":      "demo",
		"backend": object{
			"type":     "registry",
			"registry": object{"scheme": "http", "host": host, "repo": repo},
		},
		"cache": object{
			"type":      "blobcache",
			"filecache": object{"work_dir": workDir},
		},
		"rafs": object{"mode": "direct", "enable_xattr": true},
	}, "", "  ")
}

// startDaemon starts rafsd with the image on a socket in dir, and returns when it
// listens. tag is "" for machines that do not ask for one. What rafsd prints goes
// to log too, if that is not nil.
func startDaemon(ctx context.Context, rafsd, dir, bootstrap, host, tag string, log io.Writer) (*daemon, error) {
	workDir := filepath.Join(dir, "cache")
	if err := os.Mkdir(workDir, 0o700); err != nil {
		return nil, err
	}
	config, err := configuration(host, workDir)
	if err != nil {
		return nil, err
	}
	configFile := filepath.Join(dir, "config.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		return nil, err
	}
	d := &daemon{socket: filepath.Join(dir, "rafsd.sock"), log: &tail{also: log}, exited: make(chan struct{})}
	// It is we who end it: the first machine goes and the second comes.
	args := []string{
		"virtiofs", "--sock", d.socket, "--bootstrap", bootstrap, "--config", configFile,
		"--linger", "0", "--first-connect", "0",
	}
	if tag != "" {
		args = append(args, "--tag", tag)
	}
	cmd := exec.Command(rafsd, args...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	// In a group of its own it does not get the Ctrl-C that is meant for us, which
	// would take the image away under a running guest.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			d.err = cmd.Wait()
			close(d.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start rafsd: %w", err)
	}
	d.pid = cmd.Process.Pid
	if err := d.listens(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// listens waits for the socket. It must not be tried by connecting: that would be
// the first machine.
func (d *daemon) listens(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("rafsd does not listen on %s after %v", d.socket, startWithin))
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		switch _, err := os.Stat(d.socket); {
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		select {
		case <-tick.C:
		case <-d.exited:
			return d.died()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch returns a context that ends with the daemon.
func (d *daemon) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-d.exited:
			cancel(d.died())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// died tells of the end of a daemon that should live.
func (d *daemon) died() error {
	return fmt.Errorf("rafsd ended too early (%s); it said:\n%s", ending(d.err), d.log)
}

func ending(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// stop ends the daemon. An error means that it did not end as it should.
func (d *daemon) stop() error {
	select {
	case <-d.exited:
		return nil // somebody has seen it die
	default:
	}
	// Its process id is ours until Wait returns, and exited is closed after that.
	_ = unix.Kill(d.pid, unix.SIGTERM)
	select {
	case <-d.exited:
		if d.err != nil {
			return fmt.Errorf("rafsd ended by SIGTERM with %w; it said:\n%s", d.err, d.log)
		}
		return nil
	case <-time.After(stopWithin):
	}
	_ = unix.Kill(d.pid, unix.SIGKILL)
	<-d.exited
	return fmt.Errorf("rafsd went on for %v after SIGTERM and was killed; it said:\n%s", stopWithin, d.log)
}

// tail keeps the end of what is written to it and passes all of it on.
type tail struct {
	also io.Writer // may be nil

	mu  sync.Mutex
	buf []byte // guarded by mu
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if extra := len(t.buf) - tailSize; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	if t.also != nil {
		_, _ = t.also.Write(p) // a reader who is gone is no reason for rafsd to end
	}
	return len(p), nil
}

// String is what was kept, indented.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := bytes.TrimSpace(t.buf)
	if len(text) == 0 {
		return "  (nothing)"
	}
	return "  " + string(bytes.ReplaceAll(text, []byte("\n"), []byte("\n  ")))
}
