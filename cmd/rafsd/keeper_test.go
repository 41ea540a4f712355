package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// workerOf returns the pid of the worker of a keeper, 0 if there is none now.
func workerOf(t testing.TB, keeper int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", keeper))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(args), "\x00"+workerWord+"\x00") {
				return pid
			}
		}
	}
	return 0
}

// worker waits for a worker other than old and returns its pid.
func (p *process) worker(old int) (pid int) {
	p.t.Helper()
	waitUntil(p.t, "a worker other than "+strconv.Itoa(old), func() bool {
		pid = workerOf(p.t, p.cmd.Process.Pid)
		return pid != 0 && pid != old
	})
	return pid
}

// killWorkers kills the worker n times at moments that nobody chose.
func (p *process) killWorkers(n int, most time.Duration) {
	p.t.Helper()
	last := 0
	for range n {
		last = p.worker(last)
		time.Sleep(rand.N(most))
		if err := syscall.Kill(last, syscall.SIGKILL); err != nil {
			p.t.Fatal(err)
		}
	}
	p.worker(last)
}

// imageLoad reads an image in many ways at once, and compares, until it is told to
// stop.
type imageLoad struct {
	files  []manifest.Entry
	at     string
	reads  atomic.Int64
	stop   atomic.Bool
	failed chan error
	wg     sync.WaitGroup
}

func startImageLoad(ctx context.Context, c *vmm.Client, v variant, at string, readers int) *imageLoad {
	l := &imageLoad{at: at, failed: make(chan error, readers)}
	for _, e := range v.want {
		if e.Type == manifest.Regular {
			l.files = append(l.files, e)
		}
	}
	for range readers {
		l.wg.Go(func() {
			for !l.stop.Load() {
				f := l.files[rand.N(len(l.files))]
				if err := tryFile(ctx, c, at, f); err != nil {
					l.failed <- err
					return
				}
				l.reads.Add(1)
			}
		})
	}
	return l
}

func (l *imageLoad) end(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	select {
	case err := <-l.failed:
		t.Error(err)
	default:
	}
	t.Logf("%d files read and compared", l.reads.Load())
}

// TestTransportL48: the worker is killed at random points under load. Every request
// is answered once (the front-end checks that), the data are right, and the VMM sees
// no message.
func TestTransportL48_WorkerKilled(t *testing.T) {
	kills, most := 40, 40*time.Millisecond
	if os.Getenv("RAFSD_LONG") == "1" {
		kills = 5000
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/rafs/image", v.bootstrap, localConfig(v.blobs, work))
	vm, c := p.guest()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := startImageLoad(ctx, c, v, "/rafs/image", 6)
	p.killWorkers(kills, most)
	l.end(t)
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	if got := p.info().BackendCollection; len(got) != 1 {
		t.Errorf("mounts after all: %v", got)
	}
	p.stop(syscall.SIGTERM)
}
