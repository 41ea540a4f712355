package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/vhostuser"
)

// Options say what a Keeper keeps.
type Options struct {
	// Binary is the program of the workers, and Args their arguments, the name
	// included. Env is their environment; nil is the keeper's.
	Binary string
	Args   []string
	Env    []string

	// Device says what the vhost-user device offers; Space is its configuration
	// space, if Device.Config is set.
	Device vhostuser.Options
	Space  []byte

	// Sockets are those that workers accept from. They stay the caller's.
	Sockets map[string]*os.File

	// WorkerLog gets what workers print, a line in each Write, which must not wait.
	WorkerLog io.Writer
	Log       *slog.Logger

	// Ready is called once, when the first worker serves.
	Ready func()
}

// Bounds of what workers may take their time for. They guard against a worker that
// hangs; a sound one needs milliseconds.
const (
	standbyWithin = 5 * time.Second
	firstWithin   = 5 * time.Minute // images may have to be looked for
	readyWithin   = 20 * time.Second
	upgradeWithin = 2 * time.Second // nobody serves meanwhile, and there is a way back
	quiesceWithin = 2 * time.Second
	endWithin     = 900 * time.Millisecond
	callWithin    = 10 * time.Second // a VMM stands still meanwhile
)

// A keeper gives up when workers do not get as far as serving several times in a
// row, or die of themselves too often.
const (
	maxFalseStarts = 5
	maxKilled      = 100 // of those that somebody else has ended before they served
	maxCrashes     = 20
	crashWindow    = time.Minute
)

// Keeper holds what outlives a worker. Run is its life.
type Keeper struct {
	opts    Options
	ctx     context.Context // of Run
	server  *vhostuser.Server
	store   *record.Store
	spawner *spawner
	names   []string // of Options.Sockets
	sockets []int    // their descriptors
	tasks   sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond   // worker or ended
	worker  *worker     // that serves; nil while there is none; guarded by mu
	ended   bool        // guarded by mu
	device  *device     // of the front-end; nil without one; guarded by mu
	devices uint64      // how many there were; guarded by mu
	crashes []time.Time // of late; owned by Run

	blame atomic.Bool // the last worker crashed, by a request maybe

	upgrades chan *upgrade // to Run
	program  *os.File      // of the workers after an upgrade; owned by Run
}

// New returns a Keeper. Run must be called.
func New(o Options) (*Keeper, error) {
	k := &Keeper{opts: o, store: record.NewStore(), upgrades: make(chan *upgrade)}
	k.changed.L = &k.mu
	for name, f := range o.Sockets {
		// Fd makes the socket blocking, for all who share it, and the first worker
		// makes it non-blocking again: so it is called once, before there is one.
		k.names, k.sockets = append(k.names, name), append(k.sockets, int(f.Fd()))
	}
	var err error
	k.server, err = vhostuser.NewServerOf(k.connect, o.Space, o.Device)
	return k, err
}

// connect makes the device of a new front-end.
func (k *Keeper) connect() vhostuser.BackEnd {
	k.mu.Lock()
	k.devices++
	d, err := newDevice(k, k.devices, k.opts.Device.Queues)
	k.device = d // a worker that begins from now on is given it
	k.mu.Unlock()
	if err != nil {
		k.opts.Log.Error("requests of this front-end will not outlive a worker", "err", err)
	}
	for {
		w, err := k.current()
		if err != nil {
			return d
		}
		if err := k.give(w, d); !errors.Is(err, errDied) {
			if err != nil {
				// Whatever the front-end asks for will be refused.
				k.opts.Log.Error("a worker cannot take up the device of a new front-end", "err", err)
			}
			return d
		}
	}
}

// give makes w take up d, unless it has.
func (k *Keeper) give(w *worker, d *device) error {
	d.mu.Lock()
	if d.given == w {
		d.mu.Unlock()
		return nil
	}
	m := d.beginLocked()
	m.Blame = k.blame.Load()
	// The state must not change until the worker has it: whoever changes it waits
	// for mu first, and then finds that another worker has begun with it.
	d.given = w
	answer, err := w.call(m)
	if err == nil {
		err = answer.failure()
	}
	if err != nil {
		d.given = nil
	}
	d.mu.Unlock()
	return err
}

// forget takes the device of a front-end that has gone.
func (k *Keeper) forget(d *device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.device == d {
		k.device = nil
	}
}

// current waits for a worker that serves.
func (k *Keeper) current() (*worker, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		switch {
		case k.ended:
			return nil, errEnded
		case k.worker != nil && !k.worker.gone():
			return k.worker, nil
		}
		k.changed.Wait()
	}
}

