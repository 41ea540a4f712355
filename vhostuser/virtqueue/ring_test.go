package virtqueue_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
)

// offer makes a chain with one readable and one writable buffer available.
func offer(d *vqtest.Driver, head uint16) {
	d.Chain(head, r(data+uint64(head)*64, 16), w(data+(1<<19)+uint64(head)*64, 16))
	d.Offer(head)
}

// TestTransportL37_L41_RingSimulation runs both ends in one goroutine, so that a failure
// replays from its seed. Positions start just below the wrap.
func TestTransportL37_L41_RingSimulation(t *testing.T) {
	for seed := range uint64(40) {
		b := newBed(t)
		rng := rand.New(rand.NewPCG(seed, 0))
		d, q := b.queue(t, 32, 65530, seed%2 == 0)
		var heads []uint16 // free in the driver; a chain takes two entries
		for h := uint16(0); h < 32; h += 2 {
			heads = append(heads, h)
		}
		var held, staged []virtqueue.Used
		var c virtqueue.Chain
		reap := func() {
			for {
				u, ok, err := d.Reap()
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if !ok {
					return
				}
				if u.Len != u.ID+1 {
					t.Fatalf("seed %d: head %d came back with length %d", seed, u.ID, u.Len)
				}
				heads = append(heads, uint16(u.ID))
			}
		}
		for range 3000 {
			switch rng.IntN(4) {
			case 0:
				if n := len(heads); n > 0 {
					i := rng.IntN(n)
					offer(d, heads[i])
					heads = slices.Delete(heads, i, i+1)
					d.Show()
				}
			case 1:
				ok, err := q.Pop(&c)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if ok {
					held = append(held, virtqueue.Used{Head: c.Head, Len: uint32(c.Head) + 1})
				} else if q.Pending() || d.Available() != q.Base() {
					t.Fatalf("seed %d: nothing popped at %d, driver is at %d", seed, q.Base(), d.Available())
				}
			case 2:
				if n := len(held); n > 0 { // finish in any order
					i := rng.IntN(n)
					staged = append(staged, held[i])
					held = slices.Delete(held, i, i+1)
				}
			case 3:
				q.Publish(staged)
				staged = staged[:0]
				reap()
			}
		}
		q.Publish(append(staged, held...))
		reap()
		for ok := true; ok; {
			var err error
			if ok, err = q.Pop(&c); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			} else if ok {
				q.Publish([]virtqueue.Used{{Head: c.Head, Len: uint32(c.Head) + 1}})
			}
		}
		reap()
		if d.Outstanding() != 0 || len(heads) != 16 || q.NextUsed() != q.Base() || d.UsedIndex() != q.NextUsed() {
			t.Errorf("seed %d: %d outstanding, %d free heads, used %d, popped %d", seed, d.Outstanding(), len(heads), q.NextUsed(), q.Base())
		}
	}
}

func TestTransportL38_SignalAtUsedEvent(t *testing.T) {
	for _, start := range []uint16{0, 65533} {
		b := newBed(t)
		d, q := b.queue(t, 16, start, true)
		var c virtqueue.Chain
		serve := func() bool {
			offer(d, 0)
			d.Show()
			if ok, err := q.Pop(&c); !ok || err != nil {
				t.Fatalf("Pop = %v, %v", ok, err)
			}
			signal := q.Publish([]virtqueue.Used{{Head: 0}})
			if _, ok, err := d.Reap(); !ok || err != nil {
				t.Fatalf("Reap = %v, %v", ok, err)
			}
			return signal
		}
		d.ArmAt(start + 1000)
		if !serve() {
			t.Error("no signal at the first publication after a start")
		}
		d.ArmAt(start + 4)
		got := []bool{serve(), serve(), serve(), serve(), serve()}
		// used.idx goes 2, 3, 4, 5, 6: passing event 4 means reaching 5.
		if want := []bool{false, false, false, true, false}; !slices.Equal(got, want) {
			t.Errorf("start %d: signals %v, want %v", start, got, want)
		}
	}
}

