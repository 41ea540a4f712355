package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// comparison is what was measured of the transport, by row and by back-end.
type comparison struct {
	rows  []row
	cells map[row]map[string]cell
}

func newComparison(samples []sample) *comparison {
	c := &comparison{cells: map[row]map[string]cell{}}
	for _, s := range samples {
		if c.cells[s.row] == nil {
			c.cells[s.row] = map[string]cell{}
			c.rows = append(c.rows, s.row)
		}
		one := c.cells[s.row][s.backend]
		one.backend = s.backend
		one.samples = append(one.samples, s)
		c.cells[s.row][s.backend] = one
	}
	return c
}

// ratios are figures within rounds: median, least, greatest.
type ratios struct{ median, least, greatest float64 }

func (r ratios) known() bool { return r.median > 0 }

func (r ratios) String() string {
	if !r.known() {
		return "–"
	}
	return fmt.Sprintf("%.2f [%.2f–%.2f]", r.median, r.least, r.greatest)
}

// ratio is figure of back-end a by that of b, round by round.
func (c *comparison) ratio(r row, a, b string, figure func(sample) float64) ratios {
	var v []float64
	x, y := c.cells[r][a].samples, c.cells[r][b].samples
	for i := range min(len(x), len(y)) {
		if d := figure(y[i]); d > 0 {
			v = append(v, figure(x[i])/d)
		}
	}
	if len(v) == 0 {
		return ratios{}
	}
	m, l, g := spread(v)
	return ratios{m, l, g}
}

// each is the time that a request takes of all, when others are on their way too.
func each(s sample) float64 { return 1e6 / s.Rate() }

// share is how much of a back-end's figure is the floor's and the bare copy's: 1 says
// that it does nothing that could be left out.
func (c *comparison) share(r row, backend, floor string, figure func(sample) float64) ratios {
	var v []float64
	x, y, z := c.cells[r][backend].samples, c.cells[r][floor].samples, c.cells[r][bareCopy].samples
	for i := range min(len(x), len(y)) {
		limit := figure(y[i])
		if i < len(z) {
			limit += figure(z[i])
		}
		if d := figure(x[i]); d > 0 {
			v = append(v, limit/d)
		}
	}
	if len(v) == 0 {
		return ratios{}
	}
	m, l, g := spread(v)
	return ratios{m, l, g}
}

// order is that of the back-ends in tables.
var order = []string{ours, oursOff, oursAlone, theirs, nydusds, floor, floorOff, bareCopy}

