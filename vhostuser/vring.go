package vhostuser

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
)

// A batch is published when the ring is empty, or when it holds so much. Small
// replies share a publication and its notification test; after a large one the
// driver can as well begin to work on it.
const (
	batchRequests = 32
	batchBytes    = 64 << 10
)

// keptRequests is how many Requests that have waited a vring keeps for the next.
const keptRequests = 64

// vring is one queue of a Device: a goroutine while it runs, and the requests
// that wait.
//
//	 idle ── start ──▶ running ── pause ──▶ paused ── start (the same) ──▶ running
//	                      │                    │ start (another), reset, close
//	chain or memory bad ──▶ broken ── pause ──▶└──▶ idle (waiting requests end)
//
// The methods that change this are called under Device.mu.
type vring struct {
	index   int
	handler Handler
	log     *slog.Logger
	stats   *counters
	onFault func() // tells the Device that guest memory is gone

	// Guarded by Device.mu.
	running bool
	place   session.Ring  // what it was started with; Base is where it began
	done    chan struct{} // closed when the goroutine of this run has ended
	broken  bool          // written by the goroutine before it ends; only a start heals it

	// The vring's part of the table of requests in flight, nil if there is none, and
	// whether what an earlier process left there is to be gone on with by the first
	// start. Guarded by Device.mu; written while the vring is stopped.
	inflight *virtqueue.Inflight
	adopt    bool

	setUp bool // it was started since the last reset; guarded by Device.mu

	// halt asks the goroutine to end; it looks once a request. Written under mu.
	halt atomic.Uint32

	// Owned by the vring's goroutine while one runs, else guarded by Device.mu.
	queue       *virtqueue.Queue   // publishing also needs mu; nil when idle
	replay      []virtqueue.Replay // heads in flight that another process popped
	oneByOne    bool               // one of replay may be what ended that process
	trial       *sync.Mutex        // held while one of those runs; the Device's, above mu
	signalFirst bool               // the driver may not have been told of what was published
	current     *Request
	staged      []virtqueue.Used
	stagedBytes uint64
	unseen      uint64 // requests and pages served since beSeen
	poller      poller
	near        near
	untimed     int                // requests to serve before the next one that is timed
	pending     func(uintptr) bool // queue.Pending in the shape that kick.wait needs

	mu       sync.Mutex      // a leaf
	changed  sync.Cond       // open, touching or an epoch's end changed
	kick     *kick           // written under Device.mu and mu while the vring is stopped
	call     notifier        // guarded by mu
	failure  notifier        // the error descriptor; guarded by mu
	open     bool            // guest memory may be touched; guarded by mu
	touching int             // requests that have waited and touch it; guarded by mu
	table    *guestmem.Table // where the rings are; guarded by mu
	epoch    *epoch          // of the requests that wait; guarded by mu
	free     []*Request      // guarded by mu

	complained time.Time // when complain last did; guarded by mu
}

// Values of vring.halt.
const (
	haltNo    = iota
	haltPause // stop between two requests
	haltFault // guest memory is gone
)

func newVring(index int, h Handler, o *Options, c *counters, trial *sync.Mutex, onFault func()) *vring {
	v := &vring{index: index, handler: h, log: o.Log.With("vring", index), stats: c, trial: trial, onFault: onFault}
	v.poller.time = o.Poll
	v.changed.L = &v.mu
	v.current = &Request{vring: v}
	v.staged = make([]virtqueue.Used, 0, batchRequests)
	v.pending = func(uintptr) bool { return v.queue.Pending() }
	return v
}

// run is the vring's goroutine.
func (v *vring) run(k *kick, done chan struct{}) {
	defer close(done)
	defer v.near.leave()
	// Guest memory may be gone; that must not end the process.
	debug.SetPanicOnFault(true)
	err := v.guard(func() error { return v.serve(k) })
	if err == nil {
		return
	}
	if !errors.Is(err, guestmem.ErrGone) {
		// What was finished before it came to this is good.
		err = errors.Join(err, v.guard(func() error { v.publish(); return nil }))
	}
	v.giveUp(err)
}

// guard turns a panic of f into an error.
func (v *vring) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = v.panicked(p)
		}
	}()
	return f()
}

// panicked turns what a goroutine of this vring recovered into an error.
func (v *vring) panicked(p any) error {
	v.mu.Lock()
	table := v.table
	v.mu.Unlock()
	if err := table.Fault(p); err != nil {
		v.onFault()
		return err
	}
	// A mistake of the Handler's or ours: one vring is lost, and the stack says why.
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}

