// Command rafs-guest runs inside a virtual machine and reports what it sees of
// the file systems that rafsd serves. It is one static file without dependencies,
// made to be put into an initramfs.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/rafsd/rafsd/guest"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/nearest"
	"github.com/rafsd/rafsd/internal/version"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // what was asked for could not be done, or not whole
	exitUsage = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// command is one subcommand: what follows its name is sorted into flags and
// operands before run is called.
type command struct {
	name     string
	summary  string
	usage    string
	flags    []string // all without a value
	operands []string // exactly these, in this order
	run      func(flags map[string]bool, operands []string, stdout, stderr io.Writer) int
}

var commands = []command{{
	name:    "manifest",
	summary: "print everything about a file tree, one line a path",
	usage: `usage: rafs-guest manifest [--keep-going] DIR

Walks the tree below DIR and prints its manifest, sorted by path: type, mode,
owner, size, device, links, mtime, target, hard links, xattrs and sha256 of each
path. Symbolic links are not followed; mounts inside DIR are entered.

  --keep-going   name paths that cannot be read on stderr and go on without them
  --help         this text

Exit code: 0 all was read, 1 something was not, 2 wrong usage. Without
--keep-going nothing is printed on stdout unless all was read.

Example:
  mount -t virtiofs image /mnt && rafs-guest manifest /mnt > image.manifest
`,
	flags:    []string{"--keep-going"},
	operands: []string{"DIR"},
	run:      runManifest,
}}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, "rafs-guest: no command given; try rafs-guest --help\n")
		return exitUsage
	}
	switch args[0] {
	case "--help", "-h", "help":
		fmt.Fprint(stdout, overview())
		return exitOK
	case "--version":
		fmt.Fprintf(stdout, "rafs-guest %s (commit %s)\n", version.Version, version.Commit)
		return exitOK
	}
	names := []string{"--help", "--version"}
	for i := range commands {
		if commands[i].name == args[0] {
			return commands[i].parse(args[1:], stdout, stderr)
		}
		names = append(names, commands[i].name)
	}
	fmt.Fprintf(stderr, "rafs-guest: unknown command %q%s\n", args[0], didYouMean(args[0], names))
	return exitUsage
}

func overview() string {
	var b strings.Builder
	b.WriteString("usage: rafs-guest COMMAND [ARGUMENT...]\n\nReports, inside a guest, what it sees of a mounted file system.\n\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %-10s %s\n", c.name, c.summary)
	}
	b.WriteString(`
  rafs-guest COMMAND --help tells more about a command.
  rafs-guest --version tells which build this is.

Example:
  rafs-guest manifest /mnt > image.manifest
`)
	return b.String()
}

// parse sorts args and runs the command. "--" ends the flags.
func (c *command) parse(args []string, stdout, stderr io.Writer) int {
	wrong := func(format string, a ...any) int {
		fmt.Fprintf(stderr, "rafs-guest %s: %s; try rafs-guest %s --help\n", c.name, fmt.Sprintf(format, a...), c.name)
		return exitUsage
	}
	flags := map[string]bool{}
	var operands []string
	for i, arg := range args {
		if arg == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") {
			operands = append(operands, arg)
			continue
		}
		if arg == "--help" || arg == "-h" {
			fmt.Fprint(stdout, c.usage)
			return exitOK
		}
		known := false
		for _, f := range c.flags {
			known = known || f == arg
		}
		if !known {
			return wrong("unknown flag %q%s", arg, didYouMean(arg, append([]string{"--help"}, c.flags...)))
		}
		flags[arg] = true
	}
	if len(operands) != len(c.operands) {
		return wrong("%d arguments given, want %s", len(operands), strings.Join(c.operands, " "))
	}
	return c.run(flags, operands, stdout, stderr)
}

func runManifest(flags map[string]bool, operands []string, stdout, stderr io.Writer) int {
	code := exitOK
	report := func(err error) {
		fmt.Fprintf(stderr, "rafs-guest manifest: %v\n", err)
		code = exitError
	}
	var keepGoing func(error)
	if flags["--keep-going"] {
		keepGoing = report
	}
	entries, err := guest.Manifest(operands[0], keepGoing)
	if err != nil {
		report(err)
		return code
	}
	out := bufio.NewWriter(stdout)
	if err = manifest.Write(out, entries); err == nil {
		err = out.Flush()
	}
	if err != nil {
		report(fmt.Errorf("write: %w", err))
	}
	return code
}

// didYouMean suggests the nearest of the right names, if one is near.
func didYouMean(word string, names []string) string {
	if near := nearest.Word(word, names); near != "" {
		return fmt.Sprintf(", did you mean %s?", near)
	}
	return ""
}
