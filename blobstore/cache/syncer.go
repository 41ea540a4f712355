package cache

import (
	"sync/atomic"
	"time"
)

// toSync hands chunk i, which is ready, to the syncer.
func (v *View) toSync(i uint32) {
	v.mu.Lock()
	first := len(v.pending) == 0
	v.pending = append(v.pending, i)
	v.mu.Unlock()
	if !first {
		return
	}
	c := v.f.c
	c.mu.Lock()
	if _, ok := c.dirty[v]; !ok {
		c.dirty[v] = struct{}{}
		v.Retain() // given back by syncAll
	}
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// syncer makes chunks durable in batches until Close. What is pending then stays
// ready: a daemon that is told to end must not wait for a slow disk, and whoever
// opens the entry next hands these chunks to a syncer again.
func (c *Cache) syncer() {
	defer close(c.synced)
	defer c.each((*View).giveUp)
	for {
		select {
		case <-c.done:
			return
		case <-c.kick:
		}
		t := time.NewTimer(c.o.SyncDelay)
		select {
		case <-t.C:
		case <-c.done:
			t.Stop()
			return
		}
		c.each((*View).sync)
	}
}

// each does something with every view that has chunks pending, and gives back
// the reference that it had for that.
func (c *Cache) each(do func(*View)) {
	c.mu.Lock()
	views := c.dirty
	c.dirty = map[*View]struct{}{}
	c.mu.Unlock()
	for v := range views {
		do(v)
		if err := v.Release(); err != nil {
			c.o.Log.Warn("cache: close", "entry", v.Entry(), "err", err)
		}
	}
}

// giveUp forgets what is pending.
func (v *View) giveUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = nil
}

// sync makes the chunks durable that are pending now: first the data, then the
// marks, then the map. Marks of chunks that became ready meanwhile are for the
// next round. It is called by the syncer alone.
func (v *View) sync() {
	c := v.f.c
	v.mu.Lock()
	batch, drops := v.pending, v.drops
	v.pending = nil
	v.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := c.o.Fdatasync(v.f.data)
	if err == nil && !v.f.named {
		// A mark is worth nothing in a file without a name.
		if err = c.o.Fdatasync(c.dir.File()); err == nil {
			v.f.named = true
		}
	}
	v.mu.Lock()
	again := v.drops != drops
	v.mu.Unlock()
	if err == nil && again {
		// A chunk may have been dropped and written anew behind the sync.
		for _, i := range batch {
			v.toSync(i)
		}
		return
	}
	to, count := uint32(stateDurable), &c.stats.durable
	if err != nil {
		// What the kernel could not write it may forget: the bytes in memory are
		// good until they are evicted, those on disk are not ours.
		c.o.Log.Error("cache: chunks could not be made durable and are dropped", "entry", v.Entry(), "chunks", len(batch), "err", err)
		c.stats.syncErrors.Add(1)
		to, count = stateAbsent, nil
	}
	fault := Guard(func() error {
		for _, i := range batch {
			if atomic.CompareAndSwapUint32(v.state(i), v.ready, to) && count != nil {
				count.Add(1)
			}
		}
		return nil
	})
	if fault == nil && err == nil {
		fault = c.o.Fdatasync(v.f.slots)
	}
	if fault != nil {
		c.o.Log.Warn("cache: durable marks", "entry", v.Entry(), "err", fault)
	}
}
