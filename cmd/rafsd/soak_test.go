package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// soakFiles writes files of random sizes in a shared folder, reads them back, renames
// and removes them, and compares all the time. One per writer.
type soakFiles struct {
	c     *vmm.Client
	dir   uint64
	who   int
	steps *atomic.Int64
}

func (s *soakFiles) round(ctx context.Context, n int) error {
	name, other := fmt.Sprintf("f-%d-%d", s.who, n), fmt.Sprintf("g-%d", s.who)
	e, open, err := s.c.Create(ctx, s.dir, name, syscall.O_RDWR|syscall.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	want := make([]byte, rand.N(300<<10))
	for i := range want {
		want[i] = byte(i*7 + n)
	}
	for at := 0; at < len(want); {
		part := want[at:min(len(want), at+1+rand.N(64<<10))]
		k, err := s.c.Write(ctx, e.NodeID, open.Fh, uint64(at), part)
		if err != nil || k != len(part) {
			return fmt.Errorf("write %s at %d: %d of %d, %w", name, at, k, len(part), err)
		}
		at += k
	}
	// An old file of the same writer is removed while it is open, by the rename.
	if err := s.c.Rename(ctx, s.dir, name, s.dir, other); err != nil {
		return fmt.Errorf("rename %s: %w", name, err)
	}
	for at := 0; at < len(want); at += 100 << 10 {
		size := min(100<<10, len(want)-at)
		got, err := s.c.Read(ctx, e.NodeID, open.Fh, uint64(at), size)
		if err != nil || !bytes.Equal(got, want[at:at+size]) {
			return fmt.Errorf("read %s at %d: %d bytes that are not what was written, %w", other, at, len(got), err)
		}
	}
	if n%3 == 0 {
		if err := s.c.Unlink(ctx, s.dir, other); err != nil {
			return fmt.Errorf("unlink %s: %w", other, err)
		}
		if got, err := s.c.Read(ctx, e.NodeID, open.Fh, 0, 10); err != nil || !bytes.Equal(got, want[:min(10, len(want))]) {
			return fmt.Errorf("read of removed %s: %q, %w", other, got, err)
		}
	}
	if err := s.c.Release(ctx, e.NodeID, open.Fh); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if err := s.c.Forget(ctx, e.NodeID, 1); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	s.steps.Add(1)
	return nil
}

// TestSoak: images are read and a folder is written for a long time (RAFSD_SOAK, such
// as 30m), while guests come and go and workers die. Nothing is wrong, lost or leaked.
func TestSoak(t *testing.T) {
	long, guestLife := 6*time.Second, 2*time.Second
	if s := os.Getenv("RAFSD_SOAK"); s != "" {
		var err error
		if long, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		guestLife = 20 * time.Second
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	shared := shortDir(t)
	p := launch(t, options{binary: binary}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--linger", "0")
	p.ready()
	p.mount("/rafs/image", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	if status, body := p.mountDir("/shared", shared); status != 204 {
		t.Fatal(status, body)
	}
	var reads, writes atomic.Int64
	kills, lives := 0, 0
	type sample struct {
		files  int
		memory int64
	}
	var samples []sample
	for end := time.Now().Add(long); time.Now().Before(end); lives++ {
		vm, c := p.guest()
		ctx, cancel := context.WithCancel(t.Context())
		dir, err := c.Resolve(ctx, "/shared")
		if err != nil {
			t.Fatal(err)
		}
		l := startImageLoad(ctx, c, v, "/rafs/image", 3)
		var writers sync.WaitGroup
		var stop atomic.Bool
		failed := make(chan error, 3)
		for who := range 3 {
			writers.Go(func() {
				s := soakFiles{c, dir.NodeID, who, &writes}
				for n := lives * 1_000_000; !stop.Load(); n++ {
					if err := s.round(ctx, n); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		for until := time.Now().Add(guestLife); time.Now().Before(until); kills++ {
			p.killWorkers(1, 400*time.Millisecond)
		}
		stop.Store(true)
		writers.Wait()
		l.stop.Store(true)
		l.wg.Wait()
		reads.Add(l.reads.Load())
		cancel()
		select {
		case err := <-failed:
			t.Fatal(err)
		case err := <-l.failed:
			t.Fatal(err)
		default:
		}
		if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
			t.Fatal(err)
		}
		names, err := filepath.Glob(filepath.Join(shared, "*"))
		if err != nil || len(names) > 3 {
			t.Fatalf("files in the folder: %v, %v; want at most one of each writer", names, err)
		}
		// The keeper alone lives all the time.
		keeper := p.cmd.Process.Pid
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", keeper))
		if err != nil {
			t.Fatal(err)
		}
		samples = append(samples, sample{len(list), rssAnonOf(t, keeper)})
	}
	first, last := samples[0], samples[len(samples)-1]
	t.Logf("%v: %d guests, %d workers killed, %d files read, %d written; keeper: %d descriptors and %.1f MiB at first, %d and %.1f at last",
		long, lives, kills, reads.Load(), writes.Load(), first.files, float64(first.memory)/mib, last.files, float64(last.memory)/mib)
	if last.files > first.files+3 || last.memory > first.memory+first.memory/2+4*mib {
		t.Errorf("the keeper grows: %+v", samples)
	}
	p.stop(syscall.SIGTERM)
}
