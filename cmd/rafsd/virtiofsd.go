package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
	"github.com/rafsd/rafsd/internal/confine"
	"github.com/rafsd/rafsd/internal/nearest"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// When rafsd is started like virtiofsd it takes that program's options, shows one
// directory, and ends with its VMM.

// virtiofsdOptions are those of virtiofsd 1.14, and the deprecated ones that older
// callers give.
var virtiofsdOptions = []option{
	{long: "shared-dir", value: "DIR", path: true, help: "Show this directory of the host"},
	{long: "socket-path", value: "PATH", path: true, help: "Listen for the VMM on this unix socket", aliases: []string{"socket"}},
	{long: "fd", value: "N", help: "Take this inherited socket instead, which listens already"},
	{long: "socket-group", value: "GROUP", help: "Let this group connect to the socket"},
	{long: "tag", value: "TAG", help: "Tell the VMM this mount tag; only for one that asks"},
	{long: "cache", value: "MODE", help: "What the guest may keep [default: auto]", choices: []string{"auto", "always", "never", "metadata", "none"}},
	{long: "xattr", help: "Show extended attributes"},
	{long: "xattrmap", value: "RULES", help: "Rename extended attributes"},
	{long: "posix-acl", value: "WHEN", noValue: "always", help: "Honour access control lists", choices: []string{"never", "auto", "always"}},
	{long: "security-label", value: "WHEN", noValue: "always", help: "Store security labels with new files", choices: []string{"never", "auto", "always"}},
	{long: "readonly", help: "Refuse all that writes"},
	{long: "writeback", help: "Let the guest keep writes to itself for a while"},
	{long: "allow-direct-io", help: "Hand O_DIRECT to the host"},
	{long: "allow-mmap", help: "Allow shared memory maps where the guest keeps no contents"},
	{long: "no-readdirplus", help: "List names without attributes"},
	{long: "killpriv-v2", help: "Leave clearing set-id bits to the host [default]"},
	{long: "no-killpriv-v2", help: "Leave it to the guest"},
	{long: "announce-submounts", help: "Show mounts below the directory with device numbers of their own [default]"},
	{long: "no-announce-submounts", help: "Show one device number"},
	{long: "inode-file-handles", value: "WHEN", help: "Remember files by handle [default: prefer]", choices: []string{"never", "prefer", "mandatory", "fallback"}},
	{long: "preserve-noatime", help: "Hand O_NOATIME to the host"},
	{long: "translate-uid", value: "RULE", help: "Change user ids on the way; may be repeated", repeats: true},
	{long: "translate-gid", value: "RULE", help: "Change group ids on the way; may be repeated", repeats: true},
	{long: "sandbox", value: "MODE", help: "Shut the daemon in the directory [default: namespace]", choices: []string{"namespace", "chroot", "none"}},
	{long: "modcaps", value: "LIST", help: "Capabilities to keep or drop besides, as in +sys_admin:-mknod"},
	{long: "rlimit-nofile", value: "N", help: "Open files to ask the kernel for, 0 = leave the limit [default: 1000000]"},
	{long: "log-level", value: "LEVEL", help: "What is logged [default: info]", choices: []string{"error", "warn", "info", "debug", "trace", "off"}},
	{long: "syslog", help: "Log to the system's log instead of standard error"},
	{long: "", short: 'o', value: "LIST", help: "Options in the old form", repeats: true},
	{long: "print-capabilities", help: "Print what this program can, for management software, and exit"},
	{long: "settings", value: "FILE", path: true, help: "Read our own settings from here [default: /etc/rafsd/rafsd.toml, if there]"},
	{long: "", short: 'd', help: "Log everything"},
	{long: "", short: 'f', hidden: true},
	{long: "thread-pool-size", value: "N", hidden: true, ignored: "requests that wait have goroutines of their own"},
	{long: "seccomp", value: "ACTION", hidden: true, ignored: "not yet", choices: []string{"none", "kill", "log", "trap"}},
	{long: "uid-map", value: "MAP", hidden: true},
	{long: "gid-map", value: "MAP", hidden: true},
	{long: "migration-mode", value: "MODE", hidden: true, ignored: "migration is not possible yet", choices: []string{"find-paths", "file-handles"}},
	{long: "migration-on-error", value: "ACTION", hidden: true, ignored: "migration is not possible yet", choices: []string{"abort", "guest-error"}},
	{long: "migration-verify-handles", hidden: true, ignored: "migration is not possible yet"},
	{long: "migration-confirm-paths", hidden: true, ignored: "migration is not possible yet"},
	helpOption,
	versionOption,
}

