// Package logsink takes log lines from any goroutine without ever making it
// wait, and writes them to a descriptor that may be slow, stuck, or gone.
//
//	handlers ──Write──▶ pending (bounded) ──▶ one goroutine ──▶ stderr or a file
//	                        │ full: the line is dropped and counted
//
// A shim that stops reading our output must not stop a guest's reads, and one
// that is gone must not end us. Readers of our output give up on long lines and
// on bytes that are not UTF-8, so no line is longer than 8 KiB and all are valid.
//
// Lock order: Sink.mu is a leaf; it is held while bytes are copied and never
// while they are written.
package logsink

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// MaxLine is the longest line in bytes, its newline included.
	MaxLine = 8 << 10
	// maxPending bounds the bytes that wait to be written.
	maxPending = 256 << 10
	// maxValue bounds one value in a line, so that a line of few attributes is
	// never cut and stays what its format says.
	maxValue = 1 << 10
)

// Sink is an io.Writer that never waits. Each Write is one line with its newline.
type Sink struct {
	out    io.Writer // used by the goroutine of run alone
	report string    // format of the line that tells how many were dropped

	mu      sync.Mutex
	pending []byte // guarded by mu
	spare   []byte // guarded by mu; the other buffer, nil while it is written
	dropped uint64 // guarded by mu; lines since the last report
	closed  bool   // guarded by mu

	wake chan struct{} // of capacity 1: there is something to write, or closed
	done chan struct{} // closed when run has ended
}

// New returns a Sink that writes lines of the format ("text" or "json") to out,
// and starts its goroutine, which Close ends. Errors of out are not reported
// anywhere: there is no place for them.
func New(out io.Writer, format string) *Sink {
	s := &Sink{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.report = "level=WARN msg=\"log lines dropped: whoever reads them is too slow\" lines=%d\n"
	if format == "json" {
		s.report = "{\"level\":\"WARN\",\"msg\":\"log lines dropped: whoever reads them is too slow\",\"lines\":%d}\n"
	}
	go s.run()
	return s
}

// Write takes one line. It never fails and never waits.
func (s *Sink) Write(line []byte) (int, error) {
	n := len(line)
	if !utf8.Valid(line) {
		line = bytes.ToValidUTF8(line, []byte("\uFFFD"))
	}
	cut := len(line) > MaxLine
	if cut {
		line = clip(line, MaxLine-len(cutMark))
	}
	s.mu.Lock()
	switch {
	case s.closed:
	case len(s.pending)+len(line)+len(cutMark) > maxPending:
		s.dropped++
	default:
		s.pending = append(s.pending, line...)
		if cut {
			s.pending = append(s.pending, cutMark...)
		}
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return n, nil
}

// cutMark ends a line that was too long.
const cutMark = "… (cut)\n"

// clip returns at most n bytes of the valid text b, cutting no rune.
func clip(b []byte, n int) []byte {
	if len(b) <= n {
		return b
	}
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return b[:n]
}

// Close writes what waits, for at most the given time, and ends the Sink. What
// out does not take in that time is lost, and the goroutine stays behind in it.
func (s *Sink) Close(within time.Duration) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
	}
}

// run writes what is pending until the Sink is closed.
func (s *Sink) run() {
	defer close(s.done)
	for range s.wake {
		for {
			batch, closed := s.take()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			_, _ = s.out.Write(batch)
			s.giveBack(batch)
		}
	}
}

// take hands out what is pending, with a line on what was dropped before it.
func (s *Sink) take() (batch []byte, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch = s.pending
	s.pending, s.spare = s.spare, nil
	if s.dropped > 0 && len(batch) > 0 {
		batch = fmt.Appendf(batch, s.report, s.dropped)
		s.dropped = 0
	}
	return batch, s.closed
}

func (s *Sink) giveBack(batch []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const keep = 16 << 10 // a burst's buffer is not worth keeping
	if cap(batch) <= keep {
		s.spare = batch[:0]
	}
}

// Handler returns a slog.Handler that writes lines of the format, "text" or
// "json", to w.
func Handler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: bound}
	if format == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

// bound shortens values that a guest, a registry or a path made long.
func bound(_ []string, a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	var text string
	switch v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			text = x.Error()
		case fmt.Stringer:
			text = x.String()
		default:
			return a
		}
	default:
		return a
	}
	if len(text) > maxValue {
		text = string(clip([]byte(text), maxValue)) + "…"
	}
	return slog.String(a.Key, text)
}
