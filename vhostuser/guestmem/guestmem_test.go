package guestmem_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

const page = 4096

// memFile returns the descriptor of a fresh memfd whose page k is filled with
// the byte k.
func memFile(t *testing.T, pages int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guestmem-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for k := range pages {
		if _, err := unix.Pwrite(fd, bytes.Repeat([]byte{byte(k)}, page), int64(k)*page); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func table(t *testing.T, old *guestmem.Table, sources ...guestmem.Source) *guestmem.Table {
	t.Helper()
	tab, err := guestmem.NewTable(old, sources)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func region(gpa, uva, size, off uint64) guestmem.Region {
	return guestmem.Region{GPA: guestmem.GPA(gpa), UVA: guestmem.UVA(uva), Size: size, Offset: guestmem.Offset(off)}
}

// mapped reports whether the page at b is mapped in this process.
func mapped(t *testing.T, b []byte) bool {
	t.Helper()
	vec := make([]byte, 1)
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), page, uintptr(unsafe.Pointer(&vec[0])))
	if e != 0 && e != unix.ENOMEM {
		t.Fatalf("mincore: %v", e)
	}
	return e == 0
}

func TestNewTableRefuses(t *testing.T) {
	fd := memFile(t, 8)
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	one := func(r guestmem.Region) []guestmem.Source { return []guestmem.Source{{Region: r, FD: fd}} }
	tests := map[string][]guestmem.Source{
		"empty":                    one(region(0, 0, 0, 0)),
		"size not in pages":        one(region(0, 0, page+1, 0)),
		"gpa not in pages":         one(region(1, 0, page, 0)),
		"uva not in pages":         one(region(0, 1, page, 0)),
		"offset not in pages":      one(region(0, 0, page, 1)),
		"gpa wraps":                one(region(math.MaxUint64-page+1, 0, 2*page, 0)),
		"uva wraps":                one(region(0, math.MaxUint64-page+1, 2*page, 0)),
		"beyond the file":          one(region(0, 0, 9*page, 0)),
		"offset beyond the file":   one(region(0, 0, page, 8*page)),
		"offset overflows":         one(region(0, 0, page, math.MaxInt64&^(page-1))),
		"offset and size overflow": one(region(0, 0, math.MaxInt64&^(page-1), math.MaxInt64&^(page-1))),
		"size beyond 63 bits":      one(region(0, 0, 1<<63, 0)),
		"a pipe":                   {{Region: region(0, 0, page, 0), FD: pipe[0]}},
		"overlap at the start":     {{region(page, 0, 2*page, 0), fd}, {region(0, 0, 2*page, 0), fd}},
		"overlap at the end":       {{region(0, 0, 2*page, 0), fd}, {region(page, 0, 2*page, 0), fd}},
		"the same twice":           {{region(0, 0, page, 0), fd}, {region(0, 0, page, 0), fd}},
		"one inside of the other":  {{region(0, 0, 4*page, 0), fd}, {region(page, 0, page, 0), fd}},
	}
	for name, sources := range tests {
		t.Run(name, func(t *testing.T) {
			tab, err := guestmem.NewTable(nil, sources)
			if !errors.Is(err, guestmem.ErrRegion) || tab != nil {
				t.Errorf("NewTable = %v, %v, want ErrRegion", tab, err)
			}
		})
	}
	if _, err := guestmem.NewTable(nil, make([]guestmem.Source, guestmem.MaxRegions+1)); !errors.Is(err, guestmem.ErrRegion) {
		t.Errorf("too many regions: %v, want ErrRegion", err)
	}
}

func TestTransportL27_RegionAtAddressZero(t *testing.T) {
	tab := table(t, nil, guestmem.Source{Region: region(0, 0, 2*page, page), FD: memFile(t, 3)})
	defer tab.Release()
	b, err := tab.User(0, 16)
	if err != nil || b[0] != 1 {
		t.Errorf("User(0) = %v, %v, want the second page of the file", b, err)
	}
	v := guestmem.NewView(tab)
	segs, err := v.Append(nil, 0, 16)
	if err != nil || len(segs) != 1 || segs[0][0] != 1 {
		t.Errorf("Append(0) = %v, %v", segs, err)
	}
}

func TestUserAddressStaysInOneRegion(t *testing.T) {
	fd := memFile(t, 4)
	tab := table(t, nil,
		guestmem.Source{Region: region(0, 0x10000, 2*page, 0), FD: fd},
		guestmem.Source{Region: region(2*page, 0x10000+2*page, 2*page, 2*page), FD: fd})
	defer tab.Release()
	tests := map[string]struct {
		addr, n uint64
		ok      bool
	}{
		"whole region":           {0x10000, 2 * page, true},
		"last byte":              {0x10000 + 2*page - 1, 1, true},
		"crosses into the next":  {0x10000 + 2*page - 1, 2, false},
		"before":                 {0xffff, 1, false},
		"behind":                 {0x10000 + 4*page, 1, false},
		"length near 2^64 wraps": {0x10001, math.MaxUint64, false},
	}
	for name, tt := range tests {
		b, err := tab.User(guestmem.UVA(tt.addr), tt.n)
		if ok := err == nil; ok != tt.ok || (ok && uint64(len(b)) != tt.n) {
			t.Errorf("%s: User(%#x, %#x) = %d bytes, %v", name, tt.addr, tt.n, len(b), err)
		}
		if err != nil && !errors.Is(err, guestmem.ErrAddress) {
			t.Errorf("%s: %v, want ErrAddress", name, err)
		}
	}
}

// TestTransportL28_RangeOverRegionBorders: guest pages 0,1 | 2 | hole | 4 are in regions
// of their own, in another order in the file.
func TestTransportL28_RangeOverRegionBorders(t *testing.T) {
	fd := memFile(t, 8)
	tab := table(t, nil,
		guestmem.Source{Region: region(0, 0x100000, 2*page, 4*page), FD: fd},
		guestmem.Source{Region: region(4*page, 0x200000, page, 7*page), FD: fd},
		guestmem.Source{Region: region(2*page, 0x300000, page, 0), FD: fd},
		guestmem.Source{Region: region(math.MaxUint64-page+1, 0x400000, page, page), FD: fd})
	defer tab.Release()
	tests := map[string]struct {
		addr, n uint64
		segs    []int // lengths; nil means refused
		bytes   string
	}{
		"inside":                        {8, 8, []int{8}, "\x04"},
		"whole first region":            {0, 2 * page, []int{2 * page}, "\x04\x05"},
		"border":                        {2*page - 1, 2, []int{1, 1}, "\x05\x00"},
		"three pages over two regions":  {0, 3 * page, []int{2 * page, page}, "\x04\x05\x00"},
		"into the hole":                 {2 * page, page + 1, nil, ""},
		"in the hole":                   {3 * page, 1, nil, ""},
		"last page of the address room": {math.MaxUint64, 1, []int{1}, "\x01"},
		"wraps to region 0":             {math.MaxUint64, 2, nil, ""},
		"2^32-1 bytes":                  {0, math.MaxUint32, nil, ""},
		"2^64-1 bytes":                  {1, math.MaxUint64, nil, ""},
		"nothing, anywhere":             {3 * page, 0, []int{}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := guestmem.NewView(tab)
			segs, err := v.Append(nil, guestmem.GPA(tt.addr), tt.n)
			if tt.segs == nil {
				if !errors.Is(err, guestmem.ErrAddress) {
					t.Fatalf("Append = %d segments, %v, want ErrAddress", len(segs), err)
				}
				return
			}
			if err != nil || len(segs) != len(tt.segs) {
				t.Fatalf("Append = %d segments, %v, want %v", len(segs), err, tt.segs)
			}
			var all []byte
			for i, s := range segs {
				if len(s) != tt.segs[i] || cap(s) < len(s) {
					t.Errorf("segment %d has %d bytes, want %d", i, len(s), tt.segs[i])
				}
				if gpa, ok := tab.Locate(s); !ok || gpa != guestmem.GPA(tt.addr+uint64(len(all))) {
					t.Errorf("Locate(segment %d) = %#x, %v", i, gpa, ok)
				}
				all = append(all, s...)
			}
			if got := distinct(all); got != tt.bytes {
				t.Errorf("bytes of pages %q, want %q", got, tt.bytes)
			}
			dst := make([]byte, tt.n)
			if err := v.CopyIn(dst, guestmem.GPA(tt.addr)); err != nil || !bytes.Equal(dst, all) {
				t.Errorf("CopyIn: %v, equal %v", err, bytes.Equal(dst, all))
			}
		})
	}
	v := guestmem.NewView(tab)
	if err := v.CopyIn(make([]byte, 2), math.MaxUint64); !errors.Is(err, guestmem.ErrAddress) {
		t.Errorf("CopyIn over 2^64: %v, want ErrAddress", err)
	}
	if err := v.CopyIn(make([]byte, 2), 3*page-1); !errors.Is(err, guestmem.ErrAddress) {
		t.Errorf("CopyIn into a hole: %v, want ErrAddress", err)
	}
	if _, ok := tab.Locate(make([]byte, 1)); ok {
		t.Error("Locate knows memory that is not the guest's")
	}
}