// giveUp says that the vring stops serving until it is started anew. It is called
// by the vring's goroutine, or while there is none.
func (v *vring) giveUp(err error) {
	v.broken = true
	v.stats.broken.Add(1)
	v.complain("vring is broken", "err", err)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failure.signal()
}

// complainEvery is how often a vring says what went wrong. A guest can make things
// go wrong as often as it likes.
const complainEvery = time.Second

// complain logs an error, but not too often.
func (v *vring) complain(msg string, args ...any) {
	now := time.Now()
	v.mu.Lock()
	often := now.Sub(v.complained) < complainEvery
	if !often {
		v.complained = now
	}
	v.mu.Unlock()
	if !often {
		v.log.Error(msg, args...)
	}
}

// serve works and sleeps until it is told to end (nil) or the ring is broken.
func (v *vring) serve(k *kick) error {
	if err := v.serveAgain(); err != nil {
		return err
	}
	for {
		if err := v.drain(); err != nil {
			return err
		}
		switch v.halt.Load() {
		case haltPause:
			return nil
		case haltFault:
			return errFault
		}
		v.sleep(k)
	}
}

// serveAgain serves what another process had taken when it ended.
func (v *vring) serveAgain() error {
	if v.signalFirst {
		v.signalFirst = false
		v.mu.Lock()
		v.call.signal()
		v.mu.Unlock()
	}
	for len(v.replay) > 0 && v.halt.Load() == haltNo {
		p := v.replay[0]
		serve := v.serveReplay
		if v.oneByOne && !p.Refuse {
			serve = v.try
		}
		if err := serve(p); err != nil {
			return err
		}
		if len(v.staged) == cap(v.staged) || v.stagedBytes >= batchBytes {
			v.publish()
		}
	}
	v.oneByOne = v.oneByOne && len(v.replay) > 0
	v.publish()
	return nil
}

// serveReplay serves p, the first of v.replay, or refuses it.
func (v *vring) serveReplay(p virtqueue.Replay) error {
	v.replay = v.replay[1:]
	if err := v.queue.Replay(p.Head, &v.current.chain); err != nil {
		return err
	}
	v.current.rerun = true
	if p.Refuse {
		v.refuse()
	} else {
		v.serveOne()
	}
	v.current.rerun = false // another one, if that waits
	return nil
}

// trialTime is how long a request that may have ended processes is alone in its
// device. One that waits for longer than that would keep all others from running.
const trialTime = 2 * time.Second

