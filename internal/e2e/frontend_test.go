package e2e

import (
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestEveryFrontEnd replays the conversation of every VMM that we know, with
// memory laid out in every way and INIT as every guest kernel sends it, against
// one daemon: each VMM connects after the last one is gone. Cloud Hypervisor
// cannot run here; this is as near to it as we come.
func TestEveryFrontEnd(t *testing.T) {
	img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Version: testimage.V6, Compressor: testimage.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, "--linger", "0", "--tag", tag, "--queues", "2", "--bootstrap", img.Bootstrap, "--localfs-dir", img.BlobDir)
	layouts := map[string]func(uint64) []vmm.Region{
		"flat": vmm.Flat, "hole": vmm.Hole, "adjacent": vmm.Adjacent, "guest addressed": vmm.GuestAddressed, "UML": vmm.UMLMemory,
	}
	const memory = 16 << 20
	walk := func(t *testing.T, o vmm.Options, g vmm.Guest) {
		o.Wait = 10 * time.Second
		vm, err := vmm.Dial(t.Context(), d.Socket, o)
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Kill()
		c, err := vm.Mount(t.Context(), g)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Walk(t.Context(), vmm.Walk{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := manifest.Compare(got, want, manifest.Options{}); !diff.Equal() {
			t.Error(diff)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, s := range vmm.Sequences {
		for name, layout := range layouts {
			t.Run(s.String()+", memory "+name, func(t *testing.T) {
				walk(t, vmm.Options{Sequence: s, Memory: layout(memory)}, vmm.Linux72)
			})
		}
	}
	for _, g := range vmm.Guests {
		t.Run(g.Name, func(t *testing.T) { walk(t, vmm.Options{Memory: vmm.Flat(memory)}, g) })
	}
	t.Run("two queues of 128 entries", func(t *testing.T) {
		walk(t, vmm.Options{RequestQueues: 2, QueueSize: 128, Memory: vmm.Flat(memory)}, vmm.Linux612)
	})
}
