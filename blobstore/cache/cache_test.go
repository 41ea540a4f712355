package cache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore/cache"
)

func TestMain(m *testing.M) {
	if child := os.Getenv("RAFSD_TEST_CACHE_CHILD"); child != "" {
		os.Exit(fillAsChild(child))
	}
	goleak.VerifyTestMain(m)
}

const (
	boot1 = "11111111-1111-1111-1111-111111111111"
	boot2 = "22222222-2222-2222-2222-222222222222"
)

// table describes chunks of a test; a zero size is an unknown chunk.
type table []cache.Desc

func (t table) Len() uint32 { return uint32(len(t)) }

func (t table) Desc(i uint32, d *cache.Desc) bool {
	*d = t[i]
	return d.Size != 0
}

func (t table) Salt() string { return "" }

type salted struct {
	table
	salt string
}

func (t salted) Salt() string { return t.salt }

// makeTable makes n chunks of size bytes at 4 KiB aligned addresses.
func makeTable(n int, size uint32) table {
	t := make(table, n)
	step := (uint64(size) + 4095) &^ 4095
	for i := range t {
		t[i] = cache.Desc{Off: uint64(i) * step, Size: size}
		binary.LittleEndian.PutUint64(t[i].Digest[:], uint64(i)+1)
	}
	return t
}

// only returns what of t an image says that uses just these chunks.
func (t table) only(indexes ...uint32) table {
	s := make(table, indexes[len(indexes)-1]+1)
	for _, i := range indexes {
		s[i] = t[i]
	}
	return s
}

// content is what chunk i of a test table holds.
func content(i, size uint32) []byte {
	return bytes.Repeat([]byte{byte(i*31 + 1), byte(i >> 3), 0x5a, byte(i)}, int(size)/4+1)[:size]
}

