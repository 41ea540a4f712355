package logsink_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a reader of logs that takes everything.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func TestLinesAreShortAndValid(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			var out buffer
			s := logsink.New(&out, format)
			log := slog.New(logsink.Handler(s, format, slog.LevelInfo))
			hostile := strings.Repeat("\xff\n\x00ä\"", 100_000)
			log.Info("name", "name", hostile)
			log.Info("error", "err", errors.New(hostile), "n", 1)
			log.Info(hostile)
			log.Info("bytes", "b", []byte(hostile))
			fmt.Fprintf(s, "%s\n", hostile)
			s.Close(10 * time.Second)

			lines := bufio.NewScanner(&out.b)
			lines.Buffer(nil, 1<<20)
			n := 0
			for ; lines.Scan(); n++ {
				line := lines.Text()
				if len(line)+1 > logsink.MaxLine || !utf8.ValidString(line) {
					t.Errorf("line %d: %d bytes, valid UTF-8 %v", n, len(line), utf8.ValidString(line))
				}
				if format == "json" && n < 3 && !json.Valid([]byte(line)) {
					t.Errorf("line %d is not JSON: %.80s … %s", n, line, line[len(line)-40:])
				}
			}
			if err := lines.Err(); err != nil || n < 5 {
				t.Errorf("%d lines, %v", n, err)
			}
		})
	}
}

// stuck is a pipe that nobody reads.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestAStuckReaderHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	s := logsink.New(stuck{release}, "text")
	line := []byte(strings.Repeat("x", 1000) + "\n")
	start := time.Now()
	for range 10_000 {
		if n, err := s.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	s.Close(10 * time.Millisecond)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("10,000 lines to a stuck reader took %v", took)
	}
	close(release) // or its goroutine would stay
}

// slow lets the first write go on only when told.
type slow struct {
	buffer
	once sync.Once
	go_  chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	s.once.Do(func() { <-s.go_ })
	return s.buffer.Write(p)
}

func TestDroppedLinesAreCounted(t *testing.T) {
	out := &slow{go_: make(chan struct{})}
	s := logsink.New(out, "text")
	line := strings.Repeat("x", 1023) + "\n"
	const total = 1000
	for range total {
		fmt.Fprint(s, line)
	}
	close(out.go_)
	s.Close(10 * time.Second)
	text := out.b.String()
	written := strings.Count(text, line)
	var dropped int
	for _, l := range strings.Split(text, "\n") {
		if i := strings.Index(l, "lines="); i >= 0 {
			var n int
			if _, err := fmt.Sscanf(l[i:], "lines=%d", &n); err != nil {
				t.Fatal(err)
			}
			dropped += n
		}
	}
	if dropped == 0 || written+dropped != total {
		t.Errorf("%d written, %d said to be dropped, want %d in all", written, dropped, total)
	}
}

func TestAReaderThatIsGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	s := logsink.New(w, "text")
	for range 100 {
		fmt.Fprintln(s, "into the void")
	}
	s.Close(10 * time.Second)
}

func TestFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := logsink.OpenFile(path, 20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		fmt.Fprintf(l, "line %d..\n", i)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != "line 1..\nline 2..\n" || string(now) != "line 3..\nline 4..\n" {
		t.Errorf("file %q, before it %q", now, before)
	}
	if _, err := logsink.OpenFile(filepath.Join(path, "x"), 0); err == nil {
		t.Error("a path that is none is no error")
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	var out buffer
	out.b.Grow(1 << 20)
	s := logsink.New(&out, "text")
	defer s.Close(time.Second)
	line := []byte("a line\n")
	for range 1000 { // let the buffers grow
		s.Write(line)
	}
	if n := testing.AllocsPerRun(100, func() { s.Write(line) }); n > 1 {
		t.Errorf("%v allocations a line", n)
	}
}
