package testguest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	qemuSuites   = []string{"trixie-backports", "sid", "trixie", "bookworm-backports", "bookworm"}
	kernelSuites = []string{"trixie", "bookworm", "sid", "experimental", "trixie-backports", "bookworm-backports"}
)

func prepareQEMU(ctx context.Context, c Config) (Config, machine, error) {
	c.QEMUSuite = orDefault(c.QEMUSuite, defaultQEMU)
	c.KernelSuite = orDefault(c.KernelSuite, defaultKernel)
	if !slices.Contains(qemuSuites, c.QEMUSuite) {
		return c, machine{}, fmt.Errorf("no QEMU of %s, there are %s", c.QEMUSuite, strings.Join(qemuSuites, " "))
	}
	if !slices.Contains(kernelSuites, c.KernelSuite) {
		return c, machine{}, fmt.Errorf("no kernel of %s, there are %s", c.KernelSuite, strings.Join(kernelSuites, " "))
	}
	program, err := Program(ctx, "qemu", c.QEMUSuite)
	if err != nil {
		return c, machine{}, err
	}
	k, err := fetchKernel(ctx, suite(c.KernelSuite))
	if err != nil {
		return c, machine{}, err
	}
	kvm, _ := useKVM()
	return c, machine{
		side:      guestSide{out: "/dev/vport0p1", powerOff: "reboot -f"},
		busybox:   k.busybox,
		modules:   k.modules,
		base:      []string{"virtio_pci", "virtio_console", "fuse", "virtiofs"},
		exclusive: !kvm, // two emulated guests starve each other on a small host
		start: func(c Config, dir string, out, console *os.File) *exec.Cmd {
			return startQEMU(c, program, k, kvm, dir, out, console)
		},
	}, nil
}

// startQEMU makes the command of a virtual machine. The back-ends of its file
// systems need its memory: so it is shared.
//
// The script's output goes through a port of virtio-serial, which takes 32 KiB at a
// time; a console would take a few bytes at a time, with an exit from the guest
// each. The port's other side is QEMU's stdout, opened as a file: as "stdio" it
// would count as hung up, since stdin is at its end, and the guest would wait for
// ever. The kernel's messages go to the serial port. A panic and a reboot both end
// QEMU.
func startQEMU(c Config, program Command, k kernel, kvm bool, dir string, out, console *os.File) *exec.Cmd {
	words := []string{"console=ttyS0", "quiet", "panic=-1"}
	accel, cpu := "tcg,tb-size=256", "max"
	if kvm {
		accel, cpu = "kvm", "host"
	} else {
		// A second or two less to boot: no self-tests, no calibration, no defence
		// against flaws that an emulated processor does not have.
		words = append(words, "cryptomgr.notests", "tsc=reliable", "no_timer_check", "mitigations=off")
	}
	words = append(words, c.KernelArgs...)
	memory := strconv.Itoa(c.Memory) + "M"
	args := []string{
		"-machine", "q35,memory-backend=mem", "-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(c.CPUs),
		"-m", memory, "-object", "memory-backend-memfd,id=mem,share=on,size=" + memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "file,id=console,path=console,append=on", "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/proc/self/fd/1,append=on", "-device", "virtserialport,nr=1,chardev=out",
		"-kernel", k.image, "-initrd", "initrd",
		"-append", strings.Join(words, " "),
	}
	for i, fs := range c.FS {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=fs%d,path=fs%d", i, i),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=fs%d,tag=%s,queue-size=%d,num-request-queues=%d", i, strings.ReplaceAll(fs.Tag, ",", ",,"), c.QueueSize, c.Queues))
	}
	args = append(args, c.QEMUArgs...)

	cmd := exec.Command(program.Argv[0], slices.Concat(program.Argv[1:], args)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), program.Env...)
	cmd.Stdout, cmd.Stderr = out, console
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}
