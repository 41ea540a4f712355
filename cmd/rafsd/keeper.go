package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/internal/version"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/shim-integration/mountapi"
	"github.com/rafsd/rafsd/vhostuser/keeper"
)

// `rafsd virtiofs` is two processes: a keeper, which callers know by its pid, and a
// worker, which is started with the same options behind this word.
const workerWord = "worker"

// Names of the sockets that the keeper hands to its workers.
const (
	apiSocket   = "api"
	mountSocket = "ttrpc"
)

// serveByKeeper is the life of a keeper: it returns when the daemon's is over.
func serveByKeeper(v *virtiofsArgs, argv []string, stderr *os.File) error {
	// Before anything else: a signal during the start ends it in good order too.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	log, sink, err := v.openLog(stderr)
	if err != nil {
		return err
	}
	defer sink.Close(flushWithin)
	v.begin(log, "rafsd starts")
	ctx, end := context.WithCancel(context.Background())
	defer end()
	go func() {
		select {
		case sig := <-signals:
			log.Info("ending", "signal", sig.String())
			end()
		case <-ctx.Done():
		}
	}()
	socks, err := openSockets(v)
	if err != nil {
		return err
	}
	files := make(map[string]*os.File)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for name, l := range map[string]net.Listener{apiSocket: socks.api, mountSocket: socks.mounts} {
		if l == nil {
			continue
		}
		if files[name], err = apisock.File(l); err != nil {
			delete(files, name)
			return errors.Join(err, socks.close())
		}
	}
	giveUp(v.keep, log) // workers have no more than their keeper
	device := v.deviceOptions(log)
	var space []byte
	if device.Config {
		space = daemon.ConfigSpace(v.tag, queueCount(v))
	}
	k, err := keeper.New(keeper.Options{
		Binary: "/proc/self/exe", Args: argv,
		Device: device, Space: space, Sockets: files,
		WorkerLog: sink, Log: log, Ready: v.ready,
	})
	if err != nil {
		return errors.Join(err, socks.close())
	}
	vmm := socks.vmm
	socks.vmm = nil // Run closes it
	return errors.Join(k.Run(ctx, vmm), socks.close())
}

// runWorker is a worker's life.
func runWorker(args []string, stderr *os.File) error {
	// Whoever ends a group of processes means the keeper, which tells us.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	a, err := parseOptions(virtiofsOptions, args)
	if err != nil {
		return err
	}
	v, err := readVirtiofs(a)
	if err != nil {
		return err
	}
	v.logFile, v.ignored = "", nil // the keeper writes the file, and has warned
	log, sink, err := v.openLog(stderr)
	if err != nil {
		return err
	}
	defer sink.Close(flushWithin)
	w, err := keeper.Join()
	if err != nil {
		return err
	}
	go func() {
		<-w.Orphaned()
		os.Exit(exitError)
	}()
	err = work(v, log, w)
	if err != nil {
		err = errors.Join(w.Failed(err), exitCode(exitError)) // the keeper reports it
	}
	return err
}

// work serves until the daemon is to end. An error is one of the start.
func work(v *virtiofsArgs, log *slog.Logger, w *keeper.Worker) error {
	v.begin(log, "worker starts")
	socks := &sockets{}
	for name, to := range map[string]*net.Listener{apiSocket: &socks.api, mountSocket: &socks.mounts} {
		if f := w.Socket(name); f != nil {
			l, err := apisock.Inherit(f)
			if err != nil {
				return errors.Join(err, socks.close())
			}
			*to = l
		}
	}
	s, err := start(v, log, socks, w)
	if err != nil {
		return errors.Join(err, socks.close())
	}
	if err := w.Ready(version.Version); err != nil {
		return err
	}
	err = s.wait(nil, w.End())
	s.stop()
	if s.left.Load() {
		return nil // the daemon is another's now
	}
	if err := w.Over(err); err != nil {
		log.Warn("last words to the keeper", "err", err)
	}
	return nil
}

// serveKeeper serves the front-ends that the keeper has.
func (s *service) serveKeeper(w *keeper.Worker, h keeper.Host) {
	ctx, hangUp := context.WithCancel(context.Background())
	s.hangUp = hangUp
	s.open("keeper", func() error { return w.Serve(h, ctx.Done()) })
}

// answerWithin is how long a worker that was replaced stays for its last answer. The
// mount API's server cannot be asked whether that is out: it takes a connection in the
// middle of its first call for an idle one.
const answerWithin = 200 * time.Millisecond

// upgrade has another program serve, and this process end once the caller has its
// answer.
func (s *service) upgrade(w *keeper.Worker) mountapi.Upgrader {
	return func(path string) (string, time.Duration, error) {
		version, pause, err := w.Upgrade(path)
		if s.left.Load() {
			s.replaced.Do(func() { time.AfterFunc(answerWithin, func() { close(s.over) }) })
		}
		return version, pause, err
	}
}

// quiesce gives up what another worker is about to take up. Callers of the mount API
// keep their connections, so that the one who asked for it is answered.
func (s *service) quiesce() {
	s.left.Store(true)
	if s.api != nil {
		s.report(s.api.Close())
	}
	if s.mounts != nil {
		s.report(s.mounts.Leave())
	}
	s.report(s.daemon.Leave())
}
