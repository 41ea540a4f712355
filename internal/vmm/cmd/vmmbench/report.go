package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// cell is all samples of one back-end under one load, by round.
type cell struct {
	backend string
	samples []sample
}

// median of a figure over the rounds.
func (c cell) median(figure func(sample) float64) float64 {
	var v []float64
	for _, s := range c.samples {
		v = append(v, figure(s))
	}
	m, _, _ := spread(v)
	return m
}

// spread is the median, the least and the greatest of v, which is not empty.
func spread(v []float64) (median, least, greatest float64) {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2, s[0], s[n-1]
}

// against compares two back-ends round by round: better(a)/better(base), so that
// more than 1 is better than base.
func (c cell) against(base cell, better func(sample) float64) string {
	var ratios []float64
	won := 0
	for i, s := range c.samples {
		if b := better(base.samples[i]); b > 0 {
			r := better(s) / b
			ratios = append(ratios, r)
			if r >= 1 {
				won++
			}
		}
	}
	if len(ratios) == 0 {
		return "-"
	}
	m, least, greatest := spread(ratios)
	return fmt.Sprintf("%.2f [%.2f-%.2f] %d/%d", m, least, greatest, won, len(ratios))
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// The figures of a sample; in the last three more is better.
func p50(s sample) float64      { return micros(s.Latency.Quantile(.5)) }
func p99(s sample) float64      { return micros(s.Latency.Quantile(.99)) }
func frontCPU(s sample) float64 { return micros(s.Front) / float64(s.Requests) }
func backCPU(s sample) float64  { return micros(s.Back) / float64(s.Requests) }
func kicks(s sample) float64    { return float64(s.Kicks) / float64(s.Requests) }
func calls(s sample) float64    { return float64(s.Calls) / float64(s.Requests) }
func rate(s sample) float64     { return s.Rate() }
func quick(s sample) float64    { return 1 / p50(s) }
func thrift(s sample) float64   { return 1 / backCPU(s) }

// report prints the table: medians of each back-end, and its ratios to base.
func report(w io.Writer, samples []sample, base string) error {
	table := map[row][]cell{}
	var order []row
	for _, s := range samples {
		cells, seen := table[s.row]
		if !seen {
			order = append(order, s.row)
		}
		i := slices.IndexFunc(cells, func(c cell) bool { return c.backend == s.backend })
		if i < 0 {
			cells = append(cells, cell{backend: s.backend})
			i = len(cells) - 1
		}
		cells[i].samples = append(cells[i].samples, s)
		table[s.row] = cells
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "load\tback-end\tp50 us\tp99 us\treq/s\tfront us\tback us\tkicks\tcalls\trate vs %s\tlatency\tback-end CPU\n", base)
	for _, r := range order {
		cells := table[r]
		slices.SortFunc(cells, func(a, b cell) int { return compareNames(a.backend, b.backend, base) })
		i := slices.IndexFunc(cells, func(c cell) bool { return c.backend == base })
		for k, c := range cells {
			name := ""
			if k == 0 {
				name = r.String()
			}
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%.1f\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f", name, c.backend,
				c.median(p50), c.median(p99), c.median(rate), c.median(frontCPU), c.median(backCPU), c.median(kicks), c.median(calls))
			if i >= 0 && c.backend != base {
				b := cells[i]
				fmt.Fprintf(t, "\t%s\t%s\t%s", c.against(b, rate), c.against(b, quick), c.against(b, thrift))
			} else {
				fmt.Fprint(t, "\t\t\t")
			}
			fmt.Fprintln(t)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nMedians over the rounds; front and back are processor time per request. A ratio is taken within a round,\n"+
		"more than 1 is better than %s: median [least-greatest] rounds at least level.\n", base)
	return err
}

// compareNames puts base first and null last.
func compareNames(a, b, base string) int {
	rank := func(s string) int {
		switch s {
		case base:
			return 0
		case "null":
			return 2
		}
		return 1
	}
	return rank(a) - rank(b)
}

// writeCSV writes every sample.
func writeCSV(name string, samples []sample) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	w := csv.NewWriter(f)
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', 3, 64) }
	header := []string{"round", "load", "in_flight", "queues", "size", "backend", "requests", "elapsed_us", "p50_us", "p99_us",
		"rate", "front_cpu_us", "back_cpu_us", "kicks", "calls"}
	if err := w.Write(header); err != nil {
		return err
	}
	for _, s := range samples {
		record := []string{strconv.Itoa(s.round), s.row.op.String(), strconv.Itoa(s.row.inFlight), strconv.Itoa(s.row.queues),
			strconv.Itoa(s.row.size), s.backend, strconv.FormatUint(s.Requests, 10), number(micros(s.Elapsed)), number(p50(s)),
			number(p99(s)), number(rate(s)), number(frontCPU(s)), number(backCPU(s)), strconv.FormatUint(s.Kicks, 10),
			strconv.FormatUint(s.Calls, 10)}
		if err := w.Write(record); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}
