package testguest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Kind is the way a guest is run.
type Kind string

const (
	UML  Kind = "uml"  // user-mode Linux: a kernel that is a program of the host, and its own front-end
	QEMU Kind = "qemu" // a virtual machine, emulated unless the host has a KVM that is real
)

// Config describes a guest and what it does. The zero value of each field but Kind
// and Script is a default.
type Config struct {
	Kind Kind

	// UMLSuite is the suite that user-mode Linux is taken from: sid (7.2), trixie
	// (6.12) or bookworm (6.1); default: the first of these that can be fetched.
	UMLSuite string

	// QEMUSuite is the suite that QEMU is taken from: trixie-backports or sid (11.1,
	// the first is the default), trixie (10.0), bookworm (7.2). KernelSuite is the
	// suite of its guest's kernel: trixie (6.12, the default), bookworm (6.1), sid
	// (7.2), experimental.
	QEMUSuite, KernelSuite string

	Memory int // MiB; default 256
	CPUs   int // default 1; UML has no more

	FS        []FS
	Queues    int // request queues of each FS, default 1; QEMU only
	QueueSize int // their size, default 1024; QEMU only

	// Script is run by a shell (busybox) as root in an empty file system in memory
	// that has /bin (busybox and rafs-guest), /proc, /sys, /dev and /tmp. Its output
	// device can be opened once only: use >&2 rather than >/dev/stderr.
	Script string

	// Files puts files and folders of the host (values) into the guest (keys).
	Files map[string]string

	// Modules are kernel modules to load besides those for virtio-fs: overlay,
	// erofs, loop, virtio_blk, vmw_vsock_virtio_transport.
	Modules []string

	KernelArgs []string // more words for the kernel's command line
	QEMUArgs   []string // more arguments for QEMU

	// Timeout bounds the guest's life; default 2 minutes. Downloads, and waiting for
	// other guests, are bounded by the context only.
	Timeout time.Duration

	// Output gets the script's output while it runs, besides Result.Output.
	Output io.Writer

	// RafsGuest is the rafs-guest program to put into the guest; default: it is
	// built from the sources.
	RafsGuest string
}

// FS is a virtio-fs device of the guest.
type FS struct {
	Socket  string // of the vhost-user back-end, which listens on it
	Tag     string // under UML the back-end must say the same tag in its configuration space
	MountAt string // where it is mounted before the script runs; "" leaves that to the script
	Options string // of the mount, as for mount -o
}

// String is the guest's kind and suites.
func (c Config) String() string {
	if c.Kind == UML {
		return strings.TrimSuffix("uml-"+c.UMLSuite, "-")
	}
	return fmt.Sprintf("qemu-%s-kernel-%s", orDefault(c.QEMUSuite, defaultQEMU), orDefault(c.KernelSuite, defaultKernel))
}

const (
	defaultQEMU   = "trixie-backports"
	defaultKernel = "trixie"
)

// Hypervisors lists every guest that we know how to boot, for tests that go
// through all of them. Sid and experimental move: what cannot be fetched today
// may be there tomorrow.
func Hypervisors() []Config {
	var all []Config
	for _, s := range umlSuites {
		all = append(all, Config{Kind: UML, UMLSuite: string(s)})
	}
	for _, qemu := range []string{"trixie-backports", "trixie", "bookworm"} {
		for _, kernel := range []string{"trixie", "bookworm", "sid", "experimental"} {
			all = append(all, Config{Kind: QEMU, QEMUSuite: qemu, KernelSuite: kernel})
		}
	}
	return all
}

// machine is a kind of guest, fetched and ready to be booted.
type machine struct {
	side      guestSide
	busybox   busybox
	modules   moduleSet
	base      []string // modules to load always
	exclusive bool     // one at a time on this host
	start     starter
}

// Prepare downloads what the guest needs and returns c with its defaults filled in;
// booting that is then quick. It fails when c makes no sense or the packages cannot
// be had.
func Prepare(ctx context.Context, c Config) (Config, error) {
	c, _, err := prepare(ctx, c)
	return c, err
}

func prepare(ctx context.Context, c Config) (Config, machine, error) {
	if runtime.GOARCH != "amd64" {
		return c, machine{}, fmt.Errorf("guests are booted on amd64 hosts only, this is %s", runtime.GOARCH)
	}
	c.Memory = orDefault(c.Memory, 256)
	c.CPUs = orDefault(c.CPUs, 1)
	c.Queues = orDefault(c.Queues, 1)
	c.QueueSize = orDefault(c.QueueSize, 1024)
	c.Timeout = orDefault(c.Timeout, 2*time.Minute)
	if c.Memory < 64 || c.CPUs < 1 || c.Queues < 1 || c.QueueSize < 1 || c.Timeout < 0 {
		return c, machine{}, errors.New("guest with less than 64 MiB, or with a negative number")
	}
	for _, m := range c.Modules {
		if !slices.Contains(extraModules, moduleName(m)) {
			return c, machine{}, fmt.Errorf("no module %s, there are %s", m, strings.Join(extraModules, " "))
		}
	}
	for i, fs := range c.FS {
		if fs.Socket == "" || fs.Tag == "" || fs.MountAt != "" && !path.IsAbs(fs.MountAt) {
			return c, machine{}, fmt.Errorf("file system %d needs a socket, a tag, and an absolute mount point or none", i)
		}
	}
	switch c.Kind {
	case UML:
		return prepareUML(ctx, c)
	case QEMU:
		return prepareQEMU(ctx, c)
	}
	return c, machine{}, fmt.Errorf("no kind of guest %q, there are %s and %s", c.Kind, UML, QEMU)
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
