package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"--help", exitOK, "Examples:\n  make demo\n", ""},
		{"-h", exitOK, "usage: demo ", ""},
		{"-gest uml", exitUsage, "", `demo: unknown flag -gest, did you mean -guest?; try --help`},
		{"--frobnicate", exitUsage, "", `demo: unknown flag -frobnicate; try --help`},
		{"-guest xen", exitUsage, "", `"xen" is none of [auto uml qemu none]`},
		{"-guest", exitUsage, "", "-guest"},
		{"now", exitUsage, "", `unexpected argument "now"`},
		{"-rafsd " + gone, exitError, "", "make build"},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), strings.Fields(c.args), &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, &stdout, &stderr, c.code, c.stdout, c.stderr)
			}
			if c.stdout == "" && stdout.Len() > 0 || c.stderr == "" && stderr.Len() > 0 {
				t.Errorf("more was printed: stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}

// TestProgram is the whole demonstration without a guest, by the program as
// `make demo` runs it.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", ".", "../../cmd/rafsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "demo"), "-guest", "none", "-rafsd", filepath.Join(dir, "rafsd")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`(?m)^  connect time +[\d.]+ m?s +[\d.]+ m?s$`,
		`(?m)^  files read +10 +1,\d{3}$`,
		`(?m)^  bytes of the image +2\d\.\d MiB`,
		`(?m)^  bytes fetched so far +[345]\.\d MiB +2\d\.\d MiB$`,
		`(?m)^  percent +1\d% +(99\.\d|100)%$`,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("nothing printed matches %s:\n%s", want, out)
		}
	}
}
