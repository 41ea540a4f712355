package virtqueue_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
)

const ringSize = 16

// tableMemory returns memory for a table of one queue, aligned as it has to be.
func tableMemory() []byte { return make([]byte, virtqueue.InflightSize(1, ringSize)) }

func inflight(tb testing.TB, mem []byte) *virtqueue.Inflight {
	tb.Helper()
	t, err := virtqueue.NewInflightTable(mem, 1, ringSize)
	if err != nil {
		tb.Fatal(err)
	}
	return t.Queue(0)
}

// crashes checks what another process would find at any moment.
type crashes struct {
	t       *testing.T
	live    *bed
	driver  *vqtest.Driver
	mem     []byte // the table
	after   *bed   // of the other process
	checked int
}

// look is a crash: it copies everything, has another process recover, and holds what
// the driver gets to what it had outstanding. crash tells how often recovering
// itself may crash.
func (c *crashes) look(crash int) {
	rings, mem := slices.Clone(c.live.mem[:vqtest.Bytes(ringSize)]), slices.Clone(c.mem)
	c.recover(rings, mem, c.driver, crash)
}

func (c *crashes) recover(rings, mem []byte, d *vqtest.Driver, crash int) {
	c.checked++
	copy(c.after.mem, rings)
	driver := d.Clone(c.after.mem)
	f := inflight(c.t, mem)
	type moment struct{ rings, mem []byte }
	var moments []moment
	if crash > 0 {
		f.OnStep(func() {
			moments = append(moments, moment{slices.Clone(c.after.mem[:len(rings)]), slices.Clone(mem)})
		})
	}
	q, r, err := virtqueue.Recover(c.after.table, c.after.config(driver), f, c.checked%4)
	if err != nil {
		c.t.Fatal(err)
	}
	f.OnStep(nil)
	c.finish(q, r, driver)
	for _, m := range moments {
		c.recover(m.rings, m.mem, d, crash-1)
	}
}

// finish serves everything, and fails if the driver does not get each chain back
// once: Reap finds those that come twice.
func (c *crashes) finish(q *virtqueue.Queue, r virtqueue.Recovered, d *vqtest.Driver) {
	var chain virtqueue.Chain
	for _, p := range r.Replays {
		if err := q.Replay(p.Head, &chain); err != nil {
			c.t.Fatal(err)
		}
		q.Publish([]virtqueue.Used{{Head: chain.Head, Len: uint32(chain.Head) + 1}})
	}
	for {
		ok, err := q.Pop(&chain)
		if err != nil {
			c.t.Fatal(err)
		}
		if !ok {
			break
		}
		q.Publish([]virtqueue.Used{{Head: chain.Head, Len: uint32(chain.Head) + 1}})
	}
	for {
		u, ok, err := d.Reap()
		if err != nil {
			c.t.Fatal(err)
		}
		if !ok {
			break
		}
		if u.Len != u.ID+1 {
			c.t.Fatalf("head %d came back with length %d", u.ID, u.Len)
		}
	}
	if n := d.Outstanding(); n != 0 {
		c.t.Fatalf("%d chains lost", n)
	}
}

