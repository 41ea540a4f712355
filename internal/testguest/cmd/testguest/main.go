// Command testguest fetches and boots the guests of package testguest, by hand and
// in CI.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testguest"
)

// Exit codes, besides those of a guest's script.
const (
	exitError   = 125 // also when the guest died
	exitTimeout = 124
	exitUsage   = 2
)

const usage = `usage: testguest COMMAND [FLAG...]

Boots real Linux guests made of Debian's packages, without installing anything.

  fetch     download what tests need: a user-mode Linux, QEMU, a kernel, virtiofsd
  boot      boot a guest, run a script in it, end with the script's exit code
  program   print how to start a fetched program: virtiofsd, vhost-device-vsock, qemu
  list      list the guests that can be booted

testguest COMMAND --help tells more. Environment: RAFSD_TESTBED_CACHE names the
folder that everything is kept in (default rafsd-testbed in the user's cache
folder), RAFSD_TESTBED_MIRROR a mirror of Debian (default: the one that apt uses
here), RAFSD_TESTBED_ACCEL=kvm or tcg how QEMU runs (default: kvm where it is real).

Examples:
  testguest fetch
  testguest boot --uml sid --command 'uname -a'
  testguest boot --qemu trixie-backports --kernel bookworm --fs /tmp/s=tag:/mnt --script check.sh
  testguest program virtiofsd
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	commands := map[string]func(context.Context, *flag.FlagSet, []string, io.Reader, io.Writer, io.Writer) (int, error){
		"fetch": fetch, "boot": boot, "program": program, "list": list,
	}
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	if args[0] == "--help" || args[0] == "-h" || args[0] == "help" {
		fmt.Fprint(stdout, usage)
		return 0
	}
	command, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "testguest: no command %q; try testguest --help\n", args[0])
		return exitUsage
	}
	flags := flag.NewFlagSet("testguest "+args[0], flag.ContinueOnError)
	flags.SetOutput(stdout) // of --help; errors are printed below, in one line
	flags.Usage = func() {}
	code, err := command(ctx, flags, args[1:], stdin, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "usage: testguest %s\n\n", help[args[0]])
		flags.PrintDefaults()
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "testguest %s: %v; try testguest %s --help\n", args[0], err, args[0])
		return exitUsage
	case errors.Is(err, testguest.ErrTimeout):
		code = exitTimeout
	case err != nil:
		code = exitError
	}
	if err != nil {
		fmt.Fprintf(stderr, "testguest %s: %v\n", args[0], err)
	}
	return code
}

// usageError is a call that makes no sense.
type usageError struct{ error }

// help has the usage of each command.
var help = map[string]string{
	"fetch": "fetch [--all]",
	"boot": `boot (--uml SUITE | --qemu SUITE) (--script FILE | --command COMMAND) [FLAG...]

Example:
  testguest boot --uml any --fs /tmp/s=tag:/mnt --command 'rafs-guest manifest /mnt'`,
	"program": "program [--suite SUITE] NAME",
	"list":    "list",
}

// parse reads the flags, and at most so many arguments after them.
func parse(flags *flag.FlagSet, args []string, operands int) error {
	out := flags.Output()
	flags.SetOutput(io.Discard) // the error is returned, once is enough
	err := flags.Parse(args)
	flags.SetOutput(out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return usageError{err}
	case flags.NArg() > operands:
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(operands))}
	}
	return nil
}

func fetch(ctx context.Context, flags *flag.FlagSet, args []string, _ io.Reader, stdout, _ io.Writer) (int, error) {
	all := flags.Bool("all", false, "every guest of testguest list, not only the default ones")
	if err := parse(flags, args, 0); err != nil {
		return 0, err
	}
	start := time.Now()
	guests := []testguest.Config{{Kind: testguest.UML}, {Kind: testguest.QEMU}}
	if *all {
		guests = testguest.Hypervisors()
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	ready := func(what any) {
		fmt.Fprintf(stdout, "%v is ready after %.1f s\n", what, time.Since(start).Seconds())
	}
	for _, c := range guests {
		group.Go(func() error {
			c, err := testguest.Prepare(ctx, c)
			if err == nil {
				ready(c)
			}
			return err
		})
	}
	group.Go(func() error {
		_, err := testguest.Program(ctx, "virtiofsd", "")
		if err == nil {
			ready("virtiofsd")
		}
		return err
	})
	return 0, group.Wait()
}

func list(_ context.Context, flags *flag.FlagSet, args []string, _ io.Reader, stdout, _ io.Writer) (int, error) {
	if err := parse(flags, args, 0); err != nil {
		return 0, err
	}
	for _, c := range testguest.Hypervisors() {
		if c.Kind == testguest.UML {
			fmt.Fprintf(stdout, "--uml %s\n", c.UMLSuite)
		} else {
			fmt.Fprintf(stdout, "--qemu %s --kernel %s\n", c.QEMUSuite, c.KernelSuite)
		}
	}
	return 0, nil
}

func program(ctx context.Context, flags *flag.FlagSet, args []string, _ io.Reader, stdout, _ io.Writer) (int, error) {
	suite := flags.String("suite", "", "take it from this suite of Debian")
	if err := parse(flags, args, 1); err != nil {
		return 0, err
	}
	if flags.NArg() == 0 {
		return 0, usageError{errors.New("no program named")}
	}
	p, err := testguest.Program(ctx, flags.Arg(0), *suite)
	if err != nil {
		return 0, err
	}
	words := p.Argv
	if len(p.Env) > 0 {
		words = slices.Concat([]string{"env"}, p.Env, words)
	}
	for i, w := range words {
		if strings.ContainsAny(w, " \t\n'\"\\$`&|;()<>*?[#~!{") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	_, err = fmt.Fprintln(stdout, strings.Join(words, " "))
	return 0, err
}

