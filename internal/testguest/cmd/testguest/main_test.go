package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testguest"
)

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args           []string
		code           int
		stdout, stderr string // parts; "" means nothing at all
	}{
		"nothing":               {nil, 2, "", "usage: testguest"},
		"help":                  {[]string{"--help"}, 0, "Examples:", ""},
		"help of boot":          {[]string{"boot", "--help"}, 0, "-queue-size", ""},
		"help of fetch":         {[]string{"fetch", "-h"}, 0, "-all", ""},
		"unknown command":       {[]string{"start"}, 2, "", `no command "start"`},
		"unknown flag":          {[]string{"boot", "--umm", "sid"}, 2, "", "-umm"},
		"neither kind":          {[]string{"boot", "--command", "true"}, 2, "", "either --uml or --qemu"},
		"both kinds":            {[]string{"boot", "--uml", "sid", "--qemu", "any", "--command", "true"}, 2, "", "either --uml or --qemu"},
		"no script":             {[]string{"boot", "--uml", "sid"}, 2, "", "either --script or --command"},
		"script missing":        {[]string{"boot", "--uml", "sid", "--script", "/no/such"}, 125, "", "/no/such"},
		"bad fs":                {[]string{"boot", "--uml", "sid", "--command", "true", "--fs", "s"}, 2, "", "SOCKET=TAG"},
		"bad file":              {[]string{"boot", "--uml", "sid", "--command", "true", "--file", "s"}, 2, "", "HOST:GUEST"},
		"operand":               {[]string{"boot", "--uml", "sid", "true"}, 2, "", `unexpected argument "true"`},
		"no such suite":         {[]string{"boot", "--uml", "woody", "--command", "true"}, 125, "", "woody"},
		"program without name":  {[]string{"program"}, 2, "", "no program named"},
		"program without sense": {[]string{"program", "emacs"}, 125, "", `"emacs"`},
		"list":                  {[]string{"list"}, 0, "--qemu trixie-backports --kernel trixie\n", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), tt.args, nil, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for what, c := range map[string]struct{ got, want string }{
				"stdout": {stdout.String(), tt.stdout}, "stderr": {stderr.String(), tt.stderr},
			} {
				if !strings.Contains(c.got, c.want) || c.want == "" && c.got != "" {
					t.Errorf("%s %q, want %q in it", what, c.got, c.want)
				}
			}
			if len(tt.args) > 0 && strings.Count(stderr.String(), "\n") > 1 {
				t.Errorf("more than one line on stderr: %q", &stderr)
			}
		})
	}
}

func TestParseFS(t *testing.T) {
	for in, want := range map[string]testguest.FS{
		"/s=t":               {Socket: "/s", Tag: "t"},
		"/s=t:/mnt":          {Socket: "/s", Tag: "t", MountAt: "/mnt"},
		"/s=t:/mnt:ro,x=a:b": {Socket: "/s", Tag: "t", MountAt: "/mnt", Options: "ro,x=a:b"},
		"/s=t::ro":           {Socket: "/s", Tag: "t", Options: "ro"},
	} {
		if got, err := parseFS(in); err != nil || got != want {
			t.Errorf("parseFS(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "s", "=t", "s=", "s=:/mnt"} {
		if got, err := parseFS(in); err == nil {
			t.Errorf("parseFS(%q) = %+v, want an error", in, got)
		}
	}
}

func TestBoot(t *testing.T) {
	testguest.Need(t, testguest.Config{Kind: testguest.UML})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	script := strings.NewReader("cat /root/file; echo err >&2; exit 7")
	code := run(t.Context(), []string{"boot", "--uml", "any", "--script", "-", "--file", file + ":/root/file", "--console"}, script, &stdout, &stderr)
	if code != 7 || stdout.String() != "from the host\nerr\n" {
		t.Errorf("exit code %d, stdout %q", code, &stdout)
	}
	if !strings.Contains(stderr.String(), "reboot:") || !strings.Contains(stderr.String(), "first process after") {
		t.Errorf("stderr %q", &stderr)
	}
}
