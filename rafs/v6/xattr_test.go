package v6_test

import (
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/v6"
)

// shareXattrs makes the attributes of /a shared ones: their entries, moved into
// a block of their own at the end, and their ids in the inode's area.
func shareXattrs(f *fixture) (ids int64) {
	area := f.inode("/a").Xattrs
	block := int64(len(f.b))
	f.b = append(f.b, make([]byte, 4096)...)
	entries := f.b[area.Offset+12 : area.End()]
	copy(f.b[block+64:], entries)
	first := 4 + int64(f.b[block+64]) + int64(f.b[block+66])
	second := (64 + first + 3) &^ 3
	clear(entries)
	f.put32(sb+44, uint32(block/4096))
	f.put8(area.Offset+4, 2)
	f.put32(area.Offset+12, 64/4)
	f.put32(area.Offset+16, uint32(second/4))
	return area.Offset + 12
}

func TestSharedXattrs(t *testing.T) {
	f := newFixture(t)
	plain := names(t, f.b)
	shareXattrs(f)
	if got := names(t, f.b); got != plain || !strings.Contains(got, "user.x=value") {
		t.Errorf("shared attributes %q, want %q", got, plain)
	}
}

func TestSharedXattrsDamaged(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(f *fixture, ids int64)
		says   string
	}{
		"behind the end":    {func(f *fixture, ids int64) { f.put32(ids, 1<<30) }, "lies behind the end"},
		"nothing there":     {func(f *fixture, ids int64) { f.put32(ids, 1000/4) }, "is none"},
		"too many":          {func(f *fixture, ids int64) { f.put8(ids-8, 255) }, "255 shared attributes in an area of"},
		"an image without":  {func(f *fixture, ids int64) { f.put32(sb+44, 0) }, "an image that shares none"},
		"twice":             {func(f *fixture, ids int64) { f.put32(ids+4, 64/4) }, "twice"},
		"entry is no entry": {func(f *fixture, ids int64) { f.put8(int64(len(f.b))-4096+65, 9) }, "name index 9"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			tt.damage(f, shareXattrs(f))
			img, err := v6.Open(rafs.NewBootstrap("boot", f.b))
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			var faults []string
			if err := img.Check(func(x rafs.Fault) bool { faults = append(faults, x.String()); return true }); err != nil {
				t.Fatal(err)
			}
			if len(faults) == 0 || !strings.Contains(faults[0], tt.says) {
				t.Errorf("faults %q, want one that says %q", faults, tt.says)
			}
		})
	}
}

// names returns the attributes of /a, as name=value.
func names(t *testing.T, b []byte) string {
	t.Helper()
	img, err := v6.Open(rafs.NewBootstrap("boot", b))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	ino, err := img.Lookup(img.Root(), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := img.XattrNames(ino, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := img.Xattr(ino, []byte(name), nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, name+"="+string(value))
	}
	return strings.Join(all, " ")
}
