package fuseproto_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// An Op that has served anything serves the next request like a fresh one: valid
// requests, damaged ones, waiting ones, ones without room, in any order.
func TestOpIsReusedWithoutATrace(t *testing.T) {
	const seed = 20
	rng := rand.New(rand.NewPCG(seed, seed))
	usedTree, used := guest(t)
	freshTree, fresh := guest(t)
	requests := everyRequest()
	for step := range 4000 {
		o := requests[rng.IntN(len(requests))]
		if o.op == fuseproto.OpDestroy && rng.IntN(5) > 0 {
			continue
		}
		unique := uint64(2 * step)
		request := fusetest.Request(o.op, unique, o.node, o.parts...)
		for range rng.IntN(3) { // the length and the unique stay: the client checks them
			if i := 16 + rng.IntN(len(request)-16); rng.IntN(2) == 0 {
				request[i] ^= 1 << rng.IntN(8)
			}
		}
		room := len(o.message(unique).Room())
		if rng.IntN(8) == 0 {
			room = rng.IntN(room + 100)
		}
		cut := rng.IntN(len(request) + 1)
		cutRoom := rng.IntN(room + 1)
		waits := rng.IntN(3) == 0
		mustWait := func(*fuseproto.Op) bool { return waits }
		usedTree.MustBlock, freshTree.MustBlock = mustWait, mustWait
		fresh.Op = new(fuseproto.Op)

		message := func() *fusetest.Message {
			m := fusetest.NewMessage(request, room)
			m.CutRequest(cut)
			m.CutRoom(cutRoom)
			return m
		}
		got, want := used.Send(message(), unique), fresh.Send(message(), unique)
		if got.Errno != want.Errno || got.None != want.None || !bytes.Equal(got.Body, want.Body) {
			t.Fatalf("seed %d step %d, %v: %v %x, want %v %x", seed, step, o.op, got.Errno, got.Body, want.Errno, want.Body)
		}
		if rng.IntN(10) == 0 {
			used.Init()
			fresh.Init()
		}
	}
	if used.Blocked == 0 || used.Blocked != fresh.Blocked {
		t.Errorf("%d and %d requests waited", used.Blocked, fresh.Blocked)
	}
}
