//go:build amd64 || arm64

package ringmem

// LoadAcquire16 loads *p. No load or store that follows in program order is done
// before it. Its partner is StoreRelease16 on the other side.
//
//go:noescape
func LoadAcquire16(p *uint16) uint16

// StoreRelease16 stores v at *p, two bytes and no more. Every load and store that
// precedes it in program order is visible before it.
//
//go:noescape
func StoreRelease16(p *uint16, v uint16)

// StoreFence16 stores v at *p, two bytes and no more, then passes a full barrier:
// the store is visible before any later load is done. It is not a release for
// what precedes it.
//
//go:noescape
func StoreFence16(p *uint16, v uint16)

// Fence is a full barrier: all stores before it are visible before any load
// after it is done.
func Fence()

// StoreRelease32 and StoreRelease64 are StoreRelease16 for wider words. sync/atomic
// has stores of that size, which are full barriers too, at several times the cost.
//
//go:noescape
func StoreRelease32(p *uint32, v uint32)

//go:noescape
func StoreRelease64(p *uint64, v uint64)
