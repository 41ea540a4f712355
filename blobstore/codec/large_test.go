package codec_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// TestDecodeLarge: what is larger than any chunk, as chunk information may be.
func TestDecodeLarge(t *testing.T) {
	const n = codec.MaxChunk + 4097
	want := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
	got := make([]byte, n+1)
	for _, a := range algorithms {
		stored := compress(t, a, want)
		if err := codec.DecodeLarge(a, got[:n], stored); err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("%v: %v", a, err)
		}
		for name, err := range map[string]error{
			"yields more": codec.DecodeLarge(a, got[:n-1], stored),
			"yields less": codec.DecodeLarge(a, got, stored),
			"cut":         codec.DecodeLarge(a, got[:n], stored[:len(stored)-20]),
			"nothing":     codec.DecodeLarge(a, got[:n], nil),
		} {
			if !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("%v, %s: %v, want ErrCorrupt", a, name, err)
			}
		}
		if err := codec.DecodeLarge(a, got[:100], compress(t, a, want[:100])); err != nil || !bytes.Equal(got[:100], want[:100]) {
			t.Errorf("%v, small: %v", a, err)
		}
	}
	if err := codec.DecodeLarge(codec.Zstd+1, got, want); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("unknown algorithm: %v", err)
	}
}
