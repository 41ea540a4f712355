package httpapi

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/vhostuser"
)

// plainText is a payload that is sent as it is, in Prometheus' format.
type plainText []byte

// prometheusText is the media type of Prometheus' text format.
const prometheusText = "text/plain; version=0.0.4; charset=utf-8"

// page is an answer to Prometheus in the making. The samples of one metric follow each
// other, as the format wants it.
type page []byte

// metric begins a metric: kind is counter, gauge or histogram.
func (p *page) metric(name, kind, help string) {
	*p = append(*p, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
}

// sample appends a value. labels are names and values in turn.
func (p *page) sample(name string, value float64, labels ...string) {
	b := append(*p, name...)
	for i := 0; i < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		b = append(append(append(b, sep), labels[i]...), '=', '"')
		for _, c := range []byte(labels[i+1]) {
			switch c {
			case '\n':
				b = append(b, '\\', 'n')
			case '"', '\\':
				b = append(b, '\\', c)
			default:
				b = append(b, c)
			}
		}
		b = append(b, '"')
	}
	if len(labels) > 0 {
		b = append(b, '}')
	}
	b = append(b, ' ')
	b = strconv.AppendFloat(b, value, 'g', -1, 64)
	*p = append(b, '\n')
}

// histogram appends the samples of h, in seconds.
func (p *page) histogram(name string, h *vhostuser.Histogram, labels ...string) {
	var n uint64
	for i, c := range h.Count {
		n += c
		le := "+Inf"
		if i < vhostuser.LatencyBuckets-1 {
			le = strconv.FormatFloat(vhostuser.LatencyLimit(i).Seconds(), 'g', -1, 64)
		}
		p.sample(name+"_bucket", float64(n), append(slices.Clip(labels), "le", le)...)
	}
	p.sample(name+"_sum", time.Duration(h.Nanos).Seconds(), labels...)
	p.sample(name+"_count", float64(n), labels...)
}

// getPrometheus answers with all counters.
func (s *Server) getPrometheus(*http.Request, []byte) (any, error) {
	var p page
	v, info := BuildVersion(), s.service.Info()
	p.metric("rafsd_info", "gauge", "The daemon; its value is 1.")
	p.sample("rafsd_info", 1, "version", v.PackageVer, "commit", v.GitCommit, "id", info.ID, "state", string(info.State))
	p.metric("rafsd_mounts", "gauge", "Images and directories mounted.")
	p.sample("rafsd_mounts", float64(len(info.Mounts)))
	connected := 0.0
	if s.service.FrontEndIsConnected() {
		connected = 1
	}
	p.metric("rafsd_front_end_connected", "gauge", "Whether a VMM is connected.")
	p.sample("rafsd_front_end_connected", connected)
	p.queues(s.service.Vrings())
	p.session(s.service)
	images, directories := s.service.Summaries()
	p.images(images)
	p.directories(directories)
	return plainText(p), nil
}

func (p *page) queues(all []vhostuser.VringStats) {
	for _, m := range []struct {
		name, kind, help string
		of               func(q *vhostuser.VringStats) float64
	}{
		{"requests_total", "counter", "Requests taken.", func(q *vhostuser.VringStats) float64 { return float64(q.Requests) }},
		{"waited_total", "counter", "Requests that left the queue to wait for something.", func(q *vhostuser.VringStats) float64 { return float64(q.Waited) }},
		{"waiting", "gauge", "Requests that wait now.", func(q *vhostuser.VringStats) float64 { return float64(q.Waiting) }},
		{"kicks_total", "counter", "Wake-ups by the guest.", func(q *vhostuser.VringStats) float64 { return float64(q.Kicks) }},
		{"signals_total", "counter", "Interrupts for the guest.", func(q *vhostuser.VringStats) float64 { return float64(q.Signals) }},
		{"batches_total", "counter", "Publications of answers.", func(q *vhostuser.VringStats) float64 { return float64(q.Batches) }},
		{"broken_total", "counter", "Times that the queue was given up for what the guest did.", func(q *vhostuser.VringStats) float64 { return float64(q.Broken) }},
	} {
		p.metric("rafsd_queue_"+m.name, m.kind, m.help)
		for i := range all {
			p.sample("rafsd_queue_"+m.name, m.of(&all[i]), "queue", strconv.Itoa(i))
		}
	}
	p.metric("rafsd_queue_polls_total", "counter", "Times that the queue polled before it slept, by whether it found work.")
	for i := range all {
		p.sample("rafsd_queue_polls_total", float64(all[i].PollHits), "queue", strconv.Itoa(i), "found", "true")
		p.sample("rafsd_queue_polls_total", float64(all[i].PollMisses), "queue", strconv.Itoa(i), "found", "false")
	}
	p.metric("rafsd_queue_request_seconds", "histogram", "From when a request is taken until its answer is ready.")
	for i := range all {
		p.histogram("rafsd_queue_request_seconds", &all[i].Latency, "queue", strconv.Itoa(i))
	}
}