// virtiofsdHelp describes the personality like a subcommand.
var virtiofsdHelp = subcommand{
	name:    "virtiofsd",
	summary: "Show a directory of the host to a virtual machine, as virtiofsd does",
	usage:   "rafsd --shared-dir DIR --socket-path PATH|--fd N [OPTIONS]",
	options: virtiofsdOptions,
	example: `  Share a folder, and end with the VMM:
    rafsd --shared-dir /srv/share --socket-path /run/vm.sock --xattr`,
}

// virtiofsdArgs are the options of virtiofsd, checked.
type virtiofsdArgs struct {
	sharedDir   string
	socket      string // "" if fd is given
	fd          int    // -1 if socket is given
	socketGroup string
	tag         string
	dirs        passthrough.Options
	refuse      uint64 // flags of a FUSE session
	sandbox     confine.Mode
	capsAdd     confine.Set
	capsDrop    confine.Set
	syslog      bool
	settings    config.Settings
	ignored     []string
}

// capabilities is what the personality keeps.
func (v *virtiofsdArgs) capabilities() confine.Set {
	return (confine.HostDirectory | v.capsAdd) &^ v.capsDrop
}

// oldOptions are what may stand in the list of -o: alone, and the long option that
// each stands for; an empty one has no effect.
var oldOptions = map[string]string{
	"xattr": "xattr", "no_xattr": "", "readdirplus": "", "no_readdirplus": "no-readdirplus",
	"writeback": "writeback", "no_writeback": "", "allow_direct_io": "allow-direct-io", "no_allow_direct_io": "",
	"announce_submounts": "announce-submounts", "no_announce_submounts": "no-announce-submounts",
	"killpriv_v2": "killpriv-v2", "no_killpriv_v2": "no-killpriv-v2", "posix_acl": "posix-acl", "no_posix_acl": "",
	"security_label": "security-label", "no_security_label": "", "no_posix_lock": "", "no_flock": "", "allow_root": "",
	// With a value.
	"source=": "shared-dir", "cache=": "cache", "sandbox=": "sandbox", "xattrmap=": "xattrmap", "modcaps=": "modcaps", "timeout=": "",
}

// expandOld puts what stands in -o in the place of the long options.
func expandOld(a *arguments) error {
	for _, list := range a.all["o"] {
		for item := range strings.SplitSeq(list, ",") {
			name, value, hasValue := strings.Cut(item, "=")
			if hasValue {
				name += "="
			}
			long, ok := oldOptions[name]
			if !ok {
				return usagef("-o: unknown item %.80q%s", item, didYouMean(name, oldOptions))
			}
			if long == "" {
				continue
			}
			o := findLong(virtiofsdOptions, long)
			if !hasValue {
				value = o.noValue
			} else if o.choices != nil && !contains(o.choices, value) {
				return usagef("-o %s: %q is none of %s", name, value, strings.Join(o.choices, ", "))
			}
			a.values[long] = value
		}
	}
	return nil
}

func didYouMean[V any](name string, known map[string]V) string {
	var words []string
	for k := range known {
		words = append(words, k)
	}
	if near := nearest.Word(name, words); near != "" {
		return ", did you mean " + near + "?"
	}
	return ""
}

