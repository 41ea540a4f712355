package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/rafsd/rafsd/shim-integration/httpapi"
)

// printVersion prints the five lines that nydus-snapshotter looks for; the
// carriage return is nydusd's.
func printVersion(w io.Writer) {
	v := httpapi.BuildVersion()
	fmt.Fprintf(w, "\rVersion: \t%s\nGit Commit: \t%s\nBuild Time: \t%s\nProfile: \t%s\nRustc: \t\t%s\n",
		v.PackageVer, v.GitCommit, v.BuildTime, v.Profile, v.Rustc)
}

// printHelp prints what rafsd is and can.
func printHelp(w io.Writer) {
	fmt.Fprint(w, "rafsd serves container images in RAFS format to virtual machines, fetching what is read.\n\n"+
		"Usage: rafsd SUBCOMMAND [OPTIONS]\n\nSubcommands:\n")
	for _, s := range subcommands {
		fmt.Fprintf(w, "  %-12s %s\n", s.name, s.summary)
	}
	fmt.Fprint(w, "\nOptions:\n  -h, --help     Print this text, or that of a subcommand, and exit\n"+
		"  -V, --version  Print the version and exit\n")
	for _, s := range subcommands {
		if s.name == "virtiofs" {
			fmt.Fprintf(w, "\nExamples:\n%s\n", s.example)
		}
	}
}

// printSubcommandHelp prints what one subcommand can.
func printSubcommandHelp(w io.Writer, s *subcommand) {
	fmt.Fprintf(w, "%s\n\nUsage: %s\n\nOptions:\n", s.summary, s.usage)
	const column = 34
	for _, o := range s.options {
		if o.hidden {
			continue
		}
		left := "      "
		if o.short != 0 {
			left = fmt.Sprintf("  -%c, ", o.short)
		}
		left += "--" + o.long
		if o.value != "" {
			left += " " + o.value
		}
		text := o.help
		if o.choices != nil {
			text = strings.TrimSpace(text + " (" + strings.Join(o.choices, ", ") + ")")
		}
		if o.ignored != "" {
			text += " (no effect: " + o.ignored + ")"
		}
		if len(left) >= column {
			fmt.Fprintf(w, "%s\n%*s%s\n", left, column, "", text)
		} else {
			fmt.Fprintf(w, "%-*s%s\n", column, left, text)
		}
	}
	if s.example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", s.example)
	}
}
