package logsink

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"unicode/utf8"
)

// Bounds of what Events keeps.
const (
	MaxEvents    = 500
	MaxEventSize = 50 << 10 // bytes of all texts
)

// Events keeps the last errors that were logged, for whoever asks. Its methods are
// safe for concurrent use.
type Events struct {
	mu    sync.Mutex
	texts []string // guarded by mu; the oldest first
	size  int      // of texts; guarded by mu
	total uint64   // ever; guarded by mu
}

// Watch returns a Handler that hands everything to next, and keeps errors.
func (e *Events) Watch(next slog.Handler) slog.Handler { return &watcher{next, e, ""} }

// Errors returns what is kept, the oldest first, the bytes of it, and how many
// errors there ever were. Each text begins with its time as in HTTP.
func (e *Events) Errors() (texts []string, size int, total uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.texts...), e.size, e.total
}

func (e *Events) add(text string) {
	text = string(clip([]byte(strings.ToValidUTF8(text, string(utf8.RuneError))), maxValue))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.total++
	e.texts = append(e.texts, text)
	e.size += len(text)
	drop := 0
	for len(e.texts)-drop > MaxEvents || e.size > MaxEventSize {
		e.size -= len(e.texts[drop])
		drop++
	}
	if drop > 0 {
		e.texts = append(e.texts[:0:0], e.texts[drop:]...)
	}
}

// watcher is a Handler that keeps errors.
type watcher struct {
	slog.Handler
	events *Events
	attrs  string // of the Logger, as text
}

func (w *watcher) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError || w.Handler.Enabled(ctx, l)
}

func (w *watcher) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		var b strings.Builder
		b.WriteString(r.Time.UTC().Format(http.TimeFormat) + " - " + r.Message + w.attrs)
		r.Attrs(func(a slog.Attr) bool {
			appendAttr(&b, a)
			return true
		})
		w.events.add(b.String())
		if !w.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return w.Handler.Handle(ctx, r)
}

func appendAttr(b *strings.Builder, a slog.Attr) {
	a = bound(nil, a)
	b.WriteString(" " + a.Key + "=" + a.Value.Resolve().String())
}

func (w *watcher) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(w.attrs)
	for _, a := range attrs {
		appendAttr(&b, a)
	}
	return &watcher{w.Handler.WithAttrs(attrs), w.events, b.String()}
}

func (w *watcher) WithGroup(name string) slog.Handler {
	return &watcher{w.Handler.WithGroup(name), w.events, w.attrs}
}

// Levels are the levels by the names that callers use; "off" is above all.
var Levels = map[string]slog.Level{
	"off": 1 << 20, "trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "error": slog.LevelError,
}
