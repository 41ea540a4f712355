package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/internal/vmm/nullfs"
	"github.com/rafsd/rafsd/vhostuser"
)

// The folder of many names.
const (
	manyDir   = "many"
	manyNames = nullfs.Entries
)

// presentName is one of its names, as the null back-end has them too.
func presentName(i int) string { return fmt.Sprintf("%s-%08d", nullfs.Name, i) }

// mostInFlight is the depth of the deepest row.
const mostInFlight = 16

// listingRoom is the size of a READDIRPLUS.
const listingRoom = 32 << 10

// part is a part of the benchmark of the transport.
type part struct {
	name string
	run  func(s *settings, ctx context.Context, work string) error
}

func parts() []part {
	return []part{
		{"rows", (*settings).compareRows}, {"blocked", (*settings).blocked}, {"images", (*settings).images},
		{"guest", (*settings).guests},
	}
}

func partNames() (names []string) {
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// transport runs the parts that were asked for, each in a folder of its own.
func (s *settings) transport(ctx context.Context, work string) error {
	if s.out != "" {
		if err := os.MkdirAll(s.out, 0o755); err != nil {
			return err
		}
	}
	for _, p := range parts() {
		if !slices.Contains(s.parts, p.name) {
			continue
		}
		dir := filepath.Join(work, p.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		fmt.Printf("\n# %s, %s\n\n", p.name, moment())
		began := time.Now()
		if err := p.run(s, ctx, dir); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("\n%s took %v; %s\n", p.name, time.Since(began).Round(time.Second), moment())
	}
	return nil
}

// moment is the date, and how busy the machine is.
func moment() string {
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("%s, load %s", time.Now().Format("2006-01-02 15:04"), strings.Join(strings.Fields(string(load) + " - - -")[:3], " "))
}

// transportRows are the rows of issue 12.
func transportRows() (rows []row) {
	for _, r := range []row{
		{op: vmm.OpGetattr}, {op: vmm.OpLookup, kind: names}, {op: vmm.OpLookup, kind: absent},
		{op: vmm.OpReaddirplus, size: listingRoom},
		{op: vmm.OpRead, size: 4 << 10, kind: random}, {op: vmm.OpRead, size: 128 << 10}, {op: vmm.OpRead, size: 1 << 20},
	} {
		for _, n := range []int{1, 4, mostInFlight} {
			r.inFlight, r.queues = n, 1
			rows = append(rows, r)
		}
	}
	return rows
}

// The back-ends of the comparison, as reports name them.
const (
	ours      = "rafsd"
	oursOff   = "rafsd, poll off"
	oursAlone = "rafsd, one process"
	theirs    = "virtiofsd"
	nydusds   = "nydusd"
	floor     = "null"
	floorOff  = "null, poll off"
	bareCopy  = "copy"
)

// served is a tree that was made twice: as a folder and as an image.
type served struct {
	dir       string // the folder
	bootstrap string
	config    string // of the image: its blobs in a folder
}

// makeTree makes a tree in work, of the file that is read and, if that is asked for,
// of a folder of many names.
func (s *settings) makeTree(work string, many bool) (*served, error) {
	data := make([]byte, fileSize)
	if _, err := testimage.Random(fileSize, 1).ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("make the file: %w", err)
	}
	t := &served{dir: filepath.Join(work, "tree")}
	if err := os.MkdirAll(filepath.Join(t.dir, manyDir), 0o755); err != nil {
		return nil, err
	}
	tree := testimage.NewTree()
	tree.File("/"+s.file, data)
	if err := os.WriteFile(filepath.Join(t.dir, s.file), data, 0o644); err != nil {
		return nil, err
	}
	for i := 0; many && i < manyNames; i++ {
		name := filepath.Join(manyDir, presentName(i))
		tree.File("/"+name, nil)
		if err := os.WriteFile(filepath.Join(t.dir, name), nil, 0o644); err != nil {
			return nil, err
		}
	}
	var err error
	t.bootstrap, t.config, err = makeImage(work, "image", tree)
	return t, err
}

// makeImage makes an image of the tree, and a configuration for it.
func makeImage(work, name string, tree *testimage.Tree) (bootstrap, config string, err error) {
	dir := filepath.Join(work, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", "", err
	}
	img, err := tree.Write(dir, testimage.Options{Compressor: testimage.Zstd})
	if err != nil {
		return "", "", fmt.Errorf("make the image: %w", err)
	}
	config = filepath.Join(dir, "rafsd.json")
	text, err := imageConfig(filepath.Join(dir, "cache"), "localfs", map[string]any{"dir": img.BlobDir})
	if err == nil {
		err = os.WriteFile(config, []byte(text), 0o600)
	}
	return img.Bootstrap, config, err
}

// imageConfig is a configuration with that cache, which it makes, and that storage.
func imageConfig(cache, backend string, storage map[string]any) (string, error) {
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{
		"version": 2, "id": "bench",
		"backend": map[string]any{"type": backend, backend: storage},
		"cache":   map[string]any{"type": "filecache", "filecache": map[string]any{"work_dir": cache}},
		"rafs":    map[string]any{"mode": "direct"},
	})
	return string(b), err
}

