package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// SettingsPath is where the daemon's own settings are read from when no other
// file is named. It need not exist.
const SettingsPath = "/etc/rafsd/rafsd.toml"

// Settings are the daemon's own, for all mounts; the sample in
// configs/rafsd.toml explains every key. Command line options override them.
type Settings struct {
	Daemon      DaemonSettings      `toml:"daemon"`
	Log         LogSettings         `toml:"log"`
	Read        ReadSettings        `toml:"read"`
	Cache       CacheSettings       `toml:"cache"`
	Passthrough PassthroughSettings `toml:"passthrough"`
	Memory      MemorySettings      `toml:"memory"`
}

// DaemonSettings are about the process and its sockets.
type DaemonSettings struct {
	Queues       int      `toml:"queues"`        // request queues offered at most; 0 = by CPUs
	Poll         Poll     `toml:"poll"`          // how long a queue polls before it sleeps
	Linger       Duration `toml:"linger"`        // end so long after the VMM is gone; 0 = never
	FirstConnect Duration `toml:"first_connect"` // end if none came so long; 0 = never
	RlimitNofile uint64   `toml:"rlimit_nofile"` // open files to ask for; 0 = leave
}

// LogSettings are about what is logged and how.
type LogSettings struct {
	Level  string `toml:"level"`  // trace, debug, info, warn, error
	Format string `toml:"format"` // text, json
	// Slow is from what age on a guest's request is told of; 0 = never.
	Slow Duration `toml:"slow"`
}

// ReadSettings are about reads that must fetch data.
type ReadSettings struct {
	Deadline      Duration `toml:"deadline"`      // Forever = as long as it takes
	Amplification int64    `toml:"amplification"` // bytes; -1 = as the mount's configuration says
	Verify        string   `toml:"verify"`        // on, off
}

// CacheSettings are about chunks of mounts whose configuration names no folder.
type CacheSettings struct {
	Dir string `toml:"dir"`
}

// PassthroughSettings are about directories of the host, in all personalities but
// virtiofsd's, which has options of its own.
type PassthroughSettings struct {
	Cache       string `toml:"cache"`        // auto, never, metadata, always
	FileHandles string `toml:"file_handles"` // prefer, never, mandatory
	Locks       string `toml:"locks"`        // guest, host
	KillprivV2  bool   `toml:"killpriv_v2"`
	PosixACL    bool   `toml:"posix_acl"`
	Writeback   bool   `toml:"writeback"`
	AllowMmap   bool   `toml:"allow_mmap"`
	MaxOpen     int    `toml:"max_open"` // descriptors kept for files in no use; 0 = by rlimit
}

// MemorySettings are about the daemon's own heap, not the guest's memory.
type MemorySettings struct {
	GCPercent int `toml:"gc_percent"`
	LimitMiB  int `toml:"limit_mib"` // soft; 0 = none
}

// DefaultSettings returns what holds where no file and no option says otherwise.
func DefaultSettings() Settings {
	return Settings{
		Daemon: DaemonSettings{
			Linger:       Duration(10 * time.Second),
			FirstConnect: Duration(10 * time.Minute),
			RlimitNofile: 1_000_000,
		},
		Log:         LogSettings{Level: "info", Format: "text", Slow: Duration(time.Second)},
		Read:        ReadSettings{Deadline: Duration(time.Minute), Amplification: -1, Verify: "on"},
		Passthrough: PassthroughSettings{Cache: "auto", FileHandles: "prefer", Locks: "guest", KillprivV2: true},
		Memory:      MemorySettings{GCPercent: 50, LimitMiB: 256},
	}
}

// Duration is a time.Duration that is written like "10s" or "1h30m", as a bare
// "0", or as "forever".
type Duration time.Duration

// Forever is the Duration without an end.
const Forever = Duration(1<<63 - 1)

// ParseDuration reads a Duration; negative ones are refused.
func ParseDuration(s string) (Duration, error) {
	if s == "forever" {
		return Forever, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration like 500ms, 10s or 1h30m", s)
	}
	return Duration(d), nil
}

// UnmarshalText reads a Duration from a settings file.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}

// MarshalText is the reverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	if d == Forever {
		return "forever"
	}
	return time.Duration(d).String()
}

// Poll is how long a queue looks for more work before it sleeps: PollAuto, PollOff,
// or a time. It is written "auto", "off", or as a number of microseconds.
type Poll time.Duration

// Values of Poll beside a time.
const (
	PollAuto Poll = 0  // where it pays
	PollOff  Poll = -1 // never
)

