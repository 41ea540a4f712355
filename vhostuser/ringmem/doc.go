// Package ringmem accesses the 16-bit words of a virtqueue with the memory
// ordering that two processes need which share a ring. sync/atomic has no 16-bit
// operations, and a 32-bit store would overwrite two bytes that belong to the
// other side (the word behind avail_event may be anybody's).
//
//	driver                                device
//	write slot, descriptors               LoadAcquire16(avail.idx)
//	StoreRelease16(avail.idx) ───────▶    read slot, descriptors
//	Fence                                 serve
//	read avail_event: kick?               write used element
//	                          ◀───────    StoreRelease16(used.idx)
//	LoadAcquire16(used.idx)               Fence
//	read element                          read used_event: call?
//
// Going to sleep is the mirror image on either side: StoreFence16 of the own
// event index, then LoadAcquire16 of the other side's idx once more. Of the two
// store-then-load pairs at least one sees the other's store, because a full
// barrier stands between store and load on both sides; so no wake-up is lost.
//
// amd64 keeps all orders but store-load by itself, so mistakes with the rest
// show on arm64 only.
//
// The functions may fault when the memory's file was truncated; under
// debug.SetPanicOnFault that is a panic like that of any Go load or store.
// The race detector does not look at memory shared between processes.
package ringmem
