package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/internal/nearest"
)

// usageError marks an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// argsOf makes a command's check of its arguments speak in terms of its usage
// line.
func argsOf(c *cobra.Command) cobra.PositionalArgs {
	check := c.Args
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		return usageError{fmt.Errorf("usage: %s (%d arguments given)", cmd.UseLine(), len(args))}
	}
}

// unknownCommand names the command that was probably meant.
func unknownCommand(root *cobra.Command, word string) error {
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	if near := nearest.Word(word, names); near != "" {
		return fmt.Errorf("unknown command %q (did you mean %s?)", word, near)
	}
	return fmt.Errorf("unknown command %q (see rafs --help)", word)
}

// suggestFlag adds the nearest flag to the error about an unknown one.
func suggestFlag(cmd *cobra.Command, err error) error {
	_, wrong, unknown := strings.Cut(err.Error(), "unknown flag: --")
	if !unknown {
		return usageError{err}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := nearest.Word(wrong, names); near != "" {
		return usageError{fmt.Errorf("%w (did you mean --%s?)", err, near)}
	}
	return usageError{fmt.Errorf("%w (see rafs %s --help)", err, cmd.Name())}
}

// oneLine keeps an error on one line, whatever is in it.
func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
}
