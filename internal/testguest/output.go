package testguest

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// output takes what a guest writes on its output device, finds the lines of its
// /init in it (see initScript) and keeps the rest.
type output struct {
	nonce string
	limit int
	live  io.Writer // gets the script's output as it comes, if not nil
	began func()    // called once, when the first line has come
	ended func()    // called once, when the last line has come, or too much

	mu       sync.Mutex
	buf      []byte // all that came after the first line
	head     []byte // before the first line is whole
	release  string
	sent     int // bytes of buf that live has got
	done     bool
	exitCode int
	err      error
}

// Write takes the next bytes; those after the last line are dropped.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	if o.done {
		return n, nil
	}
	if o.release == "" {
		o.head = append(o.head, p...)
		line, rest, whole := bytes.Cut(o.head, []byte{'\n'})
		if !whole {
			return n, nil
		}
		release, ok := strings.CutPrefix(string(line), o.nonce+" init ")
		if !ok || release == "" {
			o.finish(fmt.Errorf("the guest's output starts with %.100q", line))
			return n, nil
		}
		o.release, p, o.head = release, rest, nil
		o.began()
	}
	old := len(o.buf)
	o.buf = append(o.buf, p...)
	o.findEnd(old)
	if !o.done && len(o.buf) > o.limit {
		o.finish(fmt.Errorf("the guest printed more than %d bytes", o.limit))
	}
	o.forward()
	return n, nil
}

// findEnd looks for the last line in what came after old.
func (o *output) findEnd(old int) {
	mark := []byte("\n" + o.nonce + " exit ")
	from := max(0, old-len(mark)-4) // the line may have come in pieces
	i := bytes.Index(o.buf[from:], mark)
	if i < 0 {
		return
	}
	i += from
	code, _, whole := bytes.Cut(o.buf[i+len(mark):], []byte{'\n'})
	if !whole {
		return
	}
	var err error
	if o.exitCode, err = strconv.Atoi(string(code)); err != nil {
		err = fmt.Errorf("exit code of the guest: %w", err)
	}
	o.buf = o.buf[:i]
	o.finish(err)
}

func (o *output) finish(err error) {
	o.done, o.err = true, err
	o.ended()
}

// forward hands on all that cannot belong to the last line, which starts with the
// newline before it.
func (o *output) forward() {
	if o.live == nil {
		return
	}
	upTo := len(o.buf)
	if !o.done {
		upTo = max(bytes.LastIndexByte(o.buf, '\n'), o.sent)
	}
	_, _ = o.live.Write(o.buf[o.sent:upTo]) // the result is in buf whether or not anybody reads along
	o.sent = upTo
}

// mountFailure returns which file system could not be mounted, and why.
func (o *output) mountFailure() (index int, reason string, failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest, failed := bytes.CutPrefix(o.buf, []byte(o.nonce+" mount "))
	if !failed {
		return 0, "", false
	}
	line, text, _ := bytes.Cut(rest, []byte{'\n'})
	index, err := strconv.Atoi(string(line))
	return index, strings.TrimSpace(string(text)), err == nil
}

// state returns what has come so far.
func (o *output) state() (release, text string, done bool, exitCode int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.release, string(o.buf), o.done, o.exitCode, o.err
}

// stopwatch measures the time from its making to the first stop.
type stopwatch struct {
	start time.Time
	mu    sync.Mutex
	took  time.Duration
}

func (s *stopwatch) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.took == 0 {
		s.took = time.Since(s.start)
	}
}

func (s *stopwatch) elapsed() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.took
}
