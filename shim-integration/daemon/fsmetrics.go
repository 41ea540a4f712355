package daemon

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend/live"
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/vhostuser"
)

// FSOp is an operation that an image's metrics tell apart, in nydusd's order.
type FSOp int

// The operations.
const (
	FSGetAttr FSOp = iota
	FSReadlink
	FSOpen
	FSRelease
	FSRead
	FSStatFS
	FSGetXattr
	FSListXattr
	FSOpenDir
	FSLookup
	FSReadDir
	FSReadDirPlus
	FSAccess // never comes: guests of virtio-fs check permissions themselves
	FSForget
	FSBatchForget // counted as forgets
	FSOps
)

// FSLatencyBuckets are up to 200 µs, 1, 20, 50, 500 ms, 1 s, 2 s, and above.
const FSLatencyBuckets = 8

var fsLatencyLimits = [FSLatencyBuckets - 1]time.Duration{
	200 * time.Microsecond, time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2 * time.Second,
}

// FSMetrics are the counters of one mounted image.
type FSMetrics struct {
	FilesAccounted, PatternAccounted, LatestAccounted bool // as the mount's configuration says

	Opens      int64 // files open now
	DataRead   uint64
	BlockCount [live.SizeBuckets]uint64 // reads by size asked for
	Hits       [FSOps]uint64
	Errors     [FSOps]uint64
	Micros     [FSOps]uint64 // time of all operations, estimated: see fsMeter
	Latency    [FSLatencyBuckets]uint64
	Spread     vhostuser.Histogram // the same times, finer
	WholeHits  uint64              // reads that found all they wanted in the cache
	Partial    uint64              // reads that had to wait for chunks
}

// FileMetrics are the counters of one file of a mounted image.
type FileMetrics struct {
	Ops, DataRead uint64
	BlockCount    [live.SizeBuckets]uint64
	Hits, Errors  [FSOps]uint64
	FirstRead     time.Time // zero if it was never read
}

// sampling is how many operations share one look at the clock. Two looks cost
// about as much as a tenth of an operation that is answered from memory, so one in
// sampling stands for all of them in the sums of time. Operations that had to wait
// for something are all timed.
const sampling = 16

// fsShards is how many sets of counters a meter has, so that queues served at the
// same time seldom write the same cache line.
const fsShards = 4

// fsMeter counts the operations on one image. Its methods take no lock and do not
// allocate, unless the configuration asks for figures of each file.
type fsMeter struct {
	shards [fsShards]struct {
		hits, errors, nanos [FSOps]atomic.Uint64
		latency             [FSLatencyBuckets]atomic.Uint64
		blocks              [live.SizeBuckets]atomic.Uint64
		data, whole, part   atomic.Uint64
		opens               atomic.Int64
		spread              vhostuser.Recorder
		_                   [64]byte
	}
	files *fileMeter // nil unless asked for
}

// begin starts the clock for an operation, or returns zero if this one is not
// timed.
func (m *fsMeter) begin(op *fuseproto.Op, what FSOp) (start time.Time) {
	if op.MayBlock() || m.shards[op.Shard()%fsShards].hits[what].Load()%sampling == 0 {
		return time.Now()
	}
	return start
}

// end counts an operation, unless it only found out that it has to wait.
func (m *fsMeter) end(op *fuseproto.Op, what FSOp, node uint64, start time.Time, err error) {
	if err == fuseproto.ErrWouldBlock {
		return
	}
	s := &m.shards[op.Shard()%fsShards]
	s.hits[what].Add(1)
	if err != nil {
		s.errors[what].Add(1)
	}
	if !start.IsZero() {
		took, weight := time.Since(start), uint64(1)
		if !op.MayBlock() {
			weight = sampling
		}
		s.nanos[what].Add(uint64(took) * weight)
		s.latency[fsLatencyBucket(took)].Add(weight)
		s.spread.Add(took, weight)
	}
	if m.files != nil {
		m.files.count(what, node, err)
	}
}

