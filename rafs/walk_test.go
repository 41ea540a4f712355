package rafs_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs"
)

// fakeImage is a tree of numbers: the directories are those with an entry in
// names. It has only what Walk uses.
type fakeImage struct {
	rafs.Image
	names  map[uint64][]rafs.Dirent
	broken map[uint64]error // of Attr
	ends   map[uint64]error // of listings
	size   int64
}

func (f *fakeImage) Info() *rafs.Info { return &rafs.Info{Size: f.size} }
func (f *fakeImage) Root() uint64     { return 1 }

func (f *fakeImage) Attr(ino uint64, a *rafs.Attr) error {
	*a = rafs.Attr{Ino: ino, Mode: rafs.ModeRegular}
	if _, dir := f.names[ino]; dir {
		a.Mode = rafs.ModeDir
	}
	return f.broken[ino]
}

func (f *fakeImage) ReadDir(dir, pos uint64, c *rafs.Cursor) error {
	c.Reset(f, dir, pos)
	return nil
}

func (f *fakeImage) Entry(dir, pos uint64, _ *[rafs.MaxName]byte, d *rafs.Dirent) (bool, error) {
	if pos >= uint64(len(f.names[dir])) {
		return false, f.ends[dir]
	}
	*d = f.names[dir][pos]
	d.Next = pos + 1
	return true, nil
}

func dirent(name string, ino uint64, typ uint32) rafs.Dirent {
	return rafs.Dirent{Name: []byte(name), Ino: ino, Type: rafs.DirentType(typ)}
}

// paths walks and writes down every call: the path, and "!" for damage.
func paths(img rafs.Image, skip string) (all []string, err error) {
	err = rafs.Walk(img, func(w *rafs.WalkEntry) error {
		p := fmt.Sprintf("%d%s", w.Depth, w.Path)
		if w.Err != nil {
			p += "!"
		}
		all = append(all, p)
		if string(w.Path) == skip {
			return rafs.SkipDir
		}
		return nil
	})
	return all, err
}

func TestWalk(t *testing.T) {
	dir, file := uint32(rafs.ModeDir), uint32(rafs.ModeRegular)
	tree := map[uint64][]rafs.Dirent{
		1: {dirent("a", 2, dir), dirent("b", 5, file), dirent("c", 6, dir)},
		2: {dirent("x", 3, dir), dirent("y", 5, file)},
		3: {},
		6: {dirent("z", 7, file)},
	}
	loop := map[uint64][]rafs.Dirent{
		1: {dirent("a", 2, dir), dirent("b", 2, dir)},
		2: {dirent("root", 1, dir), dirent("self", 2, dir), dirent("f", 9, file)},
	}
	for name, tt := range map[string]struct {
		img  *fakeImage
		skip string
		want string
	}{
		"in order": {&fakeImage{names: tree, size: 1000}, "", "0/ 1/a 2/a/x 2/a/y 1/b 1/c 2/c/z"},
		"skipped":  {&fakeImage{names: tree, size: 1000}, "/a", "0/ 1/a 1/b 1/c 2/c/z"},
		"broken attributes": {
			&fakeImage{names: tree, size: 1000, broken: map[uint64]error{2: rafs.ErrDamaged, 7: rafs.ErrStale}},
			"", "0/ 1/a! 1/b 1/c 2/c/z!",
		},
		"broken listing": {
			&fakeImage{names: tree, size: 1000, ends: map[uint64]error{2: rafs.ErrDamaged}},
			"", "0/ 1/a 2/a/x 2/a/y 1/a! 1/b 1/c 2/c/z",
		},
		"loops": {&fakeImage{names: loop, size: 1000}, "", "0/ 1/a 2/a/root! 2/a/self! 2/a/f 1/b!"},
		"type that does not fit": {
			&fakeImage{names: map[uint64][]rafs.Dirent{1: {dirent("f", 2, dir), dirent("d", 3, file)}, 3: {}}, size: 1000},
			"", "0/ 1/f! 1/d!",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := paths(tt.img, tt.skip)
			if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("Walk: %v, %v, want %s", got, err, tt.want)
			}
			if again, _ := paths(tt.img, tt.skip); !slices.Equal(got, again) {
				t.Errorf("a second walk differs: %v", again)
			}
		})
	}
}

func TestWalkStops(t *testing.T) {
	img := &fakeImage{names: map[uint64][]rafs.Dirent{1: {}}, size: 120}
	for i := range 100 { // more than 120 bytes can hold
		img.names[1] = append(img.names[1], dirent(fmt.Sprint(i), 9, rafs.ModeRegular))
	}
	if got, err := paths(img, ""); !errors.Is(err, rafs.ErrDamaged) || len(got) != 12 {
		t.Errorf("%d paths, %v, want 12 and ErrDamaged", len(got), err)
	}
	deep := &fakeImage{names: map[uint64][]rafs.Dirent{}, size: 1 << 20}
	for i := uint64(1); i < 5000; i++ {
		deep.names[i] = []rafs.Dirent{dirent("d", i+1, rafs.ModeDir)}
	}
	deep.names[5000] = nil
	got, err := paths(deep, "")
	if last := got[len(got)-1]; err != nil || len(got) != rafs.MaxDepth+1 || !strings.HasSuffix(last, "!") {
		t.Errorf("%d paths, %v, want %d, the last one damaged", len(got), err, rafs.MaxDepth+1)
	}
	wrong := errors.New("enough")
	calls := 0
	if err := rafs.Walk(deep, func(*rafs.WalkEntry) error {
		if calls++; calls == 3 {
			return wrong
		}
		return nil
	}); err != wrong || calls != 3 {
		t.Errorf("%d calls, %v, want 3 and the error", calls, err)
	}
}