// readVirtiofsd turns options into what they mean.
func readVirtiofsd(a *arguments) (*virtiofsdArgs, error) {
	if err := expandOld(a); err != nil {
		return nil, err
	}
	if len(a.words) > 0 {
		return nil, usagef("unexpected argument %.80q", a.words[0])
	}
	v := &virtiofsdArgs{
		sharedDir: a.values["shared-dir"], socket: a.values["socket-path"], fd: -1, socketGroup: a.values["socket-group"],
		tag: a.values["tag"], syslog: a.has("syslog"), sandbox: confine.Namespace, ignored: a.ignored,
	}
	if m, ok := a.values["sandbox"]; ok {
		v.sandbox = confine.Mode(m)
	}
	for _, check := range []func(*arguments) error{v.places, v.directories, v.modcaps, v.overrideSettings} {
		if err := check(a); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *virtiofsdArgs) places(a *arguments) error {
	switch {
	case v.sharedDir == "":
		return usagef("--shared-dir is required")
	case v.socket == "" && !a.has("fd"):
		return usagef("one of --socket-path and --fd is required")
	case v.socket != "" && a.has("fd"):
		return usagef("--socket-path and --fd exclude each other")
	case a.has("fd") && v.socketGroup != "":
		return usagef("--socket-group needs --socket-path")
	case len(v.tag) > maxTag || a.has("tag") && v.tag == "":
		return usagef("--tag: want 1 to %d bytes", maxTag)
	case a.has("uid-map") || a.has("gid-map"):
		return usagef("--uid-map and --gid-map: user namespaces are not supported; --translate-uid and --translate-gid change ids")
	}
	if a.has("fd") {
		n, err := strconv.Atoi(a.values["fd"])
		if err != nil || n < 3 {
			return usagef("--fd: %q is not the number of an inherited descriptor", a.values["fd"])
		}
		v.fd = n
	}
	return nil
}

func (v *virtiofsdArgs) directories(a *arguments) (err error) {
	wanted := func(name string) bool { s := a.values[name]; return s == "auto" || s == "always" }
	d := &v.dirs
	*d = passthrough.Options{
		ReadOnly: a.has("readonly"), NoXattr: !a.has("xattr") && !a.has("xattrmap") && !wanted("posix-acl"),
		PosixACL: wanted("posix-acl"), SecurityLabel: wanted("security-label"),
		NoKillprivV2: a.has("no-killpriv-v2"), Writeback: a.has("writeback"), Submounts: !a.has("no-announce-submounts"),
		AllowMmap: a.has("allow-mmap"), AllowDirectIO: a.has("allow-direct-io"), PreserveNoatime: a.has("preserve-noatime"),
	}
	if a.has("no-readdirplus") {
		v.refuse = fuseproto.FlagDoReadDirPlus | fuseproto.FlagReadDirPlusAuto
	}
	if s, ok := a.values["cache"]; ok {
		if d.Cache, err = passthrough.ParseCacheMode(s); err != nil {
			return usagef("--cache: %v", err)
		}
	}
	d.FileHandles = map[string]passthrough.HandleMode{
		"never": passthrough.HandlesNever, "mandatory": passthrough.HandlesMandatory,
	}[a.values["inode-file-handles"]]
	if s, ok := a.values["xattrmap"]; ok {
		if d.XattrMap, err = passthrough.ParseXattrMap(s); err != nil {
			return usagef("--xattrmap: %v", err)
		}
	}
	for name, to := range map[string]*passthrough.IDMap{"translate-uid": &d.UIDMap, "translate-gid": &d.GIDMap} {
		if rules := a.all[name]; rules != nil {
			if *to, err = passthrough.ParseIDMap(strings.Join(rules, " ")); err != nil {
				return usagef("--%s: %v", name, err)
			}
		}
	}
	return nil
}

// modcaps reads "+sys_admin:-mknod".
func (v *virtiofsdArgs) modcaps(a *arguments) error {
	list, ok := a.values["modcaps"]
	if !ok {
		return nil
	}
	for item := range strings.SplitSeq(list, ":") {
		if item == "" || item[0] != '+' && item[0] != '-' {
			return usagef("--modcaps: %q does not begin with + or -", item)
		}
		set, ok := confine.ByName(item[1:])
		if !ok {
			return usagef("--modcaps: %q is no capability", item[1:])
		}
		if item[0] == '+' {
			v.capsAdd |= set
			v.capsDrop &^= set
		} else {
			v.capsDrop |= set
			v.capsAdd &^= set
		}
	}
	return nil
}

func (v *virtiofsdArgs) overrideSettings(a *arguments) (err error) {
	if v.settings, err = config.LoadSettings(a.values["settings"]); err != nil {
		return err
	}
	if s, ok := a.values["log-level"]; ok {
		v.settings.Log.Level = s
	}
	if a.has("d") {
		v.settings.Log.Level = "debug"
	}
	if s, ok := a.values["rlimit-nofile"]; ok {
		if v.settings.Daemon.RlimitNofile, err = strconv.ParseUint(s, 10, 64); err != nil {
			return usagef("--rlimit-nofile: %q is not a number", s)
		}
	}
	return nil
}

// printCapabilities prints what management software asks virtiofsd for.
func printCapabilities(w io.Writer) error {
	b, err := json.MarshalIndent(map[string]any{
		"type": "fs",
		"features": []string{
			"posix-acl-negotiation-mode", "security-label-negotiation-mode", "separate-options",
		},
	}, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", b)
	}
	return err
}