// read counts the data of a read.
func (m *fsMeter) read(op *fuseproto.Op, node uint64, asked uint32, got int) {
	s := &m.shards[op.Shard()%fsShards]
	s.blocks[live.SizeBucket(int64(asked))].Add(1)
	s.data.Add(uint64(got))
	if op.MayBlock() {
		s.part.Add(1)
	} else {
		s.whole.Add(1)
	}
	if m.files != nil {
		m.files.read(node, asked, got)
	}
}

func (m *fsMeter) opened(op *fuseproto.Op, n int64) { m.shards[op.Shard()%fsShards].opens.Add(n) }

func fsLatencyBucket(d time.Duration) int {
	for i, limit := range fsLatencyLimits {
		if d <= limit {
			return i
		}
	}
	return FSLatencyBuckets - 1
}

// metrics sums up.
func (m *fsMeter) metrics() FSMetrics {
	var out FSMetrics
	var nanos [FSOps]uint64
	for i := range m.shards {
		s := &m.shards[i]
		for op := range FSOps {
			out.Hits[op] += s.hits[op].Load()
			out.Errors[op] += s.errors[op].Load()
			nanos[op] += s.nanos[op].Load()
		}
		for b := range s.latency {
			out.Latency[b] += s.latency[b].Load()
		}
		for b := range s.blocks {
			out.BlockCount[b] += s.blocks[b].Load()
		}
		spread := s.spread.Read()
		out.Spread.Add(&spread)
		out.DataRead += s.data.Load()
		out.WholeHits += s.whole.Load()
		out.Partial += s.part.Load()
		out.Opens += s.opens.Load()
	}
	for op := range nanos {
		out.Micros[op] = nanos[op] / uint64(time.Microsecond)
	}
	out.Opens = max(out.Opens, 0) // a guest may release what it never opened
	if f := m.files; f != nil {
		out.FilesAccounted, out.PatternAccounted, out.LatestAccounted = f.all, f.pattern, f.latest
	}
	return out
}

// fileMeter keeps figures of each file, for images whose configuration asks for
// them: that costs a lock for each operation, and memory for each file used.
type fileMeter struct {
	all, pattern, latest bool // iostats_files, access_pattern, latest_read_files

	mu    sync.Mutex
	files map[uint64]*FileMetrics // guarded by mu
	fresh map[uint64]struct{}     // read since the last Latest; guarded by mu
}

func newFileMeter(all, pattern, latest bool) *fileMeter {
	if !all && !pattern && !latest {
		return nil
	}
	return &fileMeter{all: all, pattern: pattern, latest: latest, files: make(map[uint64]*FileMetrics), fresh: make(map[uint64]struct{})}
}

// file returns the figures of a file. f.mu is held.
func (f *fileMeter) file(node uint64) *FileMetrics {
	m := f.files[node]
	if m == nil {
		m = new(FileMetrics)
		f.files[node] = m
	}
	return m
}

func (f *fileMeter) count(what FSOp, node uint64, err error) {
	if !f.all {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.file(node)
	m.Ops++
	m.Hits[what]++
	if err != nil {
		m.Errors[what]++
	}
}

func (f *fileMeter) read(node uint64, asked uint32, got int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.latest {
		f.fresh[node] = struct{}{}
	}
	if !f.all && !f.pattern {
		return
	}
	m := f.file(node)
	if m.FirstRead.IsZero() {
		m.FirstRead = time.Now()
	}
	m.DataRead += uint64(got)
	m.BlockCount[live.SizeBucket(int64(asked))]++
}

// snapshot returns a copy of all figures.
func (f *fileMeter) snapshot() map[uint64]FileMetrics {
	out := make(map[uint64]FileMetrics)
	if f == nil {
		return out
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for node, m := range f.files {
		out[node] = *m
	}
	return out
}

// takeLatest returns the files read since it was last called.
func (f *fileMeter) takeLatest() map[uint64]struct{} {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh := f.fresh
	f.fresh = make(map[uint64]struct{})
	return fresh
}
