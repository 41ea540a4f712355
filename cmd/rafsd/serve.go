package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/internal/confine"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/internal/version"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
	"github.com/rafsd/rafsd/shim-integration/httpapi"
	"github.com/rafsd/rafsd/shim-integration/mountapi"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/keeper"
)

// Whoever ends us waits a second at most; what has not ended by then is cut off.
const (
	stopWithin  = 800 * time.Millisecond
	flushWithin = 100 * time.Millisecond
)

// serve is the life of a daemon in one process: it returns when that is over, nil
// if all went well.
func serve(v *virtiofsArgs, stderr *os.File) error {
	// Before anything else: a signal during the start ends it in good order too.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)

	log, sink, err := v.openLog(stderr)
	if err != nil {
		return err
	}
	defer sink.Close(flushWithin)
	v.begin(log, "rafsd starts")
	socks, err := openSockets(v)
	if err != nil {
		return err
	}
	s, err := start(v, log, socks, nil)
	if err != nil {
		return errors.Join(err, socks.close())
	}
	err = s.wait(signals, nil)
	s.stop()
	return err
}

// begin does what every process of ours begins with, and says so.
func (v *virtiofsArgs) begin(log *slog.Logger, what string) {
	daemon.TuneProcess(v.settings, log)
	if len(v.ignored) > 0 {
		log.Warn("options without effect", "options", strings.Join(v.ignored, ", "))
	}
	log.Info(what, "version", version.Version, "commit", version.Commit, "go", runtime.Version(), "pid", os.Getpid())
}

// openLog returns the logger of the daemon.
func (v *virtiofsArgs) openLog(stderr *os.File) (*slog.Logger, *logsink.Sink, error) {
	var out io.Writer = stderr
	if v.logTo != nil {
		out = v.logTo
	} else if v.logFile != "" {
		f, err := logsink.OpenFile(v.logFile, v.logRotation)
		if err != nil {
			return nil, nil, err
		}
		out = f
	}
	s := v.settings.Log
	sink := logsink.New(out, s.Format)
	v.level.Set(logsink.Levels[s.Level])
	return slog.New(v.events.Watch(logsink.Handler(sink, s.Format, &v.level))), sink, nil
}

// service is a daemon with its doors.
type service struct {
	log    *slog.Logger
	daemon *daemon.Daemon
	api    *httpapi.Server    // nil if there is none
	mounts *mountapi.Server   // the mount API; nil if there is none
	hangUp context.CancelFunc // ends the VMM's connection and the wait for another

	// As virtiofsd: the end before a VMM ever came is a failure.
	mustConnect bool
	connected   atomic.Bool

	// Of a worker: the daemon has been left to another one, and over is closed when
	// that serves and whoever asked for it has been answered.
	left     atomic.Bool
	over     chan struct{}
	replaced sync.Once

	failed chan error    // why a door has closed by itself
	ended  chan struct{} // yields once for each door that has closed
	doors  int
}

