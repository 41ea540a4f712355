package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
)

// backend is a running back-end with a machine on it that has found the file.
type backend struct {
	name   string
	queues int
	pid    int
	stop   func()
	vm     *vmm.VM
	file   vmm.Entry
	fh     uint64
	parent uint64
	base   string             // name of the file in its folder
	sets   map[int]*vmm.Files // by the number in flight
}

// start runs a back-end in dir and mounts what it serves.
func start(ctx context.Context, b spec, dir, served, file string) (*backend, error) {
	sock := filepath.Join(dir, b.name+".sock")
	if b.dir != "" {
		served = b.dir
	}
	argv := make([]string, len(b.argv))
	for i, a := range b.argv {
		argv[i] = strings.NewReplacer("{sock}", sock, "{dir}", served).Replace(a)
	}
	var said bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), b.env...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", b.name, err)
	}
	out := &backend{name: b.name, queues: b.queues, pid: cmd.Process.Pid, stop: func() { end(cmd) }}
	if err := out.mount(ctx, sock, file); err != nil {
		out.close()
		return nil, fmt.Errorf("%s: %w\n%s", b.name, err, said.String())
	}
	return out, nil
}

// end stops a process: kindly, then not.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
}

// startNull runs the null back-end.
func startNull(ctx context.Context, dir string, queues int) (*backend, error) {
	sock := filepath.Join(dir, "null.sock")
	p, err := nullfs.Start(sock, queues)
	if err != nil {
		return nil, err
	}
	b := &backend{name: "null", queues: queues, pid: p.PID(), stop: func() { _ = p.Stop() }}
	if err := b.mount(ctx, sock, nullfs.Name); err != nil {
		b.close()
		return nil, fmt.Errorf("null: %w", err)
	}
	return b, nil
}

func (b *backend) mount(ctx context.Context, sock, file string) (err error) {
	b.vm, err = vmm.Dial(ctx, sock, vmm.Options{
		Sequence: vmm.QEMU11, RequestQueues: b.queues, Patient: true, Wait: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	c, err := b.vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		return err
	}
	dir, name := filepath.Split("/" + file)
	parent, err := c.Resolve(ctx, dir)
	if err != nil {
		return fmt.Errorf("find %s: %w", dir, err)
	}
	b.parent, b.base = parent.NodeID, name
	if b.file, err = c.Lookup(ctx, b.parent, name); err != nil || b.file.NodeID == 0 {
		return fmt.Errorf("find %s: %w", file, err)
	}
	open, err := c.Open(ctx, b.file.NodeID, syscall.O_RDWR)
	if errors.Is(err, syscall.EROFS) {
		open, err = c.Open(ctx, b.file.NodeID, syscall.O_RDONLY)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	b.fh = open.Fh
	// Warm: everything that is measured has been read once before.
	for off := uint64(0); off < b.file.Attr.Size; off += 1 << 20 {
		if _, err := c.Read(ctx, b.file.NodeID, b.fh, off, 1<<20); err != nil {
			return fmt.Errorf("read %s at %d: %w", file, off, err)
		}
	}
	return nil
}

func (b *backend) close() {
	if b.vm != nil {
		b.vm.Kill()
	}
	b.stop()
}

// loader prepares one kind of load.
func (b *backend) loader(r row, count int) (*vmm.Loader, error) {
	load := vmm.Load{
		Op: r.op, NodeID: b.file.NodeID, Size: r.size, FileSize: b.file.Attr.Size, Fh: b.fh, Random: r.kind == random,
		InFlight: r.inFlight, Queues: r.queues, PID: b.pid,
	}
	switch {
	case r.kind == files:
		load.Files = b.fileSet(r.inFlight, count)
	case r.op == vmm.OpLookup:
		load.NodeID, load.Name = b.parent, b.base
	}
	return b.vm.NewLoader(load)
}

// fileSet is the set of the rows with so many in flight: all of them use one.
func (b *backend) fileSet(inFlight, count int) *vmm.Files {
	if b.sets == nil {
		b.sets = map[int]*vmm.Files{}
	}
	if b.sets[inFlight] == nil {
		b.sets[inFlight] = &vmm.Files{Dir: b.parent, Prefix: fmt.Sprintf("small-%d", inFlight), Count: count, Size: smallFile}
	}
	return b.sets[inFlight]
}