// rafsdSpec serves an image with more options.
func (s *settings) rafsdSpec(name string, queues int, bootstrap, config string, options ...string) spec {
	return spec{name: strings.NewReplacer(" ", "-", ",", "").Replace(name), label: name, queues: queues, argv: append([]string{
		s.rafsd, "virtiofs", "--sock", "{sock}", "--queues", fmt.Sprint(queues), "--bootstrap", bootstrap,
		"--config", config, "--log-level", "warn",
	}, options...)}
}

func (s *settings) nydusdSpec(bootstrap, config string) spec {
	return spec{name: nydusds, queues: 1, argv: []string{
		s.nydusd, "virtiofs", "--sock", "{sock}", "--bootstrap", bootstrap, "--config", config, "--log-level", "error",
	}}
}

// virtiofsdSpecs are its settings that are tried: the size of the thread pool, and the
// cache mode. Without sandbox and seccomp, which cost it a little.
func virtiofsdSpecs(ctx context.Context, dir string) (specs []spec, err error) {
	fetch, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	virtiofsd, err := testguest.Program(fetch, "virtiofsd", "")
	if err != nil {
		return nil, err
	}
	for _, pool := range []string{"0", "1", "4"} {
		for _, cache := range []string{"auto", "always", "never"} {
			specs = append(specs, spec{name: "pool-" + pool + "-" + cache, label: theirs, queues: 1, dir: dir, env: virtiofsd.Env,
				argv: slices.Concat(virtiofsd.Argv, []string{
					"--socket-path", "{sock}", "--shared-dir", "{dir}", "--sandbox", "none", "--seccomp", "none",
					"--log-level", "off", "--thread-pool-size", pool, "--cache", cache,
				})})
		}
	}
	return specs, nil
}

// compareRows measures all rows with all back-ends.
func (s *settings) compareRows(ctx context.Context, work string) error {
	tree, err := s.makeTree(work, true)
	if err != nil {
		return err
	}
	var list []*backend
	defer func() {
		for _, b := range list {
			b.close()
		}
	}()
	launch := func(specs ...spec) error {
		for _, b := range specs {
			b.many = manyDir
			started, err := start(ctx, b, work, tree.dir, s.file)
			if err != nil {
				return err
			}
			list = append(list, started)
		}
		return nil
	}
	plan := slices.DeleteFunc(transportRows(), func(r row) bool { return !strings.HasPrefix(r.String(), s.only) })
	foreign, err := virtiofsdSpecs(ctx, tree.dir)
	if err != nil {
		fmt.Printf("no virtiofsd to compare with: %v\n", err)
	}
	if err := launch(foreign...); err != nil {
		return err
	}
	best, err := s.bestSettings(ctx, list, plan)
	if err != nil {
		return err
	}
	alone := s.rafsdSpec(oursAlone, 1, tree.bootstrap, tree.config, "--keeper", "off")
	err = launch(s.rafsdSpec(ours, 1, tree.bootstrap, tree.config), s.rafsdSpec(oursOff, 1, tree.bootstrap, tree.config, "--poll", "off"), alone)
	if err == nil && s.nydusd != "" {
		err = launch(s.nydusdSpec(tree.bootstrap, tree.config))
	}
	if err != nil {
		return err
	}
	for name, poll := range map[string]time.Duration{floor: vhostuser.PollAuto, floorOff: vhostuser.PollOff} {
		b, err := startNull(ctx, work, strings.ReplaceAll(name, " ", "-"), nullfs.Options{Queues: 1, Poll: poll, Hollow: true})
		if err != nil {
			return err
		}
		b.label = name
		list = append(list, b)
	}
	content, unmap, err := mapFile(filepath.Join(tree.dir, s.file))
	if err != nil {
		return err
	}
	defer unmap()
	own := list[slices.IndexFunc(list, func(b *backend) bool { return b.shown() == ours })]
	list = append(list, &backend{name: bareCopy, queues: 1, vm: own.vm, file: own.file, fh: own.fh, copy: content, stop: func() {}})

	samples, err := measure(ctx, s, list, plan, func(b *backend, r row) bool { return b.label == theirs && b.name != best[r] })
	if err != nil {
		return err
	}
	if s.csv != "" {
		if err := writeCSV(s.csv, samples); err != nil {
			return err
		}
	}
	c := newComparison(samples)
	c.print(os.Stdout)
	if s.out == "" {
		return nil
	}
	return errors.Join(c.writeCSV(filepath.Join(s.out, "transport.csv")),
		writeFile(filepath.Join(s.out, "transport.svg"), c.chart("Requests per second beside virtiofsd, one request queue; "+moment())))
}

// bestSettings finds for each row the quickest of the back-ends, in a few short rounds.
func (s *settings) bestSettings(ctx context.Context, list []*backend, plan []row) (map[row]string, error) {
	best := map[row]string{}
	if len(list) == 0 {
		return best, nil
	}
	probe := *s
	probe.rounds, probe.time, probe.patience = min(s.rounds, 4), min(s.time, 40*time.Millisecond), 0
	samples, err := measure(ctx, &probe, list, plan, nil)
	if err != nil {
		return nil, err
	}
	top := map[row]float64{}
	for _, r := range plan {
		for _, b := range list {
			c := cell{}
			for _, sm := range samples {
				if sm.row == r && sm.setting == b.name {
					c.samples = append(c.samples, sm)
				}
			}
			if v := c.median(rate); v > top[r] {
				top[r], best[r] = v, b.name
			}
		}
	}
	return best, nil
}