// distinct returns b with runs of equal bytes cut to one.
func distinct(b []byte) string {
	var s strings.Builder
	for i := range b {
		if i == 0 || b[i] != b[i-1] {
			s.WriteByte(b[i])
		}
	}
	return s.String()
}

func TestAppendJoinsOnlyWithinARegion(t *testing.T) {
	fd := memFile(t, 4)
	tab := table(t, nil,
		guestmem.Source{Region: region(0, 0, 2*page, 0), FD: fd},
		guestmem.Source{Region: region(2*page, 2*page, 2*page, 2*page), FD: fd})
	defer tab.Release()
	v := guestmem.NewView(tab)
	var segs [][]byte
	for gpa := guestmem.GPA(0); gpa < 4*page; gpa += page {
		var err error
		if segs, err = v.Append(segs, gpa, page); err != nil {
			t.Fatal(err)
		}
	}
	if len(segs) != 2 || len(segs[0]) != 2*page || len(segs[1]) != 2*page {
		t.Errorf("four pages became %d segments, want 2 of two pages", len(segs))
	}
	if segs, _ = v.Append(segs, 0, page); len(segs) != 3 {
		t.Errorf("a page that does not follow was joined")
	}
}

func TestTransportL25_UnchangedRegionKeepsItsMapping(t *testing.T) {
	fd, other := memFile(t, 4), memFile(t, 4)
	a := guestmem.Source{Region: region(0, 0x1000, 2*page, 0), FD: fd}
	old := table(t, nil, a)
	at := func(tab *guestmem.Table) *byte {
		b, err := tab.User(0x1000, 1)
		if err != nil {
			t.Fatal(err)
		}
		return &b[0]
	}
	was := at(old)
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	again := table(t, old, guestmem.Source{Region: a.Region, FD: dup})
	if at(again) != was {
		t.Error("equal region, equal file by another descriptor: mapped again")
	}
	old.Release()
	if *was != 0 || !mapped(t, unsafe.Slice(was, 1)) {
		t.Error("the kept mapping is gone with the old table")
	}
	changed := map[string]guestmem.Source{
		"other file":   {Region: a.Region, FD: other},
		"other offset": {Region: region(0, 0x1000, 2*page, page), FD: fd},
		"other size":   {Region: region(0, 0x1000, page, 0), FD: fd},
	}
	for name, s := range changed {
		tab := table(t, again, s)
		if at(tab) == was {
			t.Errorf("%s: the old mapping was kept", name)
		}
		tab.Release()
	}
	again.Release()
	if mapped(t, unsafe.Slice(was, 1)) {
		t.Error("still mapped after the last table")
	}
}

