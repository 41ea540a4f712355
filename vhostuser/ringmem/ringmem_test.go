package ringmem_test

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/ringmem"
)

// TestTransportL40_StoresTouchTwoBytes puts the word between bytes that are not ours.
func TestTransportL40_StoresTouchTwoBytes(t *testing.T) {
	stores := map[string]func(*uint16, uint16){
		"StoreRelease16": ringmem.StoreRelease16,
		"StoreFence16":   ringmem.StoreFence16,
	}
	for name, store := range stores {
		for at := 0; at <= 6; at += 2 {
			words := [2]uint32{0xaaaaaaaa, 0xaaaaaaaa}
			b := (*[8]byte)(unsafe.Pointer(&words))
			p := (*uint16)(unsafe.Pointer(&b[at]))
			store(p, 0x1234)
			for i, v := range b {
				want := byte(0xaa)
				switch i {
				case at:
					want = 0x34
				case at + 1:
					want = 0x12
				}
				if v != want {
					t.Errorf("%s at %d: byte %d is %#x, want %#x", name, at, i, v, want)
				}
			}
			if got := ringmem.LoadAcquire16(p); got != 0x1234 {
				t.Errorf("LoadAcquire16 after %s at %d = %#x", name, at, got)
			}
		}
	}
	ringmem.Fence()
}

// TestWiderStores: all bytes of the word, and no other.
func TestWiderStores(t *testing.T) {
	words := [3]uint64{1, 2, 3}
	ringmem.StoreRelease64(&words[1], 0x8877665544332211)
	ringmem.StoreRelease32((*uint32)(unsafe.Pointer(&words[0])), 0xfedcba98)
	if want := [3]uint64{0xfedcba98, 0x8877665544332211, 3}; words != want {
		t.Errorf("%#x, want %#x", words, want)
	}
}

// TestFaultIsAPanic: assembly that touches a page whose file was truncated must
// panic like Go code does, not end the process.
func TestFaultIsAPanic(t *testing.T) {
	fd, err := unix.MemfdCreate("ringmem-fault", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	size := os.Getpagesize()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	p := (*uint16)(unsafe.Pointer(&mem[64]))
	accesses := map[string]func(){
		"LoadAcquire16":  func() { ringmem.LoadAcquire16(p) },
		"StoreRelease16": func() { ringmem.StoreRelease16(p, 1) },
		"StoreFence16":   func() { ringmem.StoreFence16(p, 1) },
		"StoreRelease32": func() { ringmem.StoreRelease32((*uint32)(unsafe.Pointer(p)), 1) },
		"StoreRelease64": func() { ringmem.StoreRelease64((*uint64)(unsafe.Pointer(p)), 1) },
	}
	for name, access := range accesses {
		t.Run(name, func(t *testing.T) {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				fault, ok := recover().(interface {
					runtime.Error
					Addr() uintptr
				})
				if !ok {
					t.Fatal("no fault was reported")
				}
				if fault.Addr() != uintptr(unsafe.Pointer(p)) {
					t.Errorf("fault at %#x, want %p", fault.Addr(), p)
				}
			}()
			access()
		})
	}
}

func BenchmarkLoadAcquire16(b *testing.B) {
	var v uint16
	for b.Loop() {
		ringmem.LoadAcquire16(&v)
	}
}

func BenchmarkStoreFence16(b *testing.B) {
	var v uint16
	for b.Loop() {
		ringmem.StoreFence16(&v, 1)
	}
}
