package daemon

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrNoFrontEnd is why a daemon ends that no VMM ever came to.
var ErrNoFrontEnd = errors.New("no VMM connected")

// lifetime decides when the daemon has outlived its use: nobody else may be left
// to end it. The shim that started us may have crashed, and what is left behind
// then would stay until the node reboots.
//
// Not everybody who connects is a VMM: some only look whether anyone listens. A
// connection counts once it was used or has lasted for a while; the clock for the
// first one goes on otherwise.
type lifetime struct {
	first  time.Time     // until when a first front-end must have come; zero = never
	reason error         // if none came
	linger time.Duration // after the last front-end has gone; 0 = never
	over   chan error    // of capacity 1: gets the reason, once; nil if all went well

	mu        sync.Mutex
	connected int         // guarded by mu; front-ends there are
	since     time.Time   // guarded by mu; when the last one came
	came      bool        // guarded by mu; there was a front-end that counts
	timer     *time.Timer // guarded by mu; nil if none runs
	epoch     uint64      // guarded by mu; grows with each change, so that a late timer knows
}

// countsAfter is how long a connection that nothing was asked over must last to
// count as a front-end.
const countsAfter = time.Second

// newLifetime begins to wait for the first front-end; 0 waits for ever. If one came
// to an earlier process, its return is waited for.
func newLifetime(firstConnect, linger time.Duration, came bool) *lifetime {
	l := &lifetime{linger: linger, over: make(chan error, 1), came: came}
	l.mu.Lock()
	defer l.mu.Unlock()
	if came {
		l.start(linger, nil)
		return l
	}
	if firstConnect > 0 {
		l.first = time.Now().Add(firstConnect)
		l.reason = fmt.Errorf("%w within %v", ErrNoFrontEnd, firstConnect)
	}
	l.waitForFirst()
	return l
}

// waitForFirst starts the clock for the first front-end, or what is left of it.
// The caller holds l.mu.
func (l *lifetime) waitForFirst() {
	if !l.first.IsZero() {
		l.start(max(time.Until(l.first), 1), l.reason)
	}
}

// start starts the clock after which it is over for the reason. The caller holds
// l.mu.
func (l *lifetime) start(after time.Duration, reason error) {
	l.epoch++
	if after == 0 {
		return
	}
	epoch := l.epoch
	l.timer = time.AfterFunc(after, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.epoch == epoch {
			l.over <- reason // the one send: epoch moves on now
			l.epoch++
		}
	})
}

// connect tells that a front-end came.
func (l *lifetime) connect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected++
	l.since = time.Now()
	l.stopTimer()
}

// disconnect tells that a front-end went; used, that a guest has made requests in
// the life of the daemon.
func (l *lifetime) disconnect(used bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected--
	l.came = l.came || used || time.Since(l.since) >= countsAfter
	switch {
	case l.connected > 0:
	case l.came:
		l.start(l.linger, nil)
	default:
		l.waitForFirst()
	}
}

// end makes it over now, unless it is already.
func (l *lifetime) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopTimer()
	l.linger, l.first = 0, time.Time{} // nothing is waited for any more
	select {
	case l.over <- nil:
	default:
	}
}

// stop ends all waiting.
func (l *lifetime) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopTimer()
}

// stopTimer makes the running clock, if any, count no more. The caller holds
// l.mu.
func (l *lifetime) stopTimer() {
	l.epoch++
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}
