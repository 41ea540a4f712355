package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/internal/vmm"
)

// scaleRows are the loads of -scale: each number of queues with each depth, which is
// the requests in flight in all queues together.
func scaleRows() (rows []row) {
	for _, load := range []struct {
		op   vmm.Opcode
		size int
	}{{vmm.OpGetattr, 0}, {vmm.OpRead, 4 << 10}, {vmm.OpRead, 128 << 10}} {
		for _, queues := range scaleQueues {
			for _, depth := range scaleDepths {
				if depth >= queues && depth*load.size <= maxScaleBytes {
					rows = append(rows, row{load.op, load.size, depth / queues, queues, plain})
				}
			}
		}
	}
	return rows
}

var (
	scaleQueues = []int{1, 2, 4}
	scaleDepths = []int{1, 2, 4, 8, 16, 32, 64}
)

// maxScaleBytes bounds what is read at a time: all loads have their buffers in the
// guest's memory together.
const maxScaleBytes = 2 << 20

// scale measures rafsd alone, and draws its throughput by queues and depth.
func (s *settings) scale(ctx context.Context, work string) error {
	s.queues = scaleQueues
	if err := s.prepare(ctx, work); err != nil {
		return err
	}
	s.null = false
	s.backends = slices.DeleteFunc(s.backends, func(b spec) bool { return b.name == "virtiofsd" })
	samples, base, err := s.session(ctx, work, scaleRows())
	if err != nil {
		return err
	}
	if s.csv != "" {
		if err := writeCSV(s.csv, samples); err != nil {
			return err
		}
	}
	if s.svg != "" {
		if err := os.WriteFile(s.svg, []byte(drawScale(samples)), 0o644); err != nil {
			return err
		}
	}
	return report(os.Stdout, samples, base)
}

// point is the median rate of a load.
type point struct {
	depth int
	rate  float64
}

// panel is one kind of request: a line for each number of queues.
type panel struct {
	title string
	lines map[int][]point
}

func panels(samples []sample) (out []panel) {
	rates := map[row][]float64{}
	var order []row
	for _, s := range samples {
		if rates[s.row] == nil {
			order = append(order, s.row)
		}
		rates[s.row] = append(rates[s.row], s.Rate())
	}
	for _, r := range order {
		title := r.op.String()
		if r.size > 0 {
			title += fmt.Sprintf(" %d KiB", r.size>>10)
		}
		if len(out) == 0 || out[len(out)-1].title != title {
			out = append(out, panel{title, map[int][]point{}})
		}
		m, _, _ := spread(rates[r])
		p := out[len(out)-1]
		p.lines[r.queues] = append(p.lines[r.queues], point{r.inFlight * r.queues, m})
	}
	return out
}

// drawScale draws throughput over requests in flight, a panel for each kind of request
// and a line for each number of queues.
func drawScale(samples []sample) string {
	const (
		width, height         = 300, 240 // of a panel
		left, right, top, low = 56, 12, 34, 44
	)
	colours := map[int]string{1: "#1f77b4", 2: "#d95f02", 4: "#1b9e77"}
	all := panels(samples)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", len(all)*width, height+20)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	deepest := float64(scaleDepths[len(scaleDepths)-1])
	for i, p := range all {
		most := 0.0
		for _, line := range p.lines {
			for _, pt := range line {
				most = max(most, pt.rate)
			}
		}
		most = niceAbove(most / 1000)
		x := func(depth int) float64 {
			return float64(i*width+left) + float64(width-left-right)*math.Log2(float64(depth))/math.Log2(deepest)
		}
		y := func(rate float64) float64 { return float64(height-low) - float64(height-low-top)*rate/1000/most }
		fmt.Fprintf(&b, `<text x="%d" y="20" font-size="13">%s, thousands/s</text>`+"\n", i*width+left, p.title)
		for tick := range 5 {
			v := most * float64(tick) / 4
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
				i*width+left, (i+1)*width-right, y(v*1000), y(v*1000), i*width+left-6, y(v*1000)+4, v)
		}
		for _, d := range scaleDepths {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(d), height-low+16, d)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d">requests in flight</text>`+"\n", i*width+left, height-low+34)
		for _, q := range scaleQueues {
			var at []string
			for _, pt := range p.lines[q] {
				at = append(at, fmt.Sprintf("%.1f,%.1f", x(pt.depth), y(pt.rate)))
			}
			fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(at, " "), colours[q])
		}
	}
	for i, q := range scaleQueues {
		name := fmt.Sprintf("%d queues", q)
		if q == 1 {
			name = "1 queue"
		}
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="14" height="3" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			left+i*90, height+4, colours[q], left+i*90+20, height+9, name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// niceAbove is a round number that is not below v and divides by 4 well.
func niceAbove(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(max(v, 1))))
	for _, k := range []float64{1, 2, 4, 6, 8, 10} {
		if v <= k*unit {
			return k * unit
		}
	}
	return 10 * unit
}

var errScale = errors.New("-scale needs -rafsd, and is no kind of -compare")