// try serves p alone: no other request on trial runs meanwhile, on any vring, and this
// one takes no new ones. It leaves p where it is if the vring is to halt first.
func (v *vring) try(p virtqueue.Replay) error {
	for !v.trial.TryLock() {
		if v.halt.Load() != haltNo {
			return nil
		}
		time.Sleep(time.Millisecond) // seldom: processes have ended before it comes to this
	}
	defer v.trial.Unlock()
	if v.halt.Load() != haltNo {
		return nil
	}
	v.inflight.Try(p.Head)
	if err := v.serveReplay(p); err != nil {
		return err
	}
	v.publish()
	for end := time.Now().Add(trialTime); v.queue.InFlight(p.Head) && v.halt.Load() == haltNo; {
		if time.Now().After(end) {
			v.inflight.EndTrial(p.Head)
			break
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// refuse answers v.current with an error: it was in flight whenever a process ended.
func (v *vring) refuse() {
	r := v.current
	v.complain("request has ended too many processes and is refused", "head", r.chain.Head)
	written := uint32(0)
	if h, ok := v.handler.(Refuser); ok {
		r.attached = true
		written = r.checked(h.Refuse(r))
	}
	v.staged = append(v.staged, virtqueue.Used{Head: r.chain.Head, Len: written})
}

var errFault = fmt.Errorf("another vring found that %w", guestmem.ErrGone)

// sleep returns when there is work or the goroutine is to end.
func (v *vring) sleep(k *kick) {
	found, polled := v.poller.wait(v.pending, &v.halt)
	if found {
		v.stats.pollHits.Add(1)
		return
	}
	if polled {
		v.stats.pollMisses.Add(1)
	}
	if v.queue.EnableKicks() {
		return
	}
	if v.near.wait(k, v.pending) || k.wait(v.pending) {
		v.stats.kicks.Add(1)
	}
	v.queue.DisableKicks()
}

// drain serves chains until the ring is empty or the goroutine is to end, and
// publishes what it finished.
func (v *vring) drain() error {
	for v.halt.Load() == haltNo {
		ok, err := v.queue.Pop(&v.current.chain)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		v.serveOne()
		if v.unseen >= unseenMost {
			v.unseen = 0
			beSeen()
		}
		if len(v.staged) == cap(v.staged) || v.stagedBytes >= batchBytes {
			v.publish()
		}
	}
	v.publish()
	return nil
}

// serveOne serves v.current and stages its reply, or lets it wait elsewhere.
func (v *vring) serveOne() {
	r := v.current
	r.attached = true
	v.untimed--
	timed := v.untimed < 0
	if timed {
		v.untimed = timeOneIn - 1
		r.taken = time.Now()
	}
	written, done := v.handler.Serve(r)
	if !done {
		if !timed {
			r.taken = time.Now() // it was taken a moment ago
		}
		v.letWait(r)
		return
	}
	if timed {
		v.stats.latency.Add(time.Since(r.taken), timeOneIn)
	}
	written = r.checked(written)
	v.staged = append(v.staged, virtqueue.Used{Head: r.chain.Head, Len: written})
	v.stagedBytes += uint64(written)
	v.unseen += 1 + uint64(written)/4096 // a page takes about as long as a small request
}

// checked bounds what a Handler says it has written by what it could have.
func (r *Request) checked(written uint32) uint32 {
	if uint64(written) > r.chain.WriteLen {
		r.vring.complain("handler says it has written more than there was room for",
			"head", r.chain.Head, "written", written, "room", r.chain.WriteLen)
		return uint32(r.chain.WriteLen)
	}
	return written
}

// publish shows the staged replies to the driver.
//
// All replies of all vrings pass here or finish: a log of dirty pages, as live
// migration needs it, is to be written before the call of Publish, from the
// written bytes of each reply.
func (v *vring) publish() {
	n := len(v.staged)
	if n == 0 {
		return
	}
	v.stats.requests.Add(uint64(n))
	v.mu.Lock()
	defer v.mu.Unlock() // Publish may fault
	v.publishLocked(v.staged)
	v.staged, v.stagedBytes = v.staged[:0], 0
}

// unseenMost is how much a vring serves between two calls of beSeen, in requests
// and pages: a few milliseconds of work.
const unseenMost = 4096

// beSeen makes the Go scheduler's monitor look after this goroutine, which may
// serve a busy ring for ever and does nothing else that the scheduler sees. The
// monitor sleeps once the whole process has, and only a system call of the usual
// kind wakes it; without it nobody takes the processor from us, nor polls for the
// goroutines that wait for a descriptor.
func beSeen() { _, _, _ = syscall.Syscall(syscall.SYS_GETPID, 0, 0, 0) }

func (v *vring) publishLocked(done []virtqueue.Used) {
	signal := v.queue.Publish(done)
	v.stats.batches.Add(1)
	if signal && v.call.signal() {
		v.stats.signals.Add(1)
	}
}

// prepare sets the vring up in t to run from r on. It keeps what waits if r is
// where the vring was paused; else that is forgotten, and fresh is true.
//
// With a table of requests in flight, that may say that another process has begun
// this very start, or was stopped in the middle of serving the guest before the
// front-end has come back (adopt): then the vring goes on from there, and r.Base
// does not matter. suspect is that of virtqueue.Recover.
func (v *vring) prepare(t *guestmem.Table, r session.Ring, cfg virtqueue.Config, suspect int) (fresh bool, err error) {
	f := v.inflight
	goesOn, err := v.goesOn(t, r, cfg)
	if err != nil {
		return true, err
	}
	switch {
	case v.continues(t, r, cfg):
		if f != nil {
			f.SetGeneration(r.Generation)
		}
	case goesOn:
		if err := v.recover(t, cfg, suspect); err != nil {
			return true, err
		}
		f.SetGeneration(r.Generation)
	default:
		v.forget()
		if f != nil {
			v.queue, err = virtqueue.NewTabled(t, cfg, r.Base, f, r.Generation)
		} else {
			v.queue, err = virtqueue.New(t, cfg, r.Base)
		}
		if err != nil {
			v.queue = nil
			return true, err
		}
		fresh = true
	}
	v.place, v.broken, v.adopt, v.setUp = r, false, false, true
	return fresh, nil
}

// goesOn reports whether a start at r goes on from the table.
func (v *vring) goesOn(t *guestmem.Table, r session.Ring, cfg virtqueue.Config) (bool, error) {
	f := v.inflight
	switch {
	case f == nil || f.Generation() == 0:
		return false, nil
	case f.Generation() == r.Generation && !v.adopt:
		return true, nil
	case !v.adopt:
		return false, nil
	}
	// Nobody was there to hear of a driver that has begun anew since.
	fits, err := f.Fits(t, cfg)
	if err == nil && !fits {
		v.log.Warn("rings are not as the requests in flight were left: these are forgotten")
	}
	return fits, err
}

// recover sets the vring up from its part of the table.
func (v *vring) recover(t *guestmem.Table, cfg virtqueue.Config, suspect int) error {
	v.forget()
	q, left, err := virtqueue.Recover(t, cfg, v.inflight, suspect)
	if err != nil {
		return err
	}
	v.queue, v.replay, v.oneByOne, v.signalFirst = q, left.Replays, left.OneByOne, true
	return nil
}

// clearInflight forgets what the table says of the vring, which is idle.
func (v *vring) clearInflight() {
	if v.inflight != nil {
		v.inflight.Clear()
	}
}

// continues reports whether the driver goes on where the vring was paused: same
// place, the base that we gave, and in the used ring what we left there. A driver
// that was reset fills in another used index, even if all else is equal.
func (v *vring) continues(t *guestmem.Table, r session.Ring, cfg virtqueue.Config) bool {
	q := v.queue
	return q != nil && q.Config() == cfg && q.Base() == r.Base &&
		q.Rebind(t) == nil && q.RingUsed() == q.NextUsed()
}

// launch opens memory to what waits and starts the goroutine, unless the vring is
// broken. Everything is set up in t.
func (v *vring) launch(t *guestmem.Table) {
	v.mu.Lock()
	v.halt.Store(haltNo)
	v.kick.allow()
	v.table, v.open = t, true
	if v.epoch == nil {
		v.epoch = newEpoch()
	}
	v.changed.Broadcast()
	v.mu.Unlock()
	v.running = true
	v.done = make(chan struct{})
	if v.broken {
		close(v.done)
		return
	}
	go v.run(v.kick, v.done)
}

// pause ends the goroutine. When it returns, nobody touches guest memory for this
// vring, and requests that wait stay waiting.
func (v *vring) pause() {
	if !v.running {
		return
	}
	v.stop(haltPause)
	<-v.done
	v.mu.Lock()
	v.open = false
	for v.touching > 0 {
		v.changed.Wait()
	}
	v.mu.Unlock()
	v.running = false
}

// stop tells the goroutine to end, if there is one.
func (v *vring) stop(why uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.halt.CompareAndSwap(haltNo, why) && v.kick != nil {
		v.kick.interrupt()
	}
}

// resume undoes pause, with memory at t.
func (v *vring) resume(t *guestmem.Table) error {
	if err := v.queue.Rebind(t); err != nil {
		return err
	}
	v.launch(t)
	return nil
}

// forget ends all requests that wait, unanswered, and makes the vring idle. It is
// paused. It waits until the Handler has returned from them.
func (v *vring) forget() {
	v.mu.Lock()
	e := v.epoch
	v.epoch = nil
	if e != nil {
		e.over = true
		v.changed.Broadcast()
	}
	v.table = nil
	v.mu.Unlock()
	if e != nil {
		e.cancel()
		e.waiting.Wait()
	}
	v.queue, v.replay, v.oneByOne, v.signalFirst = nil, nil, false, false
}

// waits reports whether requests wait, or are to be served again. The vring is
// paused.
func (v *vring) waits() bool {
	return v.queue != nil && len(v.queue.Progress().InFlight) > 0
}

// setKick replaces the kick, which may be nil. The vring is paused.
func (v *vring) setKick(k *kick) {
	v.mu.Lock()
	old := v.kick
	v.kick = k
	v.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// setCall and setFailure replace a notifier; the old one is not used afterwards.
func (v *vring) setCall(n notifier) { v.setNotifier(&v.call, n) }

func (v *vring) setFailure(n notifier) { v.setNotifier(&v.failure, n) }

func (v *vring) setNotifier(have *notifier, n notifier) {
	v.mu.Lock()
	defer v.mu.Unlock()
	have.close()
	*have = n
}

// guestFault reports whether err is what a guest can cause.
func guestFault(err error) bool {
	return errors.Is(err, virtqueue.ErrSetup) || errors.Is(err, guestmem.ErrAddress) || errors.Is(err, guestmem.ErrGone)
}