func TestTransportL26_UnmappedWithTheLastReference(t *testing.T) {
	fd := memFile(t, 4)
	keep := guestmem.Source{Region: region(0, 0, page, 0), FD: fd}
	tab := table(t, nil, keep, guestmem.Source{Region: region(page, page, page, 2*page), FD: fd})
	removed, err := tab.User(page, page)
	if err != nil {
		t.Fatal(err)
	}
	tab.Retain() // a request at work
	next := table(t, tab, keep)
	tab.Release()
	if !mapped(t, removed) {
		t.Error("unmapped under a request at work")
	}
	tab.Release()
	if mapped(t, removed) {
		t.Error("still mapped after the last reference")
	}
	next.Release()
}

func TestFailedTableLeavesNothingMapped(t *testing.T) {
	fd := memFile(t, 2)
	maps := func() int {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "guestmem-test")
	}
	before := maps()
	_, err := guestmem.NewTable(nil, []guestmem.Source{
		{Region: region(0, 0, page, 0), FD: fd}, {Region: region(page, page, 2*page, page), FD: fd}})
	if !errors.Is(err, guestmem.ErrRegion) || maps() != before {
		t.Errorf("%v; %d mappings, %d before", err, maps(), before)
	}
}

func TestTransportL29_HugePagesWithOffset(t *testing.T) {
	const huge = 2 << 20
	fd, err := unix.MemfdCreate("guestmem-huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if err != nil {
		t.Skipf("no huge pages here: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 2*huge); err != nil {
		t.Skipf("no huge pages here: %v", err)
	}
	// A region that neither starts nor ends at a huge page. Mapping needs no huge
	// page to be free (MAP_NORESERVE); touching would.
	tab, err := guestmem.NewTable(nil, []guestmem.Source{{Region: region(0, 0, huge, page), FD: fd}})
	if err != nil {
		t.Fatalf("NewTable: %v", err)
	}
	b, err := tab.User(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if at := uintptr(unsafe.Pointer(&b[0])); at%huge != page {
		t.Errorf("region starts at %#x, want one page into a huge page", at)
	}
	tab.Release() // munmap panics if its length is not in huge pages
}

func TestTransportL30_TruncatedFileIsAnError(t *testing.T) {
	fd := memFile(t, 4)
	tab := table(t, nil, guestmem.Source{Region: region(0x40000, 0, 4*page, 0), FD: fd})
	defer tab.Release()
	mem, err := tab.User(0, 4*page)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	touch := func(f func()) (got error) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { got = tab.Fault(recover()) }()
		f()
		return nil
	}
	sink := make([]byte, 2*page)
	for name, f := range map[string]func(){
		"load":  func() { sink[0] = mem[2*page] },
		"store": func() { mem[3*page] = 1 },
		"copy":  func() { copy(sink, mem[page-8:]) },
	} {
		if err := touch(f); !errors.Is(err, guestmem.ErrGone) {
			t.Errorf("%s: %v, want ErrGone", name, err)
		}
	}
	if err := touch(func() { sink[1] = mem[0] }); err != nil {
		t.Errorf("the page that is left: %v", err)
	}
	if err := tab.Fault("another panic"); err != nil {
		t.Errorf("a foreign panic was taken for a fault: %v", err)
	}
	if err := tab.Fault(nil); err != nil {
		t.Errorf("no panic was taken for a fault: %v", err)
	}
}

func TestTranslationDoesNotAllocate(t *testing.T) {
	tab := table(t, nil, guestmem.Source{Region: region(0, 0, 4*page, 0), FD: memFile(t, 4)})
	defer tab.Release()
	v := guestmem.NewView(tab)
	segs := make([][]byte, 0, 4)
	dst := make([]byte, 16)
	if n := testing.AllocsPerRun(100, func() {
		segs, _ = v.Append(segs[:0], page, page)
		_ = v.CopyIn(dst, 8)
	}); n != 0 {
		t.Errorf("%v allocations per translation, want 0", n)
	}
}