// TestSignalAfterRebind: what the driver was told before is not relied on.
func TestSignalAfterRebind(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 16, 0, true)
	var c virtqueue.Chain
	serve := func() bool {
		offer(d, 0)
		d.Show()
		if ok, err := q.Pop(&c); !ok || err != nil {
			t.Fatalf("Pop = %v, %v", ok, err)
		}
		signal := q.Publish([]virtqueue.Used{{Head: 0}})
		if _, ok, err := d.Reap(); !ok || err != nil {
			t.Fatalf("Reap = %v, %v", ok, err)
		}
		return signal
	}
	d.ArmAt(1000)
	serve()
	if serve() {
		t.Fatal("a signal far from the event")
	}
	if err := q.Rebind(b.table); err != nil {
		t.Fatal(err)
	}
	if !serve() {
		t.Error("no signal at the first publication after Rebind")
	}
}

func TestSignalTestCoversTheWholeBatch(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 16, 65530, true)
	var c virtqueue.Chain
	batch := func(n uint16) bool {
		var done []virtqueue.Used
		for h := range n {
			offer(d, 2*h)
		}
		d.Show()
		for range n {
			if ok, err := q.Pop(&c); !ok || err != nil {
				t.Fatalf("Pop = %v, %v", ok, err)
			}
			done = append(done, virtqueue.Used{Head: c.Head})
		}
		signal := q.Publish(done)
		for range n {
			if _, ok, err := d.Reap(); !ok || err != nil {
				t.Fatalf("Reap = %v, %v", ok, err)
			}
		}
		return signal
	}
	batch(1)
	d.ArmAt(65533)
	if !batch(8) { // 65531 to 3, over the event and the wrap
		t.Error("no signal for a batch that passes the event")
	}
	if batch(8) {
		t.Error("a signal for an event that is behind")
	}
	if q.Publish(nil) {
		t.Error("a signal for nothing")
	}
}

func TestSignalsWithoutEventIdx(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 8, 0, false)
	var c virtqueue.Chain
	serve := func() bool {
		offer(d, 0)
		d.Show()
		if ok, err := q.Pop(&c); !ok || err != nil {
			t.Fatalf("Pop = %v, %v", ok, err)
		}
		return q.Publish([]virtqueue.Used{{Head: 0}})
	}
	d.Arm()
	if !serve() {
		t.Error("no signal although the driver waits")
	}
	d.Silence()
	d.Reap()
	if serve() {
		t.Error("a signal although the driver asks for none")
	}
}

func TestKickSuppression(t *testing.T) {
	for _, eventIdx := range []bool{true, false} {
		b := newBed(t)
		d, q := b.queue(t, 16, 65534, eventIdx)
		var c virtqueue.Chain
		if q.EnableKicks() {
			t.Error("work in an empty ring")
		}
		offer(d, 0)
		if !d.Show() {
			t.Errorf("EventIdx %v: no kick although the device sleeps", eventIdx)
		}
		q.DisableKicks()
		for h := uint16(2); h <= 10; h += 2 { // over the wrap
			offer(d, h)
			if d.Show() {
				t.Errorf("EventIdx %v: a kick although the device works", eventIdx)
			}
		}
		if !q.EnableKicks() {
			t.Errorf("EventIdx %v: six chains overlooked on the way to sleep", eventIdx)
		}
		for range 6 {
			if ok, err := q.Pop(&c); !ok || err != nil {
				t.Fatalf("Pop = %v, %v", ok, err)
			}
		}
		if q.EnableKicks() {
			t.Errorf("EventIdx %v: work in a drained ring", eventIdx)
		}
		offer(d, 12)
		if !d.Show() {
			t.Errorf("EventIdx %v: no kick although the device sleeps again", eventIdx)
		}
	}
}

func TestTransportL40_AvailEventStoreTouchesTwoBytes(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 8, 0x1234, true)
	end := d.UsedAt + 4 + 8*8
	for i := range 8 {
		b.mem[end-4+uint64(i)] = 0xaa
	}
	q.EnableKicks()
	want := []byte{0xaa, 0xaa, 0xaa, 0xaa, 0x34, 0x12, 0xaa, 0xaa}
	if got := b.mem[end-4 : end+4]; !slices.Equal(got, want) {
		t.Errorf("around avail_event: % x, want % x", got, want)
	}
}

