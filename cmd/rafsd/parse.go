package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/rafsd/rafsd/internal/nearest"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// arguments are the options of a command line by long name; a later one of the
// same name has replaced an earlier one.
type arguments struct {
	values  map[string]string   // of a flag: ""
	all     map[string][]string // of those that repeat, in order; of one without a long name, by its letter
	words   []string            // what is no option
	ignored []string            // options as given that have no effect, with the reason
}

func (a *arguments) has(name string) bool {
	_, ok := a.values[name]
	return ok
}

// parseOptions reads args by the table of options. It takes the forms that
// nydusd's callers use: --name=value, --name value, -n value, -nvalue, -n=value.
func parseOptions(options []option, args []string) (*arguments, error) {
	a := &arguments{values: make(map[string]string), all: make(map[string][]string)}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			a.words = append(a.words, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			a.words = append(a.words, arg)
			continue
		}
		name, value, hasValue := arg, "", false
		var o *option
		if strings.HasPrefix(arg, "--") {
			name, value, hasValue = strings.Cut(arg, "=")
			o = findLong(options, name[2:])
		} else if o = findShort(options, arg[1]); o != nil {
			name = arg[:2]
			if len(arg) > 2 {
				value, hasValue = strings.TrimPrefix(arg[2:], "="), true
			}
		}
		if o == nil {
			return nil, unknownOption(options, name)
		}
		switch {
		case o.value == "" && hasValue:
			return nil, usagef("%s takes no value", name)
		case o.noValue != "" && !hasValue:
			value = o.noValue
		case o.value != "" && !hasValue:
			if i+1 == len(args) || len(args[i+1]) > 1 && args[i+1][0] == '-' {
				return nil, usagef("%s needs a value: %s", name, o.value)
			}
			i++
			value = args[i]
		}
		if o.check != nil {
			if err := o.check(value); err != nil {
				return nil, err
			}
		}
		if o.choices != nil && !contains(o.choices, value) {
			return nil, usagef("%s: %q is none of %s", name, value, strings.Join(o.choices, ", "))
		}
		if o.ignored != "" {
			a.ignored = append(a.ignored, fmt.Sprintf("%s (%s)", name, o.ignored))
		}
		key := o.long
		if key == "" {
			key = string(o.short)
		}
		a.values[key] = value
		if o.repeats {
			a.all[key] = append(a.all[key], value)
		}
	}
	return a, nil
}

// checkMountList holds -o to what Kata's default configuration puts there.
func checkMountList(list string) error {
	for item := range strings.SplitSeq(list, ",") {
		if item != "announce_submounts" {
			return usagef("-o: unknown item %q", item)
		}
	}
	return nil
}

func findLong(options []option, name string) *option {
	if name == "" {
		return nil
	}
	for i := range options {
		if options[i].long == name || contains(options[i].aliases, name) {
			return &options[i]
		}
	}
	return nil
}

func findShort(options []option, letter byte) *option {
	for i := range options {
		if options[i].short == letter {
			return &options[i]
		}
	}
	return nil
}

func unknownOption(options []option, name string) error {
	var names []string
	for _, o := range options {
		if o.long != "" && !o.hidden {
			names = append(names, "--"+o.long)
		}
	}
	if near := nearest.Word(name, names); near != "" && strings.HasPrefix(name, "--") {
		return usagef("unexpected argument %.80q, did you mean %s?", name, near)
	}
	return usagef("unexpected argument %.80q", name)
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// personality is what a command line asks us to be.
type personality int

const (
	asNothing personality = iota
	asHelp
	asVersion
	asSubcommand
	asVirtiofsd
	asFuse
)

// choose finds the personality of a command line: asked for by name first, then
// guessed by the program's name and by options that only one of them has.
func choose(argv []string) personality {
	args := argv[min(1, len(argv)):]
	if len(args) > 0 {
		switch args[0] {
		case "--version", "-V":
			return asVersion
		case "--help", "-h", "help":
			return asHelp
		}
		if findSubcommand(args[0]) != nil {
			return asSubcommand
		}
	}
	given := func(names ...string) bool {
		for _, arg := range args {
			if arg == "--" {
				break
			}
			name, _, _ := strings.Cut(arg, "=")
			if contains(names, name) {
				return true
			}
		}
		return false
	}
	switch {
	case given("--version", "-V"):
		return asVersion
	case given("--help", "-h"):
		return asHelp
	case len(argv) > 0 && filepath.Base(argv[0]) == "virtiofsd",
		given("--fd", "--socket-path", "--shared-dir", "--print-capabilities"):
		return asVirtiofsd
	case given("--mountpoint", "-M"):
		return asFuse
	}
	return asNothing
}
