package daemon

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// TestWatchers: each gets everything in order; one that does not read loses what
// does not fit, is told how much, and goes on from there.
func TestWatchers(t *testing.T) {
	d, err := New(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	next := func(w *Watcher) Event {
		t.Helper()
		e, ok, err := w.Next(ctx)
		if err != nil || !ok {
			t.Fatalf("Next: %v, %v", ok, err)
		}
		return e
	}
	watch := func() *Watcher {
		t.Helper()
		w, err := d.Watch()
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	quick, slow := watch(), watch()
	if e := next(quick); e.Kind != EventState || e.State != StateInit {
		t.Errorf("the first event is %+v", e)
	}
	const more = 40
	for i := range maxEvents + more {
		d.watchers.tell(Event{Kind: EventMounted, Message: string(rune('a' + i%26))})
		if e := next(quick); e.Kind != EventMounted || e.Message != string(rune('a'+i%26)) {
			t.Fatalf("event %d is %+v", i, e)
		}
	}
	next(slow) // the state
	for range maxEvents - 1 {
		if e := next(slow); e.Kind != EventMounted {
			t.Fatalf("%+v", e)
		}
	}
	if e := next(slow); e.Kind != EventLost || e.Lost != more+1 {
		t.Errorf("after what fits comes %+v, want a loss of %d", e, more+1)
	}
	d.watchers.tell(Event{Kind: EventUmounted})
	if e := next(slow); e.Kind != EventUmounted {
		t.Errorf("after the loss comes %+v", e)
	}
	short, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	if _, _, err := slow.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with nothing to come: %v", err)
	}
	slow.Close()
	slow.Close()
	if _, ok, err := slow.Next(ctx); ok || err != nil {
		t.Errorf("after Close: %v, %v", ok, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		e, ok, err := quick.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if e.Kind == EventState && e.State != StateStopped && e.Kind != EventUmounted {
			t.Errorf("at the end comes %+v", e)
		}
	}
}
