package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
)

// row is one kind of load.
type row struct {
	op       vmm.Opcode
	size     int
	inFlight int
	queues   int
	kind     kind
}

// kind says what a row needs.
type kind int

const (
	plain  kind = iota
	random      // goes about in the file at random
	files       // makes, renames or removes small files
	names       // looks many names up that are there
	absent      // looks many names up that are not
)

// smallFile is the size of a small file.
const smallFile = 1 << 10

func (r row) String() string {
	s := r.op.String()
	switch r.kind {
	case random:
		s = "random " + s
	case files:
		s += " of files"
	case names:
		s += " present"
	case absent:
		s += " absent"
	}
	if r.size >= 1<<20 {
		s += fmt.Sprintf(" %d MiB", r.size>>20)
	} else if r.size > 0 {
		s += fmt.Sprintf(" %d KiB", r.size>>10)
	}
	s += fmt.Sprintf(", %d in flight", r.inFlight)
	if r.queues > 1 {
		s += fmt.Sprintf(", %d queues", r.queues)
	}
	return s
}

// rows are the kinds of load, for one number of queues.
func rows(queues int) []row {
	return []row{
		{vmm.OpGetattr, 0, 1, queues, plain}, {vmm.OpGetattr, 0, 16, queues, plain},
		{vmm.OpLookup, 0, 1, queues, plain}, {vmm.OpLookup, 0, 16, queues, plain},
		{vmm.OpRead, 4 << 10, 1, queues, plain}, {vmm.OpRead, 4 << 10, 16, queues, plain},
		{vmm.OpRead, 128 << 10, 1, queues, plain}, {vmm.OpRead, 128 << 10, 4, queues, plain},
		{vmm.OpRead, 1 << 20, 1, queues, plain}, {vmm.OpRead, 1 << 20, 4, queues, plain},
	}
}

// writeRows are the kinds of load that change a shared folder. Those of files come
// in the order in which they need each other.
func writeRows() []row {
	return []row{
		{vmm.OpWrite, 4 << 10, 1, 1, random}, {vmm.OpWrite, 4 << 10, 16, 1, random},
		{vmm.OpWrite, 128 << 10, 1, 1, plain}, {vmm.OpWrite, 128 << 10, 4, 1, plain},
		{vmm.OpWrite, 1 << 20, 1, 1, plain}, {vmm.OpWrite, 1 << 20, 4, 1, plain},
		{vmm.OpCreate, smallFile, 1, 1, files}, {vmm.OpRename, 0, 1, 1, files}, {vmm.OpUnlink, 0, 1, 1, files},
		{vmm.OpCreate, smallFile, 16, 1, files}, {vmm.OpRename, 0, 16, 1, files}, {vmm.OpUnlink, 0, 16, 1, files},
	}
}

// sample is one run: a row, a back-end, a round.
type sample struct {
	row     row
	backend string
	setting string // the name of the back-end that stood for it
	round   int
	*vmm.Result
}

// run starts the back-ends, measures, and reports; once for each cache mode that
// is compared.
func run(ctx context.Context, s *settings) error {
	work, err := os.MkdirTemp(s.work, "vmmbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if s.scaling {
		return s.scale(ctx, work)
	}
	if len(s.parts) > 0 {
		return s.transport(ctx, work)
	}
	if s.through {
		return s.shareBoth(ctx, work)
	}
	if s.compare {
		if err := s.prepare(ctx, work); err != nil {
			return err
		}
	}
	var plan []row
	for _, q := range s.queues {
		plan = append(plan, rows(q)...)
	}
	samples, base, err := s.session(ctx, work, plan)
	if err != nil {
		return err
	}
	if s.csv != "" {
		if err := writeCSV(s.csv, samples); err != nil {
			return err
		}
	}
	return report(os.Stdout, samples, base)
}

