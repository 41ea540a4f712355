// Package guestmem maps the memory of a guest and translates addresses into
// slices of it.
//
//	front-end's file:   ....[mmap offset ........ +size)....
//	                             │ one mapping per region
//	regions of a Table:     [ region ][ region ]   [ region ]
//	                         ▲ GPA (descriptors)    ▲ UVA (ring addresses)
//
// A Table is immutable. A change of memory builds the next Table from the
// present one; a region that did not change keeps its mapping. Tables and
// mappings are reference counted: Release of the last Table that has a region
// unmaps it, before it returns. A slice of guest memory is valid while its owner
// holds a reference to a Table that it came from.
//
// Ownership: descriptors handed in stay the caller's; a mapping does not need
// them afterwards.
//
// Trust: regions come from the front-end, addresses from the guest; both are
// checked in 64 bits, and all sums are overflow-safe. The content of guest memory
// may change at any time. The file behind it may be truncated: a load or store
// then faults, which is a panic in a goroutine that called
// debug.SetPanicOnFault(true), and Table.Fault tells that panic from others.
package guestmem
