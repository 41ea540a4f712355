package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/shim-integration/config"
)

func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		argv string
		want personality
	}{
		{"rafsd --version", asVersion},
		{"rafsd -V", asVersion},
		{"rafsd --help", asHelp},
		{"rafsd help", asHelp},
		{"virtiofsd --version", asVersion},
		{"virtiofsd --shared-dir /x --help", asHelp},
		{"rafsd virtiofs --sock s", asSubcommand},
		{"rafsd virtiofs --fd 3", asSubcommand},
		{"virtiofsd virtiofs --sock s", asSubcommand},
		{"nydusd fuse --mountpoint /m", asSubcommand},
		{"nydusd singleton", asSubcommand},
		{"/usr/libexec/virtiofsd --syslog", asVirtiofsd},
		{"rafsd --syslog --cache=auto --shared-dir=/s --fd=3", asVirtiofsd},
		{"rafsd --socket-path /s", asVirtiofsd},
		{"rafsd --print-capabilities", asVirtiofsd},
		{"nydusd --config c --mountpoint /m", asFuse},
		{"nydusd -M /m", asFuse},
		{"nydusd", asNothing},
		{"rafsd --log-level info virtiofs --sock s", asNothing},
		{"rafsd -- --fd=3", asNothing},
		{"", asNothing},
	} {
		if got := choose(strings.Fields(tt.argv)); got != tt.want {
			t.Errorf("choose(%q) = %d, want %d", tt.argv, got, tt.want)
		}
	}
}

func TestForms(t *testing.T) {
	for _, tt := range []struct {
		argv string
		want map[string]string
	}{
		{"--sock s --apisock=a", map[string]string{"sock": "s", "apisock": "a"}},
		{"--sock=s -A a", map[string]string{"sock": "s", "apisock": "a"}},
		{"-Aa -C=c", map[string]string{"apisock": "a", "config": "c"}},
		{"--sock= -l warn", map[string]string{"sock": "", "log-level": "warn"}},
		{"--sock a=b=c", map[string]string{"sock": "a=b=c"}},
		{"--sock a --sock b", map[string]string{"sock": "b"}},
		{"--hybrid-mode --sock -", map[string]string{"hybrid-mode": "", "sock": "-"}},
	} {
		a, err := parseOptions(virtiofsOptions, strings.Fields(tt.argv))
		if err != nil {
			t.Errorf("%q: %v", tt.argv, err)
			continue
		}
		if d := cmp.Diff(tt.want, a.values); d != "" {
			t.Errorf("%q (-want +got):\n%s", tt.argv, d)
		}
	}
}

// read is what main does with the options of `rafsd virtiofs`, without any
// settings file of this machine.
func read(t *testing.T, argv string) (*virtiofsArgs, error) {
	t.Helper()
	empty := filepath.Join(t.TempDir(), "rafsd.toml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := parseOptions(virtiofsOptions, append(strings.Fields(argv), "--settings", empty))
	if err != nil {
		return nil, err
	}
	return readVirtiofs(a)
}

func TestUsageErrors(t *testing.T) {
	for argv, want := range map[string]string{
		"":                         "one of --sock and --fd is required",
		"--sock":                   "--sock needs a value: PATH",
		"--sock --apisock a":       "--sock needs a value",
		"--sock=":                  "--sock: the value is empty",
		"--sock s --fd 3":          "exclude each other",
		"--fd x":                   `--fd: "x" is not the number`,
		"--fd 2":                   `--fd: "2" is not the number`,
		"--sock s --log-level off": `--log-level: "off" is none of trace, debug, info, warn, error`,
		"--sock s -lfoo":           `-l: "foo" is none of`,
		"--sock s --id x":          "--id and --supervisor need each other",
		"--sock s --supervisor x":  "--id and --supervisor need each other",
		"--socket s":               `unexpected argument "--socket", did you mean --sock?`,
		"--sock s --api-sock a":    `unexpected argument "--api-sock", did you mean --apisock?`,
		"--sock s --xattr":         `unexpected argument "--xattr"`,
		"--sock s -z":              `unexpected argument "-z"`,
		"--sock s word":            `unexpected argument "word"`,
		"--sock s -- word":         `unexpected argument "word"`,
		"--sock s --=x":            `unexpected argument "--"`,
		"--sock s --hybrid-mode=1": "--hybrid-mode takes no value",
		"--sock s -o":              "-o needs a value",
		"--sock s -o allow_other":  `-o: unknown item "allow_other"`,
		"--sock s -o announce_submounts,cache=none": `-o: unknown item "cache=none"`,
		"--sock s --bootstrap b":                    "--bootstrap needs --config or --localfs-dir",
		"--sock s -B b -C c -D d":                   "--localfs-dir and --config exclude each other",
		"--sock s -B b -s d -C c":                   "--bootstrap and --shared-dir exclude each other",
		"--sock s --prefetch-files f":               "--prefetch-files needs --bootstrap",
		"--sock s -m rel":                           "not an absolute path",
		"--sock s --queues 0":                       "is not from 1 to 64",
		"--sock s --queues x":                       "is not from 1 to 64",
		"--sock s --linger 10":                      "not a duration",
		"--sock s --linger=-1s":                     "not a duration",
		"--sock s --rlimit-nofile many":             "not a number",
		"--sock s --log-rotation-size -":            "not a number",
		"--sock s --tag " + strings.Repeat("t", 37): "want 1 to 36 bytes",
	} {
		_, err := read(t, argv)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want a usage error with %q", argv, err, want)
		}
	}
}

