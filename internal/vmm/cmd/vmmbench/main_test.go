package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
)

func TestMain(m *testing.M) {
	nullfs.RunIfAsked()
	goleak.VerifyTestMain(m)
}

func TestParse(t *testing.T) {
	s, err := parse([]string{"-backend", "a@4=prog --x {sock}", "-null", "-queues", "1,4", "-rounds", "3"})
	if err != nil {
		t.Fatal(err)
	}
	b := s.backends[0]
	if b.name != "a" || b.queues != 4 || strings.Join(b.argv, "|") != "prog|--x|{sock}" || len(s.queues) != 2 || s.queues[1] != 4 {
		t.Errorf("parse = %+v", s)
	}
	for _, bad := range []string{"", "-compare", "-null -rounds 1", "-null -queues 0", "-null -queues x", "-null stray", "-null -passthrough", "-scale", "-scale -compare -rafsd x", "-null -files 0", "-part rows", "-part odd -rafsd x", "-part rows -compare -rafsd x", "-backend =x", "-backend a=", "-backend a@b=c"} {
		if _, err := parse(strings.Fields(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestRun measures the null back-end for a moment, from its start to the table.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := filepath.Join(t.TempDir(), "samples.csv")
	err := run(ctx, &settings{null: true, rounds: 2, time: time.Millisecond, queues: []int{1, 2}, csv: out, only: "READ 4"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(b), "\n"); lines != 1+4 {
		t.Errorf("%d lines of samples, want a header and 4:\n%s", lines, b)
	}
}

// TestPassthrough compares real servers of a shared folder for a moment.
func TestPassthrough(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	rafsd := filepath.Join(dir, "rafsd")
	build := exec.CommandContext(ctx, "go", "build", "-o", rafsd, "../../../../cmd/rafsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, said)
	}
	out := filepath.Join(dir, "samples.csv")
	err := run(ctx, &settings{
		compare: true, through: true, rafsd: rafsd, work: dir, file: "big", files: 20,
		rounds: 2, time: time.Millisecond, queues: []int{1}, csv: out,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range cacheModes {
		want := len(rows(1)) + len(writeRows())
		if got := strings.Count(string(b), ",rafsd-"+mode+","); got != want {
			t.Errorf("%d samples of rafsd with cache %s, want %d", got, mode, want)
		}
		if got := strings.Count(string(b), ",virtiofsd-"+mode+","); got != want && got != 0 {
			t.Errorf("%d samples of virtiofsd with cache %s, want %d", got, mode, want)
		}
	}
	if !strings.Contains(string(b), ",virtiofsd-") {
		t.Skip("SKIPPED, NOTHING COMPARED: no virtiofsd could be had")
	}
}

func TestReport(t *testing.T) {
	r := row{op: vmm.OpGetattr, inFlight: 1, queues: 1}
	var samples []sample
	for round := 1; round <= 3; round++ {
		for name, n := range map[string]uint64{"base": 1000, "ours": uint64(1000 + 1000*round)} {
			res := &vmm.Result{Requests: n, Elapsed: time.Second, Back: time.Millisecond}
			res.Latency.Add(10 * time.Microsecond)
			samples = append(samples, sample{row: r, backend: name, round: round, Result: res})
		}
	}
	var b bytes.Buffer
	if err := report(&b, samples, "base"); err != nil {
		t.Fatal(err)
	}
	if want := "3.00 [2.00-4.00] 3/3"; !strings.Contains(b.String(), want) {
		t.Errorf("the report lacks the ratio %s:\n%s", want, b.String())
	}
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		v                       []float64
		median, least, greatest float64
	}{{[]float64{2}, 2, 2, 2}, {[]float64{3, 1, 2}, 2, 1, 3}, {[]float64{4, 1, 2, 3}, 2.5, 1, 4}} {
		if m, l, g := spread(tt.v); m != tt.median || l != tt.least || g != tt.greatest {
			t.Errorf("spread(%v) = %v %v %v, want %v %v %v", tt.v, m, l, g, tt.median, tt.least, tt.greatest)
		}
	}
}

// TestDrawScale: a line for each number of queues in each panel, and nothing outside of
// the picture.
func TestDrawScale(t *testing.T) {
	var samples []sample
	for _, r := range scaleRows() {
		for round := range 3 {
			samples = append(samples, sample{row: r, backend: "rafsd", round: round,
				Result: &vmm.Result{Requests: uint64(1000 * r.inFlight * r.queues), Elapsed: time.Second}})
		}
	}
	svg := drawScale(samples)
	if n := strings.Count(svg, "<polyline"); n != 3*len(scaleQueues) {
		t.Errorf("%d lines, want %d", n, 3*len(scaleQueues))
	}
	for _, bad := range []string{"NaN", "Inf", `"-`, ",-"} {
		if strings.Contains(svg, bad) {
			t.Errorf("the picture has %s:\n%s", bad, svg)
		}
	}
	for v, want := range map[float64]float64{0: 1, 1: 1, 37: 40, 401: 600, 999: 1000} {
		if got := niceAbove(v); got != want {
			t.Errorf("niceAbove(%v) = %v, want %v", v, got, want)
		}
	}
}

// TestComparison: ratios within rounds, the floor's share, targets, table, CSV and chart.
func TestComparison(t *testing.T) {
	r := row{op: vmm.OpRead, size: 4 << 10, inFlight: 4, queues: 1, kind: random}
	var samples []sample
	for round := 1; round <= 3; round++ {
		for name, n := range map[string]uint64{ours: 200, oursOff: 100, theirs: 100, floor: 400, floorOff: 300, bareCopy: 1000} {
			res := &vmm.Result{Requests: n * uint64(round), Elapsed: time.Second, Back: time.Duration(round) * time.Second, Front: time.Second}
			res.Latency.Add(10 * time.Microsecond)
			samples = append(samples, sample{row: r, backend: name, setting: name, round: round, Result: res})
		}
	}
	c := newComparison(samples)
	if got := c.ratio(r, ours, theirs, rate); got != (ratios{2, 2, 2}) {
		t.Errorf("rate beside virtiofsd %v, want 2", got)
	}
	// 1/400 and 1/1000 of a second are the floor and the copy of 1/200.
	if got := c.share(r, ours, floor, each).median; got < .699 || got > .701 {
		t.Errorf("share of the floor %v, want 0.7", got)
	}
	missed := 0
	for _, target := range c.targets() {
		if !target.met {
			missed++
		}
	}
	if missed != 1 {
		t.Errorf("%d targets are missed, want that of the floor: %+v", missed, c.targets())
	}
	var b bytes.Buffer
	c.print(&b)
	for _, want := range []string{"2.00 [2.00–2.00]", "3 of 4 are met", "- random READ 4 KiB, 4 in flight: share of floor and copy"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the tables lack %q:\n%s", want, b.String())
		}
	}
	name := filepath.Join(t.TempDir(), "transport.csv")
	if err := c.writeCSV(name); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil || strings.Count(string(text), "\n") != 1+6 {
		t.Errorf("%v, want a header and 6 lines:\n%s", err, text)
	}
	svg := c.chart("a & b")
	if err := xml.Unmarshal([]byte(svg), new(struct{})); err != nil || strings.Contains(svg, "NaN") || strings.Count(svg, "<circle") != 3+3 {
		t.Errorf("%v; want 3 marks and a legend of 3:\n%s", err, svg)
	}
}

// TestWitness: what a guest asks is counted between its lines, however they come.
func TestWitness(t *testing.T) {
	log, n := &requestCounter{}, 0.0
	w := &witness{count: func() (float64, error) { n += 10; return n, nil }, visits: map[string][]visit{}}
	for _, piece := range []string{"@@be", "gin\n\n", "noise\n@@end 1500 find, not", "hing cached\n\n"} {
		if _, err := w.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.visits["find, nothing cached"]; w.err != nil || len(got) != 1 || got[0] != (visit{1500 * time.Microsecond, 10}) {
		t.Errorf("%+v, %v", w.visits, w.err)
	}
	for _, piece := range []string{"[x] Received request: opc", "ode=Lookup (1)\n[x] Replying\n[x] Received request: opcode=Read", " (15)\n"} {
		if _, err := log.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if log.n.Load() != 2 {
		t.Errorf("%d requests in the log, want 2", log.n.Load())
	}
}

// TestParts goes through the parts that need no guest, for a moment.
func TestParts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	rafsd := filepath.Join(dir, "rafsd")
	build := exec.CommandContext(ctx, "go", "build", "-o", rafsd, "../../../../cmd/rafsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, said)
	}
	err := run(ctx, &settings{
		parts: []string{"rows", "blocked", "images"}, rafsd: rafsd, work: dir, out: dir, file: "big",
		rounds: 2, time: time.Millisecond, queues: []int{1}, held: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"transport.csv", "transport.svg"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
