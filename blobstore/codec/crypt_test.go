package codec_test

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"github.com/rafsd/rafsd/blobstore/codec"
)

func testKey() (key [codec.KeySize]byte) {
	for i := range key {
		key[i] = 0x0c
	}
	key[31] = 0x0a
	return key
}

// TestDecryptVector: one byte as the reference stores it.
func TestDecryptVector(t *testing.T) {
	c, err := codec.NewCipher(testKey(), [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	p, _ := hex.DecodeString("1df853e84717cce491f7bcb79c9edfb42ed2")
	if err := c.Decrypt(p); err != nil {
		t.Fatal(err)
	}
	if want := "31" + strings.Repeat("0f", 15) + "7890"; hex.EncodeToString(p) != want {
		t.Errorf("%x, want %s", p, want)
	}
	if data, ok := codec.Unpad(p); !ok || string(data) != "1" {
		t.Errorf("Unpad = %q, %v", data, ok)
	}
}

// TestDecryptAgainstXTS: x/crypto's XTS is the witness for whole blocks; it takes
// a sector number where the format has 16 bytes, so the upper eight are zero. The
// last two blocks are checked by undoing the stealing by hand.
func TestDecryptAgainstXTS(t *testing.T) {
	key := testKey()
	var iv [16]byte
	const sector = 0x1122334455667788
	binary.LittleEndian.PutUint64(iv[:], sector)
	c, err := codec.NewCipher(key, iv)
	if err != nil {
		t.Fatal(err)
	}
	witness, err := xts.NewCipher(aes.NewCipher, key[:])
	if err != nil {
		t.Fatal(err)
	}
	for n := 16; n <= 16*9; n++ {
		want := text(n)
		whole := n &^ 15
		stored := make([]byte, n)
		witness.Encrypt(stored[:whole], want[:whole], sector)
		if rest := n - whole; rest > 0 {
			// P' = the last bytes and the end of the block before, encrypted behind.
			last := make([]byte, 16)
			copy(last, want[whole:])
			copy(last[rest:], stored[whole-16+rest:whole])
			block := append(bytes.Clone(want[:whole]), last...)
			out := make([]byte, len(block))
			witness.Encrypt(out, block, sector)
			copy(stored[whole:], stored[whole-16:whole-16+rest])
			copy(stored[whole-16:whole], out[whole:])
		}
		if err := c.Decrypt(stored); err != nil || !bytes.Equal(stored, want) {
			t.Fatalf("%d bytes: %v, differ", n, err)
		}
	}
}

func TestDecryptRefuses(t *testing.T) {
	c, err := codec.NewCipher(testKey(), [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 16 {
		if err := c.Decrypt(make([]byte, n)); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("%d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := codec.NewCipher([32]byte{}, [16]byte{}); err == nil {
		t.Error("a key of two equal halves is accepted")
	}
	for _, s := range []string{fmt.Sprintf("%v", c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", struct{ C *codec.Cipher }{c}), fmt.Sprintf("%x", c)} {
		if strings.Contains(s, "0c0c") || strings.Contains(s, "12 12") || strings.Contains(s, "0xc") {
			t.Errorf("a key is printed: %s", s)
		}
	}
}

func TestUnpad(t *testing.T) {
	pad := func(data string) []byte {
		p := []byte(data)
		for len(p) < 16 {
			p = append(p, byte(16-len(data)))
		}
		return append(p, 0x78, 0x90)
	}
	for n := range 16 {
		data := strings.Repeat("x", n)
		if got, ok := codec.Unpad(pad(data)); !ok || string(got) != data {
			t.Errorf("%d bytes: %q, %v", n, got, ok)
		}
	}
	for name, p := range map[string][]byte{
		"another end":    []byte("0123456789abcdefgh"),
		"fill of zero":   append(make([]byte, 16), 0x78, 0x90),
		"fill too large": append(bytes.Repeat([]byte{17}, 16), 0x78, 0x90),
		"mixed fill":     append([]byte("0123456789abcd\x03\x02"), 0x78, 0x90),
		"longer":         append(pad("x"), 0),
	} {
		if got, ok := codec.Unpad(p); ok || !bytes.Equal(got, p) {
			t.Errorf("%s: %q, %v; want it as it is", name, got, ok)
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	key := testKey()
	f.Add(key[:], make([]byte, 16), []byte("0123456789abcdef01"))
	f.Add(key[:], make([]byte, 16), []byte{})
	f.Add(make([]byte, 32), make([]byte, 16), make([]byte, 40))
	f.Fuzz(func(t *testing.T, key, iv, p []byte) {
		var k [codec.KeySize]byte
		var v [codec.IVSize]byte
		copy(k[:], key)
		copy(v[:], iv)
		c, err := codec.NewCipher(k, v)
		if err != nil {
			return
		}
		n := len(p)
		if err := c.Decrypt(p); (err != nil) != (n < 16) || err != nil && !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if data, ok := codec.Unpad(p); ok && len(data) >= 16 || !ok && len(data) != n {
			t.Fatalf("Unpad of %d bytes: %d", n, len(data))
		}
	})
}