func (p *page) session(service Service) {
	c := service.Counters()
	ops := slices.Sorted(maps.Keys(c.Ops))
	for _, m := range []struct {
		name, help string
		of         func(i int) uint64
	}{
		{"requests_total", "FUSE requests.", func(i int) uint64 { return c.Ops[ops[i]].Requests }},
		{"errors_total", "FUSE requests answered with an errno, ENOENT and the like included.", func(i int) uint64 { return c.Ops[ops[i]].Errors }},
		{"waited_total", "FUSE requests that had to wait for something.", func(i int) uint64 { return c.Ops[ops[i]].WouldBlock }},
	} {
		p.metric("rafsd_fuse_"+m.name, "counter", m.help)
		for i, op := range ops {
			p.sample("rafsd_fuse_"+m.name, float64(m.of(i)), "op", op.String())
		}
	}
	for _, m := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"in_flight", "gauge", "FUSE requests being served.", c.InFlight},
		{"panics_total", "counter", "Requests that met a mistake of ours.", c.Panics},
		{"faults_total", "counter", "Requests that met memory that is no longer there.", c.Faults},
		{"dropped_replies_total", "counter", "Replies that could not be delivered.", c.Dropped},
	} {
		p.metric("rafsd_fuse_"+m.name, m.kind, m.help)
		p.sample("rafsd_fuse_"+m.name, float64(m.value))
	}
}

func (p *page) images(all []daemon.ImageSummary) {
	sum := func(n *[daemon.FSOps]uint64) (s uint64) {
		for _, x := range n {
			s += x
		}
		return s
	}
	for _, m := range []struct {
		name, help string
		of         func(m *daemon.ImageSummary) uint64
	}{
		{"requests_total", "Requests to the image.", func(m *daemon.ImageSummary) uint64 { return sum(&m.FS.Hits) }},
		{"errors_total", "Of these, those that failed, ENOENT and the like included.", func(m *daemon.ImageSummary) uint64 { return sum(&m.FS.Errors) }},
		{"read_bytes_total", "Bytes given to the guest.", func(m *daemon.ImageSummary) uint64 { return m.FS.DataRead }},
		{"cache_hits_total", "Reads that found everything in the cache.", func(m *daemon.ImageSummary) uint64 { return m.FS.WholeHits }},
		{"cache_misses_total", "Reads that had to wait for chunks.", func(m *daemon.ImageSummary) uint64 { return m.FS.Partial }},
		{"prefetched_bytes_total", "Bytes fetched before anyone asked.", func(m *daemon.ImageSummary) uint64 { return m.Prefetch.Bytes }},
		{"backend_reads_total", "Requests to the place that the blobs come from; images that share it share its counters.", func(m *daemon.ImageSummary) uint64 { return m.Backend.Reads }},
		{"backend_errors_total", "Of these, those that failed.", func(m *daemon.ImageSummary) uint64 { return m.Backend.Errors }},
		{"backend_bytes_total", "Bytes fetched from there.", func(m *daemon.ImageSummary) uint64 { return m.Backend.Bytes }},
	} {
		p.metric("rafsd_image_"+m.name, "counter", m.help)
		for i := range all {
			p.sample("rafsd_image_"+m.name, float64(m.of(&all[i])), "mountpoint", all[i].Mountpoint)
		}
	}
	p.metric("rafsd_image_request_seconds", "histogram", "Time that the image's file system takes for a request.")
	for i := range all {
		p.histogram("rafsd_image_request_seconds", &all[i].FS.Spread, "mountpoint", all[i].Mountpoint)
	}
}

func (p *page) directories(all []daemon.DirectorySummary) {
	for _, m := range []struct {
		name, kind, help string
		of               func(m *daemon.DirectorySummary) uint64
	}{
		{"requests_total", "counter", "Requests to the directory.", func(m *daemon.DirectorySummary) uint64 { return m.Requests }},
		{"nodes", "gauge", "Files that the guest knows.", func(m *daemon.DirectorySummary) uint64 { return uint64(m.Nodes) }},
		{"open_files", "gauge", "Files that the guest has open.", func(m *daemon.DirectorySummary) uint64 { return uint64(m.OpenFiles) }},
		{"idle_descriptors", "gauge", "Descriptors kept for files in no use.", func(m *daemon.DirectorySummary) uint64 { return uint64(m.Idle) }},
	} {
		p.metric("rafsd_directory_"+m.name, m.kind, m.help)
		for i := range all {
			p.sample("rafsd_directory_"+m.name, float64(m.of(&all[i])), "mountpoint", all[i].Mountpoint)
		}
	}
}

// waitingReply is a request in the answer to GET /debug/inflight.
type waitingReply struct {
	Op         string  `json:"op"`
	Unique     uint64  `json:"unique"`
	Age        float64 `json:"age_seconds"`
	Node       uint64  `json:"node"`
	PID        uint32  `json:"guest_pid"`
	Mountpoint string  `json:"mountpoint,omitempty"`
	Path       string  `json:"path,omitempty"`
	Offset     uint64  `json:"offset"`
	Size       uint32  `json:"size"`
	Blob       string  `json:"blob,omitempty"`
	Chunk      *uint32 `json:"chunk,omitempty"`
	BlobOffset *int64  `json:"blob_offset,omitempty"`
}

// getWaiting lists the guest's requests that wait, the oldest first.
func (s *Server) getWaiting(*http.Request, []byte) (any, error) {
	out := []waitingReply{}
	for _, w := range s.service.Inflight() {
		r := waitingReply{
			Op: w.Opcode.String(), Unique: w.Unique, Age: w.Age.Seconds(), Node: w.NodeID, PID: w.PID,
			Mountpoint: w.Mountpoint, Path: w.Path, Offset: w.Offset, Size: w.Size, Blob: w.Blob,
		}
		if w.Blob != "" {
			r.Chunk = &w.Chunk
			if w.BlobOffset >= 0 {
				r.BlobOffset = &w.BlobOffset
			}
		}
		out = append(out, r)
	}
	return out, nil
}
