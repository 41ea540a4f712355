package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/manifest"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "-file"), []byte("1"), 0o640); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args           []string
		code           int
		stdout, stderr string // parts; "" means nothing at all
	}{
		"no command":         {nil, 2, "", "--help"},
		"help":               {[]string{"--help"}, 0, "Example:", ""},
		"help of a command":  {[]string{"manifest", "--help"}, 0, "Example:", ""},
		"version":            {[]string{"--version"}, 0, "rafs-guest ", ""},
		"unknown command":    {[]string{"manifets"}, 2, "", `unknown command "manifets", did you mean manifest?`},
		"nothing like it":    {[]string{"x"}, 2, "", `unknown command "x"`},
		"unknown flag":       {[]string{"manifest", "--keepgoing", dir}, 2, "", `unknown flag "--keepgoing", did you mean --keep-going?`},
		"flag with a value":  {[]string{"manifest", "--keep-going=1", dir}, 2, "", `did you mean --keep-going?`},
		"no folder":          {[]string{"manifest"}, 2, "", "0 arguments given, want DIR"},
		"two folders":        {[]string{"manifest", dir, dir}, 2, "", "2 arguments given, want DIR"},
		"manifest":           {[]string{"manifest", dir}, 0, "/-file f 0640 ", ""},
		"flag after folder":  {[]string{"manifest", dir, "--keep-going"}, 0, "/-file f 0640 ", ""},
		"folder after --":    {[]string{"manifest", "--", dir}, 0, "/-file f 0640 ", ""},
		"folder like a flag": {[]string{"manifest", "--", "--keep-going"}, 1, "", "rafs-guest manifest: open --keep-going: no such file"},
		"folder missing":     {[]string{"manifest", dir + "/a b"}, 1, "", `/a\x20b: no such file or directory`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(tt.args, &stdout, &stderr)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for what, c := range map[string]struct{ got, want string }{
				"stdout": {stdout.String(), tt.stdout}, "stderr": {stderr.String(), tt.stderr},
			} {
				if !strings.Contains(c.got, c.want) || c.want == "" && c.got != "" {
					t.Errorf("%s %q, want %q in it", what, c.got, c.want)
				}
			}
			if n := strings.Count(stderr.String(), "\n"); n > 1 {
				t.Errorf("%d lines on stderr", n)
			}
		})
	}
}

// A flag that comes from the table must be in the text that explains it.
func TestUsageNamesAllFlags(t *testing.T) {
	for _, c := range commands {
		for _, f := range append(c.flags, c.operands...) {
			if !strings.Contains(c.usage, f) {
				t.Errorf("usage of %s does not name %s", c.name, f)
			}
		}
	}
}

func TestManifestOfUnreadableSize(t *testing.T) {
	const dir = "/proc/sys/fs/inotify" // its files say size 0 and have content
	if _, err := os.Stat(dir); err != nil {
		t.Skip(err)
	}
	var stdout, stderr bytes.Buffer
	if code := run([]string{"manifest", dir}, &stdout, &stderr); code != 1 || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, &stdout, &stderr)
	}
	stderr.Reset()
	code := run([]string{"manifest", "--keep-going", dir}, &stdout, &stderr)
	entries, err := manifest.Parse(stdout.Bytes())
	if code != 1 || err != nil || len(entries) != 1 || strings.Count(stderr.String(), "\n") < 2 {
		t.Errorf("going on: exit code %d, %d entries, %v, stderr %q", code, len(entries), err, &stderr)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestManifestReportsFailedWrite(t *testing.T) {
	var stderr bytes.Buffer
	if code := run([]string{"manifest", t.TempDir()}, fullDisk{}, &stderr); code != 1 || !strings.Contains(stderr.String(), "write: disk full") {
		t.Errorf("exit code %d, stderr %q", code, &stderr)
	}
}

// The program goes into every guest's initramfs: it must need no library there
// and stay small.
func TestBinaryIsSmallAndStatic(t *testing.T) {
	const most = 4 << 20
	bin := filepath.Join(t.TempDir(), "rafs-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	st, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > most {
		t.Errorf("%d bytes, want at most %d", st.Size(), most)
	}
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("not static: it has a %v", p.Type)
		}
	}
}
