package main

import (
	"bytes"
	"context"
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
	for _, bad := range []string{"", "-compare", "-null -rounds 1", "-null -queues 0", "-null -queues x", "-null stray", "-null -passthrough", "-scale", "-scale -compare -rafsd x", "-null -files 0", "-backend =x", "-backend a=", "-backend a@b=c"} {
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
