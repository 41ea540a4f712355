package guestmem

import (
	"errors"
	"fmt"
)

// The three address spaces that a vhost-user back-end meets. They are types of
// their own because mixing them up compiles, and works wherever the front-end
// happens to map its guest one to one.
type (
	// GPA is a guest-physical address: what descriptors hold.
	GPA uint64
	// UVA is an address in the front-end: what SET_VRING_ADDR holds.
	UVA uint64
	// Offset is a position in the file behind a region.
	Offset uint64
)

// ErrAddress is wrapped by errors about addresses that lie outside of all
// regions, wholly or in part.
var ErrAddress = errors.New("address outside of guest memory")

// ErrRegion is wrapped by errors about regions that cannot be mapped as asked.
var ErrRegion = errors.New("bad memory region")

// ErrGone is wrapped by errors about mapped memory that cannot be touched any
// more: the file behind it was truncated.
var ErrGone = errors.New("guest memory is gone")

// Region is one region of guest memory.
type Region struct {
	GPA    GPA
	UVA    UVA
	Size   uint64 // bytes, a multiple of 4096
	Offset Offset // of the first byte in the file
}

func (r Region) String() string {
	return fmt.Sprintf("region gpa %#x +%#x (user %#x, file offset %#x)",
		uint64(r.GPA), r.Size, uint64(r.UVA), uint64(r.Offset))
}

// Source is a region and the descriptor of the file behind it, which is lent.
type Source struct {
	Region
	FD int
}
