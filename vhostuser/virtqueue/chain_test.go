package virtqueue_test

import (
	"errors"
	"math"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
)

func r(addr uint64, n uint32) vqtest.Desc { return vqtest.Desc{Addr: addr, Len: n} }
func w(addr uint64, n uint32) vqtest.Desc {
	return vqtest.Desc{Addr: addr, Len: n, Flags: vqtest.Write}
}

const data = memGPA + dataAt

// lengths returns the lengths of segments.
func lengths(segs [][]byte) []int {
	l := make([]int, len(segs))
	for i, s := range segs {
		l[i] = len(s)
	}
	return l
}

func equal(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestPopChains(t *testing.T) {
	long := make([]vqtest.Desc, 600) // longer than the queue and than one copy
	for i := range long {
		long[i] = w(data+uint64(2*i)*64, 64)
	}
	tests := map[string]struct {
		indirect           bool
		descs              []vqtest.Desc
		readable, writable []int
	}{
		"one readable":                   {false, []vqtest.Desc{r(data, 40)}, []int{40}, nil},
		"one writable":                   {false, []vqtest.Desc{w(data, 40)}, nil, []int{40}},
		"both":                           {false, []vqtest.Desc{r(data, 40), r(data+100, 8), w(data+200, 16), w(data+4096, 4096)}, []int{40, 8}, []int{16, 4096}},
		"L43 zero-length ones anywhere":  {false, []vqtest.Desc{r(0, 0), r(data, 40), w(hole, 0), r(data+80, 8), w(data+200, 16), r(0, 0)}, []int{40, 8}, []int{16}},
		"only zero-length ones":          {false, []vqtest.Desc{r(0, 0), w(0, 0)}, nil, nil},
		"neighbours are joined":          {false, []vqtest.Desc{r(data, 40), r(data+40, 8), w(data+48, 16), w(data+64, 4096)}, []int{48}, []int{4112}},
		"L45 header of single bytes":     {true, []vqtest.Desc{r(data, 1), r(data+2, 1), r(data+4, 38), w(data+100, 1), w(data+102, 15)}, []int{1, 1, 38}, []int{1, 15}},
		"L44 table longer than queue":    {true, long[:200], nil, nil},
		"L44 table longer than one copy": {true, long, nil, nil},
		"L28 over a region border":       {true, []vqtest.Desc{r(memGPA+memSize-8, 40), w(memGPA+memSize-4096, 8192)}, []int{8, 32}, []int{4096, 4096}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			d, q := b.queue(t, 64, 0, true)
			if tt.indirect {
				d.Desc(5, d.Table(tableAt, memGPA+tableAt, tt.descs...))
			} else {
				d.Chain(5, tt.descs...)
			}
			d.Offer(5)
			d.Show()
			var c virtqueue.Chain
			if ok, err := q.Pop(&c); !ok || err != nil {
				t.Fatalf("Pop = %v, %v", ok, err)
			}
			var reads, writes uint64
			for _, x := range tt.descs {
				if x.Flags&vqtest.Write != 0 {
					writes += uint64(x.Len)
				} else {
					reads += uint64(x.Len)
				}
			}
			if c.Head != 5 || c.ReadLen != reads || c.WriteLen != writes {
				t.Errorf("head %d, %d readable, %d writable bytes, want 5, %d, %d", c.Head, c.ReadLen, c.WriteLen, reads, writes)
			}
			if tt.readable != nil || tt.writable != nil {
				if !equal(lengths(c.Readable), tt.readable) || !equal(lengths(c.Writable), tt.writable) {
					t.Errorf("segments %v and %v, want %v and %v", lengths(c.Readable), lengths(c.Writable), tt.readable, tt.writable)
				}
			} else if len(tt.descs) > 2 && len(c.Writable) != len(tt.descs) {
				t.Errorf("%d segments, want %d", len(c.Writable), len(tt.descs))
			}
			if ok, err := q.Pop(&c); ok || err != nil {
				t.Errorf("second Pop = %v, %v, want nothing", ok, err)
			}
		})
	}
}