// TestKataArgv: what both runtimes give us, and what users have in their
// configuration from virtiofsd.
func TestKataArgv(t *testing.T) {
	for _, tt := range []struct {
		argv    string
		ignored int
	}{
		{"--log-level info --apisock /a --sock /s", 0},
		{"--hybrid-mode --log-level info --apisock /a --sock /s", 0},
		{"--log-level debug --apisock /a --sock /s --thread-pool-size=1 --announce-submounts", 2},
		{"--hybrid-mode --log-level info --apisock /a --sock /s --thread-pool-size=1 -o announce_submounts", 2},
		{"--log-level info --apisock /a --sock /s --log-level=warn --thread-pool-size 1", 1},
	} {
		v, err := read(t, tt.argv)
		if err != nil {
			t.Errorf("%q: %v", tt.argv, err)
			continue
		}
		if v.sock != "/s" || v.apisock != "/a" || len(v.ignored) != tt.ignored {
			t.Errorf("%q: sock %q, apisock %q, ignored %q, want %d of them", tt.argv, v.sock, v.apisock, v.ignored, tt.ignored)
		}
	}
}

func TestOptionsOverSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s.toml")
	if err := os.WriteFile(file, []byte("[daemon]\nqueues = 2\nlinger = \"1m\"\n[log]\nlevel = \"warn\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := parseOptions(virtiofsOptions, strings.Fields("--fd=3 --queues 3 --poll 20 --first-connect 0 --log-format json --rlimit-nofile 7 --settings "+file))
	if err != nil {
		t.Fatal(err)
	}
	v, err := readVirtiofs(a)
	if err != nil {
		t.Fatal(err)
	}
	want := config.DefaultSettings()
	want.Daemon = config.DaemonSettings{Queues: 3, Poll: config.Poll(20 * time.Microsecond), Linger: config.Duration(time.Minute), RlimitNofile: 7}
	want.Log = config.LogSettings{Level: "warn", Format: "json", Slow: config.Duration(time.Second)}
	if d := cmp.Diff(want, v.settings); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
	if v.fd != 3 || v.sock != "" || v.mountpoint != "/" {
		t.Errorf("fd %d, sock %q, mountpoint %q", v.fd, v.sock, v.mountpoint)
	}
}

func TestImagePullAuth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	text := `{"device":{"backend":{"type":"registry","config":{"host":"h","repo":"r","auth":"old"}}},"mode":"direct"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	v := &virtiofsArgs{configFile: file}
	for _, auth := range []string{"", "new"} {
		t.Setenv("IMAGE_PULL_AUTH", auth)
		c, err := v.mountConfig()
		if err != nil {
			t.Fatal(err)
		}
		want := auth
		if want == "" {
			want = "old"
		}
		if got := c.Backend.Registry.Auth.Reveal(); got != want {
			t.Errorf("with IMAGE_PULL_AUTH=%q the credentials are %q, want %q", auth, got, want)
		}
	}
}

func TestHelpNamesEveryOption(t *testing.T) {
	for i := range subcommands {
		s := &subcommands[i]
		var out strings.Builder
		printSubcommandHelp(&out, s)
		for _, o := range s.options {
			if shown := strings.Contains(out.String(), "--"+o.long+" ") || strings.Contains(out.String(), "--"+o.long+"\n"); shown == o.hidden && o.long != "" {
				t.Errorf("help of %s: --%s shown %v, want %v", s.name, o.long, shown, !o.hidden)
			}
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if len(line) > 120 {
				t.Errorf("help of %s: line of %d bytes: %s", s.name, len(line), line)
			}
		}
	}
}

func FuzzArgv(f *testing.F) {
	for _, seed := range []string{"virtiofs\n--sock\ns", "virtiofs\n-Aa\n--fd=3", "--\n--fd", "virtiofs\n-o\nannounce_submounts", "fuse\n-M", "\n-"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, joined string) {
		argv := append([]string{"rafsd"}, strings.Split(joined, "\n")...)
		if choose(argv) != asSubcommand {
			return
		}
		s := findSubcommand(argv[1])
		a, err := parseOptions(s.options, argv[2:])
		var usage *usageError
		if err != nil {
			if !errors.As(err, &usage) {
				t.Fatalf("%q: %v is no usage error", argv, err)
			}
			return
		}
		if s.name == "virtiofs" && !a.has("settings") {
			if v, err := readVirtiofs(a); err == nil && (v.sock == "") == (v.fd < 0) {
				t.Fatalf("%q: sock %q and fd %d", argv, v.sock, v.fd)
			}
		}
	})
}
