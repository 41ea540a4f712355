package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// TestSampleSaysAll holds configs/rafsd.toml to the structure: every key is
// there, explained, and set to its default.
func TestSampleSaysAll(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "configs", "rafsd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.ParseSettings(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if want := config.DefaultSettings(); got != want {
		t.Errorf("the sample says %+v, the defaults are %+v", got, want)
	}
	var tree map[string]map[string]any
	if _, err := toml.Decode(string(text), &tree); err != nil {
		t.Fatal(err)
	}
	for _, key := range config.SettingsKeys() {
		section, name, _ := strings.Cut(key, ".")
		if _, ok := tree[section][name]; !ok {
			t.Errorf("the sample lacks %s", key)
		}
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.Contains(line, " = ") && !strings.HasPrefix(line, "#") && !strings.HasPrefix(lines[i-1], "#") {
			t.Errorf("line %d of the sample is not explained: %s", i+1, line)
		}
	}
}

func TestSettingsFaults(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unknown key":      {"[daemon]\nlingr = \"1s\"", "unknown key daemon.lingr, did you mean daemon.linger?"},
		"unknown section":  {"[deamon]\nlinger = \"1s\"", "did you mean daemon.linger?"},
		"nothing like it":  {"zzzzzzzzzz = 1", "unknown key zzzzzzzzzz"},
		"wrong type":       {"[daemon]\nqueues = \"4\"", "queues"},
		"no duration":      {"[daemon]\nlinger = \"10 seconds\"", "is not a duration"},
		"negative":         {"[daemon]\nlinger = \"-1s\"", "is not a duration"},
		"deadline 0":       {"[read]\ndeadline = \"0\"", "read.deadline"},
		"verify":           {"[read]\nverify = \"maybe\"", `"maybe" is none of on, off`},
		"level":            {"[log]\nlevel = \"off\"", `"off" is none of trace, debug, info, warn, error`},
		"too many queues":  {"[daemon]\nqueues = 65", "65 is not from 0 to 64"},
		"a relative cache": {"[cache]\ndir = \"x\"", "not an absolute path"},
		"no TOML":          {"=", "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.ParseSettings(tt.text)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestSettingsOverDefaults(t *testing.T) {
	s, err := config.ParseSettings("[daemon]\nlinger = \"0\"\n[read]\ndeadline = \"forever\"\n")
	if err != nil {
		t.Fatal(err)
	}
	want := config.DefaultSettings()
	want.Daemon.Linger, want.Read.Deadline = 0, config.Forever
	if s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestPoll(t *testing.T) {
	for text, want := range map[string]config.Poll{
		`"auto"`: config.PollAuto, `"off"`: config.PollOff, `0`: config.PollOff,
		`50`: config.Poll(50 * time.Microsecond), `"7"`: config.Poll(7 * time.Microsecond), `10000`: config.MaxPoll,
	} {
		s, err := config.ParseSettings("[daemon]\npoll = " + text + "\n")
		if err != nil || s.Daemon.Poll != want {
			t.Errorf("%s: %v, %v, want %v", text, s.Daemon.Poll, err, want)
		}
		if again, err := config.ParsePoll(want.String()); err != nil || again != want {
			t.Errorf("%v is written %q, read %v, %v", time.Duration(want), want.String(), again, err)
		}
	}
	for _, text := range []string{`"on"`, `-1`, `10001`, `1.5`, `""`, `"50µs"`} {
		if s, err := config.ParseSettings("[daemon]\npoll = " + text + "\n"); err == nil {
			t.Errorf("%s: read as %v", text, s.Daemon.Poll)
		}
	}
}

func TestLoadSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rafsd.toml")
	if _, err := config.LoadSettings(path); err == nil {
		t.Error("a file that was named and is absent is no error")
	}
	if err := os.WriteFile(path, []byte("[log]\nformat = \"json\"\nlvl = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.LoadSettings(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "log.lvl") {
		t.Errorf("error %v, want one that names file and key", err)
	}
}