// TestTransportL51_CrashBetweenAnyTwoStores ends the process between any two stores
// of taking, of showing and of recovering, with heads that are offered again at any
// moment: nothing is lost, and nothing comes back twice.
func TestTransportL51_CrashBetweenAnyTwoStores(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	checked := 0
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 51))
		b := newBed(t)
		d := vqtest.New(b.mem, 0, ringSize, 65530, seed%2 == 0)
		c := &crashes{t: t, live: b, driver: d, mem: tableMemory(), after: newBed(t)}
		f := inflight(t, c.mem)
		q, err := virtqueue.NewTabled(b.table, b.config(d), 65530, f, 7)
		if err != nil {
			t.Fatal(err)
		}
		free := []uint16{0, 2, 4, 6, 8, 10, 12, 14}
		var held []virtqueue.Used
		var chain virtqueue.Chain
		offerOne := func() {
			if n := len(free); n > 0 {
				i := rng.IntN(n)
				offer(d, free[i])
				free = slices.Delete(free, i, i+1)
				d.Show()
			}
		}
		reap := func() {
			for {
				u, ok, err := d.Reap()
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if !ok {
					return
				}
				free = append(free, uint16(u.ID))
			}
		}
		pop := func() {
			ok, err := q.Pop(&chain)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if ok {
				held = append(held, virtqueue.Used{Head: chain.Head, Len: uint32(chain.Head) + 1})
			}
		}
		nested := false
		f.OnStep(func() {
			c.look(1)
			if nested || rng.IntN(3) > 0 {
				return
			}
			// Meanwhile the driver takes what it sees and offers it again, and the
			// goroutine that takes chains takes it.
			nested = true
			reap()
			offerOne()
			c.look(0)
			nested = false
		})
		for range 60 {
			switch rng.IntN(4) {
			case 0, 1:
				offerOne()
			case 2:
				nested = true // taking is done by one goroutine
				pop()
				nested = false
			case 3:
				if len(held) == 0 {
					break
				}
				n := 1 + rng.IntN(len(held))
				done := slices.Clone(held[:n])
				held = slices.Delete(held, 0, n)
				again := 0
				f.OnStep(func() {
					c.look(1)
					if again < 4 && rng.IntN(2) == 0 {
						again++
						f.OnStep(func() { c.look(0) })
						reap()
						for len(free) > 0 {
							offerOne()
						}
						for n := -1; n != len(held); pop() { // another goroutine, while this one publishes
							n = len(held)
						}
						f.OnStep(func() { c.look(1) })
					}
				})
				q.Publish(done)
				f.OnStep(func() { c.look(1) })
				reap()
			}
		}
		checked += c.checked
	}
	t.Logf("%d moments", checked)
}