func TestIndirectAtTheEndOfADirectChain(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 8, 0, true)
	last := d.Table(tableAt+1, memGPA+tableAt+1, r(data+64, 8), w(data+128, 16)) // any alignment
	last.Flags |= vqtest.Write                                                   // to be ignored
	d.Chain(2, r(data, 40), last)
	d.Offer(2)
	d.Show()
	var c virtqueue.Chain
	if ok, err := q.Pop(&c); !ok || err != nil {
		t.Fatalf("Pop = %v, %v", ok, err)
	}
	if c.ReadLen != 48 || c.WriteLen != 16 {
		t.Errorf("%d readable, %d writable, want 48, 16", c.ReadLen, c.WriteLen)
	}
}

func TestIndirectTableOverARegionBorder(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 8, 0, true)
	next, err := b.table.User(memUVA<<1, nextSize)
	if err != nil {
		t.Fatal(err)
	}
	var raw [48]byte
	for i := range 3 {
		x := r(data+uint64(i)*100, 10)
		if i < 2 {
			x.Flags, x.Next = vqtest.Next, uint16(i+1)
		}
		vqtest.PutDesc(raw[16*i:], x)
	}
	copy(b.mem[memSize-24:], raw[:24])
	copy(next, raw[24:])
	d.Desc(0, vqtest.Desc{Addr: memGPA + memSize - 24, Len: 48, Flags: vqtest.Indirect})
	d.Offer(0)
	d.Show()
	var c virtqueue.Chain
	if ok, err := q.Pop(&c); !ok || err != nil || c.ReadLen != 30 {
		t.Errorf("Pop = %v, %v, %d readable bytes, want 30", ok, err, c.ReadLen)
	}
}

// TestTransportL42_HostileChains: each of these breaks the queue, none takes long.
func TestTransportL42_HostileChains(t *testing.T) {
	table := func(at uint64, d *vqtest.Driver, descs ...vqtest.Desc) {
		x := d.Table(tableAt, at, descs...)
		d.Desc(0, x)
		d.Offer(0)
	}
	chain := func(d *vqtest.Driver, descs ...vqtest.Desc) {
		d.Chain(0, descs...)
		d.Offer(0)
	}
	const tableGPA = memGPA + tableAt
	tests := map[string]func(d *vqtest.Driver){
		"cycle of one":         func(d *vqtest.Driver) { d.Desc(0, vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next}); d.Offer(0) },
		"cycle of zero-length": func(d *vqtest.Driver) { d.Desc(0, vqtest.Desc{Flags: vqtest.Next}); d.Offer(0) },
		"cycle of two": func(d *vqtest.Driver) {
			d.Chain(0, r(data, 8), vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next})
			d.Offer(0)
		},
		"next is size": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next, Next: 8})
			d.Offer(0)
		},
		"next is 65535": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next, Next: 65535})
			d.Offer(0)
		},
		"head is size":           func(d *vqtest.Driver) { d.Offer(8) },
		"head is 65535":          func(d *vqtest.Driver) { d.Offer(65535) },
		"same head twice":        func(d *vqtest.Driver) { chain(d, r(data, 8)); d.Offer(0) },
		"index jump":             func(d *vqtest.Driver) { d.Jump(9) },
		"index steps back":       func(d *vqtest.Driver) { d.Jump(65535) },
		"readable after":         func(d *vqtest.Driver) { chain(d, w(data, 8), r(data, 8)) },
		"address 0":              func(d *vqtest.Driver) { chain(d, r(0, 8)) },
		"in the hole":            func(d *vqtest.Driver) { chain(d, w(hole, 8)) },
		"into the hole":          func(d *vqtest.Driver) { chain(d, w(hole-4, 8)) },
		"address wraps":          func(d *vqtest.Driver) { chain(d, w(math.MaxUint64-3, 8)) },
		"2^32-1 bytes":           func(d *vqtest.Driver) { chain(d, w(data, math.MaxUint32)) },
		"2^32-1 bytes, readable": func(d *vqtest.Driver) { chain(d, r(data, math.MaxUint32)) },
		"sum above the cap":      func(d *vqtest.Driver) { chain(d, w(data, 1<<20), w(data, 1<<20), w(data, 1)) },
		"table of 0 bytes":       func(d *vqtest.Driver) { d.Desc(0, vqtest.Desc{Addr: tableGPA, Flags: vqtest.Indirect}); d.Offer(0) },
		"table of 17 bytes": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: tableGPA, Len: 17, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"table of 2^20 entries": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: tableGPA, Len: 16 << 16, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"table of 2^32-16 bytes": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: tableGPA, Len: math.MaxUint32 &^ 15, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"table in the hole": func(d *vqtest.Driver) { table(hole, d, r(data, 8)) },
		"table reaches the hole": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: hole - 16, Len: 32, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"table wraps": func(d *vqtest.Driver) { table(math.MaxUint64-15, d, r(data, 8), r(data, 8)) },
		"long table into a hole": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: hole, Len: 16 * 1000, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"long table wraps": func(d *vqtest.Driver) {
			d.Desc(0, vqtest.Desc{Addr: math.MaxUint64 - 15, Len: 16 * 1000, Flags: vqtest.Indirect})
			d.Offer(0)
		},
		"nested table": func(d *vqtest.Driver) {
			table(tableGPA, d, r(data, 8), vqtest.Desc{Addr: tableGPA, Len: 16, Flags: vqtest.Indirect})
		},
		"indirect and next": func(d *vqtest.Driver) { d.Chain(0, d.Table(tableAt, tableGPA, r(data, 8)), r(data, 8)); d.Offer(0) },
		"cycle in a table":  func(d *vqtest.Driver) { table(tableGPA, d, vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next}) },
		"next beyond the table": func(d *vqtest.Driver) {
			table(tableGPA, d, vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next, Next: 1})
		},
		"readable after in table": func(d *vqtest.Driver) { table(tableGPA, d, w(data, 8), r(data, 8)) },
	}
	for name, build := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			d, q := b.queue(t, 8, 0, true)
			build(d)
			d.Show()
			var c virtqueue.Chain
			var err error
			for ok := true; ok && err == nil; {
				ok, err = q.Pop(&c)
			}
			if !errors.Is(err, virtqueue.ErrBroken) {
				t.Errorf("Pop: %v, want ErrBroken", err)
			}
		})
	}
}

