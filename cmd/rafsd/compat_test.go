package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
)

// oldKeeper is the commit whose program must be able to keep workers of this one. It
// stays as long as the protocol's version does (vhostuser/keeper.Version).
const oldKeeper = "715d045cff30f26923621e7c9116f47a6ed28348"

// buildOld builds rafsd as it was at a commit, or skips the test where there is no
// history.
func buildOld(t *testing.T, commit string) string {
	t.Helper()
	dir := shortDir(t)
	archive := filepath.Join(dir, "old.tar")
	if out, err := exec.Command("git", "-C", "../..", "archive", "-o", archive, commit).CombinedOutput(); err != nil {
		t.Skipf("NOT SHOWN: no history with commit %s here, so an old keeper cannot be built: %s", commit, strings.TrimSpace(string(out)))
	}
	source, program := filepath.Join(dir, "source"), filepath.Join(dir, "rafsd-old")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-x", "-C", source, "-f", archive).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", program, "./cmd/rafsd")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// TestOldKeeperTakesNewWorkers: a keeper that was started before an upgrade, and the
// state that its worker left in the record and the tables, serve workers of this
// program, and it them when they die.
func TestOldKeeperTakesNewWorkers(t *testing.T) {
	old := buildOld(t, oldKeeper)
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	shared := shortDir(t)
	p := launch(t, options{binary: old}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/rafs/image", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	if status, body := p.mountDir("/shared", shared); status != 204 {
		t.Fatal(status, body)
	}
	vm, c := p.guest()
	ctx := testContext(t)
	dir, err := c.Resolve(ctx, "/shared")
	if err != nil {
		t.Fatal(err)
	}
	e, open, err := c.Create(ctx, dir.NodeID, "file", syscall.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l := startImageLoad(t.Context(), c, v, "/rafs/image", 4)
	before := p.worker(0)
	api, err := client.Dial(ctx, filepath.Join(p.dir, defaultTTRPC))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Upgrade(ctx, program(t, "")); err != nil {
		t.Fatal(err)
	}
	if err := api.Close(); err != nil {
		t.Error(err)
	}
	if p.worker(before) == before {
		t.Error("the old worker serves on")
	}
	// What the old one opened is open.
	if n, err := c.Write(ctx, e.NodeID, open.Fh, 0, []byte("by the new one")); n != 14 || err != nil {
		t.Errorf("write to a file that the old worker opened: %d, %v", n, err)
	}
	p.killWorkers(5, 20*time.Millisecond)
	if err := c.Release(ctx, e.NodeID, open.Fh); err != nil {
		t.Error(err)
	}
	l.end(t)
	if got, err := os.ReadFile(filepath.Join(shared, "file")); err != nil || string(got) != "by the new one" {
		t.Errorf("%q, %v", got, err)
	}
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}
