package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// EventKind says what has happened.
type EventKind uint8

// The kinds of events.
const (
	EventState             EventKind = iota + 1 // State
	EventMounted                                // Mountpoint
	EventUmounted                               // Mountpoint
	EventRemounted                              // Mountpoint
	EventPrefetched                             // Mountpoint; Message if not all could be had
	EventFrontEndConnected                      //
	EventFrontEndGone                           //
	EventBackendFailing                         // Message
	EventBackendRecovered                       // Message
	EventLost                                   // Lost: events that this watcher missed
)

// Event is something that a shim may want to know.
type Event struct {
	Kind       EventKind
	Time       time.Time
	State      State
	Mountpoint string
	Message    string
	Lost       uint64
}

// maxEvents is how many events wait for a watcher. What comes then is lost to it:
// nobody waits for one that does not read.
const maxEvents = 256

// maxWatchers bounds those who watch at a time.
const maxWatchers = 256

// watchers hands events to whoever watches. Its mutex is a leaf.
type watchers struct {
	mu  sync.Mutex
	all map[*Watcher]struct{} // guarded by mu
}

// Watcher is a queue of events. Next is for one goroutine at a time, Close for any.
type Watcher struct {
	from *watchers
	wake chan struct{} // of capacity 1: there is something, or it is closed

	// Guarded by from.mu.
	events []Event
	lost   uint64
	closed bool
}

// Watch returns a queue of the events from now on. The first is the present state.
// It is to be closed. With too many watchers already there is an error (ErrState).
func (d *Daemon) Watch() (*Watcher, error) {
	w := &Watcher{from: &d.watchers, wake: make(chan struct{}, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	w.events = append(w.events, Event{Kind: EventState, Time: time.Now(), State: d.state})
	w.signal()
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	if len(d.watchers.all) >= maxWatchers {
		return nil, fmt.Errorf("%d are watching already: %w", maxWatchers, ErrState)
	}
	if d.watchers.all == nil {
		d.watchers.all = make(map[*Watcher]struct{})
	}
	d.watchers.all[w] = struct{}{}
	return w, nil
}

// Next waits for the next event. It returns false after Close, and with an error
// when ctx ends.
func (w *Watcher) Next(ctx context.Context) (e Event, ok bool, err error) {
	for {
		w.from.mu.Lock()
		switch {
		case len(w.events) > 0:
			e = w.events[0]
			w.events = w.events[1:]
			w.from.mu.Unlock()
			return e, true, nil
		case w.lost > 0:
			e = Event{Kind: EventLost, Time: time.Now(), Lost: w.lost}
			w.lost = 0
			w.from.mu.Unlock()
			return e, true, nil
		case w.closed:
			w.from.mu.Unlock()
			return Event{}, false, nil
		}
		w.from.mu.Unlock()
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Event{}, false, context.Cause(ctx)
		}
	}
}

// Close ends the queue. Closing twice is harmless.
func (w *Watcher) Close() {
	w.from.mu.Lock()
	defer w.from.mu.Unlock()
	delete(w.from.all, w)
	w.closed = true
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tell hands an event to all watchers.
func (ws *watchers) tell(e Event) {
	e.Time = time.Now()
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		if len(w.events) >= maxEvents || w.lost > 0 {
			w.lost++ // what comes later must not be seen before the loss is
		} else {
			w.events = append(w.events, e)
		}
		w.signal()
	}
}

// close ends all queues, after what is in them.
func (ws *watchers) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.closed = true
		w.signal()
	}
	ws.all = nil
}