// start makes everything ready and opens the doors. The sockets are the service's
// afterwards. With w, this is a worker, and the VMM's socket is its keeper's.
func start(v *virtiofsArgs, log *slog.Logger, socks *sockets, w *keeper.Worker) (_ *service, err error) {
	s := &service{log: log, mustConnect: v.as == asVirtiofsd, over: make(chan struct{}), failed: make(chan error, 3), ended: make(chan struct{}, 3)}
	if err := v.enterSandbox(); err != nil {
		return nil, err
	}
	o := daemon.Options{
		ID: v.id, Supervisor: v.supervisor,
		FirstConnect: limit(v.settings.Daemon.FirstConnect), Linger: limit(v.settings.Daemon.Linger),
		Alone: v.alone(), Directory: v.sharedDir != "", Directories: v.dirs, RefuseFlags: v.refuse,
		Read: v.settings.Read, Cache: v.settings.Cache,
		Log: log, Level: &v.level, Events: &v.events,
		Slow: limit(v.settings.Log.Slow), Vrings: vhostuser.NewCounters(1 + queueCount(v)),
	}
	if w != nil {
		o.PID = os.Getppid() // the keeper's
		o.Record = w
	}
	s.daemon, err = daemon.New(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.daemon.Close())
		}
	}()
	handler, device := s.daemon.Device(v.tag, queueCount(v)), v.deviceOptions(log)
	device.Counters = o.Vrings
	device.OnConnect = func() {
		s.connected.Store(true)
		s.daemon.FrontEndConnected()
	}
	device.OnDisconnect = func(error) { s.daemon.FrontEndGone() }
	var server *vhostuser.Server
	if w == nil {
		if server, err = vhostuser.NewServer(handler, device); err != nil {
			return nil, err
		}
	}
	if !s.daemon.Restored() {
		if err := s.mountFirst(v); err != nil {
			return nil, err
		}
	}
	if socks.mounts != nil {
		var upgrade mountapi.Upgrader
		if w != nil {
			upgrade = s.upgrade(w)
		}
		if s.mounts, err = mountapi.NewServer(s.daemon, upgrade, log); err != nil {
			return nil, err
		}
	}
	giveUp(v.keep, log)
	// From the first answer on a caller finds us RUNNING, mounts and all.
	if err := s.daemon.Start(); err != nil {
		return nil, err
	}
	if w == nil {
		ctx, hangUp := context.WithCancel(context.Background())
		s.hangUp = hangUp
		s.open("vhost-user socket", func() error { return server.Serve(ctx, socks.vmm) })
	} else {
		s.serveKeeper(w, keeper.Host{Handler: handler, Options: device, Quiesce: s.quiesce})
	}
	if socks.api != nil {
		s.api = httpapi.NewServer(s.daemon, log)
		s.open("API socket", func() error { return s.api.Serve(socks.api) })
	}
	if socks.mounts != nil {
		s.open("mount API socket", func() error { return s.mounts.Serve(socks.mounts) })
	}
	log.Info("ready", "queues", queueCount(v))
	if v.ready != nil {
		v.ready()
	}
	return s, nil
}

// deviceOptions are what the vhost-user device offers.
func (v *virtiofsArgs) deviceOptions(log *slog.Logger) vhostuser.Options {
	return vhostuser.Options{
		Queues: 1 + queueCount(v), // the first one is for what must not wait behind requests
		Config: v.tag != "",
		Poll:   time.Duration(v.settings.Daemon.Poll),
		Log:    log,
	}
}

// mountFirst mounts what the command line names.
func (s *service) mountFirst(v *virtiofsArgs) error {
	if v.bootstrap != "" {
		c, err := v.mountConfig()
		if err != nil {
			return err
		}
		files, err := v.prefetchList()
		if err != nil {
			return err
		}
		if err := s.daemon.MountImage(context.Background(), v.mountpoint, v.bootstrap, c, files); err != nil {
			return err
		}
	}
	if v.sharedDir != "" {
		return s.daemon.MountDirectory(context.Background(), v.mountpoint, v.sharedDir)
	}
	return nil
}

// sockets are what callers connect to.
type sockets struct {
	vmm         *vhostuser.Listener // nil in a worker
	api, mounts net.Listener        // nil if there is none
}

