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
type lifetime struct {
	linger time.Duration // after the last front-end has gone; 0 = never
	over   chan error    // of capacity 1: gets the reason, once; nil if all went well

	mu        sync.Mutex
	connected int         // guarded by mu; front-ends there are
	timer     *time.Timer // guarded by mu; nil if none runs
	epoch     uint64      // guarded by mu; grows with each change, so that a late timer knows
}

// newLifetime begins to wait for the first front-end; 0 waits for ever.
func newLifetime(firstConnect, linger time.Duration) *lifetime {
	l := &lifetime{linger: linger, over: make(chan error, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start(firstConnect, fmt.Errorf("%w within %v", ErrNoFrontEnd, firstConnect))
	return l
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
	l.stopTimer()
}

// disconnect tells that a front-end went.
func (l *lifetime) disconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected--
	if l.connected == 0 {
		l.start(l.linger, nil)
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