// MaxPoll is the longest time to poll.
const MaxPoll = Poll(10 * time.Millisecond)

// ParsePoll reads a Poll.
func ParsePoll(s string) (Poll, error) {
	switch s {
	case "auto":
		return PollAuto, nil
	case "off", "0":
		return PollOff, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	p := Poll(n) * Poll(time.Microsecond)
	if err != nil || p > MaxPoll {
		return 0, fmt.Errorf("%q is neither auto, off nor a number of microseconds up to %d", s, time.Duration(MaxPoll).Microseconds())
	}
	return p, nil
}

// UnmarshalText reads a Poll from a settings file.
func (p *Poll) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePoll(string(text))
	return err
}

// MarshalText is the reverse of UnmarshalText.
func (p Poll) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p Poll) String() string {
	switch p {
	case PollAuto:
		return "auto"
	case PollOff:
		return "off"
	}
	return strconv.FormatInt(time.Duration(p).Microseconds(), 10)
}

// LoadSettings reads the settings in the file at path over the defaults. An
// empty path stands for SettingsPath, which may be absent.
func LoadSettings(path string) (Settings, error) {
	named := path != ""
	if !named {
		path = SettingsPath
	}
	f, err := os.Open(path)
	if err != nil {
		if !named && errors.Is(err, os.ErrNotExist) {
			return DefaultSettings(), nil
		}
		return Settings{}, fmt.Errorf("settings: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return Settings{}, fmt.Errorf("settings: %w", err)
	}
	s, err := ParseSettings(string(text))
	if err != nil {
		return Settings{}, fmt.Errorf("settings %s: %w", path, err)
	}
	return s, nil
}

// ParseSettings reads a settings text over the defaults and checks it.
func ParseSettings(text string) (Settings, error) {
	s := DefaultSettings()
	if len(text) > maxText {
		return Settings{}, fmt.Errorf("text of more than %d bytes", maxText)
	}
	meta, err := toml.Decode(text, &s)
	if err != nil {
		return Settings{}, errors.New(strings.TrimPrefix(err.Error(), "toml: "))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		for _, u := range unknown {
			if len(u) > 1 { // rather the key in an unknown section than the section
				key = u.String()
				break
			}
		}
		return Settings{}, fmt.Errorf("unknown key %s%s", key, suggestion(key, SettingsKeys()))
	}
	if err := s.Check(); err != nil {
		return Settings{}, err
	}
	return s, nil
}

// Check tells what is wrong with settings that could be read.
func (s *Settings) Check() error {
	inList := func(key, v string, allowed ...string) error {
		for _, a := range allowed {
			if v == a {
				return nil
			}
		}
		return fmt.Errorf("key %s: %q is none of %s", key, v, strings.Join(allowed, ", "))
	}
	inRange := func(key string, v, low, high int64) error {
		if v < low || v > high {
			return fmt.Errorf("key %s: %d is not from %d to %d", key, v, low, high)
		}
		return nil
	}
	var deadline, dir error
	if s.Read.Deadline == 0 {
		deadline = errors.New(`key read.deadline: want more than 0 ("forever" for none)`)
	}
	if s.Cache.Dir != "" && !filepath.IsAbs(s.Cache.Dir) {
		dir = fmt.Errorf("key cache.dir: %q is not an absolute path", s.Cache.Dir)
	}
	return first(
		inRange("daemon.queues", int64(s.Daemon.Queues), 0, MaxQueues),
		inList("log.level", s.Log.Level, LogLevels...),
		inList("log.format", s.Log.Format, "text", "json"),
		deadline,
		inRange("read.amplification", s.Read.Amplification, -1, maxBatchSize),
		inList("read.verify", s.Read.Verify, "on", "off"),
		dir,
		inList("passthrough.cache", s.Passthrough.Cache, "auto", "never", "metadata", "always"),
		inList("passthrough.file_handles", s.Passthrough.FileHandles, "prefer", "never", "mandatory"),
		inList("passthrough.locks", s.Passthrough.Locks, "guest", "host"),
		inRange("passthrough.max_open", int64(s.Passthrough.MaxOpen), 0, 1<<20),
		inRange("memory.gc_percent", int64(s.Memory.GCPercent), 5, 1000),
		inRange("memory.limit_mib", int64(s.Memory.LimitMiB), 0, 1<<20),
	)
}

// MaxQueues bounds the request queues of one device.
const MaxQueues = 64

// LogLevels are the levels of the command line, from most to least.
var LogLevels = []string{"trace", "debug", "info", "warn", "error"}
