package vmm_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

func TestMemory(t *testing.T) {
	const size = 4 << 20
	layouts := map[string][]vmm.Region{
		"flat": vmm.Flat(size), "hole": vmm.Hole(size), "adjacent": vmm.Adjacent(size), "uml": vmm.UMLMemory(size),
		"guest addresses": vmm.GuestAddressed(size),
	}
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			m, err := vmm.NewMemory(layout)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			pages, err := m.Pages(nil, 500)
			if err != nil {
				t.Fatal(err)
			}
			neighbours := 0
			seen := map[uint64]bool{}
			for i, p := range pages {
				if seen[p.GPA] || len(p.Bytes) != vmm.PageSize {
					t.Fatalf("page %#x of %d bytes was handed out twice", p.GPA, len(p.Bytes))
				}
				seen[p.GPA] = true
				if i > 0 && p.GPA == pages[i-1].GPA+vmm.PageSize {
					neighbours++
				}
			}
			if neighbours > 20 {
				t.Errorf("%d of 500 pages follow their neighbour: they should be scattered", neighbours)
			}
			m.FreePages(pages)
			var list []vmm.Buffer
			for _, n := range []int{1, 64, 65, 4096, 5000, 100 << 10} {
				b, err := m.Alloc(n)
				if err != nil {
					t.Fatal(err)
				}
				if len(b.Bytes) != n || seen[b.GPA] {
					t.Errorf("Alloc(%d) = %d bytes at %#x", n, len(b.Bytes), b.GPA)
				}
				for i := range b.Bytes {
					b.Bytes[i] = byte(n)
				}
				list = append(list, b)
			}
			for _, b := range list {
				got := make([]byte, len(b.Bytes))
				if err := m.ReadAt(b.GPA, got); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(len(got))}, len(got))) {
					t.Errorf("the %d bytes at %#x are not what was written: %v", len(got), b.GPA, err)
				}
				m.Free(b)
			}
			again, err := m.Alloc(4000)
			if err != nil || again.GPA != list[3].GPA {
				t.Errorf("Alloc of a freed size gives %#x, %v; want %#x again", again.GPA, err, list[3].GPA)
			}
			if _, err := m.Alloc(64 << 20); err == nil {
				t.Error("more was handed out than there is")
			}
			if _, err := m.Pages(nil, 100_000); err == nil {
				t.Error("more pages were handed out than there are")
			}
		})
	}
}

func TestMemoryAcrossRegions(t *testing.T) {
	m, err := vmm.NewMemory(vmm.Adjacent(4 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const border = 2 << 20
	if err := m.WriteAt(border-3, []byte("across")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if err := m.ReadAt(border-3, got); err != nil || string(got) != "across" {
		t.Errorf("ReadAt = %q, %v", got, err)
	}
	if _, err := m.View(border-3, 6); err == nil {
		t.Error("View gives one piece over the border")
	}
	if err := m.WriteAt(4<<20-3, []byte("across")); err == nil {
		t.Error("WriteAt writes behind the memory")
	}
}

func TestBadOptions(t *testing.T) {
	for name, opts := range map[string]vmm.Options{
		"queue size 3":          {QueueSize: 3},
		"more than it has":      {RequestQueues: 1, Configured: 2},
		"half a page of memory": {Memory: vmm.Flat(2048)},
		"no regions":            {Memory: []vmm.Region{}},
		"nobody listens":        {},
	} {
		if vm, err := vmm.Dial(testContext(t), t.TempDir()+"/none", opts); err == nil {
			vm.Kill()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestHugePages needs huge pages that the host has set aside.
func TestHugePages(t *testing.T) {
	layout := vmm.Huge(4 << 20)
	m, err := vmm.NewMemory(layout)
	if err == nil {
		m.Close()
	} else {
		t.Skipf("SKIPPED: no memory of huge pages here: %v", err)
	}
	b, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if err != nil || bytes.Equal(bytes.TrimSpace(b), []byte("0")) {
		t.Skip("SKIPPED: the host has set no huge pages aside")
	}
	_, sock := startBackend(t, "")
	vm := dial(t, sock, vmm.Options{Memory: layout})
	c, err := vm.Mount(testContext(t), vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	readFile(t, c)
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

func TestProcessCPU(t *testing.T) {
	before, err := vmm.ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own := vmm.OwnCPU()
	for sum, end := 0, time.Now().Add(30*time.Millisecond); time.Now().Before(end); sum++ {
	}
	after, err := vmm.ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after <= before || vmm.OwnCPU() <= own {
		t.Errorf("busy for 30 ms: processor time went from %v to %v", before, after)
	}
	if _, err := vmm.ProcessCPU(1 << 30); err == nil {
		t.Error("a process that is not there has processor time")
	}
}
