package blobstore

import (
	"context"
	"errors"

	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/foreign"
)

// openForeign opens the data file that nydusd left of the blob, if there is one.
// The caller holds opening.
func (b *Blob) openForeign() {
	d, err := foreign.Open(b.s.o.Foreign, b.desc.ID, b.desc.UncompressedSize)
	if err != nil {
		b.s.o.Log.Warn("a cache file of nydusd is of no use", "blob", b.desc.ID, "err", err)
	}
	b.foreign = d
}

// adopt copies the chunks of [first, last] that are not ready, and that nydusd's
// data file has, into the cache, each after it was verified. Whatever is wrong
// with one of them, it is fetched instead. It may run for one chunk at several
// readers: they write the same bytes.
func (b *Blob) adopt(ctx context.Context, v *cache.View, first, last uint32) {
	if b.foreign == nil {
		return
	}
	for i := first; ctx.Err() == nil; i++ {
		if err := b.adoptOne(ctx, v, i); err != nil && !errors.Is(err, errNotThere) {
			b.s.warn(err)
		}
		if i == last {
			return
		}
	}
}

var errNotThere = errors.New("not in nydusd's cache")

func (b *Blob) adoptOne(ctx context.Context, v *cache.View, i uint32) error {
	var c Chunk
	err := cache.Guard(func() error {
		if v.Ready(i) {
			return errNotThere
		}
		if err := b.desc.Table.Chunk(i, &c); err != nil {
			return errNotThere // whoever fetches it will be told
		}
		var d cache.Desc
		b.desc.desc(&c, &d)
		if ok, err := v.Matches(i, &d); err != nil || !ok || b.desc.checkBytes(&c) != nil {
			return errNotThere
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.Flags&ChunkNoDigest != 0 && c.Flags&ChunkHasCRC == 0 {
		return errNotThere // it could not be told from any other bytes
	}
	if !b.foreign.Has(c.UncompressedOffset, c.UncompressedSize) {
		return errNotThere
	}
	need := int64(c.UncompressedSize)
	if err := b.s.mem.Acquire(ctx, need); err != nil {
		return errNotThere
	}
	defer b.s.mem.Release(need)
	p := getBuffer(int(c.UncompressedSize))
	defer putBuffer(p)
	if b.foreign.Read(*p, c.UncompressedOffset) != nil {
		return errNotThere // the file ends before it
	}
	if err := codec.Enter(ctx); err != nil {
		return errNotThere
	}
	err = b.desc.Verify(&c, *p) // whatever Options.Verify says
	codec.Leave()
	if err != nil {
		b.count(statRefused, 1)
		return errNotThere
	}
	if err := v.Store(i, *p); err != nil {
		return b.chunkError("store", &c, err)
	}
	b.count(statAdopted, 1)
	return nil
}
