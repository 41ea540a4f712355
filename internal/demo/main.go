// Command demo is what `make demo` runs: see `go run ./internal/demo --help`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/rafsd/rafsd/internal/demo/show"
	"github.com/rafsd/rafsd/internal/nearest"
	"github.com/rafsd/rafsd/internal/testguest"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // something did not work, or a checksum was wrong
	exitUsage = 2
)

const usage = `usage: demo [-rafsd PROGRAM] [-guest KIND] [-v]

Shows rafsd at work: makes a container image, puts it into a registry in this
process, starts rafsd, boots a virtual machine that mounts the image, reads what
the start of a container reads, then every file, and checks all of it. Ends with
a table of what was read and what was fetched for it.

  -rafsd PROGRAM  the rafsd to show (default bin/rafsd)
  -guest KIND     auto: user-mode Linux, else QEMU, else no guest (default)
                  uml, qemu: that, or fail
                  none: no guest, our own front-end reads the image
  -v              print what rafsd and the guest print, on stderr
  --help          this text

What is fetched for the guest is kept in RAFSD_TESTBED_CACHE (default
~/.cache/rafsd-testbed). RAFSD_TESTBED_MIRROR names a mirror of Debian for
machines whose apt knows none, as Ubuntu's.

Exit code: 0 everything was right, 1 not so, 2 wrong usage.

Examples:
  make demo
  go run ./internal/demo -guest qemu
  RAFSD_TESTBED_MIRROR=https://mirror.example/debian make demo
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second Ctrl-C does not wait for cleaning up
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "demo: %v; try --help\n", err)
		return exitUsage
	}
	o.Out = stdout
	testguest.Progress = show.Progress(stdout)
	if o.Log != nil {
		o.Log = stderr
	}
	if _, err := show.Run(ctx, o); err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(stderr, "demo: interrupted")
		} else {
			fmt.Fprintf(stderr, "demo: %v\n", err)
		}
		return exitError
	}
	return exitOK
}

// parse reads the command line. A Log that is not nil stands for "verbose".
func parse(args []string) (o show.Options, err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	rafsd := flags.String("rafsd", filepath.Join("bin", "rafsd"), "")
	kind := flags.String("guest", string(show.Auto), "")
	verbose := flags.Bool("v", false, "")
	if err := flags.Parse(args); err != nil {
		return o, suggest(flags, err)
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if !slices.Contains(show.Guests, show.Guest(*kind)) {
		return o, fmt.Errorf("-guest: %q is none of %v", *kind, show.Guests)
	}
	o = show.Options{Rafsd: *rafsd, Guest: show.Guest(*kind)}
	// `make build` puts all programs into one folder.
	if beside := filepath.Join(filepath.Dir(*rafsd), "rafs-guest"); isFile(beside) {
		o.RafsGuest = beside
	}
	if *verbose {
		o.Log = io.Discard
	}
	return o, nil
}

func isFile(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

// suggest adds the flag that was probably meant to the message about an unknown one.
func suggest(flags *flag.FlagSet, err error) error {
	word, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		return err
	}
	names := []string{"help"}
	flags.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	if near := nearest.Word(word, names); near != "" {
		return fmt.Errorf("unknown flag -%s, did you mean -%s?", word, near)
	}
	return fmt.Errorf("unknown flag -%s", word)
}
