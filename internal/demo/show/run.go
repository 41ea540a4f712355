package show

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Guest is the choice of a machine.
type Guest string

// The choices. All but Auto fail where they cannot be had.
const (
	Auto Guest = "auto" // UML, else QEMU, else none
	UML  Guest = "uml"
	QEMU Guest = "qemu"
	None Guest = "none" // internal/vmm
)

// Guests are all choices.
var Guests = []Guest{Auto, UML, QEMU, None}

// Options of Run.
type Options struct {
	Rafsd string // the program
	// RafsGuest is the program of that name, static, for the guest; "" builds it.
	RafsGuest string
	Guest     Guest
	// Out gets what a person is to see, Log everything that programs print (nil:
	// only what belongs to an error, in the error).
	Out io.Writer
	Log io.Writer
}

// Report is what Run saw.
type Report struct {
	Machine string // which machine it was
	Real    bool   // it was a guest, not internal/vmm
	Image   int64  // bytes of the blob in the registry

	Start, All Phase
}

// Phase is one visit of a machine.
type Phase struct {
	Boot  time.Duration // until it could read
	Took  time.Duration // for the rest of the visit
	Files int           // whose content it read
	Read  int64         // bytes of them

	// Fetched is how much the registry has handed out by the end of the phase, of
	// this phase and the one before it; Answers is in how many pieces.
	Fetched int64
	Answers int
}

// ErrWrong means that what the machine read is not what the image holds.
var ErrWrong = errors.New("the image was read wrong")

// Run makes the image, starts registry and daemon, sends a machine on both visits,
// and prints what happens. Nothing is left of it when it returns. The report is
// whole if there is no error.
func Run(ctx context.Context, o Options) (Report, error) {
	return run(ctx, o, func(ctx context.Context, dir string) (*sample, error) { return writeSample(ctx, dir, 1) })
}

// run is Run with the image that write makes.
func run(ctx context.Context, o Options, write func(ctx context.Context, dir string) (*sample, error)) (r Report, err error) {
	if _, err := os.Stat(o.Rafsd); err != nil {
		return r, fmt.Errorf("the rafsd program: %w (make build makes it)", err)
	}
	dir, err := os.MkdirTemp("", "rafsd-demo-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	say := sayTo(o.Out)
	list, err := machines(o.Guest, o.RafsGuest, o.Log, say)
	if err != nil {
		return r, err
	}

	s, err := write(ctx, filepath.Join(dir, "image"))
	if err != nil {
		return r, err
	}
	say("image", "%s files of %s in a blob of %s (RAFS v6, zstd)", grouped(int64(s.files)), size(s.bytes), size(s.blob))
	folders := 0
	r, err = firstOf(ctx, list, say, func(m machine) (Report, error) {
		folders++
		return visitTwice(ctx, o, s, m, filepath.Join(dir, decimal(folders)), say)
	})
	if err != nil {
		return r, err
	}
	fmt.Fprintf(o.Out, "\n%s", r.Table())
	return r, nil
}

// firstOf does the job with the first machine that this host can have.
func firstOf(ctx context.Context, list []machine, say func(what, format string, a ...any), job func(machine) (Report, error)) (Report, error) {
	for i, m := range list {
		r, err := job(m)
		var missing *missingError
		if i == len(list)-1 || ctx.Err() != nil || !errors.As(err, &missing) {
			return r, err
		}
		switch next := list[i+1].(type) {
		case frontend:
			say("no guest", "%s; %s reads the image instead", reason(missing), next.name())
		default:
			say("guest", "no %s (%s), so %s", m.name(), reason(missing), next.name())
		}
	}
	return Report{}, errors.New("no machine to do it with")
}

// visitTwice does the job with one machine.
func visitTwice(ctx context.Context, o Options, s *sample, m machine, dir string, say func(what, format string, a ...any)) (r Report, err error) {
	if err := m.prepare(ctx); err != nil {
		return r, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return r, err
	}
	reg, err := startRegistry(s)
	if err != nil {
		return r, err
	}
	defer reg.Close()
	d, err := startDaemon(ctx, o.Rafsd, dir, s.Bootstrap, reg.Host(), m.tag(), o.Log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	alive, cancel := d.watch(ctx)
	defer cancel()
	say("registry", "http://%s/v2/%s holds the blob; nothing of it was fetched yet", reg.Host(), repo)
	say("rafsd", "process %d serves the image over vhost-user", d.pid)
	say("start", "%s ...", m.name())

	r = Report{Real: m.name() != frontend{}.name(), Image: s.blob}
	v, err := m.start(alive, d.socket)
	if err != nil {
		return r, because(alive, err)
	}
	r.Machine = v.who
	r.Start = Phase{Boot: v.boot, Took: v.took, Files: s.startFiles, Read: s.startBytes}
	r.Start.Fetched, r.Start.Answers = reg.fetched()
	say("", "%s came up in %s, mounted the image and sees", v.who, seconds(v.boot))
	for _, line := range v.top {
		say("", "  %s", line)
	}
	if err := checkStart(s, v); err != nil {
		return r, err
	}
	say("", "It listed all %s names and read %d files as a container's start does (checksums right).", grouped(int64(v.names)), s.startFiles)
	say("", "That took %s of the image from the registry.", percent(r.Start.Fetched, s.blob))

	say("all", "%s again, on the same rafsd ...", m.name())
	v, err = m.everything(alive, d.socket, s.truth)
	var missing *missingError
	if errors.As(err, &missing) {
		err = missing.what // it was there a moment ago
	}
	if err != nil {
		return r, because(alive, err)
	}
	r.All = Phase{Boot: v.boot, Took: v.took, Files: s.files, Read: s.bytes}
	r.All.Fetched, r.All.Answers = reg.fetched()
	if !v.differences.Equal() {
		return r, fmt.Errorf("%w:\n%s", ErrWrong, v.differences)
	}
	say("", "It read every file: %s checksums and all attributes of %s names are right.", grouped(int64(s.files)), grouped(int64(len(s.truth))))
	if r.All.Fetched < s.blob {
		say("", "What rafsd did not fetch is the blob's own table of chunks: the bootstrap has it too.")
	}
	return r, nil
}

// because prefers the reason why ctx ended to what followed from that.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// checkStart compares the first visit with what is true.
func checkStart(s *sample, v visit) error {
	if v.names != len(s.truth) {
		return fmt.Errorf("%w: %d names, want %d", ErrWrong, v.names, len(s.truth))
	}
	for r, want := range s.sums {
		if got := v.sums[r]; got != want {
			return fmt.Errorf("%w: %s: sha256 %x, want %x", ErrWrong, r.path, got, want)
		}
	}
	return nil
}

// sayTo returns what prints a line of the demo.
func sayTo(w io.Writer) func(what, format string, a ...any) {
	return func(what, format string, a ...any) {
		fmt.Fprintf(w, "%-9s %s\n", what, fmt.Sprintf(format, a...))
	}
}

// Progress is for testguest.Progress: it prints its messages as lines of the demo.
func Progress(w io.Writer) io.Writer { return progress{sayTo(w)} }

type progress struct {
	say func(what, format string, a ...any)
}

func (p progress) Write(b []byte) (int, error) {
	p.say("guest", "%s", oneLine(strings.TrimPrefix(string(b), "testguest: ")))
	return len(b), nil
}