// session starts all back-ends and measures the rows that were asked for.
func (s *settings) session(ctx context.Context, work string, plan []row) (samples []sample, base string, err error) {
	var list []*backend
	defer func() {
		for _, b := range list {
			b.close()
		}
	}()
	for _, b := range s.backends {
		started, err := start(ctx, b, work, s.dir, s.file)
		if err != nil {
			return nil, "", err
		}
		list = append(list, started)
	}
	if s.null {
		b, err := startNull(ctx, work, "null", nullfs.Options{Queues: slices.Max(s.queues)})
		if err != nil {
			return nil, "", err
		}
		list = append(list, b)
	}
	plan = slices.DeleteFunc(plan, func(r row) bool {
		return !strings.HasPrefix(r.String(), s.only) && (r.kind != files || !strings.HasPrefix("files", s.only))
	})
	samples, err = measure(ctx, s, list, plan, nil)
	return samples, s.baseName(list), err
}

// baseName is the back-end that the others are held against.
func (s *settings) baseName(list []*backend) string {
	if s.base != "" {
		return s.base
	}
	for _, b := range list {
		if b.name == "virtiofsd" {
			return b.name
		}
	}
	return list[0].name
}

// measure runs all rounds and leaves the first one out of what it returns. skip, if
// set, says which back-end gets which row not.
func measure(ctx context.Context, s *settings, list []*backend, plan []row, skip func(*backend, row) bool) ([]sample, error) {
	type key struct {
		b *backend
		r row
	}
	loaders := map[key]*vmm.Loader{}
	defer func() {
		for _, l := range loaders {
			l.Close()
		}
	}()
	for _, b := range list {
		for _, r := range plan {
			if r.queues > b.queues || b.copy != nil && r.op != vmm.OpRead || skip != nil && skip(b, r) {
				continue
			}
			l, err := b.loader(r, s.files)
			if err != nil {
				return nil, fmt.Errorf("%s, %v: %w", b.name, r, err)
			}
			loaders[key{b, r}] = l
		}
	}
	if len(loaders) == 0 {
		return nil, fmt.Errorf("no load begins with %q", s.only)
	}
	total := time.Duration(s.rounds*len(loaders)) * s.time
	fmt.Printf("%d rounds of %d loads, about %v\n", s.rounds, len(loaders), total.Round(time.Second))
	var out []sample
	for round := range s.rounds {
		for _, r := range plan {
			for i := range list {
				b := list[(i+round)%len(list)]
				l := loaders[key{b, r}]
				if l == nil {
					continue
				}
				result, err := b.quietly(ctx, l, s.time, &s.patience)
				if err != nil {
					return nil, fmt.Errorf("%s, %v, round %d: %w", b.name, r, round, err)
				}
				if round > 0 {
					out = append(out, sample{row: r, backend: b.shown(), setting: b.name, round: round, Result: result})
				}
			}
		}
	}
	return out, nil
}

// run gives the back-end a load for some time.
func (b *backend) run(ctx context.Context, l *vmm.Loader, long time.Duration) (*vmm.Result, error) {
	if b.copy != nil {
		return l.Copy(b.copy, long/2) // it waits for nothing, so this is enough
	}
	limit, cancel := context.WithTimeout(ctx, long+time.Minute)
	defer cancel()
	return l.Run(limit, 0, long)
}

// disturbed is the share of the time for which both sides together may have waited for
// a processor in a sample that counts.
const disturbed = .1

// quietly runs a load again for as long as others take the processors away, at most
// until the budget, which all parts share, is used up, and returns the run that was disturbed least.
func (b *backend) quietly(ctx context.Context, l *vmm.Loader, long time.Duration, budget *time.Duration) (*vmm.Result, error) {
	var best *vmm.Result
	for try := 0; ; try++ {
		began := time.Now()
		r, err := b.run(ctx, l, long)
		if err != nil {
			return nil, err
		}
		if try > 0 {
			*budget -= time.Since(began)
		}
		if best == nil || r.Waited*best.Elapsed < best.Waited*r.Elapsed {
			best = r
		}
		if float64(best.Waited) <= disturbed*float64(best.Elapsed) || try == mostTries || *budget <= 0 || b.copy != nil {
			return best, nil
		}
	}
}

// mostTries is how often a sample is taken again.
const mostTries = 5
