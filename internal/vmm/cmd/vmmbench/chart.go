package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// series is one kind of mark in a chart.
type series struct{ name, color string }

// svg is a picture under way.
type svg struct {
	strings.Builder
	width, height int
}

const (
	ink  = "#0f172a"
	grey = "#475569"
	rule = "#cbd5e1"
)

func (p *svg) text(x, y float64, anchor, color string, size int, text string) {
	fmt.Fprintf(p, "  <text x=\"%.1f\" y=\"%.1f\" text-anchor=%q fill=%q font-size=\"%d\">%s</text>\n", x, y, anchor, color, size, html.EscapeString(text))
}

func (p *svg) line(x1, y1, x2, y2 float64, color string, width float64) {
	fmt.Fprintf(p, "  <path d=\"M%.1f %.1fL%.1f %.1f\" stroke=%q stroke-width=\"%.1f\"/>\n", x1, y1, x2, y2, color, width)
}

func (p *svg) dot(x, y, r float64, color string) {
	fmt.Fprintf(p, "  <circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=%q/>\n", x, y, r, color)
}

// legend writes the series in a line.
func (p *svg) legend(x, y float64, list []series) {
	for _, s := range list {
		p.dot(x, y-4, 4, s.color)
		p.text(x+9, y, "start", grey, 12, s.name)
		x += 28 + 6.6*float64(len([]rune(s.name)))
	}
}

// String is the whole picture.
func (p *svg) String() string {
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"Helvetica, Arial, sans-serif\">\n"+
		"  <rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n%s</svg>\n", p.width, p.height, p.width, p.height, p.Builder.String())
}

// dots is a chart with a line for each load, and ratios along a logarithmic axis.
type dots struct {
	title, axis string
	series      []series
	names       []string
	values      [][]ratios
}

func newDots(title, axis string, s []series) *dots { return &dots{title: title, axis: axis, series: s} }

func (d *dots) add(name string, v ...ratios) {
	d.names = append(d.names, name)
	d.values = append(d.values, v)
}

func (d *dots) String() string {
	const width, left, right, top, step = 880, 230, 30, 72, 22
	bottom := float64(top + step*len(d.names))
	p := &svg{width: width, height: int(bottom) + 48}
	least, most := 1.0, 1.0
	for _, line := range d.values {
		for _, v := range line {
			if v.known() {
				least, most = min(least, v.least), max(most, v.greatest)
			}
		}
	}
	low, high := math.Floor(math.Log2(least)), math.Ceil(math.Log2(most))
	at := func(v float64) float64 {
		return left + (math.Log2(v)-low)/max(high-low, 1)*(width-left-right)
	}
	p.text(20, 26, "start", ink, 16, d.title)
	p.legend(left, 50, d.series)
	for e := low; e <= high; e++ {
		v := math.Exp2(e)
		color, wide := rule, 1.0
		if e == 0 {
			color, wide = ink, 1.5
		}
		p.line(at(v), top-8, at(v), bottom, color, wide)
		p.text(at(v), bottom+16, "middle", grey, 12, fmt.Sprintf("%gx", v))
	}
	p.text(left, bottom+36, "start", grey, 12, d.axis)
	for i, name := range d.names {
		y := float64(top+step*i) + 8
		p.text(left-12, y+4, "end", ink, 12, name)
		for k, v := range d.values[i] {
			if !v.known() {
				continue
			}
			off := y + 5*(float64(k)-float64(len(d.values[i])-1)/2)
			p.line(at(v.least), off, at(v.greatest), off, d.series[k].color, 1.5)
			p.dot(at(v.median), off, 3.5, d.series[k].color)
		}
	}
	return p.String()
}