func TestResumeGoesOn(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 16, 65533, true)
	var c virtqueue.Chain
	for h := uint16(0); h < 10; h += 2 {
		offer(d, h)
	}
	d.Show()
	for range 4 {
		if ok, err := q.Pop(&c); !ok || err != nil {
			t.Fatalf("Pop = %v, %v", ok, err)
		}
	}
	q.Publish([]virtqueue.Used{{Head: 4, Len: 5}})
	p := q.Progress()
	if want := (virtqueue.Progress{Avail: 1, Used: 65534, InFlight: []uint16{0, 2, 6}}); p.Avail != want.Avail || p.Used != want.Used || !slices.Equal(p.InFlight, want.InFlight) {
		t.Fatalf("Progress = %+v, want %+v", p, want)
	}
	q2, err := virtqueue.Resume(b.table, b.config(d), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := q2.Progress(); !slices.Equal(got.InFlight, p.InFlight) || got.Avail != p.Avail || got.Used != p.Used {
		t.Errorf("after Resume: %+v, want %+v", got, p)
	}
	for _, h := range []uint16{6, 0, 2} {
		if err := q2.Replay(h, &c); err != nil || c.Head != h || c.ReadLen != 16 {
			t.Fatalf("Replay(%d) = %v, %+v", h, err, c)
		}
		if !q2.Publish([]virtqueue.Used{{Head: h}}) && h == 6 {
			t.Error("no signal at the first publication after Resume")
		}
	}
	if err := q2.Replay(2, &c); !errors.Is(err, virtqueue.ErrSetup) {
		t.Errorf("Replay of a head that is not in flight: %v", err)
	}
	if ok, err := q2.Pop(&c); !ok || err != nil || c.Head != 8 {
		t.Fatalf("Pop after Resume = %v, %v, head %d, want 8", ok, err, c.Head)
	}
	q2.Publish([]virtqueue.Used{{Head: 8}})
	for range 5 {
		if _, ok, err := d.Reap(); !ok || err != nil {
			t.Fatalf("Reap = %v, %v", ok, err)
		}
	}
	if d.Outstanding() != 0 {
		t.Errorf("%d chains lost", d.Outstanding())
	}
}

func TestResumeRefuses(t *testing.T) {
	b := newBed(t)
	d := vqtest.New(b.mem, 0, 4, 0, true)
	for name, inFlight := range map[string][]uint16{
		"head out of range": {4},
		"head twice":        {1, 2, 1},
		"more than size":    {0, 1, 2, 3, 0},
	} {
		if _, err := virtqueue.Resume(b.table, b.config(d), virtqueue.Progress{InFlight: inFlight}); !errors.Is(err, virtqueue.ErrSetup) {
			t.Errorf("%s: %v, want ErrSetup", name, err)
		}
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 64, 0, true)
	descs := []vqtest.Desc{r(data, 40), r(data+64, 40), w(data+128, 16)}
	for i := range uint64(32) {
		descs = append(descs, w(data+4096+8192*i, 4096))
	}
	d.Desc(0, d.Table(tableAt, memGPA+tableAt, descs...))
	var c virtqueue.Chain
	done := make([]virtqueue.Used, 1)
	if n := testing.AllocsPerRun(200, func() {
		d.Offer(0)
		d.Show()
		if ok, err := q.Pop(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		done[0] = virtqueue.Used{Head: c.Head, Len: 16}
		q.Publish(done)
		q.EnableKicks()
		if _, ok, err := d.Reap(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per request, want 0", n)
	}
}

func BenchmarkPopPublish(b *testing.B) {
	for name, pages := range map[string]int{"getattr": 0, "read-128k": 32} {
		b.Run(name, func(b *testing.B) {
			bed := newBed(b)
			d, q := bed.queue(b, 64, 0, true)
			descs := []vqtest.Desc{r(data, 40), r(data+64, 16), w(data+128, 16), w(data+256, 104)}
			for i := range uint64(pages) {
				descs = append(descs, w(data+4096+8192*i, 4096))
			}
			d.Desc(0, d.Table(tableAt, memGPA+tableAt, descs...))
			var c virtqueue.Chain
			done := make([]virtqueue.Used, 1)
			b.ReportAllocs()
			for b.Loop() {
				d.Offer(0)
				d.Show()
				if ok, err := q.Pop(&c); !ok || err != nil {
					b.Fatal(ok, err)
				}
				done[0] = virtqueue.Used{Head: c.Head, Len: 16}
				q.Publish(done)
				if _, ok, err := d.Reap(); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
