package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/internal/confine"
	"github.com/rafsd/rafsd/internal/hostfs"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
)

// defaultTTRPC is the name of the mount API's socket in the folder of the HTTP API's.
const defaultTTRPC = "rafsd.ttrpc"

// maxTag is the longest tag of a virtio-fs device, in bytes.
const maxTag = 36

// virtiofsArgs are the options of `rafsd virtiofs`, checked, over the settings.
type virtiofsArgs struct {
	sock        string // "" if fd is given
	fd          int    // -1 if sock is given
	socketGroup string // who may connect besides the owner; "" = nobody
	tag         string // "" = none

	bootstrap  string // "" = no image is mounted from the start
	prefetch   string // file with a list of paths; "" = none
	sharedDir  string // "" = no directory of the host is
	configFile string
	localfsDir string
	mountpoint string

	apisock    string // "" = no API
	ttrpc      string // "" = no mount API
	id         string
	supervisor string

	logTo       io.Writer // instead of file and standard error, if not nil
	logFile     string    // "" = standard error
	logRotation int64     // bytes, 0 = never

	dirs    passthrough.Options // how directories of the host are shown
	refuse  uint64              // flags of a FUSE session that are never granted
	keep    confine.Set         // capabilities
	sandbox confine.Mode        // what it is shut in; "" = none
	as      personality         // asSubcommand or asVirtiofsd
	keeper  bool                // a worker serves, which is replaced when it dies
	ready   func()              // called once when the sockets are served; may be nil

	level  slog.LevelVar  // of the log, while it runs
	events logsink.Events // the errors in it

	settings config.Settings // of the file, overridden by options
	ignored  []string        // options that have no effect, for one warning
}

// readVirtiofs turns options into what they mean. Settings come from the file
// that is named, or from the usual one if it is there.
func readVirtiofs(a *arguments) (*virtiofsArgs, error) {
	v := &virtiofsArgs{
		sock: a.values["sock"], fd: -1, tag: a.values["tag"],
		bootstrap: a.values["bootstrap"], configFile: a.values["config"], localfsDir: a.values["localfs-dir"],
		keeper: a.values["keeper"] != "off", mountpoint: "/", sharedDir: a.values["shared-dir"], prefetch: a.values["prefetch-files"], as: asSubcommand,
		apisock: a.values["apisock"], ttrpc: a.values["ttrpc"], id: a.values["id"], supervisor: a.values["supervisor"],
		logFile: a.values["log-file"], ignored: a.ignored,
	}
	if len(a.words) > 0 {
		return nil, usagef("unexpected argument %.80q", a.words[0])
	}
	for name, value := range a.values {
		if value == "" && findLong(virtiofsOptions, name).value != "" {
			return nil, usagef("--%s: the value is empty", name)
		}
	}
	if v.ttrpc == "" && v.apisock != "" {
		v.ttrpc = filepath.Join(filepath.Dir(v.apisock), defaultTTRPC)
	}
	for _, check := range []func(*arguments) error{v.socket, v.mount, v.identity} {
		if err := check(a); err != nil {
			return nil, err
		}
	}
	if err := v.overrideSettings(a); err != nil {
		return nil, err
	}
	v.dirs = directorySettings(v.settings.Passthrough)
	v.keep = confine.OverlayUpper
	if v.alone() && v.sharedDir == "" {
		v.keep = confine.Images
	}
	return v, nil
}

// alone tells whether nothing can ever be mounted but what is from the start.
func (v *virtiofsArgs) alone() bool {
	return v.apisock == "" && v.ttrpc == "" && v.mountpoint == "/" && (v.bootstrap != "" || v.sharedDir != "")
}

// directorySettings turns settings, which were checked, into options.
func directorySettings(s config.PassthroughSettings) passthrough.Options {
	cache, err := passthrough.ParseCacheMode(s.Cache)
	if err != nil {
		panic(err) // Settings.Check lets nothing else through
	}
	handles := map[string]passthrough.HandleMode{
		"prefer": passthrough.HandlesPrefer, "never": passthrough.HandlesNever, "mandatory": passthrough.HandlesMandatory,
	}
	return passthrough.Options{
		Cache: cache, FileHandles: handles[s.FileHandles], PosixACL: s.PosixACL, NoKillprivV2: !s.KillprivV2,
		Writeback: s.Writeback, AllowMmap: s.AllowMmap, MaxOpen: s.MaxOpen,
		PosixLocks: s.Locks == "host", Flock: s.Locks == "host",
	}
}

