package codec

import (
	"crypto/sha256"
	"hash/crc32"

	"github.com/zeebo/blake3"
)

// Digester names a digest algorithm, numbered as a v6 blob table does.
type Digester uint8

// The digest algorithms of the format.
const (
	Blake3 Digester = 0
	SHA256 Digester = 1
)

// Known reports whether Sum knows the algorithm.
func (d Digester) Known() bool { return d <= SHA256 }

// Sum returns the digest of p. It panics for an algorithm that is not Known:
// the caller checks that once, when it learns of the blob.
func Sum(d Digester, p []byte) [32]byte {
	switch d {
	case Blake3:
		return blake3.Sum256(p)
	case SHA256:
		return sha256.Sum256(p)
	}
	panic("codec: unknown digester")
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the Castagnoli checksum of p with the usual start and final values.
func CRC32C(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
