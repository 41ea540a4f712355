package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/internal/vmm"
)

// imageCounts is how many images are mounted.
var imageCounts = []int{1, 10, 100}

// images measures daemons with more and more images mounted, by requests to the first
// image, and by GETATTR and LOOKUP that go from image to image. (READ would too, but of
// more data than the processor's caches hold, which is not what is asked here.)
func (s *settings) images(ctx context.Context, work string) error {
	const size = 64 << 10
	most := imageCounts[len(imageCounts)-1]
	type made struct{ bootstrap, config string }
	var all []made
	for i := range most {
		tree := testimage.NewTree()
		tree.FileOf("/"+s.file, testimage.Random(size, uint64(i)))
		bootstrap, config, err := makeImage(work, fmt.Sprintf("image-%d", i), tree)
		if err != nil {
			return err
		}
		all = append(all, made{bootstrap, config})
	}
	var list []*backend
	defer func() {
		for _, b := range list {
			b.close()
		}
	}()
	nodes := map[*backend]struct{ files, dirs []uint64 }{}
	for _, n := range imageCounts {
		name := fmt.Sprintf("%d images", n)
		dir := filepath.Join(work, fmt.Sprint(n)) // sockets of the API stand beside each other
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		api := filepath.Join(dir, "api.sock")
		b := s.rafsdSpec(name, 1, all[0].bootstrap, all[0].config, "--virtual-mountpoint", "/0", "--apisock", api)
		started, err := start(ctx, b, work, "", "0/"+s.file)
		if err != nil {
			return err
		}
		list = append(list, started)
		for i := 1; i < n; i++ {
			config, err := os.ReadFile(all[i].config)
			if err == nil {
				err = mountByAPI(ctx, api, fmt.Sprintf("/%d", i), all[i].bootstrap, string(config))
			}
			if err != nil {
				return err
			}
		}
		at := nodes[started]
		for i := range n {
			dir, err := started.client.Resolve(ctx, fmt.Sprint(i))
			if err != nil {
				return err
			}
			file, err := started.client.Lookup(ctx, dir.NodeID, s.file)
			if err == nil {
				_, err = started.client.Read(ctx, file.NodeID, 0, 0, size)
			}
			if err != nil {
				return fmt.Errorf("image %d of %d: %w", i, n, err)
			}
			at.files, at.dirs = append(at.files, file.NodeID), append(at.dirs, dir.NodeID)
		}
		nodes[started] = at
	}
	plan := []row{{op: vmm.OpGetattr, inFlight: 1, queues: 1}, {op: vmm.OpLookup, inFlight: 1, queues: 1}, {op: vmm.OpRead, size: 4 << 10, kind: random, inFlight: 1, queues: 1},
		{op: vmm.OpGetattr, inFlight: 16, queues: 1}, {op: vmm.OpLookup, inFlight: 16, queues: 1}, {op: vmm.OpRead, size: 4 << 10, kind: random, inFlight: 16, queues: 1}}
	for _, b := range list {
		b.nodes = func(r row) []uint64 {
			switch r.op {
			case vmm.OpLookup:
				return nodes[b].dirs
			case vmm.OpGetattr:
				return nodes[b].files
			}
			return nil
		}
	}
	samples, err := measure(ctx, s, list, plan, nil)
	if err != nil {
		return err
	}
	c := newComparison(samples)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "load\tp50, 1 / 10 / 100 images\tp99\tp50, 10 to 1\tp50, 100 to 1\tp99, 100 to 1\tCPU, 100 to 1")
	for _, r := range plan {
		fmt.Fprint(t, r)
		for _, figure := range []func(sample) float64{p50, p99} {
			sep := "\t"
			for _, b := range list {
				fmt.Fprintf(t, "%s%.1f", sep, c.cells[r][b.shown()].median(figure))
				sep = " / "
			}
		}
		one := list[0].shown()
		fmt.Fprintf(t, "\t%v\t%v\t%v\t%v\n", c.ratio(r, list[1].shown(), one, p50), c.ratio(r, list[2].shown(), one, p50),
			c.ratio(r, list[2].shown(), one, p99), c.ratio(r, list[2].shown(), one, backCPU))
	}
	return t.Flush()
}

// mountByAPI mounts an image in a running rafsd.
func mountByAPI(ctx context.Context, api, mountpoint, bootstrap, config string) error {
	body, err := json.Marshal(map[string]string{"fs_type": "rafs", "source": bootstrap, "config": config})
	if err != nil {
		return err
	}
	resp, err := callAPI(ctx, api, http.MethodPost, "/api/v1/mount?mountpoint="+url.QueryEscape(mountpoint), string(body))
	if err != nil {
		return fmt.Errorf("mount %s: %w: %s", mountpoint, err, resp)
	}
	return nil
}

// callAPI sends a request to the API at a socket and wants it to succeed.
func callAPI(ctx context.Context, api, method, path, body string) (answer string, err error) {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", api)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://unix"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return string(text), err
}
