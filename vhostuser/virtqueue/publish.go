package virtqueue

import "github.com/rafsd/rafsd/vhostuser/ringmem"

// Publish shows finished chains to the driver, all at once, and reports whether
// it wants to be signalled. All bytes of the replies must have been written. One
// goroutine at a time may publish, with a table at most MaxPublish chains.
func (q *Queue) Publish(done []Used) (signal bool) {
	if len(done) == 0 {
		return false
	}
	if q.table == nil {
		q.show(done)
		return q.wantsSignal()
	}
	q.table.publishing(done)
	q.show(done)
	q.table.published(q.used)
	return q.wantsSignal()
}

// show writes used elements and then their index.
func (q *Queue) show(done []Used) {
	for _, u := range done {
		// Before used.idx: the driver may offer the head again as soon as it
		// sees that, and the popper must then find it free.
		q.heads[u.Head].inFlight.Store(0)
		slot := 2 * uint(uint16(q.used)&q.mask)
		q.usedRing[slot] = uint32(u.Head)
		q.usedRing[slot+1] = u.Len
		q.used++
		if q.table != nil {
			q.table.step()
		}
	}
	// Release: replies and elements are visible before the index that covers
	// them. Partner: the driver's acquire of used.idx.
	ringmem.StoreRelease16(q.usedIdx, uint16(q.used))
	// Full barrier between the store of used.idx and the load of what the driver
	// asks for; its partner is the driver's barrier between that store and its
	// last look at used.idx before it sleeps.
	ringmem.Fence()
}

// wantsSignal is the notification test of virtio 2.7.10.
func (q *Queue) wantsSignal() bool {
	if !q.cfg.EventIdx {
		return ringmem.LoadAcquire16(q.availFlags)&availNoInterrupt == 0
	}
	old, now := q.signalled, uint16(q.used)
	tested := q.tested
	q.signalled, q.tested = now, true
	if !tested {
		return true
	}
	event := ringmem.LoadAcquire16(q.usedEvent)
	return now-event-1 < now-old
}

// EnableKicks asks the driver to kick for the next chain and then looks at the
// available ring once more. If it reports true there is work, and no kick may
// come for it.
func (q *Queue) EnableKicks() (more bool) {
	next := uint16(q.popped)
	// Full barrier between telling the driver and the last look; its partner is
	// the driver's barrier between the store of avail.idx and its test.
	if q.cfg.EventIdx {
		ringmem.StoreFence16(q.availEvent, next)
	} else {
		ringmem.StoreFence16(q.usedFlags, 0)
	}
	return ringmem.LoadAcquire16(q.availIdx) != next
}

// Pending reports whether the driver has offered chains that were not popped.
func (q *Queue) Pending() bool {
	return ringmem.LoadAcquire16(q.availIdx) != uint16(q.popped)
}

// DisableKicks tells the driver that no kicks are needed. With EVENT_IDX nothing
// needs to be said: as long as avail_event is left behind, the driver is silent.
func (q *Queue) DisableKicks() {
	if !q.cfg.EventIdx {
		ringmem.StoreRelease16(q.usedFlags, usedNoNotify)
	}
}
