package rafs_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs"
)

func TestCheckBlobID(t *testing.T) {
	for id, ok := range map[string]bool{
		strings.Repeat("0f", 32):            true,
		"my-named-blob":                     true,
		"a":                                 true,
		"A_b.C-9":                           true,
		strings.Repeat("a", 64):             true,
		"":                                  false,
		strings.Repeat("a", 65):             false,
		".":                                 false,
		"..":                                false,
		".hidden":                           false,
		"a/b":                               false,
		"/etc/passwd":                       false,
		"a\x00b":                            false,
		"a b":                               false,
		"a?b":                               false,
		"a%2fb":                             false,
		"sha256:" + strings.Repeat("0", 57): false,
		"ünï":                               false,
	} {
		if err := rafs.CheckBlobID(id); (err == nil) != ok {
			t.Errorf("CheckBlobID(%q) = %v, want ok %v", id, err, ok)
		}
	}
}

func TestResolveBlobID(t *testing.T) {
	placeholder, digest := strings.Repeat("x", 64), strings.Repeat("0123456789abcdef", 4)
	for name, tt := range map[string]struct {
		id       string
		features uint32
		path     string
		want     string
		is       error
	}{
		"in the table":               {digest, 0, "/any/name", digest, nil},
		"named by the user":          {"my-blob", 0, "/any/name", "my-blob", nil},
		"in the table, inlined":      {digest, rafs.BlobInlinedFSMeta, "/any/name", digest, nil},
		"by the file's name":         {placeholder, rafs.BlobInlinedFSMeta, "/dir/" + digest, digest, nil},
		"by the name up to a dot":    {placeholder, rafs.BlobInlinedFSMeta, "/dir/" + digest + ".image.boot", digest, nil},
		"a name that is no id":       {placeholder, rafs.BlobInlinedFSMeta, "/dir/bootstrap", "", rafs.ErrUnsupported},
		"an upper-case name":         {placeholder, rafs.BlobInlinedFSMeta, "/dir/" + strings.ToUpper(digest), "", rafs.ErrUnsupported},
		"placeholder, not inlined":   {placeholder, 0, "/dir/" + digest, "", rafs.ErrDamaged},
		"an id that leads elsewhere": {"../x", 0, "/any/name", "", rafs.ErrDamaged},
	} {
		got, err := rafs.ResolveBlobID(3, 4096, tt.id, tt.features, tt.path)
		if got != tt.want || !errors.Is(err, tt.is) {
			t.Errorf("%s: %q, %v, want %q, %v", name, got, err, tt.want, tt.is)
		}
	}
}

func TestAlgorithmsOfFlags(t *testing.T) {
	for name, tt := range map[string]struct {
		flags                uint64
		compressor, digester uint8
	}{
		"old images have no bits": {0, rafs.CompressorLZ4, rafs.DigesterBlake3},
		"none, sha256":            {0x9, rafs.CompressorNone, rafs.DigesterSHA256},
		"lz4, blake3":             {0x36, rafs.CompressorLZ4, rafs.DigesterBlake3},
		"gzip":                    {0x44, rafs.CompressorGzip, rafs.DigesterBlake3},
		"zstd, sha256":            {0xb8, rafs.CompressorZstd, rafs.DigesterSHA256},
		"all of them":             {0xCF, rafs.CompressorNone, rafs.DigesterBlake3},
	} {
		if c, d := rafs.CompressorOf(tt.flags), rafs.DigesterOf(tt.flags); c != tt.compressor || d != tt.digester {
			t.Errorf("%s: %d and %d, want %d and %d", name, c, d, tt.compressor, tt.digester)
		}
	}
	want := "COMPRESSION_ZSTD INLINED_CHUNK_DIGEST ENCRYPTION_NONE"
	if got := strings.Join(rafs.FlagNames(0x1000180), " "); got != want {
		t.Errorf("FlagNames = %q, want %q", got, want)
	}
}