func open(t testing.TB, dir string, change func(*cache.Options)) *cache.Cache {
	t.Helper()
	o := cache.Options{
		Dir: dir, BootID: boot1, SyncDelay: time.Hour, Log: slog.New(slog.DiscardHandler),
		Fdatasync: func(*os.File) error { return nil }, // what a disk does is modelled where it matters
	}
	if change != nil {
		change(&o)
	}
	c, err := cache.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func attach(t testing.TB, c *cache.Cache, id string, tab cache.Table) *cache.View {
	t.Helper()
	v, err := c.Attach(t.Context(), id, tab)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func done(t testing.TB, c *cache.Cache, views ...*cache.View) {
	t.Helper()
	for _, v := range views {
		if err := v.Release(); err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func store(t testing.TB, v *cache.View, tab table, indexes ...uint32) {
	t.Helper()
	for _, i := range indexes {
		if err := v.Store(i, content(i, tab[i].Size)); err != nil {
			t.Fatal(err)
		}
	}
}

// ready returns the chunks of tab that are ready, and fails if one of them does
// not hold what it must.
func ready(t testing.TB, v *cache.View, tab table) (is []uint32) {
	t.Helper()
	for i := range tab.Len() {
		if !v.Ready(i) {
			continue
		}
		is = append(is, i)
		err := cache.Guard(func() error {
			want := content(i, tab[i].Size)
			if got, ok := v.Data(i, 0, tab[i].Size); !ok || !bytes.Equal(got, want) {
				t.Errorf("chunk %d is ready and does not hold its bytes (Data %v)", i, ok)
			}
			got := make([]byte, tab[i].Size)
			if err := v.ReadAt(i, got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("chunk %d: ReadAt: %v", i, err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	return is
}

func wantReady(t testing.TB, v *cache.View, tab table, want ...uint32) {
	t.Helper()
	if got := ready(t, v, tab); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("ready chunks = %v, want %v", got, want)
	}
}

func TestStoreAndReadAgain(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(5, 5000)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	wantReady(t, v, tab)
	store(t, v, tab, 1, 4)
	wantReady(t, v, tab, 1, 4)
	if got, ok := v.Data(1, 10, 20); !ok || !bytes.Equal(got, content(1, 5000)[10:30]) {
		t.Errorf("piece of a chunk: %v", ok)
	}
	for _, bad := range [][3]uint32{{1, 0, 5001}, {1, 5000, 1}, {1, 1<<32 - 1, 2}, {0, 0, 1}, {5, 0, 1}, {1 << 31, 0, 1}} {
		if _, ok := v.Data(bad[0], bad[1], bad[2]); ok {
			t.Errorf("Data%v succeeded", bad)
		}
	}
	if err := v.Store(1, make([]byte, 17)); err == nil {
		t.Error("a chunk of a wrong size was stored")
	}
	if err := v.Store(99, nil); err == nil {
		t.Error("an unknown chunk was stored")
	}
	done(t, c, v)

	c = open(t, dir, nil) // the same boot
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 1, 4)
	done(t, c, v)
}

func TestImagesThatShareABlobShareItsEntry(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(3000, 4096)
	c := open(t, dir, nil)
	first := tab.only(3, 7, 2000)
	a := attach(t, c, "blob", first)
	store(t, a, tab, 3, 2000)

	second := tab.only(2, 3, 2999) // needs a larger map than there is
	b := attach(t, c, "blob", second)
	if a.Entry() != "blob" || b.Entry() != "blob" {
		t.Errorf("entries %q and %q, want one", a.Entry(), b.Entry())
	}
	wantReady(t, b, second, 3)
	if b.Knows(2000) || b.Ready(2000) {
		t.Error("a view answers for a chunk that its image does not know")
	}
	store(t, b, tab, 2, 2999)
	wantReady(t, b, second, 2, 3, 2999)
	wantReady(t, a, first, 3, 2000)

	whole := attach(t, c, "blob", tab)
	wantReady(t, whole, tab, 2, 3, 2000, 2999)
	done(t, c, a, b, whole)
}

func TestImagesThatTellAnotherStoryGetAnEntryOfTheirOwn(t *testing.T) {
	honest := makeTable(100, 4096)
	change := func(f func(table)) table {
		l := append(table(nil), honest...)
		f(l)
		return l
	}
	stories := map[string]cache.Table{
		"another digest":            change(func(l table) { l[40].Digest[5]++ }),
		"another size":              change(func(l table) { l[40].Size-- }),
		"another extra":             change(func(l table) { l[40].Extra++ }),
		"another place":             change(func(l table) { l[99].Off += 4096 }),
		"over a chunk it omits":     change(func(l table) { l[40] = cache.Desc{}; l[41].Off -= 1; l[41].Size++; l[41].Digest[0]++ }),
		"free index, place in use":  table{101: {Off: 4096 * 50, Size: 4096}},
		"free index, far behind":    change(func(l table) { l[3] = cache.Desc{Off: 1 << 30, Size: 4096} }),
		"salted":                    salted{honest, "somewhere"},
		"not in order of addresses": change(func(l table) { l[1], l[2] = l[2], l[1] }),
	}
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, nil)
			h := attach(t, c, "blob", honest)
			store(t, h, honest, 1, 40, 50)
			l := attach(t, c, "blob", story)
			if l.Entry() == h.Entry() || !strings.HasPrefix(l.Entry(), "blob+") {
				t.Fatalf("entry %q, want one of its own", l.Entry())
			}
			for i := range story.Len() {
				if l.Ready(i) {
					t.Errorf("chunk %d is ready without being fetched", i)
				}
				var d cache.Desc
				if story.Desc(i, &d) {
					if err := l.Store(i, bytes.Repeat([]byte{0xff}, int(d.Size))); err != nil {
						t.Fatal(err)
					}
				}
			}
			wantReady(t, h, honest, 1, 40, 50) // and hold what they held
			// The same story again is the same entry.
			again := attach(t, c, "blob", story)
			if again.Entry() != l.Entry() {
				t.Errorf("the same story again: entry %q, not %q", again.Entry(), l.Entry())
			}
			done(t, c, h, l, again)
		})
	}
}

func TestALiarThatComesFirstDisturbsNobody(t *testing.T) {
	dir, honest := t.TempDir(), makeTable(10, 4096)
	lie := append(table(nil), honest...)
	lie[4].Digest[0] ^= 1
	c := open(t, dir, nil)
	l := attach(t, c, "blob", lie)
	if err := l.Store(4, bytes.Repeat([]byte{0xff}, 4096)); err != nil {
		t.Fatal(err)
	}
	h := attach(t, c, "blob", honest)
	wantReady(t, h, honest)
	store(t, h, honest, 4)
	wantReady(t, h, honest, 4)
	done(t, c, l, h)
}

func TestRefusedTables(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, nil)
	defer done(t, c)
	tests := map[string]cache.Table{
		"overlap, in order":    table{{Off: 0, Size: 100}, {Off: 99, Size: 100}},
		"overlap, in no order": table{{Off: 8192, Size: 4096}, {Off: 0, Size: 4096}, {Off: 8191, Size: 2}},
		"two at one place":     table{{Off: 4096, Size: 4096}, {Off: 4096, Size: 4096}},
		"more chunks than any": endless{},
	}
	for name, tab := range tests {
		if v, err := c.Attach(t.Context(), "blob", tab); !errors.Is(err, cache.ErrTable) {
			t.Errorf("%s: %v, want ErrTable", name, err)
			if v != nil {
				v.Release()
			}
		}
	}
	// What is nonsense in itself is passed over: the rest can be read.
	v := attach(t, c, "odd", table{
		{Off: 1 << 63, Size: 10}, {Off: 0, Size: 4096}, {Off: 1<<64 - 4, Size: 8}, {Off: 1 << 20, Size: cache.MaxChunk + 1},
	})
	for i := range uint32(4) {
		if v.Knows(i) != (i == 1) {
			t.Errorf("Knows(%d) = %v", i, v.Knows(i))
		}
	}
	if err := v.Release(); err != nil {
		t.Error(err)
	}
}

type endless struct{}

func (endless) Len() uint32                       { return 1<<32 - 1 }
func (endless) Desc(i uint32, d *cache.Desc) bool { panic("read in spite of its length") }
func (endless) Salt() string                      { return "" }

// TestTableThatChangesWhileItIsRead: a bootstrap that is rewritten under us must
// not get a chunk claimed over another one.
func TestTableThatChangesWhileItIsRead(t *testing.T) {
	dir, honest := t.TempDir(), makeTable(4, 4096)
	c := open(t, dir, nil)
	h := attach(t, c, "blob", honest.only(0, 3))
	store(t, h, honest, 3)
	for walks := range 5 {
		v, err := c.Attach(t.Context(), "blob", &shifting{after: walks})
		if err != nil {
			continue
		}
		if v.Knows(1) {
			if err := v.Store(1, bytes.Repeat([]byte{0xff}, 4096)); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Release(); err != nil {
			t.Error(err)
		}
	}
	wantReady(t, h, honest.only(0, 3), 3)
	done(t, c, h)
}

// shifting is a table that names chunk 1 where it belongs for some walks, and then
// over chunk 3.
type shifting struct{ walks, after int }

func (s *shifting) Len() uint32  { return 2 }
func (s *shifting) Salt() string { return "" }
func (s *shifting) Desc(i uint32, d *cache.Desc) bool {
	if i == 0 {
		s.walks++
		return false
	}
	*d = cache.Desc{Off: 4096, Size: 4096}
	if s.walks > s.after {
		d.Off = 3 * 4096
	}
	return true
}

func TestFolderThatIsNotOursAloneIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"readable by others": func(dir string) error { return os.Chmod(dir, 0o755) },
		"writable by group":  func(dir string) error { return os.Chmod(dir, 0o720) },
		"a link to another": func(dir string) error {
			other := dir + "-other"
			return errors.Join(os.Mkdir(other, 0o700), os.Remove(dir), os.Symlink(other, dir))
		},
		"a file": func(dir string) error { return errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			sub := filepath.Join(dir, "rafsd-v1")
			if err := errors.Join(os.Mkdir(sub, 0o700), spoil(sub)); err != nil {
				t.Fatal(err)
			}
			if c, err := cache.Open(cache.Options{Dir: dir}); err == nil {
				c.Close()
				t.Error("the folder was accepted")
			}
		})
	}
}