func (w *worker) gone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls == nil
}

func (k *Keeper) setWorker(w *worker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.worker = w
	k.changed.Broadcast()
}

// end makes all that waits for a worker give up.
func (k *Keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.changed.Broadcast()
}

// Run serves front-ends from l, which it closes, until ctx ends, or a worker says
// that its work is over. It returns what the worker says of it, or why there is no
// worker. When it returns no worker is left.
func (k *Keeper) Run(ctx context.Context, l *vhostuser.Listener) (err error) {
	k.ctx, k.spawner = ctx, newSpawner()
	defer k.spawner.close()
	defer k.tasks.Wait()
	defer func() {
		err = errors.Join(err, k.store.Close())
		if k.program != nil {
			err = errors.Join(err, k.program.Close())
		}
	}()

	w, err := k.launch(k.opts.Binary, firstWithin)
	if err != nil {
		k.end()
		if ctx.Err() != nil {
			err = nil // we were told to end before it came to that
		}
		return errors.Join(err, l.Close())
	}
	if k.opts.Ready != nil {
		k.opts.Ready()
	}
	serving, hangUp := context.WithCancel(context.Background())
	served := make(chan error, 1)
	k.tasks.Go(func() { served <- k.server.Serve(serving, l) })
	err = k.supervise(ctx, w)
	k.end()
	hangUp()
	return errors.Join(err, <-served)
}

// supervise replaces workers until the daemon is to end. No worker is left then.
func (k *Keeper) supervise(ctx context.Context, w *worker) error {
	for {
		select {
		case <-ctx.Done():
			return k.stop(w)
		case m := <-w.stage:
			if m.Kind == kindOver {
				k.awaitEnd(w, endWithin)
				return m.failure()
			}
			continue
		case u := <-k.upgrades:
			next, err := k.upgrade(ctx, w, u)
			if err != nil || next == nil {
				return err
			}
			w = next
			continue
		case <-w.dead:
		}
		select {
		case m := <-w.stage: // its last words
			if m.Kind == kindOver {
				return m.failure()
			}
		default:
		}
		died := time.Now()
		k.opts.Log.Error("the worker has died, another one takes over", "status", w.status.String(), "lived", died.Sub(w.started).Round(time.Millisecond))
		next, err := k.replace(ctx, w)
		if err != nil || next == nil {
			return err
		}
		k.opts.Log.Info("another worker serves", "pid", next.cmd.Process.Pid, "pause", time.Since(died).Round(100*time.Microsecond))
		w = next
	}
}

// replace starts workers in the place of one that has died, until one serves.
func (k *Keeper) replace(ctx context.Context, old *worker) (*worker, error) {
	k.setWorker(nil)
	k.blame.Store(old.crashed())
	if old.crashed() {
		now := time.Now()
		k.crashes = append(k.crashes, now)
		for len(k.crashes) > 0 && now.Sub(k.crashes[0]) > crashWindow {
			k.crashes = k.crashes[1:]
		}
		if len(k.crashes) > maxCrashes {
			return nil, fmt.Errorf("%d workers have crashed within %v, the last one: %v", len(k.crashes), crashWindow, old.status)
		}
	}
	return k.relaunch(ctx, old.binary)
}

