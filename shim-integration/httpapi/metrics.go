package httpapi

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/rafsd/rafsd/blobstore/backend/live"
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
)

// The answers about metrics, their keys in nydusd's order. Lists have a place for
// each operation (15) or bucket (8).

// fsReply is the answer to GET metrics.
type fsReply struct {
	FilesEnabled   bool                            `json:"files_account_enabled"`
	PatternEnabled bool                            `json:"access_pattern_enabled"`
	LatestEnabled  bool                            `json:"record_latest_read_files_enabled"`
	MeasureLatency bool                            `json:"measure_latency"`
	ID             string                          `json:"id"`
	Opens          int64                           `json:"nr_opens"`
	DataRead       uint64                          `json:"data_read"`
	BlockCount     [live.SizeBuckets]uint64        `json:"block_count_read"`
	Hits           [daemon.FSOps]uint64            `json:"fop_hits"`
	Errors         [daemon.FSOps]uint64            `json:"fop_errors"`
	Latency        [daemon.FSOps]uint64            `json:"fop_cumulative_latency_total"`
	LatencyDist    [daemon.FSLatencyBuckets]uint64 `json:"read_latency_dist"`
}

func fsMetrics(at string, m daemon.FSMetrics) fsReply {
	return fsReply{
		FilesEnabled: m.FilesAccounted, PatternEnabled: m.PatternAccounted, LatestEnabled: m.LatestAccounted,
		MeasureLatency: true, ID: at, Opens: m.Opens, DataRead: m.DataRead, BlockCount: m.BlockCount,
		Hits: m.Hits, Errors: m.Errors, Latency: m.Micros, LatencyDist: m.Latency,
	}
}

// fileReply is a file in the answer to GET metrics/files.
type fileReply struct {
	Ops        uint64                   `json:"total_fops"`
	DataRead   uint64                   `json:"data_read"`
	BlockCount [live.SizeBuckets]uint64 `json:"block_count_read"`
	Hits       [daemon.FSOps]uint64     `json:"fop_hits"`
	Errors     [daemon.FSOps]uint64     `json:"fop_errors"`
}

func fileMetrics(files map[uint64]daemon.FileMetrics) map[string]fileReply {
	out := make(map[string]fileReply, len(files))
	for inode, m := range files {
		if m.Ops > 0 {
			out[strconv.FormatUint(inode, 10)] = fileReply{m.Ops, m.DataRead, m.BlockCount, m.Hits, m.Errors}
		}
	}
	return out
}

// ranges turns inodes, in order, into [first,last] where they follow each other,
// and [one] where they do not.
func ranges(inodes []uint64) [][]uint64 {
	out := [][]uint64{}
	for i := 0; i < len(inodes); {
		first := i
		for i++; i < len(inodes) && inodes[i] == inodes[i-1]+1; i++ {
		}
		if i-first == 1 {
			out = append(out, []uint64{inodes[first]})
		} else {
			out = append(out, []uint64{inodes[first], inodes[i-1]})
		}
	}
	return out
}

// patternReply is a file in the answer to GET metrics/pattern.
type patternReply struct {
	Inode uint64 `json:"ino"`
	Reads uint64 `json:"nr_read"`
	Secs  int64  `json:"first_access_time_secs"`
	Nanos int    `json:"first_access_time_nanos"`
}

func patterns(files map[uint64]daemon.FileMetrics) []patternReply {
	out := []patternReply{}
	for _, inode := range slices.Sorted(maps.Keys(files)) {
		m := files[inode]
		var reads uint64
		for _, n := range m.BlockCount {
			reads += n
		}
		if reads > 0 {
			out = append(out, patternReply{inode, reads, m.FirstRead.Unix(), m.FirstRead.Nanosecond()})
		}
	}
	slices.SortStableFunc(out, func(a, b patternReply) int {
		return cmp.Or(cmp.Compare(a.Secs, b.Secs), cmp.Compare(a.Nanos, b.Nanos))
	})
	return out
}

// eventsReply is the answer to GET daemon/events.
type eventsReply struct {
	MaxErrors   int      `json:"max_errors"`
	TotalErrors uint64   `json:"total_errors"`
	MaxSize     int      `json:"max_size"`
	TotalSize   int      `json:"total_size"`
	Errors      []string `json:"errors"`
}

func events(texts []string, size int, total uint64) eventsReply {
	return eventsReply{logsink.MaxEvents, total, logsink.MaxEventSize, size, texts}
}

// backendReply is the answer to GET metrics/backend.
type backendReply struct {
	Type          string                                        `json:"backend_type"`
	Reads         uint64                                        `json:"read_count"`
	Errors        uint64                                        `json:"read_errors"`
	Bytes         uint64                                        `json:"read_amount_total"`
	Millis        uint64                                        `json:"read_cumulative_latency_millis_total"`
	MillisDist    [live.LatencyBuckets]uint64                   `json:"read_cumulative_latency_millis_dist"`
	Sizes         [live.SizeBuckets]uint64                      `json:"read_count_block_size_dist"`
	LatencyOfSize [live.SizeBuckets][live.LatencyBuckets]uint64 `json:"read_latency_sizes_dist"`
}

func backendMetrics(m daemon.BackendMetrics) backendReply {
	return backendReply{m.Type, m.Reads, m.Errors, m.Bytes, m.Millis, m.Latency, m.Sizes, m.LatencyOfSize}
}

