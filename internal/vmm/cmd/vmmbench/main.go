// Command vmmbench measures vhost-user file-system back-ends against each other
// with one front-end, internal/vmm: no guest and no hypervisor stand between.
//
//	vmmbench -compare -rafsd bin/rafsd
//	vmmbench -compare -passthrough -rafsd bin/rafsd
//	vmmbench -scale -rafsd bin/rafsd -svg scaling.svg
//	vmmbench -part rows,blocked,images -rafsd bin/rafsd -out docs/benchmarks
//	vmmbench -part guest -rafsd bin/rafsd
//	vmmbench -dir /srv -file big -backend 'a=virtiofsd --socket-path {sock} --shared-dir {dir}' -null
//
// It measures in rounds; in each, every back-end gets each kind of load once, in
// turn, beginning with another one each time, and the first round is thrown away.
// What it reports are ratios within a round (median, least and greatest), because
// absolute figures of a shared machine say little, and the processor time of both
// sides beside them, because a back-end that burns a core may not look good. The
// null back-end is the floor: the front-end, the rings and the wake-ups alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/internal/vmm/nullfs"
)

// settings are the command line.
type settings struct {
	compare  bool
	through  bool
	scaling  bool
	svg      string
	files    int
	rafsd    string
	backends []spec
	null     bool
	base     string
	work     string
	dir      string
	file     string
	rounds   int
	time     time.Duration
	queues   []int
	only     string
	csv      string
	patience time.Duration
	held     time.Duration
	parts    []string
	out      string
	nydusd   string
}

// spec is a back-end to be started: its name, how many request queues it offers,
// and its arguments, in which {sock} and {dir} are replaced.
type spec struct {
	name   string
	queues int
	argv   []string
	env    []string
	dir    string // what it serves, if not what all do
	many   string // the folder of many names in it, if loads need that
	label  string // in reports, if not the name
}

func main() {
	nullfs.RunIfAsked()
	if inGuest() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(ctx, s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmmbench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("vmmbench", flag.ContinueOnError)
	f.BoolVar(&s.compare, "compare", false, "make a file and an image of it, and compare rafsd, virtiofsd and the null back-end")
	f.BoolVar(&s.through, "passthrough", false, "with -compare: both share the same kind of folder, and are written to, with each cache mode")
	f.BoolVar(&s.scaling, "scale", false, "measure rafsd alone, by request queues and requests in flight")
	f.StringVar(&s.svg, "svg", "", "with -scale: draw it into this `file`")
	f.IntVar(&s.files, "files", 10_000, "how many small files are made, renamed and removed in each round of -passthrough")
	f.StringVar(&s.work, "work", "", "the `folder` below which everything is made (default that of temporary files)")
	f.StringVar(&s.rafsd, "rafsd", "", "the `program` to compare")
	f.Func("backend", "a back-end, `NAME[@QUEUES]=ARGV` with {sock} and {dir}, with -passthrough {cache} too; may be repeated", func(v string) error {
		b, err := parseSpec(v)
		s.backends = append(s.backends, b)
		return err
	})
	f.BoolVar(&s.null, "null", false, "measure the null back-end too")
	f.StringVar(&s.base, "base", "", "the back-end that the others are held against (default virtiofsd, else the first)")
	f.StringVar(&s.dir, "dir", "", "the `folder` that back-ends serve (default a temporary one, which -compare fills)")
	f.StringVar(&s.file, "file", "big", "the `path` in the mounted tree of the file that is looked up and read")
	f.IntVar(&s.rounds, "rounds", 11, "how many rounds, the first of which does not count")
	f.DurationVar(&s.time, "time", 300*time.Millisecond, "how long each load runs in each round")
	queues := f.String("queues", "1", "request queues to measure with, a `list` such as 1,4")
	f.StringVar(&s.only, "only", "", "measure only loads whose name begins with this `prefix`; files: those of small files")
	parts := f.String("part", "", "parts of the benchmark of the transport, a `list` of "+strings.Join(partNames(), ", "))
	f.DurationVar(&s.patience, "patience", 0, "how much `time` in all may be spent on taking samples again in which others had the processors")
	f.DurationVar(&s.held, "held", 15*time.Second, "how long the fetch hangs in the part blocked, less than a minute")
	f.StringVar(&s.out, "out", "", "with -part: write CSV files and charts into this `folder`")
	f.StringVar(&s.nydusd, "nydusd", "", "with -part: compare with this `program` too")
	f.StringVar(&s.csv, "csv", "", "write every sample to this `file`")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(*queues, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || n > 64 {
			return nil, fmt.Errorf("-queues %q: want numbers from 1 to 64", *queues)
		}
		s.queues = append(s.queues, n)
	}
	if *parts != "" {
		s.parts = strings.Split(*parts, ",")
	}
	for _, p := range s.parts {
		if !slices.Contains(partNames(), p) {
			return nil, fmt.Errorf("-part %q: want some of %s", *parts, strings.Join(partNames(), ", "))
		}
	}
	switch {
	case len(s.parts) > 0 && (s.rafsd == "" || s.compare || len(s.backends) > 0):
		return nil, errors.New("-part needs -rafsd, and no other back-ends")
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case s.rounds < 2:
		return nil, fmt.Errorf("-rounds %d: the first does not count, so at least 2", s.rounds)
	case s.scaling && (s.compare || s.rafsd == ""):
		return nil, errScale
	case s.compare && s.rafsd == "":
		return nil, errors.New("-compare needs -rafsd")
	case s.through && !s.compare:
		return nil, errors.New("-passthrough is a kind of -compare")
	case s.files < 1:
		return nil, fmt.Errorf("-files %d: at least 1", s.files)
	case !s.compare && !s.scaling && len(s.backends) == 0 && !s.null && len(s.parts) == 0:
		return nil, errors.New("nothing to measure: -compare, -backend or -null")
	}
	return s, nil
}

// parseSpec reads NAME[@QUEUES]=ARGV.
func parseSpec(v string) (spec, error) {
	head, argv, ok := strings.Cut(v, "=")
	name, queues, many := strings.Cut(head, "@")
	b := spec{name: name, queues: 1, argv: strings.Fields(argv)}
	if !ok || name == "" || len(b.argv) == 0 {
		return b, fmt.Errorf("%q is not NAME[@QUEUES]=ARGV", v)
	}
	if many {
		n, err := strconv.Atoi(queues)
		if err != nil || n < 1 {
			return b, fmt.Errorf("%q is no number of queues", queues)
		}
		b.queues = n
	}
	return b, nil
}
