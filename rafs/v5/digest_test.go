package v5_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/v5"
)

// TestVerifyTree changes one bit of what each kind of digest covers, or of the
// digest itself: always a fault of that inode, and no other fault.
func TestVerifyTree(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fixture)
		path   string
	}{
		"digest of a file":         {func(f *fixture) { f.b[f.at("/many/03")] ^= 1 }, "/many/03"},
		"digest of a link":         {func(f *fixture) { f.b[f.at("/d/s")+31] ^= 0x80 }, "/d/s"},
		"digest of the root":       {func(f *fixture) { f.b[f.at("/")+5] ^= 4 }, "/"},
		"target":                   {func(f *fixture) { f.b[f.inode("/d/s").Target.Offset] ^= 1 }, "/d/s"},
		"digest of a chunk":        {func(f *fixture) { f.b[f.chunk("/a")+7] ^= 1 }, "/a"},
		"an empty file that is no": {func(f *fixture) { f.b[f.at("/d/e")+60] = 0; f.b[f.at("/d/e")] ^= 1 }, "/d/e"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			open := func() *v5.Image {
				img, err := v5.Open(rafs.NewBootstrap("boot", f.b))
				if err != nil {
					t.Fatal(err)
				}
				return img
			}
			if err := open().VerifyTree(); err != nil {
				t.Fatal(err)
			}
			tt.change(f)
			err := open().VerifyTree()
			if !errors.Is(err, rafs.ErrDamaged) || !strings.Contains(err.Error(), "digest ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("VerifyTree: %v, want one line about a digest", err)
			}
			var found bool
			if err := open().Check(func(x rafs.Fault) bool {
				found = found || x.Path == tt.path && strings.Contains(x.String(), "its content has")
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if !found {
				t.Errorf("Check does not name %s", tt.path)
			}
		})
	}
}

// TestAnyOrder moves the tables behind the inodes: readers go by offsets.
func TestAnyOrder(t *testing.T) {
	f := newFixture(t)
	for _, x := range []struct {
		at, size int64
		field    int64
	}{
		{f.img.Layout.ExtBlobTable.Offset, f.img.Layout.ExtBlobTable.Size, 72},
		{f.img.Layout.BlobTable.Offset, f.img.Layout.BlobTable.Size, 48},
		{f.img.Layout.InodeTable.Offset, f.img.Layout.InodeTable.Size, 32},
	} {
		moved := append([]byte(nil), f.b[x.at:x.at+x.size]...)
		clear(f.b[x.at : x.at+x.size])
		f.put64(x.field, uint64(len(f.b)))
		f.b = append(f.b, moved...)
		f.b = append(f.b, make([]byte, (8-len(f.b)%8)%8)...)
	}
	soundImage(t, f.b)
}

// TestOldFlags: images older than the choice of algorithms have no bit for any.
func TestOldFlags(t *testing.T) {
	f := newFixture(t)
	f.put64(16, uint64(rafs.FlagExplicitIDs))
	img := soundImage(t, f.b)
	if info := img.Info(); info.Compressor != rafs.CompressorLZ4 || info.Digester != rafs.DigesterBlake3 {
		t.Errorf("compressor %d, digester %d, want LZ4 and BLAKE3", info.Compressor, info.Digester)
	}
}

func soundImage(t *testing.T, b []byte) *v5.Image {
	t.Helper()
	img, err := v5.Open(rafs.NewBootstrap("boot", b))
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Check(func(x rafs.Fault) bool { t.Error(x); return true }); err != nil {
		t.Fatal(err)
	}
	return img
}
