package vmm_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial connects to a back-end of the test's own.
func dial(t testing.TB, sock string, opts vmm.Options) *vmm.VM {
	t.Helper()
	vm, err := vmm.Dial(testContext(t), sock, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return vm
}

// readFile checks the back-end's one file in pieces of several sizes.
func readFile(t *testing.T, c *vmm.Client) {
	t.Helper()
	ctx := testContext(t)
	e, err := c.Lookup(ctx, vmm.RootID, "file")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		off  uint64
		size int
		want int
	}{{0, 1, 1}, {5, 4096, 4096}, {0, 128 << 10, 128 << 10}, {backFileSize - 100, 8192, 100}, {backFileSize, 4096, 0}} {
		got, err := c.Read(ctx, e.NodeID, 0, r.off, r.size)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != r.want {
			t.Errorf("Read(%d, %d) = %d bytes, want %d", r.off, r.size, len(got), r.want)
		}
		for i, b := range got {
			if want := backContent(r.off + uint64(i)); b != want {
				t.Fatalf("Read(%d, %d): byte %d is %#x, want %#x", r.off, r.size, i, b, want)
			}
		}
	}
	if err := c.Forget(ctx, e.NodeID, 1); err != nil {
		t.Error(err)
	}
}

// TestMachines drives a right back-end from every VMM and every machine.
func TestMachines(t *testing.T) {
	const mem = 16 << 20
	machines := map[string]vmm.Options{
		"plain":                    {},
		"queue of 128":             {QueueSize: 128},
		"no indirect descriptors":  {FeaturesOff: vmm.FeatureIndirect},
		"no event index":           {FeaturesOff: vmm.FeatureEventIdx},
		"three queues, one set up": {RequestQueues: 3, Configured: 1},
		"three queues":             {RequestQueues: 3},
		"memory with a hole":       {Memory: vmm.Hole(mem)},
		"adjacent regions":         {Memory: vmm.Adjacent(mem)},
		"memory as UML's":          {Memory: vmm.UMLMemory(mem)},
		"guest addresses":          {Memory: vmm.GuestAddressed(mem)},
		"no memory slots":          {ProtocolOff: vmm.ProtocolMemSlots},
		"no acknowledgements":      {ProtocolOff: vmm.ProtocolReplyAck},
		"call by socket":           {Call: vmm.CallSocket},
		"call by pipe":             {Call: vmm.CallPipe},
		"blocking kick":            {BlockingKick: true},
		"tag":                      {RequestTag: true},
	}
	// What the conversations themselves depend on runs with each VMM.
	everywhere := []string{"plain", "no acknowledgements", "memory with a hole", "three queues, one set up"}
	for _, seq := range vmm.Sequences {
		for name, opts := range machines {
			if seq != vmm.QEMU72 && !slices.Contains(everywhere, name) {
				continue
			}
			t.Run(fmt.Sprintf("%v, %s", seq, name), func(t *testing.T) {
				opts.Sequence = seq
				if opts.Memory == nil {
					opts.Memory = vmm.Flat(mem)
				}
				_, sock := startBackend(t, "")
				vm := dial(t, sock, opts)
				if opts.RequestTag && vm.Tag() != "tag" {
					t.Errorf("Tag = %q, want tag", vm.Tag())
				}
				// Indexes that wrap during the test.
				for i := range vm.Queues() {
					vm.Queue(i).StartAt(65534)
				}
				c, err := vm.Mount(testContext(t), vmm.Linux72)
				if err != nil {
					t.Fatal(err)
				}
				readFile(t, c)
				if seq != vmm.UML61 && seq != vmm.UML72 {
					if err := vm.Pause(); err != nil {
						t.Fatal(err)
					}
					if err := vm.Resume(); err != nil {
						t.Fatal(err)
					}
					readFile(t, c)
					if err := vm.Reboot(); err != nil {
						t.Fatal(err)
					}
					if _, err := c.Getattr(testContext(t), vmm.RootID); !errors.Is(err, vmm.ErrReset) {
						t.Errorf("a request of the life before: %v, want ErrReset", err)
					}
					if c, err = vm.NewClient(vmm.Linux61); err != nil {
						t.Fatal(err)
					}
					if _, err := c.Init(testContext(t)); err != nil {
						t.Fatal(err)
					}
					readFile(t, c)
				}
				for i := range vm.Queues() {
					if b := vm.Queue(i).Behind(); !bytes.Equal(b, make([]byte, len(b))) {
						t.Errorf("queue %d: something was written behind the ring", i)
					}
				}
				if err := vm.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestFaults: each rule that a back-end may break is noticed.
func TestFaults(t *testing.T) {
	faults := []string{
		"used.len 0", "used.len too long", "used.len not the reply's", "bytes behind used.len", "wrong unique",
		"positive error", "error with data", "short structure", "head twice", "unknown head", "head out of range",
		"skipped entry", "request written", "reply flags", "reply size", "reply to another message", "change flags",
		"wrong base",
	}
	for _, fault := range faults {
		t.Run(fault, func(t *testing.T) {
			_, sock := startBackend(t, fault)
			vm := dial(t, sock, vmm.Options{Memory: vmm.Flat(4 << 20)})
			err := func() error {
				c, err := vm.Mount(testContext(t), vmm.Linux72)
				if err != nil {
					return err
				}
				if _, err := c.Getattr(testContext(t), vmm.RootID); err != nil {
					return err
				}
				if _, err := c.Read(testContext(t), backFileNode, 0, 0, 8192); err != nil {
					return err
				}
				return vm.Close()
			}()
			var rule *vmm.Violation
			if !errors.As(err, &rule) {
				t.Errorf("err = %v, want a Violation", err)
			}
		})
	}
}

func TestRefusedMessage(t *testing.T) {
	_, sock := startBackend(t, "refuse enable")
	vm := dial(t, sock, vmm.Options{Sequence: vmm.QEMU11, Memory: vmm.Flat(4 << 20)})
	var refused *vmm.RefusedError
	if err := vm.Start(); !errors.As(err, &refused) || refused.Request != vmm.SetVringEnable {
		t.Errorf("Start = %v, want the refusal of SET_VRING_ENABLE", err)
	}
}

// TestOrder holds the conversations against the traces of the real VMMs.
func TestOrder(t *testing.T) {
	tests := map[vmm.Sequence][]uint32{
		vmm.QEMU72: {
			1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14, // realize
			13, 13, 2, 37, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 13, 13, // start
			18, 18, 11, 11, 13, 13, // stop
		},
		vmm.QEMU11: {
			1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14, 34,
			34, 13, 13, 2, 37, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 13, 13,
			18, 18, 11, 11, 13, 13,
		},
		vmm.CloudHypervisor: {
			3, 1, 15, 16, 17,
			2, 5, 8, 8, 9, 10, 13, 12, 9, 10, 13, 12, 18, 18,
			18, 11, 18, 11,
		},
		vmm.UML72: slices.Concat([]uint32{3, 1, 15, 16, 21, 17, 2}, slices.Repeat([]uint32{24}, 37),
			[]uint32{5, 13, 8, 10, 9, 13, 8, 10, 9, 12, 18, 12, 18, 18, 18, 1}),
		vmm.UML61: slices.Concat([]uint32{3, 1, 15, 16, 21, 2}, slices.Repeat([]uint32{24}, 37),
			[]uint32{5, 13, 8, 10, 9, 13, 8, 10, 9, 12, 18, 12, 18, 18, 18, 1}),
	}
	for seq, want := range tests {
		t.Run(seq.String(), func(t *testing.T) {
			b, sock := startBackend(t, "")
			vm := dial(t, sock, vmm.Options{Sequence: seq, Memory: vmm.Flat(4 << 20)})
			if err := vm.Start(); err != nil {
				t.Fatal(err)
			}
			// A reply orders our look at the messages behind all that were sent.
			if err := vm.Close(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return len(b.seen()) >= len(want) })
			if got := b.seen(); !slices.Equal(got, want) {
				t.Errorf("messages\n got %v\nwant %v", got, want)
			}
		})
	}
}

// TestMemTable61: the older UML sends room for two regions with one in it.
func TestMemTable61(t *testing.T) {
	var size int
	_, sock := startBackend(t, "")
	vm := dial(t, sock, vmm.Options{Sequence: vmm.UML61, Trace: func(req vmm.Request, _ bool, payload []byte, _ int) {
		if req == vmm.SetMemTable {
			size = len(payload)
		}
	}})
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	if size != 72 {
		t.Errorf("SET_MEM_TABLE has %d bytes, want 72", size)
	}
}

func TestHotMemory(t *testing.T) {
	for _, off := range []uint64{0, vmm.ProtocolMemSlots} {
		b, sock := startBackend(t, "")
		vm := dial(t, sock, vmm.Options{Memory: vmm.Flat(4 << 20), ProtocolOff: off})
		c, err := vm.Mount(testContext(t), vmm.Linux72)
		if err != nil {
			t.Fatal(err)
		}
		const gpa = 8 << 30
		for range 2 {
			if err := vm.HotAddMemory(vmm.Region{GPA: gpa, UVA: gpa, Size: 8 << 20}); err != nil {
				t.Fatal(err)
			}
			readFile(t, c)
			if err := vm.HotRemoveMemory(gpa); err != nil {
				t.Fatal(err)
			}
			readFile(t, c)
		}
		if err := vm.HotRemoveMemory(0); err == nil {
			t.Error("the region with the rings could be removed")
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		plug := uint32(vmm.AddMemReg)
		if off != 0 {
			plug = uint32(vmm.SetMemTable)
		}
		if n := count(b.seen(), plug); n < 3 {
			t.Errorf("%d messages of kind %d, want at least 3", n, plug)
		}
	}
}

func count(list []uint32, v uint32) (n int) {
	for _, x := range list {
		if x == v {
			n++
		}
	}
	return n
}

// TestManyInFlight fills a small ring from many goroutines.
func TestManyInFlight(t *testing.T) {
	_, sock := startBackend(t, "")
	vm := dial(t, sock, vmm.Options{QueueSize: 16, RequestQueues: 2, Memory: vmm.Flat(16 << 20)})
	c, err := vm.Mount(testContext(t), vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	errs := make(chan error, 64)
	for range cap(errs) {
		go func() {
			for range 20 {
				if _, err := c.Getattr(ctx, vmm.RootID); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

func TestErrnoAndRaw(t *testing.T) {
	_, sock := startBackend(t, "")
	vm := dial(t, sock, vmm.Options{Memory: vmm.Flat(4 << 20)})
	c, err := vm.Mount(testContext(t), vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	if _, err := c.Lookup(ctx, vmm.RootID, "nothing"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("Lookup = %v, want ENOENT", err)
	}
	if _, err := c.Raw(ctx, 4711, vmm.RootID, []byte("body"), 100); !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("Raw = %v, want ENOSYS", err)
	}
	if err := c.On(1).Forget(ctx, backFileNode, 1); err != nil {
		t.Errorf("Forget on a request queue: %v", err)
	}
	if err := c.BatchForget(ctx, map[uint64]uint64{2: 1, 3: 5}); err != nil {
		t.Errorf("BatchForget: %v", err)
	}
	if err := c.Destroy(ctx); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}

// TestDescriptors: a machine's life leaves no descriptor behind.
func TestDescriptors(t *testing.T) {
	before := openDescriptors(t)
	for _, seq := range vmm.Sequences {
		_, sock := startBackend(t, "")
		vm := dial(t, sock, vmm.Options{Sequence: seq, Memory: vmm.Flat(4 << 20)})
		if err := vm.Start(); err != nil {
			t.Fatal(err)
		}
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The back-ends run in this process too, and their listeners until the end.
	waitFor(t, func() bool { return openDescriptors(t) <= before+len(vmm.Sequences) })
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	n := 0
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}