// listFlag collects the values of a flag that may be given more than once.
type listFlag []string

func (l *listFlag) String() string     { return strings.Join(*l, " ") }
func (l *listFlag) Set(s string) error { *l = append(*l, s); return nil }

func boot(ctx context.Context, flags *flag.FlagSet, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	var c testguest.Config
	var fs, files, modules, words, qemuArgs listFlag
	uml := flags.String("uml", "", "boot user-mode Linux of `SUITE`: sid, trixie or bookworm; any: the first that can be fetched")
	qemu := flags.String("qemu", "", "boot QEMU of `SUITE`: trixie-backports, trixie, bookworm; any: the first of these")
	flags.StringVar(&c.KernelSuite, "kernel", "", "kernel for QEMU, by `SUITE`: trixie (default), bookworm, sid, experimental")
	flags.Var(&fs, "fs", "virtio-fs device `SOCKET=TAG[:DIR[:OPTIONS]]`, mounted at DIR if given; may be repeated")
	script := flags.String("script", "", "run the commands in `FILE`, - is stdin")
	command := flags.String("command", "", "run this `COMMAND`")
	flags.Var(&files, "file", "put a file or folder into the guest, `HOST:GUEST`; may be repeated")
	flags.Var(&modules, "module", "load a kernel `MODULE`; may be repeated")
	flags.IntVar(&c.Memory, "memory", 256, "`MiB` of the guest")
	flags.IntVar(&c.CPUs, "cpus", 1, "processors of the guest")
	flags.IntVar(&c.Queues, "queues", 1, "request queues of each virtio-fs device")
	flags.IntVar(&c.QueueSize, "queue-size", 1024, "their size")
	flags.Var(&words, "append", "`WORD` for the kernel's command line; may be repeated")
	flags.Var(&qemuArgs, "qemu-arg", "`ARGUMENT` for QEMU; may be repeated")
	flags.DurationVar(&c.Timeout, "timeout", 2*time.Minute, "end the guest after this time, exit code 124")
	flags.StringVar(&c.RafsGuest, "rafs-guest", "", "rafs-guest `PROGRAM` to put into the guest (default: built)")
	console := flags.Bool("console", false, "show the kernel's messages and the times on stderr")
	if err := parse(flags, args, 0); err != nil {
		return 0, err
	}

	anySuite := func(s string) string {
		if s == "any" {
			return ""
		}
		return s
	}
	switch {
	case (*uml == "") == (*qemu == ""):
		return 0, usageError{errors.New("give either --uml or --qemu")}
	case *uml != "":
		c.Kind, c.UMLSuite = testguest.UML, anySuite(*uml)
	default:
		c.Kind, c.QEMUSuite = testguest.QEMU, anySuite(*qemu)
	}
	switch {
	case (*script == "") == (*command == ""):
		return 0, usageError{errors.New("give either --script or --command")}
	case *command != "":
		c.Script = *command
	default:
		text, err := readScript(*script, stdin)
		if err != nil {
			return 0, err
		}
		c.Script = text
	}
	for _, f := range fs {
		one, err := parseFS(f)
		if err != nil {
			return 0, usageError{err}
		}
		c.FS = append(c.FS, one)
	}
	c.Files = map[string]string{}
	for _, f := range files {
		host, inGuest, ok := strings.Cut(f, ":")
		if !ok || host == "" || inGuest == "" {
			return 0, usageError{fmt.Errorf("--file %s: not HOST:GUEST", f)}
		}
		c.Files[inGuest] = host
	}
	c.Modules, c.KernelArgs, c.QEMUArgs, c.Output = modules, words, qemuArgs, stdout

	r, err := testguest.Boot(ctx, c)
	if *console {
		fmt.Fprintf(stderr, "%s\nkernel %s, first process after %v, end after %v\n", strings.TrimSpace(r.Console), r.Kernel, r.BootTime, r.Time)
	}
	return r.ExitCode, err
}

func readScript(name string, stdin io.Reader) (string, error) {
	if name == "-" {
		b, err := io.ReadAll(stdin)
		return string(b), err
	}
	b, err := os.ReadFile(name)
	return string(b), err
}

// parseFS reads SOCKET=TAG[:DIR[:OPTIONS]].
func parseFS(s string) (testguest.FS, error) {
	socket, rest, ok := strings.Cut(s, "=")
	part := append(strings.SplitN(rest, ":", 3), "", "")
	if !ok || socket == "" || part[0] == "" {
		return testguest.FS{}, fmt.Errorf("--fs %s: not SOCKET=TAG[:DIR[:OPTIONS]]", s)
	}
	return testguest.FS{Socket: socket, Tag: part[0], MountAt: part[1], Options: part[2]}, nil
}
