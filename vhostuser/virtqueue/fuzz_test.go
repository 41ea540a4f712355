package virtqueue_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
)

// FuzzChain puts hostile bytes into the descriptor table, the available ring and
// an indirect table. Whatever comes: popping ends, every segment lies in guest
// memory and adds up to the lengths told, and each refusal is ErrBroken.
func FuzzChain(f *testing.F) {
	desc := func(ds ...vqtest.Desc) []byte {
		b := make([]byte, 16*len(ds))
		for i, d := range ds {
			vqtest.PutDesc(b[16*i:], d)
		}
		return b
	}
	indirect := vqtest.Desc{Addr: memGPA + tableAt, Len: 64, Flags: vqtest.Indirect}
	f.Add(uint16(1), []byte{0, 0}, desc(r(data, 40), w(data, 16)), []byte{})
	f.Add(uint16(2), []byte{8, 0, 1, 0}, desc(r(data, 8)), []byte{})
	f.Add(uint16(1), []byte{0, 0}, desc(vqtest.Desc{Addr: data, Len: 8, Flags: vqtest.Next}), []byte{})
	f.Add(uint16(1), []byte{0, 0}, desc(indirect), desc(r(data, 40), w(data, 16)))
	f.Add(uint16(1), []byte{0, 0}, desc(indirect), desc(indirect))
	f.Add(uint16(1), []byte{0, 0}, desc(vqtest.Desc{Addr: memGPA + tableAt, Len: 16 * 600, Flags: vqtest.Indirect}),
		desc(vqtest.Desc{Addr: data, Len: 1, Flags: vqtest.Next, Next: 599}))
	f.Add(uint16(9), []byte{}, []byte{}, []byte{})
	f.Add(uint16(3), []byte{0, 0, 1, 0, 0, 0}, desc(r(memGPA+memSize-4, 8), r(hole-1, 2)), []byte{})
	f.Fuzz(func(t *testing.T, idx uint16, ring, table, indirectTable []byte) {
		b := newBed(t)
		d := vqtest.New(b.mem, 0, 8, 0, true)
		q, err := virtqueue.New(b.table, b.config(d), 0)
		if err != nil {
			t.Fatal(err)
		}
		copy(b.mem[d.DescAt:d.DescAt+16*8], table)
		copy(b.mem[d.AvailAt+4:d.AvailAt+4+2*8], ring)
		copy(b.mem[tableAt:tableAt+(1<<19)], indirectTable)
		binary.LittleEndian.PutUint16(b.mem[d.AvailAt+2:], idx)
		var c virtqueue.Chain
		popped := 0
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				if !errors.Is(err, virtqueue.ErrBroken) {
					t.Fatalf("Pop: %v, want ErrBroken", err)
				}
				return
			}
			if !ok {
				break
			}
			if popped++; popped > 8 {
				t.Fatalf("%d chains from a queue of 8", popped)
			}
			for _, side := range []struct {
				segs [][]byte
				n    uint64
			}{{c.Readable, c.ReadLen}, {c.Writable, c.WriteLen}} {
				var sum uint64
				for _, s := range side.segs {
					if _, ok := b.table.Locate(s); !ok || len(s) == 0 {
						t.Fatalf("segment of %d bytes outside of guest memory", len(s))
					}
					sum += uint64(len(s))
				}
				if sum != side.n {
					t.Fatalf("segments of %d bytes, chain says %d", sum, side.n)
				}
			}
		}
		if idx != uint16(popped) {
			t.Fatalf("%d chains popped, %d offered", popped, idx)
		}
	})
}