func TestChainInALongTableIsBounded(t *testing.T) {
	b := newBed(t)
	d, q := b.queue(t, 8, 0, true)
	descs := make([]vqtest.Desc, 65535)
	for i := range descs {
		descs[i] = w(data, 1)
	}
	d.Desc(0, d.Table(tableAt, memGPA+tableAt, descs...))
	d.Offer(0)
	d.Show()
	var c virtqueue.Chain
	if _, err := q.Pop(&c); !errors.Is(err, virtqueue.ErrBroken) {
		t.Errorf("chain of 65535 descriptors: %v, want ErrBroken", err)
	}
}

func TestIndirectNeedsTheFeature(t *testing.T) {
	b := newBed(t)
	d := vqtest.New(b.mem, 0, 8, 0, true)
	cfg := b.config(d)
	cfg.Indirect = false
	q, err := virtqueue.New(b.table, cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	d.Desc(0, d.Table(tableAt, memGPA+tableAt, r(data, 8)))
	d.Offer(0)
	d.Show()
	var c virtqueue.Chain
	if _, err := q.Pop(&c); !errors.Is(err, virtqueue.ErrBroken) {
		t.Errorf("indirect descriptor: %v, want ErrBroken", err)
	}
}

func TestSetupRefuses(t *testing.T) {
	b := newBed(t)
	good := b.config(vqtest.New(b.mem, 0, 8, 0, true))
	tests := map[string]struct {
		change func(c *virtqueue.Config)
		want   error
	}{
		"size 0":             {func(c *virtqueue.Config) { c.Size = 0 }, virtqueue.ErrSetup},
		"size 6":             {func(c *virtqueue.Config) { c.Size = 6 }, virtqueue.ErrSetup},
		"table off by 8":     {func(c *virtqueue.Config) { c.Desc += 8 }, virtqueue.ErrSetup},
		"avail off by 1":     {func(c *virtqueue.Config) { c.Avail++ }, virtqueue.ErrSetup},
		"used off by 2":      {func(c *virtqueue.Config) { c.Used += 2 }, virtqueue.ErrSetup},
		"table elsewhere":    {func(c *virtqueue.Config) { c.Desc = 0 }, guestmem.ErrAddress},
		"avail elsewhere":    {func(c *virtqueue.Config) { c.Avail = 0 }, guestmem.ErrAddress},
		"used over the end":  {func(c *virtqueue.Config) { c.Used = memUVA + memSize - 4 }, guestmem.ErrAddress},
		"table over the end": {func(c *virtqueue.Config) { c.Desc = memUVA + memSize - 16 }, guestmem.ErrAddress},
	}
	for name, tt := range tests {
		c := good
		tt.change(&c)
		if _, err := virtqueue.New(b.table, c, 0); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}
