package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/internal/vmm"
)

// coldFile is the file whose fetch hangs. Its READs are as many as a guest's read-ahead
// has on its way.
const (
	coldFile  = "cold"
	coldReads = 8
	coldSize  = 128 << 10
)

// hanging is a registry with an image whose cold file it does not give while it hangs.
type hanging struct {
	*testregistry.Registry
	bootstrap string
	storage   map[string]any
}

func (s *settings) hangingImage(work string) (*hanging, error) {
	dir := filepath.Join(work, "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	tree := testimage.NewTree()
	tree.FileOf("/"+s.file, testimage.Random(fileSize, 1))
	tree.FileOf("/"+coldFile, testimage.Random(coldReads*coldSize, 2))
	img, err := tree.Write(dir, testimage.Options{Compressor: testimage.Zstd, ChunkSize: coldSize})
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	r, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		return nil, err
	}
	blobs, err := os.ReadDir(img.BlobDir)
	for _, e := range blobs {
		data, readErr := os.ReadFile(filepath.Join(img.BlobDir, e.Name()))
		if readErr != nil {
			err = readErr
			break
		}
		r.AddBlobAs(e.Name(), data)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return &hanging{r, img.Bootstrap, map[string]any{"scheme": "http", "host": r.Host(), "repo": "library/bench"}}, nil
}

// blocked measures requests that wait for nothing while the READs of another file, in
// the same queue, wait for a registry that does not answer; and, turn by turn, the same
// where nothing waits.
func (s *settings) blocked(ctx context.Context, work string) error {
	h, err := s.hangingImage(work)
	if err != nil {
		return err
	}
	defer h.Close()
	programs := map[string]func(string, string) spec{ours: func(bootstrap, config string) spec { return s.rafsdSpec(ours, 1, bootstrap, config) }}
	if s.nydusd != "" {
		programs[nydusds] = s.nydusdSpec
	}
	for name, program := range programs {
		if err := s.blockedOf(ctx, filepath.Join(work, name), h, program); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s *settings) blockedOf(ctx context.Context, work string, h *hanging, program func(bootstrap, config string) spec) error {
	var list []*backend
	defer func() {
		for _, b := range list {
			b.close()
		}
	}()
	for _, name := range []string{"free", "held"} {
		dir := filepath.Join(work, name)
		text, err := imageConfig(filepath.Join(dir, "cache"), "registry", h.storage)
		if err != nil {
			return err
		}
		config := filepath.Join(dir, "config.json")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
		b, err := start(ctx, program(h.bootstrap, config), dir, "", s.file)
		if err != nil {
			return err
		}
		list = append(list, b)
	}
	free, held := list[0], list[1]
	cold, err := held.client.Resolve(ctx, coldFile)
	if err != nil {
		return err
	}
	open, err := held.client.Open(ctx, cold.NodeID, 0)
	if err != nil {
		return err
	}
	var reads []vmm.HeldRead
	for i := range coldReads {
		reads = append(reads, vmm.HeldRead{NodeID: cold.NodeID, Fh: open.Fh, Offset: uint64(i) * coldSize, Size: coldSize})
	}
	rows := []row{{op: vmm.OpGetattr, inFlight: 4, queues: 1}, {op: vmm.OpLookup, inFlight: 4, queues: 1},
		{op: vmm.OpRead, size: 4 << 10, kind: random, inFlight: 4, queues: 1}, {op: vmm.OpRead, size: 128 << 10, inFlight: 4, queues: 1}}
	loaders := map[*backend][]*vmm.Loader{}
	for _, b := range list {
		for i, r := range rows {
			load := b.load(r, 0)
			if b == held && i == 0 { // the held READs are those of the first load
				load.Held = reads
			}
			l, err := b.vm.NewLoader(load)
			if err != nil {
				return err
			}
			loaders[b] = append(loaders[b], l)
		}
	}
	stop := h.Fail(testregistry.Fault{Kind: testregistry.Hang, Delay: time.Minute})
	defer stop()
	samples := map[*backend][]cell{free: make([]cell, len(rows)), held: make([]cell, len(rows))}
	began, returned := time.Now(), 0
	for round := 0; round < 2 || time.Since(began) < s.held; round++ {
		for i := range rows {
			for k := range list {
				b := list[(k+round)%2]
				r, err := b.run(ctx, loaders[b][i], 100*time.Millisecond)
				if err != nil {
					return err
				}
				if i == 0 && b == held {
					returned = r.Returned
				}
				if round > 0 {
					samples[b][i].samples = append(samples[b][i].samples, sample{Result: r})
				}
			}
		}
	}
	long := time.Since(began)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d READs of another file waited for %v, %d of them were answered\nload\tp50 free / held\tp99 free / held\tp99 held to free\trate held to free\n",
		coldReads, long.Round(time.Second), returned)
	for i, r := range rows {
		c := comparison{cells: map[row]map[string]cell{r: {"free": samples[free][i], "held": samples[held][i]}}}
		f, x := samples[free][i], samples[held][i]
		fmt.Fprintf(t, "%s\t%.1f / %.1f\t%.1f / %.1f\t%v\t%v\n", r, f.median(p50), x.median(p50), f.median(p99), x.median(p99),
			c.ratio(r, "held", "free", p99), c.ratio(r, "held", "free", rate))
	}
	return t.Flush()
}
