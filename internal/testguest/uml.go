package testguest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func prepareUML(ctx context.Context, c Config) (Config, machine, error) {
	if c.CPUs > 1 || c.Queues > 1 {
		return c, machine{}, errors.New("user-mode Linux has one CPU and one request queue")
	}
	suites := umlSuites
	if c.UMLSuite != "" {
		suites = []suite{suite(c.UMLSuite)}
		if !slices.Contains(umlSuites, suites[0]) {
			return c, machine{}, fmt.Errorf("no user-mode Linux of %s, there are %v", c.UMLSuite, umlSuites)
		}
	}
	var errs []error
	for _, s := range suites {
		k, err := fetchUML(ctx, s)
		if err == nil && k.loader != "" && !k.namespaces {
			err = fmt.Errorf("%s needs a newer C library than this host has, and no mount namespace may be made for it", s)
		}
		if err == nil {
			c.UMLSuite = string(s)
			return c, machine{
				side:    guestSide{out: "/dev/tty1", tty: true, powerOff: "poweroff -f"},
				busybox: k.busybox,
				modules: k.modules,
				base:    []string{"fuse", "virtiofs"},
				start:   k.start,
			}, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return c, machine{}, fmt.Errorf("user-mode Linux: %w", errors.Join(errs...))
}

// start makes the command of a user-mode Linux.
//
// The program of a newer suite needs a newer C library than the host may have, and
// cannot be started through its loader: it then finds its break far from its image
// and refuses to run. So it gets a mount namespace, in which loader and library lie
// over the host's. A tmpfs over /dev/shm makes room for its memory there, which in
// containers is 64 MiB. Where no namespace may be made, the program runs as it is.
//
// Console 0 is the kernel's, console 1 (descriptor 3) the script's. The kernel must
// power off: a reboot would start it anew in the same process.
func (k umlKernel) start(c Config, dir string, out, console *os.File) *exec.Cmd {
	args := []string{
		fmt.Sprintf("mem=%dM", c.Memory), "initrd=initrd", "uml_dir=./", "umid=u",
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "ssl=null", "quiet", "panic=-1",
		// Halves the time that processes of the guest need, where the kernel has it.
		"seccomp=auto",
		// These measure for 0.8 s which way to compute RAID 6 is best; the second is
		// the name from 7.x on.
		"initcall_blacklist=raid6_select_algo,raid6_init",
	}
	for i := range c.FS {
		const virtioIDFS = 26
		args = append(args, fmt.Sprintf("virtio_uml.device=fs%d:%d", i, virtioIDFS))
	}
	args = append(args, c.KernelArgs...)

	var enter strings.Builder
	mount := func(words string) { fmt.Fprintf(&enter, "%s mount %s || exit; ", shellQuote(k.busybox.file), words) }
	if k.namespaces {
		mount("--make-rprivate /")
		mount("-t tmpfs -o mode=1777,size=" + shmSize(c.Memory) + " shm /dev/shm")
	}
	if k.loader != "" {
		mount("--bind " + shellQuote(k.loader) + " " + shellQuote(k.hostLoader))
		mount("--bind " + shellQuote(k.libc) + " " + shellQuote(k.hostLibc))
	}
	// The shell stays, as process 1 of the namespace: after a panic the kernel ends
	// itself by signals that process 1 would not get.
	enter.WriteString(`ulimit -c 0; "$@"; exit`) // two commands, or the shell would make way for the first

	cmd := exec.Command(k.busybox.file, append([]string{"sh", "-c", enter.String(), "sh", k.program}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/bin:/usr/bin", "HOME=" + dir}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = &unix.SysProcAttr{}
	if k.namespaces {
		cmd.SysProcAttr = inNamespaces()
	}
	cmd.SysProcAttr.Setpgid = true
	return cmd
}

// inNamespaces starts a process that may mount what only it sees. The end of that
// process is the end of all that it has started. An ordinary user gets the rights
// for that in a user namespace, if the host allows those.
func inNamespaces() *unix.SysProcAttr {
	a := &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// haveNamespaces reports whether inNamespaces works here. It tries.
func haveNamespaces(ctx context.Context, bb busybox) bool {
	cmd := exec.CommandContext(ctx, bb.file, "mount", "--make-rprivate", "/")
	cmd.SysProcAttr = inNamespaces()
	return cmd.Run() == nil
}
