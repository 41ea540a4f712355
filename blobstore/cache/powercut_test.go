package cache_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore/cache"
)

// disk models what a power cut leaves: of data files, what they held at their
// last fdatasync and nothing that was written since; of maps, marks as they were
// stored last, as the kernel may write back a page at any time, and the header as
// it was stored or as it was at the last fdatasync.
type disk struct {
	dir string
	rng *rand.Rand

	mu     sync.Mutex
	synced map[string][]byte // by name, content at the last fdatasync
}

func (d *disk) fdatasync(f *os.File) error {
	if filepath.Ext(f.Name()) == "" {
		return nil // the folder
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced[filepath.Base(f.Name())] = b
	return nil
}

// cut is the moment of a power cut. What it returns puts the folder into the
// state in which the next boot finds it, in place: the files keep their inodes, as
// they do on a real disk. Whatever the process does in between has not happened.
func (d *disk) cut(t *testing.T) (next func()) {
	t.Helper()
	d.mu.Lock() // no fdatasync returns meanwhile
	defer d.mu.Unlock()
	names, err := filepath.Glob(filepath.Join(d.dir, "rafsd-v1", "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	left := map[string][]byte{}
	for _, name := range names {
		now, synced := mustRead(t, name), d.synced[filepath.Base(name)]
		if strings.HasSuffix(name, ".data") {
			clear(now) // the size may have reached the disk although the bytes did not
			copy(now, synced)
		} else if d.rng.IntN(2) == 0 {
			clear(now[:4096])
			copy(now[:4096], synced)
		}
		left[name] = now
	}
	return func() {
		for name, b := range left {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			d.synced[filepath.Base(name)] = b
		}
	}
}

func TestPowerCut(t *testing.T) {
	tab, kept := makeTable(64, 4096), 0
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		d := &disk{dir: t.TempDir(), rng: rng, synced: map[string][]byte{}}
		boots := []string{boot1, boot2}
		for round := range 4 {
			c := open(t, d.dir, func(o *cache.Options) {
				o.BootID, o.Fdatasync, o.SyncDelay = boots[round%2], d.fdatasync, time.Duration(1+rng.IntN(3))*time.Millisecond
			})
			v := attach(t, c, "blob", tab)
			had := ready(t, v, tab) // fails the test if one of them does not hold its bytes
			for range 1 + rng.IntN(30) {
				store(t, v, tab, uint32(rng.IntN(len(tab))))
				if rng.IntN(4) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			kept += len(had)
			next := func() {}
			if rng.IntN(2) == 0 { // with everything open, in the middle of whatever the syncer does
				next = d.cut(t)
			}
			done(t, c, v)
			next()
			if t.Failed() {
				t.Fatalf("seed %d round %d: had %v", seed, round, had)
			}
		}
	}
	if kept == 0 {
		t.Error("no chunk outlived any power cut")
	}
}

func TestOnlyDurableChunksOutliveABoot(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(6, 4096)
	synced := make(chan struct{}, 10)
	c := open(t, dir, func(o *cache.Options) {
		o.SyncDelay = time.Millisecond
		o.Fdatasync = func(f *os.File) error {
			if strings.HasSuffix(f.Name(), ".map") {
				synced <- struct{}{}
			}
			return nil
		}
	})
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 1, 2)
	<-synced // and so durable
	// From here the machine dies: a copy of the folder is what a second boot finds
	// on a disk that had written everything, marks and data.
	store(t, v, tab, 4)
	dead := t.TempDir()
	copyEntry(t, dir, dead, "blob")
	done(t, c, v)

	c = open(t, dead, func(o *cache.Options) { o.BootID = boot1 })
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 1, 2, 4) // the same boot: a process died, no more
	done(t, c, v)
}

// copyEntry copies an entry and makes the copies a pair, as a disk image would be.
func copyEntry(t *testing.T, from, to, name string) {
	t.Helper()
	sub := filepath.Join(to, "rafsd-v1")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{".data", ".map"} {
		b, err := os.ReadFile(filepath.Join(from, "rafsd-v1", name+ext))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, name+ext), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cache.Repair(t, filepath.Join(sub, name))
}

func TestReadyMarksOfAnotherBootDoNotCount(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(6, 4096)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 1, 2)
	dead := t.TempDir()
	copyEntry(t, dir, dead, "blob")
	done(t, c, v)
	c = open(t, dead, func(o *cache.Options) { o.BootID, o.SyncDelay = boot2, time.Millisecond })
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab) // nothing had been made durable
	store(t, v, tab, 5)
	wantReady(t, v, tab, 5)
	waitDurable(t, c, 1)
	done(t, c, v)
	c = open(t, dead, func(o *cache.Options) { o.BootID = boot1 })
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 5)
	done(t, c, v)
}

