package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// folderTask is a task of a guest that works in a folder of the host in all the ways
// whose requests must not happen twice, and knows what must come of them.
type folderTask struct {
	c    *vmm.Client
	dir  uint64 // node of its own directory
	host string // the same on the host
	n    int
}

// round makes a file, appends to it, moves it, links it, removes it while it is open,
// and looks at each step whether what is there is right.
func (f *folderTask) round(ctx context.Context) error {
	f.n++
	name := func(what string) string { return fmt.Sprintf("%s-%d", what, f.n) }
	step := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("round %d, %s: %w", f.n, what, err)
		}
		return nil
	}
	e, o, err := f.c.Create(ctx, f.dir, name("new"), syscall.O_RDWR|syscall.O_EXCL, 0o100640)
	if err != nil {
		return step("CREATE", err)
	}
	app, err := f.c.Open(ctx, e.NodeID, syscall.O_WRONLY|syscall.O_APPEND)
	if err != nil {
		return step("OPEN", err)
	}
	var want []byte
	for i := range 4 {
		piece := bytes.Repeat([]byte{byte('a' + i)}, 1000*(i+1))
		if n, err := f.c.Write(ctx, e.NodeID, app.Fh, 0, piece); err != nil || n != len(piece) {
			return step("WRITE that appends", fmt.Errorf("%d bytes, %w", n, errOr(err)))
		}
		want = append(want, piece...)
	}
	if _, err := f.c.Mkdir(ctx, f.dir, name("dir"), 0o750); err != nil {
		return step("MKDIR", err)
	}
	d, err := f.c.Lookup(ctx, f.dir, name("dir"))
	if err != nil {
		return step("LOOKUP", err)
	}
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"RENAME", func() error { return f.c.Rename(ctx, f.dir, name("new"), d.NodeID, "moved") }},
		{"LINK", func() error { _, err := f.c.Link(ctx, e.NodeID, f.dir, name("link")); return err }},
		{"SYMLINK", func() error { _, err := f.c.Symlink(ctx, f.dir, name("sym"), "some/where"); return err }},
		{"UNLINK", func() error { return f.c.Unlink(ctx, f.dir, name("sym")) }},
		{"UNLINK", func() error { return f.c.Unlink(ctx, d.NodeID, "moved") }},
		{"RMDIR", func() error { return f.c.Rmdir(ctx, f.dir, name("dir")) }},
	} {
		if err := step(s.what, s.do()); err != nil {
			return err
		}
	}
	if b, err := os.ReadFile(filepath.Join(f.host, name("link"))); err != nil || !bytes.Equal(b, want) {
		return step("the host's view", fmt.Errorf("%d bytes, want %d, %w", len(b), len(want), errOr(err)))
	}
	if err := step("UNLINK of the last name", f.c.Unlink(ctx, f.dir, name("link"))); err != nil {
		return err
	}
	got, err := f.c.Read(ctx, e.NodeID, o.Fh, 0, 64<<10)
	if err != nil || !bytes.Equal(got, want) {
		return step("READ of a file without a name", fmt.Errorf("%d bytes, want %d, %w", len(got), len(want), errOr(err)))
	}
	if left, err := os.ReadDir(f.host); err != nil || len(left) != 0 {
		return step("what is left on the host", fmt.Errorf("%v, %w", left, errOr(err)))
	}
	for _, fh := range []uint64{o.Fh, app.Fh} {
		if err := step("RELEASE", f.c.Release(ctx, e.NodeID, fh)); err != nil {
			return err
		}
	}
	return step("FORGET", errors.Join(f.c.Forget(ctx, e.NodeID, 2), f.c.Forget(ctx, d.NodeID, 2)))
}

var errNone = errors.New("no error")

func errOr(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// TestFolderWorkerKilled: the worker is killed at random points while a guest makes,
// appends, moves and removes in a folder of the host: every request happens once, and
// files that are open without a name go on.
func TestFolderWorkerKilled(t *testing.T) {
	kills, most := 40, 40*time.Millisecond
	if os.Getenv("RAFSD_LONG") == "1" {
		kills = 2000
	}
	dir := t.TempDir()
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	if status, body := p.call("POST", "/api/v1/mount?mountpoint=/share", fmt.Sprintf(`{"fs_type":"passthrough_fs","source":%q,"config":""}`, dir)); status != 204 {
		t.Fatalf("POST mount: %d %s", status, body)
	}
	vm, c := p.guest()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	share, err := c.Lookup(ctx, 1, "share")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var rounds atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, 4)
	for i := range 4 {
		name := fmt.Sprint("task-", i)
		e, err := c.Mkdir(ctx, share.NodeID, name, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		task := &folderTask{c: c, dir: e.NodeID, host: filepath.Join(dir, name)}
		wg.Go(func() {
			for !stop.Load() {
				if err := task.round(ctx); err != nil {
					failed <- err
					return
				}
				rounds.Add(1)
			}
		})
	}
	p.killWorkers(kills, most)
	stop.Store(true)
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	t.Logf("%d rounds", rounds.Load())
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(p.out.String()) {
		if strings.Contains(line, "cannot be opened again") || strings.Contains(line, "cannot be found again") || strings.Contains(line, "cannot be told") {
			t.Errorf("log: %s", line)
		}
	}
}
