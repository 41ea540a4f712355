package e2e

import (
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestKilledBesideAnother: of two daemons that fill one cache, one is killed in
// the middle of its reads; what the other shows meanwhile and a third one
// afterwards is the truth.
func TestKilledBesideAnother(t *testing.T) {
	v := namedVariant(t, "v6-dir-zstd-rootfs")
	conf := localfs(v.Blobs(t), t.TempDir())
	walk := func(d *rafsd) ([]manifest.Entry, error) {
		vm, err := vmm.Dial(t.Context(), d.Socket, vmm.Options{Wait: 10 * time.Second})
		if err != nil {
			return nil, err
		}
		defer vm.Kill()
		c, err := vm.Mount(t.Context(), vmm.Linux72)
		if err != nil {
			return nil, err
		}
		return c.Walk(t.Context(), vmm.Walk{})
	}
	want := v.Truth(t)
	check := func(d *rafsd) {
		t.Helper()
		got, err := walk(d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := manifest.Compare(got, want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
			t.Error(diff)
		}
	}
	victim, other := start(t), start(t)
	victim.mount(t, "/", v.Bootstrap, conf)
	other.mount(t, "/", v.Bootstrap, conf)
	time.AfterFunc(30*time.Millisecond, func() { _ = victim.cmd.Process.Kill() })
	go func() { _, _ = walk(victim) }() // ends with the daemon or with the test
	check(other)
	<-victim.exited
	third := start(t)
	third.mount(t, "/", v.Bootstrap, conf)
	check(third)
}