// TestTransportL51_CrashOfAStart: between any two stores of a start, the table is that
// of the start before, as it was, or nobody's, or that of the new start, empty.
func TestTransportL51_CrashOfAStart(t *testing.T) {
	b, after := newBed(t), newBed(t)
	d := vqtest.New(b.mem, 0, ringSize, 100, true)
	mem := tableMemory()
	f := inflight(t, mem)
	q, err := virtqueue.NewTabled(b.table, b.config(d), 100, f, 1)
	if err != nil {
		t.Fatal(err)
	}
	var chain virtqueue.Chain
	for h := uint16(0); h < 8; h += 2 {
		offer(d, h)
	}
	d.Show()
	for range 4 {
		if ok, err := q.Pop(&chain); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	// The first life ends in the middle of a publication.
	var middle []byte
	f.OnStep(func() {
		if d.UsedIndex() == 101 && middle == nil {
			middle = slices.Clone(mem)
		}
	})
	q.Publish([]virtqueue.Used{{Head: 4, Len: 1}})
	copy(mem, middle)

	fresh := vqtest.New(b.mem, 0, ringSize, 7, true)
	seen := make(map[uint64]int)
	look := func() {
		now := inflight(t, slices.Clone(mem))
		seen[now.Generation()]++
		copy(after.mem, b.mem[:vqtest.Bytes(ringSize)])
		switch now.Generation() {
		case 0:
		case 1:
			if _, r, err := virtqueue.Recover(after.table, after.config(d), now, 0); err != nil || len(r.Replays) != 3 {
				t.Errorf("of the start before: %v, %v, want 3 in flight", r, err)
			}
		case 2:
			q, r, err := virtqueue.Recover(after.table, after.config(fresh), now, 0)
			if err != nil || len(r.Replays) != 0 || q.Base() != 7 || q.NextUsed() != 7 {
				t.Errorf("of the new start: %v, %v, base %d", r, err, q.Base())
			}
		default:
			t.Errorf("generation %d", now.Generation())
		}
	}
	f.OnStep(look)
	look()
	if _, err := virtqueue.NewTabled(b.table, b.config(fresh), 7, f, 2); err != nil {
		t.Fatal(err)
	}
	look()
	if seen[0] < 6 || seen[1] == 0 || seen[2] == 0 {
		t.Errorf("moments by generation: %v", seen)
	}
}

// TestTransportL51_CrashOfANote: a note is there wholly or not at all.
func TestTransportL51_CrashOfANote(t *testing.T) {
	mem := tableMemory()
	f := inflight(t, mem)
	type note struct {
		phase uint8
		errno int32
		text  string
	}
	notes := []note{{1, 0, "what was, before"}, {2, 17, "the result"}, {2, -3, ""}, {1, 5, string(bytes.Repeat([]byte("x"), virtqueue.NoteSize))}}
	had := note{}
	for _, n := range notes {
		look := func() {
			phase, errno, text := inflight(t, slices.Clone(mem)).Note(3)
			got := note{phase, errno, string(bytes.TrimRight(text, "\x00"))}
			if got != had && got != n {
				t.Errorf("%+v, want %+v or %+v", got, had, n)
			}
		}
		f.OnStep(look)
		f.SetNote(3, n.phase, n.errno, []byte(n.text))
		had = n
		look()
	}
}

// TestInflightStartsAnew: L23, what an earlier start left is not answered.
func TestInflightStartsAnew(t *testing.T) {
	b := newBed(t)
	d := vqtest.New(b.mem, 0, ringSize, 0, true)
	mem := tableMemory()
	f := inflight(t, mem)
	q, err := virtqueue.NewTabled(b.table, b.config(d), 0, f, 1)
	if err != nil {
		t.Fatal(err)
	}
	var chain virtqueue.Chain
	offer(d, 4)
	d.Show()
	if ok, err := q.Pop(&chain); !ok || err != nil {
		t.Fatal(ok, err)
	}
	clear(b.mem[:vqtest.Bytes(ringSize)])
	d = vqtest.New(b.mem, 0, ringSize, 0, true)
	if _, err = virtqueue.NewTabled(b.table, b.config(d), 0, f, 2); err != nil {
		t.Fatal(err)
	}
	q, r, err := virtqueue.Recover(b.table, b.config(d), inflight(t, mem), 0)
	if err != nil || len(r.Replays) != 0 || q.Base() != 0 || f.Generation() != 2 {
		t.Errorf("%v, %+v, base %d, generation %d", err, r, q.Base(), f.Generation())
	}
}

// TestTransportL50_Poison: who is in flight each time that a process ends is run
// alone, and refused in the end; its neighbours are not.
func TestTransportL50_Poison(t *testing.T) {
	b := newBed(t)
	d := vqtest.New(b.mem, 0, ringSize, 0, true)
	mem := tableMemory()
	q, err := virtqueue.NewTabled(b.table, b.config(d), 0, inflight(t, mem), 1)
	if err != nil {
		t.Fatal(err)
	}
	var chain virtqueue.Chain
	const poison = 4
	for h := uint16(0); h < 8; h += 2 {
		offer(d, h)
	}
	d.Show()
	for range 4 {
		if ok, err := q.Pop(&chain); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	deaths, refused := 1, []uint16(nil)
recovering:
	for {
		f := inflight(t, mem)
		q, r, err := virtqueue.Recover(b.table, b.config(d), f, 3)
		if err != nil {
			t.Fatal(err)
		}
		if !r.OneByOne && deaths < 2 { // all run at once, and one ends us
			deaths++
			continue
		}
		for _, p := range r.Replays {
			if p.Refuse {
				refused = append(refused, p.Head)
			} else {
				f.Try(p.Head)
				if p.Head == poison {
					deaths++
					continue recovering
				}
			}
			if err := q.Replay(p.Head, &chain); err != nil {
				t.Fatal(err)
			}
			q.Publish([]virtqueue.Used{{Head: p.Head, Len: uint32(p.Head) + 1}})
		}
		break
	}
	if deaths != 3 || !slices.Equal(refused, []uint16{poison}) {
		t.Errorf("%d processes ended, %v refused", deaths, refused)
	}
	for d.Outstanding() > 0 {
		if _, ok, err := d.Reap(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
}

// TestInflightNote: a note is there for who runs the request again, and gone when
// the head is used for another one.
func TestInflightNote(t *testing.T) {
	b := newBed(t)
	d := vqtest.New(b.mem, 0, ringSize, 0, true)
	mem := tableMemory()
	f := inflight(t, mem)
	q, err := virtqueue.NewTabled(b.table, b.config(d), 0, f, 1)
	if err != nil {
		t.Fatal(err)
	}
	var chain virtqueue.Chain
	for round := range 2 {
		offer(d, 4)
		d.Show()
		if ok, err := q.Pop(&chain); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if phase, _, _ := f.Note(4); phase != 0 {
			t.Errorf("round %d begins in phase %d", round, phase)
		}
		f.SetNote(4, 2, 17, []byte("what was done"))
		again := inflight(t, mem)
		if phase, errno, note := again.Note(4); phase != 2 || errno != 17 || !bytes.HasPrefix(note, []byte("what was done\x00")) {
			t.Errorf("%d, %d, %q", phase, errno, note)
		}
		q.Publish([]virtqueue.Used{{Head: 4, Len: 5}})
		if _, ok, err := d.Reap(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
}

// TestInflightState: a state that was written half does not take the place of the
// one before.
func TestInflightState(t *testing.T) {
	mem := tableMemory()
	table, err := virtqueue.NewInflightTable(mem, 1, ringSize)
	if err != nil {
		t.Fatal(err)
	}
	if s := table.State(); s != nil {
		t.Errorf("a new table has the state %q", s)
	}
	for i := range 5 {
		want := fmt.Appendf(nil, "state %d", i)
		if err := table.SetState(want); err != nil {
			t.Fatal(err)
		}
		if s := table.State(); !bytes.Equal(s, want) {
			t.Errorf("%q, want %q", s, want)
		}
	}
	at := bytes.Index(mem, []byte("state 4"))
	mem[at] ^= 1
	if s := table.State(); string(s) != "state 3" {
		t.Errorf("with the last one torn: %q", s)
	}
	if err := table.SetState(make([]byte, 4096)); !errors.Is(err, virtqueue.ErrSetup) {
		t.Errorf("a state of 4096 bytes: %v", err)
	}
}

// FuzzInflight: whatever is in the memory, recovering ends, and so does what comes
// after it.
func FuzzInflight(f *testing.F) {
	mem := tableMemory()
	inflight(f, mem)
	f.Add(mem[:64], uint16(0), uint64(0))
	binary.NativeEndian.PutUint32(mem[4096+32:], 64)
	f.Add(mem[4096:4096+1088], uint16(9), uint64(1)<<63)
	b := newBed(f)
	f.Fuzz(func(t *testing.T, patch []byte, at uint16, seq uint64) {
		mem := tableMemory()
		inflight(t, mem)
		copy(mem[int(at)%len(mem):], patch)
		table, err := virtqueue.NewInflightTable(mem, 1, ringSize)
		if err != nil {
			return
		}
		table.State()
		binary.NativeEndian.PutUint64(mem[4096+1088+256*3:], seq)
		binary.NativeEndian.PutUint32(mem[4096+1088+256*3+8:], 1)
		clear(b.mem[:vqtest.Bytes(ringSize)])
		d := vqtest.New(b.mem, 0, ringSize, 0, true)
		q, r, err := virtqueue.Recover(b.table, b.config(d), table.Queue(0), 3)
		if err != nil {
			return
		}
		var chain virtqueue.Chain
		for _, p := range r.Replays {
			if err := q.Replay(p.Head, &chain); err == nil {
				q.Publish([]virtqueue.Used{{Head: p.Head}})
			}
		}
		for range 2 * ringSize {
			if ok, err := q.Pop(&chain); !ok || err != nil {
				break
			}
			q.Publish([]virtqueue.Used{{Head: chain.Head}})
		}
	})
}

// BenchmarkTable takes chains and shows them again, so many at a time, without
// and with a table.
func BenchmarkTable(b *testing.B) {
	for _, batch := range []int{1, 8} {
		for _, table := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%d/table=%v", batch, table), func(b *testing.B) {
				bed := newBed(b)
				d, q := bed.queue(b, ringSize, 0, true)
				if table {
					var err error
					if q, err = virtqueue.NewTabled(bed.table, bed.config(d), 0, inflight(b, tableMemory()), 1); err != nil {
						b.Fatal(err)
					}
				}
				var chain virtqueue.Chain
				done := make([]virtqueue.Used, 0, batch)
				b.ReportAllocs()
				for n := 0; n < b.N; n += batch {
					for h := range uint16(batch) {
						offer(d, 2*h%ringSize)
					}
					d.Show()
					done = done[:0]
					for range batch {
						if ok, err := q.Pop(&chain); !ok || err != nil {
							b.Fatal(ok, err)
						}
						done = append(done, virtqueue.Used{Head: chain.Head, Len: 1})
					}
					q.Publish(done)
					for range batch {
						if _, ok, err := d.Reap(); !ok || err != nil {
							b.Fatal(ok, err)
						}
					}
				}
			})
		}
	}
}
