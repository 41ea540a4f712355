package show

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
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
func Run(ctx context.Context, o Options) (r Report, err error) {
	if _, err := os.Stat(o.Rafsd); err != nil {
		return r, fmt.Errorf("the rafsd program: %w (make build makes it)", err)
	}
	dir, err := os.MkdirTemp("", "rafsd-demo-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	say := func(what, format string, a ...any) {
		fmt.Fprintf(o.Out, "%-9s %s\n", what, fmt.Sprintf(format, a...))
	}
	list, err := machines(o.Guest, o.RafsGuest, o.Log, say)
	if err != nil {
		return r, err
	}
	testguest.Progress = progress{say}

	s, err := writeSample(filepath.Join(dir, "image"))
	if err != nil {
		return r, err
	}
	say("image", "%s files of %s in a blob of %s (RAFS v6, zstd)", grouped(int64(s.files)), size(s.bytes), size(s.blob))
	for i, m := range list {
		r, err = visitTwice(ctx, o, s, m, filepath.Join(dir, fmt.Sprint(i)), say)
		var missing *missingError
		if err == nil || ctx.Err() != nil || !errors.As(err, &missing) || i == len(list)-1 {
			break
		}
		say("no guest", "%s cannot be had: %s", m.name(), oneLine(missing.Error()))
		say("instead", "the same job through %s", list[i+1].name())
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err != nil {
		return r, err
	}
	fmt.Fprintf(o.Out, "\n%s", r.Table())
	return r, nil
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
	say("registry", "http://%s/v2/%s holds the blob, and so far nobody asked for it", reg.Host(), repo)
	say("rafsd", "process %d serves the image", d.pid)

	r = Report{Real: m.name() != frontend{}.name(), Image: s.blob}
	v, err := m.start(alive, d.socket)
	if err != nil {
		return r, because(alive, err)
	}
	r.Machine = v.who
	r.Start = Phase{Boot: v.boot, Took: v.took, Files: s.startFiles, Read: s.startBytes}
	r.Start.Fetched, r.Start.Answers = reg.fetched()
	say("machine", "%s is up after %s and sees", v.who, seconds(v.boot))
	for _, line := range v.top {
		fmt.Fprintf(o.Out, "            %s\n", line)
	}
	if err := checkStart(s, v); err != nil {
		return r, err
	}
	say("start", "it listed %s names and read the %d files that a container's start needs:", grouped(int64(v.names)), s.startFiles)
	say("", "the registry has given %s of the blob", percent(r.Start.Fetched, s.blob))

	v, err = m.everything(alive, d.socket, s.truth)
	if err != nil {
		return r, because(alive, err)
	}
	r.All = Phase{Boot: v.boot, Took: v.took, Files: s.files, Read: s.bytes}
	r.All.Fetched, r.All.Answers = reg.fetched()
	if !v.differences.Equal() {
		return r, fmt.Errorf("%w:\n%s", ErrWrong, v.differences)
	}
	say("all", "started anew, it read everything: the %s checksums, and all else that", grouped(int64(s.files)))
	say("", "the manifest says of %s paths, are right", grouped(int64(len(s.truth))))
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

// progress passes on what testguest says.
type progress struct {
	say func(what, format string, a ...any)
}

func (p progress) Write(b []byte) (int, error) {
	p.say("guest", "%s", oneLine(trimOwner(string(b))))
	return len(b), nil
}