func TestUnverifiedChunksAreKeptApart(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(2, 4096)
	c := open(t, dir, func(o *cache.Options) { o.Unverified = true })
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 0)
	done(t, c, v)
	c = open(t, dir, nil)
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab)
	done(t, c, v)
}

func TestNothingIsWrittenOutsideOurFolder(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(2, 4096)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 0, 1)
	done(t, c, v)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "rafsd-v1" {
		t.Errorf("work_dir holds %v, %v", entries, err)
	}
}

func TestLockHeldByAStoppedProcessIsNotWaitedForForEver(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, nil)
	defer done(t, c)
	f, err := os.OpenFile(filepath.Join(dir, "rafsd-v1", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Attach(ctx, "blob", makeTable(1, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Attach = %v, want its deadline", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	v := attach(t, c, "blob", makeTable(1, 1)) // nothing is left behind
	if err := v.Release(); err != nil {
		t.Error(err)
	}
}

func TestTruncatedDataFileIsAFaultAndNotACrash(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(4, 8192)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 0, 1, 2, 3)
	path := filepath.Join(dir, "rafsd-v1", "blob.data")
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	err := cache.Guard(func() error {
		p, ok := v.Data(2, 0, 8192)
		if !ok {
			t.Error("chunk 2 is no longer ready")
		}
		_ = bytes.Count(p, []byte{0})
		return nil
	})
	if err == nil {
		t.Error("reading behind the end of the file did not fault")
	}
	// The reader drops what it could not read, and the next one stores it anew.
	if err := v.Drop(2); err != nil {
		t.Fatal(err)
	}
	if v.Ready(2) {
		t.Error("a dropped chunk is ready")
	}
	wantReady(t, v, tab, 0) // nor is any other of which the bytes are gone
	store(t, v, tab, 2)
	wantReady(t, v, tab, 0, 2)
	done(t, c, v)

	// Who attaches then does not believe marks behind the end.
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, nil)
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 0)
	done(t, c, v)
}