// relaunch starts workers until one serves, nil if ctx ends before.
func (k *Keeper) relaunch(ctx context.Context, binary string) (*worker, error) {
	for failed, killed := 0, 0; ; {
		w, err := k.launch(binary, readyWithin)
		if err == nil {
			return w, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		pause := time.Duration(0)
		if w != nil && w.status != nil && !w.crashed() {
			killed++
		} else {
			failed++
			pause = time.Duration(failed*failed) * 10 * time.Millisecond
		}
		k.opts.Log.Error("a worker could not take over", "failed", failed, "killed", killed, "err", err)
		if failed == maxFalseStarts || killed == maxKilled {
			return nil, fmt.Errorf("no worker can take over: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause):
		}
	}
}

// launch starts a worker and has it serve.
func (k *Keeper) launch(binary string, within time.Duration) (*worker, error) {
	w, err := k.standby(binary)
	if err != nil {
		return w, err
	}
	return w, k.commit(w, within, false)
}

// standby starts a worker that is told nothing but hello.
func (k *Keeper) standby(binary string) (*worker, error) {
	w, err := k.startWorker(binary)
	if err != nil {
		return nil, err
	}
	// From here on it is returned with an error too: it has ended then.
	hello := &message{Kind: kindHello, Version: Version, Names: k.names, fds: k.sockets}
	if err := w.send(hello); err != nil {
		return w, err
	}
	_, err = k.expect(w, kindStandby, standbyWithin)
	return w, err
}

// expect waits for a worker to get so far, and returns what it says; otherwise it is
// ended.
func (k *Keeper) expect(w *worker, want kind, within time.Duration) (text string, err error) {
	m, err := w.wait(k.ctx, within)
	if err == nil && m.Kind != want {
		if err = m.failure(); err == nil {
			err = fmt.Errorf("the worker says %q instead of %q: %w", m.Kind, want, errProtocol)
		}
	}
	if err != nil {
		k.awaitEnd(w, 0)
		return "", err
	}
	return m.Text, nil
}

// commit hands everything to a worker on standby and makes it the one that serves.
// Nobody else serves meanwhile. A worker that refuses the device serves all the same
// unless strict: its front-end may have made it useless, by truncating the guest's
// memory, and has to live with that.
func (k *Keeper) commit(w *worker, within time.Duration, strict bool) error {
	err := k.handOver(w)
	if err == nil {
		w.version, err = k.expect(w, kindReady, within)
	}
	if err != nil {
		k.awaitEnd(w, 0)
		return err
	}
	k.mu.Lock()
	d := k.device
	k.mu.Unlock()
	if d != nil {
		switch err := k.give(w, d); {
		case err == nil:
		case strict, errors.Is(err, errDied):
			k.awaitEnd(w, 0)
			return fmt.Errorf("the worker cannot take up the device: %w", err)
		default:
			k.opts.Log.Error("the front-end's device is lost", "err", err)
		}
	}
	k.setWorker(w)
	return nil
}

func (k *Keeper) handOver(w *worker) error {
	for _, e := range k.store.Entries() {
		if err := w.send(&message{Kind: kindEntry, Key: e.Key, body: e.Value, fds: e.FDs}); err != nil {
			return err
		}
	}
	return w.send(&message{Kind: kindBegin})
}

// awaitEnd waits for the end of a worker, and helps after some time.
func (k *Keeper) awaitEnd(w *worker, within time.Duration) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-w.dead:
		return
	case <-timer.C:
	}
	w.kill()
	<-w.dead
}

// stop ends the last worker in good order.
func (k *Keeper) stop(w *worker) error {
	if err := w.send(&message{Kind: kindEnd}); err == nil {
		k.awaitEnd(w, endWithin)
	}
	for {
		select {
		case m := <-w.stage:
			if m.Kind == kindOver {
				return m.failure()
			}
			continue
		default:
		}
		return nil
	}
}

// hear handles what a worker says until it has hung up.
func (k *Keeper) hear(w *worker) {
	defer w.hangUp()
	defer w.link.sock.Close()
	for {
		m, err := w.link.recv()
		if err != nil {
			if err != io.EOF && !errors.Is(err, net.ErrClosed) {
				k.opts.Log.Error("a worker is not understood and ended", "err", err)
				w.kill()
			}
			return
		}
		k.handle(w, m)
	}
}

// handle does what a worker asks for. It takes the descriptors of m.
func (k *Keeper) handle(w *worker, m *message) {
	fds := m.fds
	switch m.Kind {
	case kindAnswer:
		w.answered(m)
	case kindStandby, kindReady, kindFailed, kindOver:
		select {
		case w.stage <- m:
		default: // more than any worker has to say
		}
	case kindPut:
		if err := record.Check(m.Key, m.body, len(m.fds)); err != nil {
			k.opts.Log.Error("the session record refuses an entry", "err", err)
			break
		}
		k.store.Take(&record.Entry{Key: m.Key, Value: m.body, FDs: m.fds})
		fds = nil
	case kindDelete:
		_ = k.store.Delete(m.Key)
	case kindDrop:
		if err := k.store.DropMemory(m.Key); err != nil {
			k.opts.Log.Warn("session record", "err", err)
		}
	case kindShared:
		answer := &message{Kind: kindAnswer, ID: m.ID}
		if fd, err := k.store.MemoryFD(m.Key, m.Size); err != nil {
			answer.problem(err)
		} else {
			answer.fds = []int{fd}
		}
		// A worker that does not take it is dying.
		_ = w.link.send(answer)
	case kindUpgrade:
		u := &upgrade{path: m.Text}
		k.tasks.Go(func() { k.ask(w, u) })
	}
	closeAll(fds)
}
