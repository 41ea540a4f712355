package daemon

import (
	"context"
	"log/slog"
	"path"
	"sync"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/passthrough"
)

// InflightOp is a request of the guest that waits, and what for.
type InflightOp struct {
	fuseproto.Waiting
	Mountpoint string // "" if it is for no mount, or for one that is gone
	// Path is that of the file in the mount, or of the entry that is asked for; ""
	// if it is not known.
	Path string
	// Blob is the id of the blob of which Chunk is waited for, and BlobOffset where
	// that chunk is stored in it, -1 if the image does not say. "" if it waits for
	// something else.
	Blob       string
	Chunk      uint32
	BlobOffset int64
}

// Inflight lists the guest's requests that wait for something, the oldest first.
func (d *Daemon) Inflight() []InflightOp {
	waiting := d.server.Waiting()
	out := make([]InflightOp, len(waiting))
	nodes := make(map[*image][]uint64)
	for i, w := range waiting {
		out[i] = InflightOp{Waiting: w, BlobOffset: -1}
		m, node, ok := d.tree.Locate(w.NodeID)
		if !ok {
			continue
		}
		out[i].Mountpoint = m.Path
		if im, ok := m.FS.(*image); ok {
			nodes[im] = append(nodes[im], node)
		}
	}
	// One walk through each image for all that waits there.
	for im, list := range nodes {
		im.findPaths(list)
	}
	for i := range out {
		d.explain(&out[i])
	}
	return out
}

// explain fills in what o waits for, and its path if that is known by now.
func (d *Daemon) explain(o *InflightOp) {
	m, node, ok := d.tree.Locate(o.NodeID)
	if !ok {
		return
	}
	switch fs := m.FS.(type) {
	case *image:
		o.Path = fs.paths.get(node)
		if o.Opcode == fuseproto.OpRead {
			fs.explain(o, node)
		}
	case *passthrough.FS:
		o.Path = fs.Path(node)
	}
	if o.Name != "" && o.Path != "" {
		o.Path = path.Join(o.Path, o.Name)
	}
}

// explain fills in the chunk that a read of node waits for.
func (m *image) explain(o *InflightOp, node uint64) {
	m.looked.RLock()
	defer m.looked.RUnlock()
	if m.closed || !m.FS.Image().ChunksIndexed() {
		return
	}
	// An error is the request's to tell of.
	if c, ok, err := m.FS.Missing(node, o.Offset, uint64(o.Size)); err == nil && ok {
		o.Blob, o.Chunk, o.BlobOffset = c.Blob, c.Chunk, c.Offset
	}
}

// knownPaths are paths of an image's files that somebody has asked for. An image never
// changes, so they hold for its life.
type knownPaths struct {
	mu    sync.Mutex
	paths map[uint64]string // "" for nodes that were looked for in vain; guarded by mu
}

const (
	// maxKnownPaths bounds how many are kept.
	maxKnownPaths = 1024
	// maxPathWalk bounds the names that one search goes through.
	maxPathWalk = 200_000
)

func (k *knownPaths) get(node uint64) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.paths[node]
}

// findPaths makes the paths of nodes known, as far as a search of some length finds
// them. No two searches of an image run at the same time.
func (m *image) findPaths(nodes []uint64) {
	m.looked.RLock()
	defer m.looked.RUnlock()
	if m.closed {
		return
	}
	k := &m.paths
	k.mu.Lock()
	defer k.mu.Unlock()
	var unknown []uint64
	for _, n := range nodes {
		if _, ok := k.paths[n]; !ok {
			unknown = append(unknown, n)
		}
	}
	if len(unknown) == 0 {
		return
	}
	found, err := m.FS.Paths(unknown, maxPathWalk)
	if err != nil {
		return // a damaged image; its requests tell
	}
	if k.paths == nil || len(k.paths)+len(unknown) > maxKnownPaths {
		k.paths = make(map[uint64]string)
	}
	for _, n := range unknown {
		k.paths[n] = found[n]
	}
}

// logSlow logs a request that has waited for long.
func (d *Daemon) logSlow(w fuseproto.Waiting, over bool, suppressed uint64) {
	o := InflightOp{Waiting: w, BlobOffset: -1}
	text := "request is slow"
	if over {
		text = "slow request has ended"
	}
	m, node, ok := d.tree.Locate(w.NodeID)
	if ok {
		o.Mountpoint = m.Path
		if im, isImage := m.FS.(*image); isImage {
			im.findPaths([]uint64{node})
		}
		d.explain(&o)
	}
	attrs := []slog.Attr{
		slog.String("op", o.Opcode.String()), slog.Uint64("unique", o.Unique), slog.Duration("age", o.Age),
		slog.String("mountpoint", o.Mountpoint), slog.Uint64("node", o.NodeID), slog.String("path", o.Path),
	}
	if o.Size > 0 {
		attrs = append(attrs, slog.Uint64("offset", o.Offset), slog.Uint64("size", uint64(o.Size)))
	}
	if o.Blob != "" && !over { // at the end it waits for nothing
		attrs = append(attrs, slog.String("blob", o.Blob), slog.Uint64("chunk", uint64(o.Chunk)), slog.Int64("blob_offset", o.BlobOffset))
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Uint64("suppressed", suppressed))
	}
	d.log.LogAttrs(context.Background(), slog.LevelWarn, text, attrs...)
}