func (v *virtiofsArgs) socket(a *arguments) error {
	switch {
	case a.has("sock") && a.has("fd"):
		return usagef("--sock and --fd exclude each other")
	case !a.has("sock") && !a.has("fd"):
		return usagef("one of --sock and --fd is required")
	case a.has("fd"):
		n, err := strconv.Atoi(a.values["fd"])
		if err != nil || n < 3 {
			return usagef("--fd: %q is not the number of an inherited descriptor", a.values["fd"])
		}
		v.fd = n
	}
	if a.has("tag") && (len(v.tag) > maxTag || strings.ContainsRune(v.tag, 0)) {
		return usagef("--tag: want 1 to %d bytes", maxTag)
	}
	return nil
}

func (v *virtiofsArgs) mount(a *arguments) error {
	switch {
	case a.has("bootstrap") && a.has("shared-dir"):
		return usagef("--bootstrap and --shared-dir exclude each other")
	case a.has("localfs-dir") && a.has("config"):
		return usagef("--localfs-dir and --config exclude each other")
	case a.has("bootstrap") && !a.has("localfs-dir") && !a.has("config"):
		return usagef("--bootstrap needs --config or --localfs-dir")
	case a.has("prefetch-files") && !a.has("bootstrap"):
		return usagef("--prefetch-files needs --bootstrap")
	}
	if m, ok := a.values["virtual-mountpoint"]; ok {
		if !path.IsAbs(m) {
			return usagef("--virtual-mountpoint: %q is not an absolute path", m)
		}
		v.mountpoint = path.Clean(m)
	}
	return nil
}

func (v *virtiofsArgs) identity(a *arguments) error {
	if a.has("id") != a.has("supervisor") {
		return usagef("--id and --supervisor need each other")
	}
	if s, ok := a.values["log-rotation-size"]; ok {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return usagef("--log-rotation-size: %q is not a number of MB", s)
		}
		v.logRotation = int64(n) << 20
	}
	return nil
}

// overrideSettings reads the settings' file and puts the options over it.
func (v *virtiofsArgs) overrideSettings(a *arguments) (err error) {
	if v.settings, err = config.LoadSettings(a.values["settings"]); err != nil {
		return err
	}
	for name, to := range map[string]*config.Duration{
		"linger":        &v.settings.Daemon.Linger,
		"first-connect": &v.settings.Daemon.FirstConnect,
	} {
		if s, ok := a.values[name]; ok {
			if *to, err = config.ParseDuration(s); err != nil {
				return usagef("--%s: %v", name, err)
			}
		}
	}
	if s, ok := a.values["queues"]; ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > config.MaxQueues {
			return usagef("--queues: %q is not from 1 to %d", s, config.MaxQueues)
		}
		v.settings.Daemon.Queues = n
	}
	if s, ok := a.values["poll"]; ok {
		if v.settings.Daemon.Poll, err = config.ParsePoll(s); err != nil {
			return usagef("--poll: %v", err)
		}
	}
	if s, ok := a.values["rlimit-nofile"]; ok {
		if v.settings.Daemon.RlimitNofile, err = strconv.ParseUint(s, 10, 64); err != nil {
			return usagef("--rlimit-nofile: %q is not a number", s)
		}
	}
	if s, ok := a.values["log-level"]; ok {
		v.settings.Log.Level = s
	}
	if s, ok := a.values["log-format"]; ok {
		v.settings.Log.Format = s
	}
	return nil
}

// mountConfig returns the configuration of the mount from the start.
func (v *virtiofsArgs) mountConfig() (*config.Config, error) {
	if v.localfsDir != "" {
		return config.LocalDir(v.localfsDir), nil
	}
	c, err := config.ReadFile(v.configFile)
	if err != nil {
		return nil, err
	}
	if auth := os.Getenv("IMAGE_PULL_AUTH"); auth != "" && c.Backend.Registry != nil {
		c.Backend.Registry.Auth = config.NewSecret(auth)
	}
	return c, nil
}

// maxPrefetchList bounds the file of --prefetch-files.
const maxPrefetchList = 16 << 20

// prefetchList reads the file of --prefetch-files: a path inside the image on each
// line, empty lines apart.
func (v *virtiofsArgs) prefetchList() ([]string, error) {
	if v.prefetch == "" {
		return nil, nil
	}
	f, err := hostfs.OpenRegular(v.prefetch)
	if err != nil {
		return nil, fmt.Errorf("--prefetch-files: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPrefetchList+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--prefetch-files: %w", err)
	case len(text) > maxPrefetchList:
		return nil, fmt.Errorf("--prefetch-files: %s is longer than %d bytes", v.prefetch, maxPrefetchList)
	}
	var paths []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			paths = append(paths, line)
		}
	}
	return paths, nil
}
