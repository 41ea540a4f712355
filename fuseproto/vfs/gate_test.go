package vfs

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestGateLetsNobodyInOnceShut(t *testing.T) {
	var g gate
	g.init()
	if !g.enter(3, false) {
		t.Fatal("open gate refuses")
	}
	g.leave(3)
	g.shut()
	for shard := range uint32(2 * gateShards) {
		if g.enter(shard, false) {
			t.Errorf("shut gate lets shard %d in", shard)
		}
	}
	g.shut() // nobody is in: it returns
}

// TestGateCounts: who came, once each, also with others inside.
func TestGateCounts(t *testing.T) {
	var g gate
	g.init()
	var wg sync.WaitGroup
	for shard := range uint32(2 * gateShards) {
		wg.Go(func() {
			for i := range 1000 {
				g.enter(shard, i%2 == 1)
				g.leave(shard)
			}
		})
	}
	g.enter(0, false)
	wg.Wait()
	if n := g.came(); n != 2*gateShards*500+1 {
		t.Errorf("%d came, want %d", n, 2*gateShards*500+1)
	}
	g.leave(0)
	g.shut()
}

// Whoever is let in is gone before shut returns.
func TestGateWaitsForAll(t *testing.T) {
	for range 200 {
		var g gate
		g.init()
		var inside atomic.Int64
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for shard := range uint32(gateShards) {
			wg.Go(func() {
				<-begin
				for g.enter(shard, false) {
					inside.Add(1)
					inside.Add(-1)
					g.leave(shard)
				}
			})
		}
		close(begin)
		g.shut()
		if n := inside.Load(); n != 0 {
			t.Fatalf("%d inside a shut gate", n)
		}
		wg.Wait()
	}
}
