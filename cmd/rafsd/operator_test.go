package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestOperatorSeesWhatWaits: while a read waits for the registry, everything that an
// operator can ask says for what, and the log says it unasked; so it is at the end.
func TestOperatorSeesWhatWaits(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	r.Down()
	settings := filepath.Join(shortDir(t), "rafsd.toml")
	if err := os.WriteFile(settings, []byte("[log]\nslow = \"100ms\"\n[daemon]\npoll = 20\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--settings", settings)
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	_, c := p.guest()
	file := someFile(t, v)
	done := make(chan error, 1)
	go func() { done <- tryFile(testContext(t), c, "/image", file) }()

	type waiting struct {
		Op, Mountpoint, Path, Blob string
		Age                        float64 `json:"age_seconds"`
		Size                       uint32
		Chunk                      *uint32
		BlobOffset                 *int64 `json:"blob_offset"`
	}
	var all []waiting
	waitUntil(t, "a read waits for a chunk", func() bool {
		all = nil
		status, body := p.call("GET", "/debug/inflight", "")
		if err := json.Unmarshal([]byte(body), &all); err != nil || status != 200 {
			t.Fatalf("%d %s: %v", status, body, err)
		}
		return len(all) > 0 && all[0].Blob != ""
	})
	w := all[0]
	if w.Op != "READ" || w.Mountpoint != "/image" || w.Path != file.Path || w.Size == 0 || w.Chunk == nil || w.BlobOffset == nil {
		t.Errorf("waiting: %+v, want a READ of %s", w, file.Path)
	}
	if !slices.Contains(v.blobIDs(t), w.Blob) {
		t.Errorf("it waits for blob %s, which the image does not have", w.Blob)
	}
	ops, err := p.mountAPI().Inflight(testContext(t))
	if err != nil || len(ops) == 0 || ops[0].GetPath() != file.Path || ops[0].GetBlob() != w.Blob ||
		ops[0].GetChunk() != *w.Chunk || ops[0].GetBlobOffset() != *w.BlobOffset || ops[0].GetMountpoint() != "/image" {
		t.Errorf("by ttrpc: %v, %v, want what HTTP said: %+v", ops, err, w)
	}
	if err := p.out.waitForLine("request is slow", "op=READ", "mountpoint=/image", "path="+file.Path, "blob="+w.Blob, "age=1"); err != nil {
		t.Error(err)
	}
	if n := p.metric(`rafsd_queue_waiting{queue="1"}`) + p.metric(`rafsd_queue_waiting{queue="2"}`); n < 1 {
		t.Errorf("%v requests wait by the metrics", n)
	}
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.out.waitForLine("slow request has ended", "op=READ", "path="+file.Path); err != nil {
		t.Error(err)
	}
	if n := p.metric(`rafsd_image_cache_misses_total{mountpoint="/image"}`); n < 1 {
		t.Errorf("%v misses by the metrics", n)
	}
	m, err := p.mountAPI().Metrics(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var counted uint64
	for _, q := range m.GetQueues() {
		var n uint64
		for _, k := range q.GetLatency().GetCounts() {
			n += k
		}
		if q.GetRequests() > 16 && (n < q.GetRequests()-16 || n > q.GetRequests()+16) {
			t.Errorf("queue %d: %d requests, and %d in the histogram", q.GetQueue(), q.GetRequests(), n)
		}
		if q.GetWaiting() != 0 {
			t.Errorf("queue %d: %d wait", q.GetQueue(), q.GetWaiting())
		}
		counted += q.GetRequests()
	}
	if counted == 0 {
		t.Error("the queues count no requests")
	}
	p.stop(syscall.SIGTERM)
}

// metric returns the value of a sample of GET /metrics; 0 if there is none.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	status, body := p.call("GET", "/metrics", "")
	if status != 200 {
		p.t.Fatalf("GET /metrics: %d %s", status, body)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			if err := json.Unmarshal([]byte(rest), &v); err != nil {
				p.t.Fatalf("%q: %v", line, err)
			}
			return v
		}
	}
	return 0
}