func TestTruncatedMapIsAnErrorOfThatCall(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(200, 64)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	if err := os.Truncate(filepath.Join(dir, "rafsd-v1", "blob.map"), 0); err != nil {
		t.Fatal(err)
	}
	if err := cache.Guard(func() error { v.Ready(100); return nil }); err == nil {
		t.Error("Ready did not fault")
	}
	if err := v.Store(100, content(100, 64)); err == nil {
		t.Error("Store did not fail")
	}
	if _, err := v.Matches(100, &tab[100]); err == nil {
		t.Error("Matches did not fail")
	}
	done(t, c, v)
}

func TestSyncFailureTakesChunksBack(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(3, 4096)
	c := open(t, dir, func(o *cache.Options) {
		o.SyncDelay = time.Millisecond
		o.Fdatasync = func(f *os.File) error {
			if strings.HasSuffix(f.Name(), ".data") {
				return unix.EIO
			}
			return nil
		}
	})
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 0, 2)
	for deadline := time.Now().Add(20 * time.Second); c.Stats().SyncErrors == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for v.Ready(0) || v.Ready(2) { // or the test's own deadline
		time.Sleep(time.Millisecond)
	}
	if s := c.Stats(); s.SyncErrors == 0 || s.Durable != 0 {
		t.Errorf("stats = %+v, want sync errors, nothing durable", s)
	}
	done(t, c, v)
}

func TestHitPathDoesNotAllocate(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(8, 4096)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 3)
	n := testing.AllocsPerRun(1000, func() {
		if p, ok := v.Data(3, 100, 1000); !ok || len(p) != 1000 {
			t.Fatal("not served")
		}
		if v.Ready(2) {
			t.Fatal("chunk 2 is ready")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	done(t, c, v)
}
