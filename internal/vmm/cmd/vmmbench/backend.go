package main

import (
	"bytes"
	"cmp"
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
	client *vmm.Client // until the first load
	file   vmm.Entry
	fh     uint64
	parent uint64
	dir    string             // the folder of many names, "" if it has none
	base   string             // name of the file in its folder
	sets   map[int]*vmm.Files // by the number in flight
	label  string             // what it stands for in a report, if not its name
	copy   []byte             // it is no back-end, but a loop that copies from here

	nodes func(row) []uint64 // what is asked about in turn, nil: always the file

	many    uint64   // the folder of many names, if the back-end was asked for it
	handles []uint64 // of it
}

// shown is the name in reports.
func (b *backend) shown() string { return cmp.Or(b.label, b.name) }

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
	out := &backend{name: b.name, label: b.label, queues: b.queues, dir: b.many, pid: cmd.Process.Pid, stop: func() { end(cmd) }}
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
func startNull(ctx context.Context, dir, name string, o nullfs.Options) (*backend, error) {
	sock := filepath.Join(dir, name+".sock")
	p, err := nullfs.Start(sock, o)
	if err != nil {
		return nil, err
	}
	b := &backend{name: name, queues: o.Queues, dir: "/", pid: p.PID(), stop: func() { _ = p.Stop() }}
	if err := b.mount(ctx, sock, nullfs.Name); err != nil {
		b.close()
		return nil, fmt.Errorf("null: %w", err)
	}
	return b, nil
}

func (b *backend) mount(ctx context.Context, sock, file string) (err error) {
	b.vm, err = vmm.Dial(ctx, sock, vmm.Options{
		Sequence: vmm.QEMU11, RequestQueues: b.queues, Patient: true, Wait: 10 * time.Second,
		Memory: vmm.Flat(256 << 20), // all loads of a comparison have their buffers at once
	})
	if err != nil {
		return err
	}
	c, err := b.vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		return err
	}
	b.client = c
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
	if b.dir != "" {
		return b.list(ctx, c)
	}
	return nil
}

// list finds the folder of many names and opens it as often as loads need.
func (b *backend) list(ctx context.Context, c *vmm.Client) error {
	e, err := c.Resolve(ctx, b.dir)
	if err != nil {
		return fmt.Errorf("find %s: %w", b.dir, err)
	}
	b.many = e.NodeID
	for range mostInFlight {
		open, err := c.Opendir(ctx, b.many)
		if err != nil {
			return fmt.Errorf("open %s: %w", b.dir, err)
		}
		b.handles = append(b.handles, open.Fh)
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
	return b.vm.NewLoader(b.load(r, count))
}

func (b *backend) load(r row, count int) vmm.Load {
	load := vmm.Load{
		Op: r.op, NodeID: b.file.NodeID, Size: r.size, FileSize: b.file.Attr.Size, Fh: b.fh, Random: r.kind == random,
		InFlight: r.inFlight, Queues: r.queues, PID: b.pid,
	}
	switch {
	case r.kind == files:
		load.Files = b.fileSet(r.inFlight, count)
	case r.op == vmm.OpReaddirplus:
		load.NodeID, load.Fhs = b.many, b.handles[:r.inFlight]
	case r.kind == names:
		load.NodeID, load.Name, load.Names = b.many, presentName(0), manyNames
	case r.kind == absent:
		load.NodeID, load.Name, load.Names, load.Absent = b.many, "none-00000000", manyNames, true
	case r.op == vmm.OpLookup:
		load.NodeID, load.Name = b.parent, b.base
	}
	if b.nodes != nil {
		load.Nodes = b.nodes(r)
	}
	return load
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