// waitDurable waits until a cache has made n chunks durable.
func waitDurable(t *testing.T, c *cache.Cache, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); c.Stats().Durable < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d chunks are durable, want %d", c.Stats().Durable, n)
		}
	}
}

func TestChunksOfAProcessThatEndedBecomeDurableLater(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(6, 4096)
	c := open(t, dir, nil) // its syncer sleeps for an hour
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 1, 4)
	done(t, c, v)
	if n := c.Stats().Durable; n != 0 {
		t.Errorf("Close made %d chunks durable", n)
	}
	c = open(t, dir, func(o *cache.Options) { o.SyncDelay = time.Millisecond })
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 1, 4)
	waitDurable(t, c, 2)
	done(t, c, v)
	c = open(t, dir, func(o *cache.Options) { o.BootID = boot2 })
	v = attach(t, c, "blob", tab)
	wantReady(t, v, tab, 1, 4)
	done(t, c, v)
}

func TestDamagedEntriesAreReplacedAndNeverBelieved(t *testing.T) {
	tab := makeTable(6, 4096)
	flipAt := func(off int64) func(t *testing.T, base string) {
		return func(t *testing.T, base string) {
			f, err := os.OpenFile(base+".map", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x40
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]func(t *testing.T, base string){
		"magic":               flipAt(0),
		"version":             flipAt(8),
		"boot id":             flipAt(16),
		"epoch":               flipAt(32),
		"length of the name":  flipAt(36),
		"inode":               flipAt(40),
		"name":                flipAt(48),
		"padding":             flipAt(2000),
		"checksum":            flipAt(4095),
		"empty map":           func(t *testing.T, base string) { must(t, os.Truncate(base+".map", 0)) },
		"map cut in a header": func(t *testing.T, base string) { must(t, os.Truncate(base+".map", 1000)) },
		"map of another blob": func(t *testing.T, base string) {
			must(t, os.Rename(base+".map", base+"x.map"))
			must(t, os.Rename(base+".data", base+"x.data"))
			must(t, os.WriteFile(base+".map", mustRead(t, base+"x.map"), 0o600))
			must(t, os.WriteFile(base+".data", mustRead(t, base+"x.data"), 0o600))
		},
		"data file replaced": func(t *testing.T, base string) {
			must(t, os.WriteFile(base+".new", make([]byte, 6*4096), 0o600))
			must(t, os.Rename(base+".new", base+".data"))
		},
		"data file gone":  func(t *testing.T, base string) { must(t, os.Remove(base+".data")) },
		"map gone":        func(t *testing.T, base string) { must(t, os.Remove(base+".map")) },
		"second link":     func(t *testing.T, base string) { must(t, os.Link(base+".data", base+".other")) },
		"writable by all": func(t *testing.T, base string) { must(t, os.Chmod(base+".data", 0o666)) },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, nil)
			v := attach(t, c, "blob", tab)
			store(t, v, tab, 0, 1, 2)
			done(t, c, v)
			damage(t, filepath.Join(dir, "rafsd-v1", "blob"))
			c = open(t, dir, nil)
			v = attach(t, c, "blob", tab)
			wantReady(t, v, tab)
			store(t, v, tab, 1)
			wantReady(t, v, tab, 1)
			done(t, c, v)
			c = open(t, dir, nil)
			v = attach(t, c, "blob", tab)
			wantReady(t, v, tab, 1)
			done(t, c, v)
		})
	}
}

func TestTornSlotsAreFree(t *testing.T) {
	dir, tab := t.TempDir(), makeTable(6, 4096)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	store(t, v, tab, 0, 1, 2)
	done(t, c, v)
	f, err := os.OpenFile(filepath.Join(dir, "rafsd-v1", "blob.map"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xee}, 20), 4096+64+30); err != nil { // in slot 1
		t.Fatal(err)
	}
	f.Close()
	c = open(t, dir, nil)
	v = attach(t, c, "blob", tab)
	if v.Entry() != "blob" {
		t.Errorf("entry %q: a torn slot is taken for another story", v.Entry())
	}
	wantReady(t, v, tab, 0, 2)
	done(t, c, v)
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Skipf("SKIPPED: a small file system cannot be mounted here: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	tab := makeTable(64, 16<<10)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	var stored []uint32
	var full error
	for i := range uint32(64) {
		if err := v.Store(i, content(i, 16<<10)); err != nil {
			full = err
			break
		}
		stored = append(stored, i)
	}
	if full == nil || !strings.Contains(full.Error(), "no space left") {
		t.Fatalf("error = %v after %d chunks, want one that says that the disk is full", full, len(stored))
	}
	wantReady(t, v, tab, stored...)
	if _, err := c.Attach(t.Context(), "other", makeTable(4000, 64)); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("an entry on a full disk: %v", err)
	}
	done(t, c, v)
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
