package main

// option is one option of a subcommand: what the parser, the help text and the
// shell completions are made of.
type option struct {
	long  string // without dashes
	short byte   // 0 = none
	value string // what the help text calls its value; "" if it takes none
	help  string
	// noValue is what stands for the value if none is given; then a value only
	// comes behind a "=". "" if a value is needed.
	noValue string
	// repeats says that every occurrence counts, not only the last.
	repeats bool
	// choices are all values there are, nil if they are not a list.
	choices []string
	// path says that the value is a path, for completions.
	path bool
	// hidden options are accepted, and not shown.
	hidden bool
	// ignored says why the option has no effect; "" if it has one. One warning
	// names all such options of a command line.
	ignored string
	// check, if set, says what is wrong with a value.
	check func(value string) error
	// aliases are further long names.
	aliases []string
}

// subcommand is one word that may follow the program's name.
type subcommand struct {
	name    string
	summary string
	usage   string
	options []option
	// later is the one line with which a subcommand ends that does not exist yet.
	later string
	// example shows how it is used.
	example string
}

var (
	helpOption     = option{long: "help", short: 'h', help: "Print this text and exit"}
	versionOption  = option{long: "version", short: 'V', help: "Print the version and exit"}
	logLevelOption = option{long: "log-level", short: 'l', value: "LEVEL", help: "What is logged [default: info]",
		choices: []string{"trace", "debug", "info", "warn", "error"}}
)

// globalOptions are those that nydusd knows after every subcommand, and ours.
var globalOptions = []option{
	{long: "apisock", short: 'A', value: "PATH", path: true, help: "Serve the HTTP API on this unix socket"},
	{long: "ttrpc", value: "PATH", path: true, help: "Serve the mount API on this unix socket [default: rafsd.ttrpc beside --apisock]"},
	{long: "id", value: "ID", help: "Name of this daemon in the API (with --supervisor)"},
	{long: "supervisor", value: "PATH", path: true, help: "Socket of the supervisor, shown in the API (with --id)"},
	logLevelOption,
	{long: "log-file", short: 'L', value: "FILE", path: true, help: "Log to this file instead of standard error"},
	{long: "log-rotation-size", value: "MB", help: "Begin a new log file at that size, 0 = never [default: 0]"},
	{long: "log-format", value: "FORMAT", help: "How log lines look [default: text]", choices: []string{"text", "json"}},
	{long: "rlimit-nofile", value: "N", help: "Open files to ask the kernel for, 0 = leave the limit [default: 1000000]"},
	{long: "settings", value: "FILE", path: true, help: "Read our own settings from here [default: /etc/rafsd/rafsd.toml, if there]"},
	helpOption,
	versionOption,
}

// mountOptions are those that nydusd has for what is mounted from the start.
var mountOptions = []option{
	{long: "bootstrap", short: 'B', value: "FILE", path: true, help: "Mount the image with this bootstrap"},
	{long: "config", short: 'C', value: "FILE", path: true, help: "Configuration of that mount, as nydusd's: JSON or TOML"},
	{long: "localfs-dir", short: 'D', value: "DIR", path: true, help: "Take its blobs from this folder, instead of --config"},
	{long: "shared-dir", short: 's', value: "DIR", path: true, help: "Mount this directory of the host"},
	{long: "virtual-mountpoint", short: 'm', value: "PATH", help: "Where in the guest's tree it is mounted [default: /]"},
	{long: "prefetch-files", value: "FILE", path: true, help: "List of paths in the image, a line each, to fetch in the background"},
	{long: "dedup-db", value: "FILE", path: true, hidden: true, ignored: "chunks are shared without a database"},
}

