// Command rafsd serves container images in RAFS format to virtual machines: it
// is what a VMM's virtio-fs device talks to. See `rafsd --help`.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the start failed, or no VMM ever came
	exitUsage = 2
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is main with its surroundings as arguments.
func run(argv []string, stdout io.Writer, stderr *os.File) int {
	err := dispatch(argv, stdout, stderr)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "error: %v\n\nFor more information, try '--help'.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return exitError
}

func dispatch(argv []string, stdout io.Writer, stderr *os.File) error {
	switch choose(argv) {
	case asVersion:
		printVersion(stdout)
		return nil
	case asHelp:
		printHelp(stdout)
		return nil
	case asSubcommand:
		return runSubcommand(findSubcommand(argv[1]), argv[2:], stdout, stderr)
	case asVirtiofsd:
		return errors.New("started like virtiofsd (by that name, or by --fd, --socket-path, --shared-dir or --print-capabilities without a subcommand): " +
			"not supported yet; images are served by: rafsd virtiofs --sock PATH")
	case asFuse:
		return errors.New(findSubcommand("fuse").later)
	}
	return usagef("which rafsd? Name a subcommand (%s), or give the options of virtiofsd (--socket-path, --fd, --shared-dir) or of nydusd's FUSE mode (--mountpoint)", strings.Join(names(), ", "))
}

func runSubcommand(s *subcommand, args []string, stdout io.Writer, stderr *os.File) error {
	a, err := parseOptions(s.options, args)
	switch {
	case err != nil:
		return err
	case a.has("help"):
		printSubcommandHelp(stdout, s)
		return nil
	case a.has("version"):
		printVersion(stdout)
		return nil
	case s.later != "":
		return errors.New(s.later)
	case s.name == "completion":
		if len(a.words) != 1 {
			return usagef("completion needs one word: bash, zsh or fish")
		}
		return printCompletion(stdout, a.words[0])
	}
	v, err := readVirtiofs(a)
	if err != nil {
		return err
	}
	switch {
	case a.has("shared-dir"):
		return errors.New("--shared-dir: directories of the host are not supported yet")
	case a.has("upgrade"):
		return errors.New("--upgrade: a daemon for virtual machines cannot take over from another one")
	}
	return serve(v, stderr)
}