// TestMetricsPage: the page is what Prometheus reads: each metric has its lines
// together, behind its type, and histograms only grow.
func TestMetricsPage(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	at := `/a"b\c`
	if _, err := p.mountAPI().Mount(testContext(t), mountRequest(at, v.bootstrap, localConfig(v.blobs, shortDir(t)))); err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, body := p.mountDir("/dir", dir); status != 204 {
		t.Fatalf("mount of a directory: %d %s", status, body)
	}
	_, c := p.guest()
	checkFile(t, c, at, someFile(t, v))
	if _, err := readFile(testContext(t), c, "/dir/file"); err != nil {
		t.Error(err)
	}
	if n := p.metric(`rafsd_directory_requests_total{mountpoint="/dir"}`); n < 3 {
		t.Errorf("%v requests to the directory by the metrics", n)
	}
	status, body := p.call("GET", "/metrics", "")
	if status != 200 {
		t.Fatal(status)
	}
	if err := checkPage(body); err != nil {
		t.Errorf("%v\n%s", err, body)
	}
	for _, want := range []string{`mountpoint="/a\"b\\c"`, `rafsd_fuse_requests_total{op="LOOKUP"} `, `rafsd_front_end_connected 1`, `le="+Inf"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	p.stop(syscall.SIGTERM)
}

var (
	pageComment = regexp.MustCompile(`^# (HELP|TYPE) (rafsd_[a-z_]+) (\S.*)$`)
	pageSample  = regexp.MustCompile(`^(rafsd_[a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? ([0-9.e+-]+|\+Inf)$`)
)

func checkPage(body string) error {
	seen := make(map[string]bool)
	metric, kind := "", ""
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if m := pageComment.FindStringSubmatch(line); m != nil {
			if m[1] == "TYPE" {
				kind = m[3]
				continue
			}
			if metric = m[2]; seen[metric] {
				return errors.New("twice: " + metric)
			}
			seen[metric] = true
			continue
		}
		m := pageSample.FindStringSubmatch(line)
		if m == nil {
			return errors.New("no sample: " + line)
		}
		name := m[1]
		if kind == "histogram" {
			for _, end := range []string{"_bucket", "_sum", "_count"} {
				name = strings.TrimSuffix(name, end)
			}
		}
		if name != metric {
			return errors.New(line + " stands under " + metric)
		}
	}
	if len(seen) < 20 {
		return errors.New("few metrics")
	}
	return nil
}

// TestFullPipeHoldsNobodyUp: standard error is a pipe that is full before the guest
// comes, and slow requests are logged into it; reads go on as ever.
func TestFullPipeHoldsNobodyUp(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	filled := 0
	for err == nil {
		var n int
		n, err = w.Write(make([]byte, 4096))
		filled += n
	}
	if filled < 64<<10 {
		t.Fatalf("the pipe took %d bytes: %v", filled, err)
	}
	settings := filepath.Join(shortDir(t), "rafsd.toml")
	if err := os.WriteFile(settings, []byte("[log]\nslow = \"1us\"\nlevel = \"debug\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{stderr: w}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--settings", settings)
	w.Close()
	p.ready()
	p.mount("/", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	_, c := p.guest()
	checkTree(t, c, v)
	if n := p.metric(`rafsd_fuse_requests_total{op="READ"}`); n == 0 {
		t.Error("nothing was read")
	}
	p.stop(syscall.SIGTERM)
}

// TestTransportL36L46L47_Forgets: while a read of each request queue waits for the
// registry, what the guest forgets is served: on the high-priority queue, where it
// belongs, and on a request queue. The test's guest checks the length of everything that
// comes back.
func TestTransportL36L46L47_Forgets(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	r.Down()
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--queues", "2")
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, p.sock, vmm.Options{Wait: patience, RequestQueues: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	c, err := vm.Mount(ctx, vmm.Linux612)
	if err != nil {
		t.Fatal(err)
	}
	file := someFile(t, v)
	e, err := c.Resolve(ctx, "/image"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.Open(ctx, e.NodeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reads []*vmm.Pending
	for _, queue := range []int{1, 2} {
		read, err := c.On(queue).GoRead(ctx, e.NodeID, o.Fh, 0, 4096)
		if err != nil {
			t.Fatal(err)
		}
		reads = append(reads, read)
	}
	waiting := func() float64 {
		return p.metric(`rafsd_queue_waiting{queue="1"}`) + p.metric(`rafsd_queue_waiting{queue="2"}`)
	}
	waitUntil(t, "a read of each queue waits", func() bool { return waiting() == 2 })
	for _, on := range []*vmm.Client{c, c.On(1)} {
		before := p.metric(`rafsd_fuse_requests_total{op="FORGET"}`)
		if err := on.Forget(ctx, e.NodeID, 0); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the FORGET is served", func() bool { return p.metric(`rafsd_fuse_requests_total{op="FORGET"}`) == before+1 })
	}
	if n := p.metric(`rafsd_queue_requests_total{queue="0"}`); n == 0 {
		t.Error("nothing came to the high-priority queue")
	}
	if waiting() != 2 {
		t.Error("the reads did not wait as long")
	}
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	for _, read := range reads {
		if _, err := read.Wait(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := c.Bad(); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}

// TestTransportL55_EndsWithinASecond: also while a read waits, and with its socket.
func TestTransportL55_EndsWithinASecond(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	r.Down()
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	_, c := p.guest()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	file := someFile(t, v)
	go func() { done <- tryFile(ctx, c, "/image", file) }()
	waitUntil(t, "the read waits", func() bool {
		_, body := p.call("GET", "/debug/inflight", "")
		return strings.Contains(body, `"READ"`)
	})
	p.stop(syscall.SIGTERM) // which has a second
	if _, err := os.Lstat(p.sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	cancel() // a front-end whose back-end is gone waits for ever
	<-done
}