// cacheReply is the answer to GET metrics/blobcache.
type cacheReply struct {
	Files            []string `json:"underlying_files"`
	Store            string   `json:"store_path"`
	PartialHits      uint64   `json:"partial_hits"`
	WholeHits        uint64   `json:"whole_hits"`
	Total            uint64   `json:"total"`
	Entries          int      `json:"entries_count"`
	PrefetchData     uint64   `json:"prefetch_data_amount"`
	PrefetchRequests uint64   `json:"prefetch_requests_count"`
	PrefetchWorkers  int      `json:"prefetch_workers"`
	PrefetchUnmerged uint64   `json:"prefetch_unmerged_chunks"`
	PrefetchMillis   int64    `json:"prefetch_cumulative_time_millis"`
	BeginSecs        int64    `json:"prefetch_begin_time_secs"`
	BeginMillis      int64    `json:"prefetch_begin_time_millis"`
	EndSecs          int64    `json:"prefetch_end_time_secs"`
	EndMillis        int64    `json:"prefetch_end_time_millis"`
	Buffered         uint64   `json:"buffered_backend_size"`
	AllReady         bool     `json:"data_all_ready"`
}

func cacheMetrics(m daemon.CacheMetrics) cacheReply {
	out := cacheReply{
		Files: m.Blobs, Store: m.Dir, PartialHits: m.Partial, WholeHits: m.Whole, Total: m.Partial + m.Whole,
		Entries: len(m.Blobs), PrefetchData: m.Prefetch.Bytes, PrefetchRequests: m.Prefetch.Requests, AllReady: m.AllReady,
	}
	if b := m.Prefetch.Begin; !b.IsZero() {
		out.BeginSecs, out.BeginMillis = b.Unix(), int64(b.Nanosecond()/1e6)
	}
	if e := m.Prefetch.End; !e.IsZero() {
		out.EndSecs, out.EndMillis = e.Unix(), int64(e.Nanosecond()/1e6)
		out.PrefetchMillis = e.Sub(m.Prefetch.Begin).Milliseconds()
	}
	if out.Files == nil {
		out.Files = []string{}
	}
	return out
}

// superblockReply is the answer to GET daemon/backend.
type superblockReply struct {
	Magic           uint32    `json:"magic"`
	Version         uint32    `json:"version"`
	Size            uint32    `json:"sb_size"`
	RootInode       uint64    `json:"root_inode"`
	ChunkSize       uint32    `json:"chunk_size"`
	BatchSize       uint32    `json:"batch_size"`
	Inodes          uint64    `json:"inodes_count"`
	Flags           string    `json:"flags"`
	InodeEntries    uint32    `json:"inode_table_entries"`
	InodeOffset     uint64    `json:"inode_table_offset"`
	BlobSize        uint32    `json:"blob_table_size"`
	BlobOffset      uint64    `json:"blob_table_offset"`
	ExtOffset       uint64    `json:"extended_blob_table_offset"`
	ExtEntries      uint32    `json:"extended_blob_table_entries"`
	DeviceCount     uint32    `json:"blob_device_table_count"`
	DeviceOffset    uint64    `json:"blob_device_table_offset"`
	PrefetchOffset  uint64    `json:"prefetch_table_offset"`
	PrefetchEntries uint32    `json:"prefetch_table_entries"`
	AttrTimeout     timeReply `json:"attr_timeout"`
	EntryTimeout    timeReply `json:"entry_timeout"`
	IsChunkDict     bool      `json:"is_chunk_dict"`
	MetaBlock       uint32    `json:"meta_blkaddr"`
	RootNid         uint64    `json:"root_nid"`
	ChunkOffset     uint64    `json:"chunk_table_offset"`
	ChunkTableSize  uint64    `json:"chunk_table_size"`
}

type timeReply struct {
	Secs  uint64 `json:"secs"`
	Nanos uint32 `json:"nanos"`
}

func superblock(i *rafs.Info) superblockReply {
	s := &i.Super
	out := superblockReply{
		Magic: s.Magic, Version: s.Version, Size: s.Size, RootInode: s.RootInode, ChunkSize: i.ChunkSize,
		Inodes: i.Inodes, Flags: strings.Join(i.FlagNames, " | "),
		InodeEntries: s.InodeTableEntries, InodeOffset: s.InodeTableOffset,
		BlobSize: s.BlobTableSize, BlobOffset: s.BlobTableOffset,
		ExtOffset: s.ExtendedBlobTableOffset, ExtEntries: s.ExtendedBlobTableEntries,
		DeviceCount: s.BlobDeviceTableCount, DeviceOffset: s.BlobDeviceTableOffset,
		PrefetchOffset: s.PrefetchTableOffset, PrefetchEntries: s.PrefetchTableEntries,
		MetaBlock: s.MetaBlock, ChunkOffset: s.ChunkTableOffset, ChunkTableSize: s.ChunkTableSize,
		AttrTimeout: timeReply{fuseproto.Forever.Sec, 0}, EntryTimeout: timeReply{fuseproto.Forever.Sec, 0},
	}
	if i.Version == 6 {
		out.RootNid = s.RootInode
	}
	if out.Flags == "" {
		out.Flags = fmt.Sprintf("%#x", i.Flags)
	}
	return out
}
