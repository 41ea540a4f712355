package vmm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

func TestVirtiofsdLoad(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	const names = 300
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range names {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("many/name-%08d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, dir), vmm.Options{Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	many, err := c.Resolve(ctx, "many")
	if err != nil {
		t.Fatal(err)
	}
	var handles []uint64
	for range 3 {
		open, err := c.Opendir(ctx, many.NodeID)
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, open.Fh)
	}
	file, err := c.Resolve(ctx, "file")
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open(ctx, file.NodeID, syscall.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	loads := []vmm.Load{
		{Op: vmm.OpGetattr, NodeID: file.NodeID},
		{Op: vmm.OpGetattr, NodeID: file.NodeID, InFlight: 16},
		{Op: vmm.OpLookup, NodeID: vmm.RootID, Name: "file", InFlight: 4},
		{Op: vmm.OpLookup, NodeID: many.NodeID, Name: "name-00000000", Names: names, InFlight: 4},
		{Op: vmm.OpLookup, NodeID: many.NodeID, Name: "none-00000000", Names: names, Absent: true, InFlight: 4},
		{Op: vmm.OpReaddirplus, NodeID: many.NodeID, Fhs: handles, Size: 8 << 10, InFlight: 3},
		{Op: vmm.OpGetattr, Nodes: []uint64{file.NodeID, many.NodeID, vmm.RootID}, InFlight: 2},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 4096, FileSize: 4 << 20, InFlight: 16},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 128 << 10, FileSize: 4 << 20, InFlight: 4},
		{Op: vmm.OpRead, NodeID: file.NodeID, Fh: open.Fh, Size: 1 << 20, FileSize: 4 << 20},
		{Op: vmm.OpWrite, NodeID: file.NodeID, Fh: open.Fh, Size: 4096, FileSize: 4 << 20, InFlight: 16, Random: true},
		{Op: vmm.OpWrite, NodeID: file.NodeID, Fh: open.Fh, Size: 1 << 20, FileSize: 4 << 20, InFlight: 2},
	}
	for _, wrong := range []vmm.Load{
		{Op: vmm.OpLookup, NodeID: many.NodeID, Name: "short", Names: names},
		{Op: vmm.OpReaddirplus, NodeID: many.NodeID, Size: 8 << 10, Fhs: handles, InFlight: 4},
	} {
		if _, err := vm.NewLoader(wrong); err == nil {
			t.Errorf("%+v: no error", wrong)
		}
	}
	present, err := vm.NewLoader(vmm.Load{Op: vmm.OpLookup, NodeID: vmm.RootID, Name: "file", Absent: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := present.Run(ctx, 1, 0); err == nil {
		t.Error("a name that is there passed for absent")
	}
	present.Close()
	for _, load := range loads {
		t.Run(fmt.Sprintf("%v %d in flight %d", load.Op, load.Size, load.InFlight), func(t *testing.T) {
			l, err := vm.NewLoader(load)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			const count = 2000
			r, err := l.Run(ctx, count, 0)
			if err != nil {
				t.Fatal(err)
			}
			if r.Requests != count {
				t.Errorf("%d requests were counted, want %d", r.Requests, count)
			}
			// Seven replies hold a listing, the last of them nothing.
			if least := uint64(count / 8 * names); load.Op == vmm.OpReaddirplus && (r.Entries < least || r.Entries > 2*least) {
				t.Errorf("%d entries were counted, want %d and somewhat more", r.Entries, least)
			}
			p50, p99 := r.Latency.Quantile(.5), r.Latency.Quantile(.99)
			if p50 <= 0 || p99 < p50 {
				t.Errorf("p50 %v, p99 %v", p50, p99)
			}
			t.Logf("%.0f/s p50 %v p99 %v front %v kicks %d calls %d", r.Rate(), p50, p99, r.Per(r.Front), r.Kicks, r.Calls)
		})
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

// TestVirtiofsdFiles: the loads of small files leave on the host what they say.
func TestVirtiofsdFiles(t *testing.T) {
	dir := t.TempDir()
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, dir), vmm.Options{Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	if _, err := vm.Mount(ctx, vmm.Linux72); err != nil {
		t.Fatal(err)
	}
	files := &vmm.Files{Dir: vmm.RootID, Prefix: "small", Count: 100, Size: 1000}
	run := func(op vmm.Opcode) error {
		t.Helper()
		l, err := vm.NewLoader(vmm.Load{Op: op, Files: files, InFlight: 7})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		r, err := l.Run(ctx, 0, 0)
		if err == nil && r.Requests != 100 {
			t.Errorf("%v: %d files were counted, want 100", op, r.Requests)
		}
		return err
	}
	if err := run(vmm.OpUnlink); err == nil {
		t.Error("a load that removes files which were never made has begun")
	}
	for range 2 {
		for _, step := range []struct {
			op    vmm.Opcode
			names string // format of the names, of which there are 100
		}{{vmm.OpCreate, "small-a-%08d"}, {vmm.OpRename, "small-b-%08d"}, {vmm.OpUnlink, ""}} {
			if err := run(step.op); err != nil {
				t.Fatal(err)
			}
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if step.names == "" {
				if len(list) != 0 {
					t.Errorf("%d files are left", len(list))
				}
				continue
			}
			if len(list) != 100 {
				t.Fatalf("%v: %d files, want 100", step.op, len(list))
			}
			for i, e := range list {
				b, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if want := fmt.Sprintf(step.names, i); e.Name() != want || err != nil || len(b) != 1000 || b[999] != 231 {
					t.Fatalf("%v: file %d is %q with %d bytes, %v; want %q with 1000", step.op, i, e.Name(), len(b), err, want)
				}
			}
		}
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

// TestCopy: the copy loop goes where Run's READs go, and touches nothing else.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, dir), vmm.Options{Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	file, err := c.Resolve(ctx, "file")
	if err != nil {
		t.Fatal(err)
	}
	load := vmm.Load{Op: vmm.OpRead, NodeID: file.NodeID, Size: 64 << 10, FileSize: uint64(len(data)), InFlight: 3}
	l, err := vm.NewLoader(load)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.Copy(data, time.Millisecond)
	if err != nil || r.Requests == 0 || r.Elapsed < time.Millisecond {
		t.Errorf("Copy = %+v, %v", r, err)
	}
	if _, err := l.Copy(data[1:], time.Millisecond); err == nil {
		t.Error("a copy from less than the file")
	}
}

// TestProcessCPUCountsChildren: a back-end may be two processes, the second of which
// does the work.
func TestProcessCPUCountsChildren(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		used, err := vmm.ProcessCPU(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if used > 100*time.Millisecond {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v were counted of a process whose child never rests", used)
		}
	}
}
