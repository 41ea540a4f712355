package main

import (
	"fmt"
	"io"
	"strings"
)

// printCompletion prints a script for the shell, made from the table of options.
func printCompletion(w io.Writer, shell string) error {
	switch shell {
	case "bash":
		bashCompletion(w)
	case "zsh":
		// zsh runs bash's.
		fmt.Fprint(w, "#compdef rafsd\nautoload -U +X bashcompinit && bashcompinit\n")
		bashCompletion(w)
	case "fish":
		fishCompletion(w)
	default:
		return usagef("completion: %q is none of bash, zsh, fish", shell)
	}
	return nil
}

func names() []string {
	var out []string
	for _, s := range subcommands {
		out = append(out, s.name)
	}
	return out
}

func bashCompletion(w io.Writer) {
	fmt.Fprintf(w, `_rafsd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "%s --help --version" -- "$cur"))
        return
    fi
    case "${COMP_WORDS[1]}" in
`, strings.Join(names(), " "))
	for _, s := range subcommands {
		var options, paths []string
		fmt.Fprintf(w, "    %s)\n        case \"$prev\" in\n", s.name)
		for _, o := range s.options {
			if o.hidden {
				continue
			}
			options = append(options, "--"+o.long)
			words := "--" + o.long
			if o.short != 0 {
				words += "|-" + string(o.short)
			}
			switch {
			case o.choices != nil:
				fmt.Fprintf(w, "        %s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", words, strings.Join(o.choices, " "))
			case o.path:
				paths = append(paths, words)
			case o.value != "":
				fmt.Fprintf(w, "        %s) return ;;\n", words)
			}
		}
		if paths != nil {
			fmt.Fprintf(w, "        %s) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n", strings.Join(paths, "|"))
		}
		words := strings.Join(options, " ")
		if s.name == "completion" {
			words = "bash zsh fish"
		}
		fmt.Fprintf(w, "        esac\n        COMPREPLY=($(compgen -W %q -- \"$cur\")) ;;\n", words)
	}
	fmt.Fprint(w, "    esac\n}\ncomplete -o filenames -F _rafsd rafsd\n")
}

func fishCompletion(w io.Writer) {
	fmt.Fprint(w, "complete -c rafsd -f\n")
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }
	for _, s := range subcommands {
		fmt.Fprintf(w, "complete -c rafsd -n __fish_use_subcommand -a %s -d %s\n", s.name, quote(s.summary))
		when := fmt.Sprintf("-n '__fish_seen_subcommand_from %s'", s.name)
		if s.name == "completion" {
			fmt.Fprintf(w, "complete -c rafsd %s -a 'bash zsh fish'\n", when)
		}
		for _, o := range s.options {
			if o.hidden {
				continue
			}
			line := fmt.Sprintf("complete -c rafsd %s -l %s -d %s", when, o.long, quote(o.help))
			if o.short != 0 {
				line += " -s " + string(o.short)
			}
			switch {
			case o.choices != nil:
				line += " -x -a " + quote(strings.Join(o.choices, " "))
			case o.path:
				line += " -r -F"
			case o.value != "":
				line += " -x"
			}
			fmt.Fprintln(w, line)
		}
	}
}