// openSockets makes the sockets that the command line names.
func openSockets(v *virtiofsArgs) (_ *sockets, err error) {
	s := &sockets{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.vmm, err = listen(v); err != nil {
		return nil, err
	}
	if v.apisock != "" {
		if s.api, err = apisock.Listen(v.apisock); err != nil {
			return nil, err
		}
	}
	if v.ttrpc != "" {
		if s.mounts, err = apisock.Listen(v.ttrpc); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// close closes those that are open; those that somebody serves close themselves.
func (s *sockets) close() (err error) {
	if s.vmm != nil {
		err = s.vmm.Close()
	}
	for _, l := range []net.Listener{s.api, s.mounts} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	return err
}

// giveUp gives up for good what privileges are not needed. A start does not fail
// for it: who runs us with less than root has less to give.
func giveUp(keep confine.Set, log *slog.Logger) {
	err := confine.NoNewPrivs()
	if err == nil {
		err = confine.Limit(keep)
	}
	if err != nil {
		log.Warn("privileges are kept", "err", err)
	}
}

// maxSocketPath is the longest path of a unix socket in bytes.
const maxSocketPath = 107

// listen opens the socket for the VMM.
func listen(v *virtiofsArgs) (*vhostuser.Listener, error) {
	if v.fd >= 0 {
		return vhostuser.Inherit(v.fd)
	}
	if n := len(v.sock); n > maxSocketPath {
		return nil, fmt.Errorf("vhost-user socket %s: path of %d bytes, at most %d are possible", v.sock, n, maxSocketPath)
	}
	l, err := vhostuser.Listen(v.sock)
	if err != nil {
		return nil, err
	}
	if err := giveSocket(v.sock, v.socketGroup); err != nil {
		return nil, errors.Join(fmt.Errorf("vhost-user socket %s: %w", v.sock, err), l.Close())
	}
	return l, nil
}

// giveSocket gives the VMM's socket to the owner of its folder, if we may: a VMM
// that runs as another user could not connect otherwise. A group is let in besides
// if it is named. The folder is its owner's, who could have put anything in the
// socket's place meanwhile: only what is our socket and no link is given away.
func giveSocket(sock, group string) error {
	var dir, st unix.Stat_t
	if err := unix.Stat(filepath.Dir(sock), &dir); err != nil {
		return err
	}
	uid, gid := -1, -1
	if os.Geteuid() == 0 && dir.Uid != 0 {
		uid, gid = int(dir.Uid), int(dir.Gid)
	}
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return err
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return err
		}
	}
	if uid < 0 && gid < 0 {
		return nil
	}
	f, err := hostfs.Open(sock, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return errors.New("somebody has replaced it")
	}
	if group != "" {
		// A change of the owner first would take the right from us.
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o660); err != nil {
			return err
		}
	}
	return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

// open serves one door until it closes.
func (s *service) open(name string, serve func() error) {
	s.doors++
	go func() {
		if err := serve(); err != nil {
			s.failed <- fmt.Errorf("%s: %w", name, err)
		}
		s.ended <- struct{}{}
	}()
}

// wait returns when the daemon is to end: nil if that is as it should be. told is
// closed by a keeper that wants it.
func (s *service) wait(signals <-chan os.Signal, told <-chan struct{}) error {
	select {
	case <-told:
		return nil
	case <-s.over:
		return nil
	case sig := <-signals:
		s.log.Info("ending", "signal", sig.String())
		if s.mustConnect && !s.connected.Load() {
			return fmt.Errorf("ended by %v before a VMM came", sig)
		}
		return nil
	case err := <-s.daemon.Over():
		s.log.Info("ending: nobody needs us any more", "err", err)
		return err
	case err := <-s.failed:
		return err
	}
}

// stop closes the doors and what is behind them. It returns in less than a
// second, whatever hangs; what had no time to be closed well is safe on disk at
// any moment.
func (s *service) stop() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.daemon.Ending()
		if s.api != nil {
			s.report(s.api.Close())
		}
		if s.mounts != nil {
			s.report(s.mounts.Close())
		}
		s.hangUp()
		for range s.doors {
			<-s.ended
		}
		s.report(s.daemon.Close())
	}()
	select {
	case <-done:
	case <-time.After(stopWithin):
		s.log.Warn("ending without waiting any longer")
	}
}

func (s *service) report(err error) {
	if err != nil {
		s.log.Warn("while ending", "err", err)
	}
}

// queueCount is the number of request queues that are offered.
func queueCount(v *virtiofsArgs) int {
	switch n := v.settings.Daemon.Queues; {
	case n > 0:
		return n
	case v.tag != "":
		// Who reads the number from the configuration space takes it for the
		// number there is to use.
		return 1
	}
	return min(4, runtime.NumCPU())
}

// limit turns a setting into a time-out, for which 0 is "never".
func limit(d config.Duration) time.Duration {
	if d == config.Forever {
		return 0
	}
	return time.Duration(d)
}
