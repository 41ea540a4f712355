package codec

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// KeySize and IVSize are what a Cipher is made of.
const (
	KeySize = 32
	IVSize  = 16
)

// Cipher decrypts what an encrypted blob stores: AES-128-XTS, each chunk, each
// batch, the chunk information and its header being one unit of their own under
// the same key and tweak. It is immutable and safe for concurrent use. Printed
// in any way it shows nothing of its key.
type Cipher struct {
	data  cipher.Block
	tweak [aes.BlockSize]byte // already encrypted
}

// NewCipher makes a Cipher of key (16 bytes for the data, then 16 for the
// tweak) and iv, as a blob table has them.
func NewCipher(key [KeySize]byte, iv [IVSize]byte) (*Cipher, error) {
	if bytes.Equal(key[:16], key[16:]) {
		return nil, errors.New("both halves of the key are equal")
	}
	data, err := aes.NewCipher(key[:16])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[16:])
	if err != nil {
		return nil, err
	}
	c := &Cipher{data: data}
	tweak.Encrypt(c.tweak[:], iv[:])
	return c, nil
}

// Format keeps keys out of logs, whatever verb prints a structure that holds one.
func (*Cipher) Format(f fmt.State, _ rune) { fmt.Fprint(f, "AES-128-XTS") }

const (
	// MinUnit is the least that XTS works on. Shorter data are stored in
	// PaddedUnit bytes.
	MinUnit    = aes.BlockSize
	PaddedUnit = 18
)

// StoredSize is the size of n > 0 bytes when they are encrypted.
func StoredSize(n int) int {
	if n < MinUnit {
		return PaddedUnit
	}
	return n
}

// Decrypt decrypts p in place. p has at least MinUnit bytes.
//
// XTS: block i is xored with the tweak times alpha^i before and after AES. A last
// block that is not whole steals the end of the ciphertext before it: that one is
// decrypted with the tweak behind its own.
func (c *Cipher) Decrypt(p []byte) error {
	if len(p) < MinUnit {
		return fmt.Errorf("%w: encrypted data of %d bytes, want at least %d", ErrCorrupt, len(p), MinUnit)
	}
	const n = aes.BlockSize
	t := c.tweak
	rest := len(p) % n
	whole := len(p) - rest
	if rest > 0 {
		whole -= n // the last whole block and the stolen bytes are done apart
	}
	for at := 0; at < whole; at += n {
		c.block(p[at:at+n], &t)
		double(&t)
	}
	if rest == 0 {
		return nil
	}
	next := t
	double(&next)
	last, tail := p[whole:whole+n], p[whole+n:]
	c.block(last, &next)
	var full [n]byte // ciphertext of the last whole block of the plaintext
	copy(full[:], tail)
	copy(full[rest:], last[rest:])
	copy(tail, last[:rest])
	copy(last, full[:])
	c.block(last, &t)
	return nil
}

func (c *Cipher) block(b []byte, t *[aes.BlockSize]byte) {
	xor(b, t)
	c.data.Decrypt(b, b)
	xor(b, t)
}

func xor(b []byte, t *[aes.BlockSize]byte) {
	le := binary.LittleEndian
	b = b[:aes.BlockSize]
	le.PutUint64(b, le.Uint64(b)^le.Uint64(t[:]))
	le.PutUint64(b[8:], le.Uint64(b[8:])^le.Uint64(t[8:]))
}

// double multiplies t by alpha in GF(2^128), as IEEE 1619 numbers its bits.
func double(t *[aes.BlockSize]byte) {
	le := binary.LittleEndian
	lo, hi := le.Uint64(t[:]), le.Uint64(t[8:])
	le.PutUint64(t[:], lo<<1^hi>>63*0x87)
	le.PutUint64(t[8:], hi<<1|lo>>63)
}

// Unpad returns the data of a decrypted unit. Fewer than MinUnit bytes were
// filled up to that with the number of bytes missing, and then 0x78 0x90 follow.
// A unit of another form is its own data; ok says whether it was of this one.
func Unpad(p []byte) (data []byte, ok bool) {
	if len(p) != PaddedUnit || p[16] != 0x78 || p[17] != 0x90 {
		return p, false
	}
	fill := p[15]
	if fill == 0 || fill > MinUnit {
		return p, false
	}
	n := MinUnit - int(fill)
	for _, b := range p[n:MinUnit] {
		if b != fill {
			return p, false
		}
	}
	return p[:n], true
}
