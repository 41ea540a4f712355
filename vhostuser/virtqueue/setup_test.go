package virtqueue_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/virtqueue/vqtest"
)

// Guest memory of the tests: rings, then indirect tables, then buffers, in one
// region; a second region follows it directly in guest addresses; then nothing.
const (
	memGPA   = 0x100000
	memUVA   = 0x7f0000000000
	memSize  = 4 << 20
	nextSize = 64 << 10
	tableAt  = 1 << 20 // indirect tables
	dataAt   = 2 << 20 // buffers
	hole     = memGPA + memSize + nextSize
)

type bed struct {
	table *guestmem.Table
	mem   []byte // the first region
}

func newBed(tb testing.TB) *bed {
	tb.Helper()
	fd, err := unix.MemfdCreate("virtqueue-test", unix.MFD_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, memSize+nextSize); err != nil {
		tb.Fatal(err)
	}
	table, err := guestmem.NewTable(nil, []guestmem.Source{
		{Region: guestmem.Region{GPA: memGPA, UVA: memUVA, Size: memSize}, FD: fd},
		{Region: guestmem.Region{GPA: memGPA + memSize, UVA: memUVA << 1, Size: nextSize, Offset: memSize}, FD: fd},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(table.Release)
	mem, err := table.User(memUVA, memSize)
	if err != nil {
		tb.Fatal(err)
	}
	return &bed{table: table, mem: mem}
}

func (b *bed) config(d *vqtest.Driver) virtqueue.Config {
	return virtqueue.Config{
		Size: d.Size,
		Desc: guestmem.UVA(memUVA + d.DescAt), Avail: guestmem.UVA(memUVA + d.AvailAt), Used: guestmem.UVA(memUVA + d.UsedAt),
		EventIdx: d.EventIdx, Indirect: true, MaxBytes: 2 << 20,
	}
}

// queue returns both sides of a fresh queue whose indexes start at start.
func (b *bed) queue(tb testing.TB, size, start uint16, eventIdx bool) (*vqtest.Driver, *virtqueue.Queue) {
	tb.Helper()
	d := vqtest.New(b.mem, 0, size, start, eventIdx)
	q, err := virtqueue.New(b.table, b.config(d), start)
	if err != nil {
		tb.Fatal(err)
	}
	return d, q
}