// print writes the tables in Markdown: absolute figures, ratios, targets.
func (c *comparison) print(w io.Writer) {
	fmt.Fprint(w, "\nMedians: requests per second in thousands; p50 / p99 in µs; processor time per request in µs, back-end + front-end.\n\n")
	var present []string
	for _, b := range order {
		if slices.ContainsFunc(c.rows, func(r row) bool { return len(c.cells[r][b].samples) > 0 }) {
			present = append(present, b)
		}
	}
	fmt.Fprintf(w, "| load | %s |\n|---|%s\n", strings.Join(present, " | "), strings.Repeat("---|", len(present)))
	for _, r := range c.rows {
		fmt.Fprintf(w, "| %s |", r)
		for _, b := range present {
			one := c.cells[r][b]
			if len(one.samples) == 0 {
				fmt.Fprint(w, " – |")
				continue
			}
			fmt.Fprintf(w, " %s; %.1f / %.1f; %.2f + %.2f", thousands(one.median(rate)), one.median(p50), one.median(p99), one.median(backCPU), one.median(frontCPU))
			if b == theirs {
				fmt.Fprintf(w, "; %s", one.samples[0].setting)
			}
			fmt.Fprint(w, " |")
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\nRatios within a round, median [least–most] of %d. To virtiofsd: rate (more is better), p99 and the back-end's\n"+
		"processor time (less is better). Limit: the share of the null back-end and the bare copy in the time, and in the\n"+
		"back-end's processor time, of a request (1.00 is all).\n\n", len(c.cells[c.rows[0]][ours].samples))
	fmt.Fprint(w, "| load | rate | p99 | CPU | rate, poll off | p99, poll off | CPU, poll off | CPU, one process to two | limit: time | limit: CPU | limit, poll off: time | CPU |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range c.rows {
		fmt.Fprintf(w, "| %s | %v | %v | %v | %v | %v | %v | %v | %v | %v | %v | %v |\n", r,
			c.ratio(r, ours, theirs, rate), c.ratio(r, ours, theirs, p99), c.ratio(r, ours, theirs, backCPU),
			c.ratio(r, oursOff, theirs, rate), c.ratio(r, oursOff, theirs, p99), c.ratio(r, oursOff, theirs, backCPU),
			c.ratio(r, oursAlone, ours, backCPU),
			c.share(r, ours, floor, each), c.share(r, ours, floor, backCPU),
			c.share(r, oursOff, floorOff, each), c.share(r, oursOff, floorOff, backCPU))
	}
	all, calm := 0, 0
	for _, cells := range c.cells {
		for _, one := range cells {
			for _, s := range one.samples {
				all++
				if float64(s.Waited) <= disturbed*float64(s.Elapsed) {
					calm++
				}
			}
		}
	}
	fmt.Fprintf(w, "\nIn %d of %d samples both sides together waited for a processor at most %.0f%% of the time, wake-ups included.\n", calm, all, 100*disturbed)
	fmt.Fprint(w, "\nTargets that are missed (median):\n\n")
	met := 0
	for _, t := range c.targets() {
		if t.met {
			met++
		} else {
			fmt.Fprintf(w, "- %s\n", t.text)
		}
	}
	fmt.Fprintf(w, "\n%d of %d are met.\n", met, len(c.targets()))
}

// target is one of issue 12's, for one row.
type target struct {
	text string
	met  bool
}

func (c *comparison) targets() (list []target) {
	for _, r := range c.rows {
		check := func(what string, v ratios, bound float64, more bool) {
			if v.known() {
				word := map[bool]string{true: "at least", false: "at most"}[more]
				list = append(list, target{fmt.Sprintf("%s: %s %v, want %s %.2f", r, what, v, word, bound),
					more == (v.median >= bound) || v.median == bound})
			}
		}
		check("share of floor and copy in the time", c.share(r, ours, floor, each), 1/1.1, true)
		switch {
		case r.size == 0 || r.size == listingRoom:
			check("rate beside virtiofsd", c.ratio(r, ours, theirs, rate), 1, true)
		case r.inFlight >= 4:
			check("rate beside virtiofsd", c.ratio(r, ours, theirs, rate), 1.1, true)
		}
		check("processor time beside virtiofsd", c.ratio(r, ours, theirs, backCPU), .8, false)
		check("p99 beside virtiofsd", c.ratio(r, ours, theirs, p99), 1, false)
		check("rate beside nydusd", c.ratio(r, ours, nydusds, rate), 1, true)
	}
	return list
}

func thousands(v float64) string {
	if v == 0 {
		return "–"
	}
	if v < 10_000 {
		return fmt.Sprintf("%.1fk", v/1000)
	}
	return fmt.Sprintf("%.0fk", v/1000)
}

// writeCSV writes a line for each row and back-end.
func (c *comparison) writeCSV(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := csv.NewWriter(f)
	lines := [][]string{{"load", "in_flight", "size", "backend", "setting", "rounds", "rate", "p50_us", "p99_us", "back_cpu_us", "front_cpu_us",
		"kicks", "calls", "rate_to_virtiofsd", "rate_to_virtiofsd_least", "rate_to_virtiofsd_most", "p99_to_virtiofsd", "cpu_to_virtiofsd",
		"limit_time", "limit_cpu"}}
	number := func(v float64) string {
		if v == 0 || math.IsNaN(v) {
			return ""
		}
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	for _, r := range c.rows {
		for _, b := range order {
			one := c.cells[r][b]
			if len(one.samples) == 0 {
				continue
			}
			base := floor
			if b == oursOff || b == floorOff {
				base = floorOff
			}
			to := c.ratio(r, b, theirs, rate)
			line := []string{strings.TrimSuffix(r.String(), fmt.Sprintf(", %d in flight", r.inFlight)), strconv.Itoa(r.inFlight), strconv.Itoa(r.size),
				b, one.samples[0].setting, strconv.Itoa(len(one.samples)), number(one.median(rate)), number(one.median(p50)), number(one.median(p99)),
				number(one.median(backCPU)), number(one.median(frontCPU)), number(one.median(kicks)), number(one.median(calls)),
				number(to.median), number(to.least), number(to.greatest), number(c.ratio(r, b, theirs, p99).median), number(c.ratio(r, b, theirs, backCPU).median),
				number(c.share(r, b, base, each).median), number(c.share(r, b, base, backCPU).median)}
			lines = append(lines, line)
		}
	}
	return w.WriteAll(lines)
}

// chart draws for each row where the back-ends are beside virtiofsd.
func (c *comparison) chart(title string) string {
	d := newDots(title, "times virtiofsd's requests per second (its best setting for each row); the bar is least to most of all rounds", []series{
		{ours, "#2563eb"}, {oursOff, "#93c5fd"}, {"floor: null back-end and bare copy", "#64748b"}})
	for _, r := range c.rows {
		limit := c.ratio(r, ours, theirs, rate)
		if share := c.share(r, ours, floor, each); share.known() {
			limit.median /= share.median
		}
		limit.least, limit.greatest = limit.median, limit.median
		d.add(r.String(), c.ratio(r, ours, theirs, rate), c.ratio(r, oursOff, theirs, rate), limit)
	}
	return d.String()
}

// mapFile maps a file that is read whole before, so that no page of it is missing.
func mapFile(name string) (content []byte, unmap func(), err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", name, err)
	}
	return m, func() { _ = unix.Munmap(m) }, nil
}

func writeFile(name, text string) error { return os.WriteFile(name, []byte(text), 0o644) }
