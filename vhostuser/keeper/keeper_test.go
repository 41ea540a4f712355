package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
)

var discard = slog.New(slog.DiscardHandler)

// asWorker makes the test binary a worker; its value says how it behaves.
const asWorker = "KEEPER_TEST_WORKER"

// counter is in the session record how many workers there were.
const counter = "workers"

// beWorker is a worker's life.
func beWorker() int {
	w, err := Join()
	if err != nil {
		return 1
	}
	go func() {
		<-w.Orphaned()
		os.Exit(7)
	}()
	n := 0
	if err := w.Each("", func(key string, value []byte, fds []int) error {
		if key == counter {
			n = len(value)
		}
		closeAll(fds)
		return nil
	}); err != nil {
		return 1
	}
	n++
	if err := w.Put(counter, make([]byte, n)); err != nil {
		return 1
	}
	mem, err := w.Memory("shared", 4096)
	if err != nil {
		return 1
	}
	mem[n]++
	fmt.Fprintf(os.Stderr, "worker %d, memory %v\n", n, mem[:8])
	how := os.Getenv(asWorker)
	switch {
	case how == "fails":
		_ = w.Failed(errors.New("no luck"))
		return 1
	case how == "crashes":
		if n < 4 {
			return 3
		}
	case how == "crashes for ever":
		if err := w.Ready("1"); err != nil {
			return 1
		}
		return 3
	case how == "hangs":
		select {}
	}
	if err := w.Ready("1"); err != nil {
		return 1
	}
	stop := make(chan struct{})
	served := make(chan error, 1)
	go func() { served <- w.Serve(Host{}, stop) }()
	if how == "is over" {
		_ = w.Over(errors.New("enough"))
		return 0
	}
	<-w.End()
	close(stop)
	<-served
	_ = w.Over(nil)
	return 0
}

// lines gathers what workers print.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run runs a keeper of workers that behave so, until they have printed text, and
// returns what Run does.
func run(t *testing.T, how, until string) (string, error) {
	t.Helper()
	out := &lines{}
	k, err := New(Options{
		Binary: "/proc/self/exe", Args: []string{os.Args[0]}, Env: append(os.Environ(), asWorker+"="+how, "GORACE=atexit_sleep_ms=0"),
		Device: vhostuser.Options{Queues: 2, Log: discard}, WorkerLog: out, Log: discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := vhostuser.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if until != "" {
		go func() {
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && !strings.Contains(out.String(), until); {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
	}
	before := openFiles(t)
	err = k.Run(ctx, l)
	if now := openFiles(t); now > before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
	return out.String(), err
}

func TestWorkersEnd(t *testing.T) {
	for how, want := range map[string]struct{ until, err, out string }{
		"serves":           {"worker 1", "", ""},
		"is over":          {"", "enough", ""},
		"fails":            {"", "no luck", ""},
		"crashes for ever": {"", "crashed", "worker 5"},
	} {
		t.Run(how, func(t *testing.T) {
			out, err := run(t, how, want.until)
			if got := fmt.Sprint(err); err == nil && want.err != "" || err != nil && (want.err == "" || !strings.Contains(got, want.err)) {
				t.Errorf("%v, want %q", err, want.err)
			}
			if !strings.Contains(out, want.out) {
				t.Errorf("%q lacks %q", out, want.out)
			}
		})
	}
}

// TestEndBeforeTheFirstWorkerServes: whoever ends us does not wait for it.
func TestEndBeforeTheFirstWorkerServes(t *testing.T) {
	began := time.Now()
	if _, err := run(t, "hangs", "worker 1"); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("ended after %v", took)
	}
}

// TestFirstWorkerThatCrashes ends the keeper: nobody has been promised anything.
func TestFirstWorkerThatCrashes(t *testing.T) {
	if _, err := run(t, "crashes", ""); !errors.Is(err, errDied) {
		t.Errorf("%v, want errDied", err)
	}
}

// TestRecordOutlivesWorkers: entries and memory of those that were killed.
func TestRecordOutlivesWorkers(t *testing.T) {
	out := &lines{}
	k, err := New(Options{
		Binary: "/proc/self/exe", Args: []string{os.Args[0]}, Env: append(os.Environ(), asWorker+"=serves", "GORACE=atexit_sleep_ms=0"),
		Device: vhostuser.Options{Queues: 2, Log: discard}, WorkerLog: out, Log: discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := vhostuser.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx, l) }()
	var last *worker
	for n := range 5 {
		w, err := k.current()
		for err == nil && w == last {
			time.Sleep(time.Millisecond)
			w, err = k.current()
		}
		if err != nil {
			t.Fatal(err)
		}
		last = w
		if n < 4 {
			if err := unix.Kill(w.cmd.Process.Pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-w.dead
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if want := "worker 5, memory [0 1 1 1 1 1 0 0]"; !strings.Contains(out.String(), want) {
		t.Errorf("%q lacks %q", out, want)
	}
}