// virtiofsOptions are those of our main job.
var virtiofsOptions = concat(
	[]option{
		{long: "sock", value: "PATH", path: true, help: "Listen for the VMM on this unix socket"},
		{long: "fd", value: "N", help: "Take this inherited socket instead, listening or connected"},
		{long: "tag", value: "TAG", help: "Tell the VMM this mount tag; only for one that asks"},
		{long: "queues", value: "N", help: "Offer at most that many request queues [default: CPUs, at most 4; 1 with --tag]"},
		{long: "poll", value: "auto|off|N", help: "Poll a queue before it sleeps: where that pays, never, or for N µs [default: auto]"},
		{long: "linger", value: "TIME", help: "End so long after the VMM is gone, 0 = never [default: 10s]"},
		{long: "first-connect", value: "TIME", help: "End if no VMM came so long, 0 = never [default: 10m]"},
		{long: "keeper", value: "WHEN", help: "Have a process of its own outlive a crash [default: on]", choices: []string{"on", "off"}},
		{long: "hybrid-mode", hidden: true}, // Kata gives it; mounts of all kinds are always possible
		{long: "upgrade", hidden: true},
	},
	mountOptions, globalOptions,
	// What Kata's default configuration for virtiofsd holds, and hands to whatever
	// daemon is configured.
	[]option{
		{long: "thread-pool-size", value: "N", hidden: true, ignored: "of virtiofsd"},
		{long: "announce-submounts", hidden: true, ignored: "of virtiofsd"},
		{long: "", short: 'o', value: "LIST", hidden: true, ignored: "of virtiofsd", check: checkMountList},
	},
)

// subcommands are the words that select what we are, whatever our name.
var subcommands = []subcommand{
	{
		name:    "virtiofs",
		summary: "Serve images to a virtual machine over vhost-user",
		usage:   "rafsd virtiofs --sock PATH [OPTIONS]",
		options: virtiofsOptions,
		example: `  Serve an image whose blobs are in a registry:
    rafsd virtiofs --sock /run/vm.sock --bootstrap image.boot --config registry.json
  Serve one whose blobs are files, and let the HTTP API mount more:
    rafsd virtiofs --sock /run/vm.sock --apisock /run/api.sock \
        --bootstrap image.boot --localfs-dir /var/blobs --virtual-mountpoint /image
  See what is mounted:
    curl --unix-socket /run/api.sock http://localhost/api/v1/daemon`,
	},
	{
		name:    "fuse",
		summary: "Mount images on this host (not supported yet)",
		usage:   "rafsd fuse --mountpoint DIR [OPTIONS]",
		options: concat([]option{
			{long: "mountpoint", short: 'M', value: "DIR", path: true, help: "Where to mount"},
			{long: "failover-policy", value: "POLICY", choices: []string{"none", "resend", "flush"}},
			{long: "fuse-threads", value: "N", aliases: []string{"thread-num"}},
			{long: "writable"},
			{long: "upgrade"},
			{long: "backend-source", value: "URL", hidden: true},
		}, mountOptions, globalOptions),
		later: "rafsd fuse: mounting images on the host is not supported yet; use nydusd for it, and rafsd virtiofs for virtual machines",
	},
	{
		name:    "singleton",
		summary: "Serve fscache (not supported)",
		usage:   "rafsd singleton [OPTIONS]",
		options: concat([]option{
			{long: "fscache", short: 'F', value: "DIR", path: true},
			{long: "fscache-tag", value: "TAG"},
			{long: "fscache-threads", value: "N"},
			{long: "upgrade"},
		}, globalOptions),
		later: "rafsd singleton: serving fscache is not supported; use nydusd for it, and rafsd virtiofs for virtual machines",
	},
	{
		name:    "completion",
		summary: "Print a completion script for bash, zsh or fish",
		usage:   "rafsd completion bash|zsh|fish",
		options: []option{helpOption},
		example: "    source <(rafsd completion bash)",
	},
}

func concat(lists ...[]option) []option {
	var out []option
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

func findSubcommand(name string) *subcommand {
	for i := range subcommands {
		if subcommands[i].name == name {
			return &subcommands[i]
		}
	}
	return nil
}
