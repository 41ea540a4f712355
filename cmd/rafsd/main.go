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

// exitCode is an error that has been reported by another process.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is main with its surroundings as arguments.
func run(argv []string, stdout io.Writer, stderr *os.File) int {
	err := dispatch(argv, stdout, stderr)
	var usage *usageError
	var code exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "error: %v\n\nFor more information, try '--help'.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return exitError
}

func dispatch(argv []string, stdout io.Writer, stderr *os.File) error {
	if len(argv) > 1 && argv[1] == workerWord {
		return runWorker(argv[2:], stderr)
	}
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
		return runVirtiofsd(argv[1:], stdout, stderr)
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
	case a.has("upgrade"):
		return errors.New("--upgrade: a daemon for virtual machines cannot take over from another one")
	}
	if v.keeper {
		return serveByKeeper(v, append([]string{os.Args[0], workerWord}, args...), stderr)
	}
	return serve(v, stderr)
}

// runVirtiofsd is the program when it was started like virtiofsd.
func runVirtiofsd(args []string, stdout io.Writer, stderr *os.File) error {
	a, err := parseOptions(virtiofsdOptions, args)
	switch {
	case err != nil:
		return err
	case a.has("help"):
		printSubcommandHelp(stdout, &virtiofsdHelp)
		return nil
	case a.has("print-capabilities"):
		return printCapabilities(stdout)
	}
	v, err := readVirtiofsd(a)
	if err != nil {
		return err
	}
	return serveVirtiofsd(v, stderr)
}
