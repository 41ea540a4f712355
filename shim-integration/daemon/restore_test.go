package daemon

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/shim-integration/config"
)

var update = flag.Bool("update", false, "write golden files")

// generation is a daemon as one of several processes, one after the other.
type generation struct {
	*Daemon
	guest *fusetest.Client
	log   bytes.Buffer
}

func newStore(t *testing.T) *record.Store {
	t.Helper()
	s := record.NewStore()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// succeed starts a process on what is in the record. It is never ended as a process
// that is killed is not; at the end of the test it gives back its memory.
func succeed(t *testing.T, s record.Record, o Options) *generation {
	t.Helper()
	g := &generation{}
	o.Record, o.Log = s, slog.New(slog.NewTextHandler(&g.log, nil))
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Leave(); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	g.Daemon, g.guest = d, fusetest.NewClient(t, d.server)
	g.guest.Scribbles = true
	return g
}

// walk returns all that a guest sees below node, one line an entry: node ids, inode
// numbers, cookies, attributes, handles and contents.
func (g *generation) walk(t *testing.T, path string, node uint64, out *strings.Builder) {
	t.Helper()
	a, r := g.guest.GetAttr(node)
	if r.Errno != 0 {
		fmt.Fprintf(out, "%s: %v\n", path, r.Errno)
		return
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		t.Fatalf("%s is no directory", path)
	}
	fmt.Fprintf(out, "%s %s\n", path, show(node, a))
	opened := g.guest.Call(fuseproto.OpOpenDir, node, 16, uint32(0), uint32(0))
	if opened.Errno != 0 {
		t.Fatalf("OPENDIR %s: %v", path, opened.Errno)
	}
	if fh := binary.LittleEndian.Uint64(opened.Body); fh != 0 {
		t.Errorf("OPENDIR %s: handle %d, want 0, which needs no table", path, fh)
	}
	for _, d := range slices.Clone(g.guest.List(node, 4096, false)) {
		fmt.Fprintf(out, "%s/%s cookie %#x d_ino %#x type %d\n", path, d.Name, d.Off, d.Ino, d.Type)
		if d.Name == "." || d.Name == ".." {
			continue
		}
		e, r := g.guest.Lookup(node, d.Name)
		if r.Errno != 0 {
			fmt.Fprintf(out, "%s/%s: %v\n", path, d.Name, r.Errno)
			continue
		}
		name := path + "/" + d.Name
		if e.Attr.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			g.walk(t, name, e.Node, out)
			continue
		}
		fmt.Fprintf(out, "%s %s", name, show(e.Node, e.Attr))
		if e.Attr.Mode&syscall.S_IFMT == syscall.S_IFREG {
			opened := g.guest.Call(fuseproto.OpOpen, e.Node, 16, uint32(0), uint32(0))
			if opened.Errno != 0 || binary.LittleEndian.Uint64(opened.Body) != 0 {
				t.Errorf("OPEN %s: %v, %x, want handle 0", name, opened.Errno, opened.Body)
			}
			h := fnv.New64a()
			for off := uint64(0); off < e.Attr.Size; off += 64 << 10 {
				r := g.guest.Read(e.Node, off, 64<<10)
				if r.Errno != 0 {
					fmt.Fprintf(out, " read %v", r.Errno)
					break
				}
				h.Write(r.Body)
			}
			fmt.Fprintf(out, " content %x", h.Sum64())
		}
		fmt.Fprintln(out)
	}
}

func show(node uint64, a fusetest.Attr) string {
	return fmt.Sprintf("node %#x ino %#x mode %o nlink %d size %d uid %d mtime %d.%09d", node, a.Ino, a.Mode, a.Nlink, a.Size, a.UID, a.Mtime, a.MtimeNsec)
}

func (g *generation) sees(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	g.walk(t, "", fuseproto.RootID, &b)
	// The time at which a pseudo directory lost a name is not remembered.
	return regexp.MustCompile(`(?m)( node 0x([0-9a-f]{1,11}|0[0-9a-f]+) .*) mtime .*$`).ReplaceAllString(b.String(), "$1")
}

func sampleImage(t *testing.T, o testimage.Options) (*testimage.Image, string) {
	t.Helper()
	img, err := testimage.Sample().Write(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return img, fmt.Sprintf(`{"version":2,"id":"/%d","backend":{"type":"localfs","localfs":{"dir":%q}},
		"cache":{"type":"blobcache","filecache":{"work_dir":%q}},"rafs":{"enable_xattr":true}}`, o.Version, img.BlobDir, t.TempDir())
}

// A guest that reads images sees nothing of a process that is replaced by the next
// one, though a bootstrap was replaced and another removed meanwhile.
func TestImagesGoOn(t *testing.T) {
	s := newStore(t)
	v5, c5 := sampleImage(t, testimage.Options{Version: testimage.V5})
	v6, c6 := sampleImage(t, testimage.Options{Version: testimage.V6})
	first := succeed(t, s, Options{})
	if first.Restored() {
		t.Error("the first process goes on with something")
	}
	mount := func(g *generation, r MountRequest) {
		t.Helper()
		r.FSType = "rafs"
		if err := g.Mount(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	digest, err := os.ReadFile(v6.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	mount(first, MountRequest{Mountpoint: "/gone/x", Source: v5.Bootstrap, Config: c5})
	first.guest.Init()
	mount(first, MountRequest{Mountpoint: "/gone/y/a", Source: v5.Bootstrap, Config: c5})
	mount(first, MountRequest{Mountpoint: "/b", Source: v6.Bootstrap, Config: c6, PrefetchFiles: []string{"/"}})
	mount(first, MountRequest{Mountpoint: "/gone/y/z", Source: v5.Bootstrap, Config: c5})
	if err := first.Umount(t.Context(), "/gone/x"); err != nil {
		t.Fatal(err)
	}
	mount(first, MountRequest{Mountpoint: "/last", Source: v6.Bootstrap, Config: c6})
	if err := first.Remount(t.Context(), MountRequest{Mountpoint: "/gone/y/z", Source: v6.Bootstrap, Config: c6}); err != nil {
		t.Fatal(err)
	}
	if err := first.Umount(t.Context(), "/last"); err != nil {
		t.Fatal(err)
	}
	if err := first.SetLogLevel("warn"); !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	want, before := first.sees(t), first.Info().Mounts

	// The next process finds other files at the paths.
	if err := errors.Join(os.Remove(v5.Bootstrap), os.Remove(v6.Bootstrap), os.WriteFile(v6.Bootstrap, digest[:100], 0o600)); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		next := succeed(t, s, Options{})
		if !next.Restored() {
			t.Error("nothing is gone on with")
		}
		if got := next.sees(t); got != want {
			t.Fatalf("process %d shows\n%s\nwant\n%s\nlog: %s", n+2, got, want, next.log.String())
		}
		after := next.Info().Mounts
		for i := range after {
			if a, b := &after[i], &before[i]; a.Mountpoint != b.Mountpoint || a.ID != b.ID || a.Source != b.Source || a.FSType != b.FSType || !a.Mounted.Equal(b.Mounted) || a.Config.StoreKey() != b.Config.StoreKey() {
				t.Errorf("mount %+v, was %+v", a, b)
			}
		}
	}
	next := succeed(t, s, Options{})
	again, c := sampleImage(t, testimage.Options{Version: testimage.V5})
	mount(next, MountRequest{Mountpoint: "/new", Source: again.Bootstrap, Config: c})
	for _, m := range next.Info().Mounts {
		if m.Mountpoint == "/new" && m.ID != 7 {
			t.Errorf("the new mount has id %d, want 7: 6 were given", m.ID)
		}
	}
	for _, m := range next.Info().Mounts {
		if err := next.Umount(t.Context(), m.Mountpoint); err != nil {
			t.Error(err)
		}
	}
	end := succeed(t, s, Options{})
	if n := end.Info().Mounts; len(n) != 0 {
		t.Errorf("unmounted, and still there: %+v", n)
	}
	mount(end, MountRequest{Mountpoint: "/new", Source: again.Bootstrap, Config: c})
	if m := end.Info().Mounts[0]; m.ID != 8 {
		t.Errorf("the new mount has id %d, want 8: 7 were given", m.ID)
	}
}

// TestGoldenNumbers holds the numbers that a guest remembers, across releases too:
// node ids, directory cookies and inode numbers of images are a stable format.
func TestGoldenNumbers(t *testing.T) {
	for _, v := range []testimage.Version{testimage.V5, testimage.V6} {
		tree := testimage.NewTree()
		for i := range 40 {
			tree.File(fmt.Sprintf("/many/f%02d", i), nil)
		}
		tree.File("/etc/hosts", []byte("localhost"))
		tree.FileOf("/data/big", testimage.Pattern(3<<20, 1))
		img, err := tree.Write(t.TempDir(), testimage.Options{Version: v})
		if err != nil {
			t.Fatal(err)
		}
		c := fmt.Sprintf(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":%q}},
			"cache":{"type":"blobcache","filecache":{"work_dir":%q}},"rafs":{}}`, img.BlobDir, t.TempDir())
		d := succeed(t, newStore(t), Options{})
		d.guest.Init()
		for _, at := range []string{"/one", "/deep/er/two", "/deep/three"} {
			if err := d.Mount(t.Context(), MountRequest{Mountpoint: at, FSType: "rafs", Source: img.Bootstrap, Config: c}); err != nil {
				t.Fatal(err)
			}
		}
		got := regexp.MustCompile(`(?m) mode .*$`).ReplaceAllString(d.sees(t), "")
		compareGolden(t, fmt.Sprintf("numbers-v%d.golden", v), got)
	}
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s:\n%s", path, got)
	}
}

// A directory of the host beside images: nodes, open files and files without a name go
// on, and the numbers of mounts are not used again.
func TestDirectoryGoesOn(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := succeed(t, s, Options{})
	first.guest.Init()
	if err := first.MountDirectory(t.Context(), "/share", dir); err != nil {
		t.Fatal(err)
	}
	root, _ := first.guest.Lookup(fuseproto.RootID, "share")
	e, r := first.guest.Lookup(root.Node, "f")
	opened := first.guest.Call(fuseproto.OpOpen, e.Node, 16, uint32(syscall.O_RDWR), uint32(0))
	if r.Errno != 0 || opened.Errno != 0 {
		t.Fatal(r.Errno, opened.Errno)
	}
	fh := binary.LittleEndian.Uint64(opened.Body)
	if r := first.guest.Call(fuseproto.OpUnlink, root.Node, 0, "f"); r.Errno != 0 {
		t.Fatal(r.Errno)
	}
	for range 2 {
		next := succeed(t, s, Options{})
		r := next.guest.Call(fuseproto.OpRead, e.Node, 100, fusetest.ReadBody(fh, 0, 100))
		if string(r.Body) != "content" {
			t.Fatalf("%v %q; log %s", r.Errno, r.Body, next.log.String())
		}
		if a, r := next.guest.GetAttr(e.Node); r.Errno != 0 || a.Ino != e.Attr.Ino || a.Nlink != 0 {
			t.Errorf("%v, %+v", r.Errno, a)
		}
	}
	last := succeed(t, s, Options{})
	if err := last.Umount(t.Context(), "/share"); err != nil {
		t.Fatal(err)
	}
	last.closing.Wait()
	for _, e := range s.Entries() {
		if strings.HasPrefix(e.Key, sharePrefix) || strings.HasPrefix(e.Key, mountPrefix) {
			t.Errorf("%s is left in the record", e.Key)
		}
	}
}

// An image whose bootstrap cannot be used any more answers EIO and can be unmounted;
// the others go on. A pinned one that was changed in place is such.
func TestMountThatCannotGoOn(t *testing.T) {
	s := newStore(t)
	cut, c := sampleImage(t, testimage.Options{Version: testimage.V6})
	pinned, cp := sampleImage(t, testimage.Options{Version: testimage.V5})
	sound, cs := sampleImage(t, testimage.Options{Version: testimage.V5})
	first := succeed(t, s, Options{})
	first.guest.Init()
	for _, r := range []MountRequest{
		{Mountpoint: "/cut", Source: cut.Bootstrap, Config: c},
		{Mountpoint: "/pinned", Source: pinned.Bootstrap, Config: cp, BootstrapDigest: digestOf(t, pinned.Bootstrap)},
		{Mountpoint: "/sound", Source: sound.Bootstrap, Config: cs},
	} {
		r.FSType = "rafs"
		if err := first.Mount(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	node, _ := first.guest.Lookup(fuseproto.RootID, "cut")
	if err := os.Truncate(cut.Bootstrap, 100); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pinned.Bootstrap, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, int64(pinned.Layout.Inodes.Offset)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	next := succeed(t, s, Options{})
	for name, want := range map[string]syscall.Errno{"cut": syscall.EIO, "pinned": syscall.EIO, "sound": 0} {
		if _, r := next.guest.Lookup(fuseproto.RootID, name); r.Errno != want {
			t.Errorf("%s: %v, want %v", name, r.Errno, want)
		}
	}
	if _, r := next.guest.GetAttr(node.Node); r.Errno != syscall.EIO {
		t.Errorf("GETATTR of the root that was known: %v, want EIO", r.Errno)
	}
	if n := strings.Count(next.log.String(), "a mount cannot go on"); n != 2 {
		t.Errorf("%d log lines, want 2: %s", n, next.log.String())
	}
	if n := len(next.Info().Mounts); n != 3 {
		t.Errorf("%d mounts are listed, want 3", n)
	}
	for _, at := range []string{"/cut", "/pinned"} {
		if err := next.Umount(t.Context(), at); err != nil {
			t.Error(err)
		}
	}
	if n := len(succeed(t, s, Options{}).Info().Mounts); n != 1 {
		t.Errorf("%d mounts after the umounts, want 1", n)
	}
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	d := testDaemonOf(t, path)
	sum, err := d.Digest("/")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum)
}

func testDaemonOf(t *testing.T, bootstrap string) *Daemon {
	t.Helper()
	d, err := New(Options{Log: slog.New(slog.DiscardHandler), Cache: config.CacheSettings{Dir: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := d.MountImage(t.Context(), "/", bootstrap, config.LocalDir(t.TempDir()), nil); err != nil {
		t.Fatal(err)
	}
	return d
}

// What a caller changed while the daemon ran holds for the next process, and only for
// the mount that it was changed for.
func TestChangesGoOn(t *testing.T) {
	s := newStore(t)
	img, _ := sampleImage(t, testimage.Options{Version: testimage.V5})
	text := fmt.Sprintf(`{"version":2,"id":"/r","backend":{"type":"registry","registry":{"host":"localhost:1","repo":"a","auth":"b2xkOm9sZA=="}},
		"cache":{"type":"blobcache","filecache":{"work_dir":%q}},"rafs":{}}`, t.TempDir())
	level := new(slog.LevelVar)
	first := succeed(t, s, Options{Level: level})
	r := MountRequest{Mountpoint: "/r", FSType: "rafs", Source: img.Bootstrap, Config: text}
	if err := errors.Join(first.Mount(t.Context(), r), first.SetLogLevel("DEBUG"), first.SetRuntimeConfig("/r", map[string]string{keyRegistryAuth: "bmV3Om5ldw=="})); err != nil {
		t.Fatal(err)
	}
	level.Set(slog.LevelInfo)
	next := succeed(t, s, Options{Level: level})
	if got := next.Info().Mounts[0].Config.Backend.Registry.Auth.Reveal(); got != "bmV3Om5ldw==" {
		t.Errorf("credentials %q, want the changed ones", got)
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("log level %v, want debug", level.Level())
	}
	if err := next.Remount(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	last := succeed(t, s, Options{})
	if got := last.Info().Mounts[0].Config.Backend.Registry.Auth.Reveal(); got != "b2xkOm9sZA==" {
		t.Errorf("credentials %q after a remount, want the remount's", got)
	}
	if strings.Contains(first.log.String()+next.log.String()+last.log.String(), "bmV3") {
		t.Error("a log tells credentials")
	}
}

// failing is a record that cannot be written to.
type failing struct {
	*record.Store
	err error
}

func (f *failing) Put(key string, value []byte, fds ...int) error {
	if f.err != nil {
		return f.err
	}
	return f.Store.Put(key, value, fds...)
}

// A mount that the next process would not know of does not come to be.
func TestMountNeedsTheRecord(t *testing.T) {
	img, c := sampleImage(t, testimage.Options{Version: testimage.V5})
	f := &failing{Store: newStore(t)}
	d := succeed(t, f, Options{})
	d.guest.Init()
	f.err = errors.New("the keeper has gone")
	r := MountRequest{Mountpoint: "/a", FSType: "rafs", Source: img.Bootstrap, Config: c}
	if err := d.Mount(t.Context(), r); !errors.Is(err, f.err) {
		t.Errorf("Mount: %v, want %v", err, f.err)
	}
	if _, got := d.guest.Lookup(fuseproto.RootID, "a"); got.Errno != syscall.ENOENT || len(d.Info().Mounts) != 0 {
		t.Errorf("the guest sees %v", got.Errno)
	}
	f.err = nil
	if err := d.Mount(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// The temporary cache of one process is that of the next, and goes with the last.
func TestTemporaryCacheGoesOn(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := newStore(t)
	img, _ := sampleImage(t, testimage.Options{Version: testimage.V5})
	first := succeed(t, s, Options{})
	if err := first.MountImage(t.Context(), "/a", img.Bootstrap, config.LocalDir(img.BlobDir), nil); err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Record: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	dirs := func() []string {
		list, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "rafsd-cache-*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if n := dirs(); len(n) != 1 {
		t.Errorf("temporary folders: %q, want one", n)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if n := dirs(); len(n) != 0 {
		t.Errorf("temporary folders at the end: %q", n)
	}
}

// TestGoldenRecord holds the form of what is in the record: a release reads what an
// earlier one wrote.
func TestGoldenRecord(t *testing.T) {
	s := newStore(t)
	img, c := sampleImage(t, testimage.Options{Version: testimage.V5})
	d := succeed(t, s, Options{Level: new(slog.LevelVar)})
	d.guest.Init()
	if err := errors.Join(
		d.Mount(t.Context(), MountRequest{Mountpoint: "/a/b", FSType: "rafs", Source: img.Bootstrap, Config: c, PrefetchFiles: []string{"/etc"}, BootstrapDigest: digestOf(t, img.Bootstrap)}),
		d.MountDirectory(t.Context(), "/dir", t.TempDir()), d.SetLogLevel("debug")); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range s.Entries() {
		if !strings.HasPrefix(e.Key, recordPrefix) {
			continue
		}
		fmt.Fprintf(&b, "%s, %d descriptors\n", e.Key, len(e.FDs))
		if e.Key == keySession {
			fmt.Fprintf(&b, "  %d bytes, %x\n", len(e.Value), e.Value[:16])
			continue
		}
		var v map[string]any
		if err := json.Unmarshal(e.Value, &v); err != nil {
			t.Fatal(err)
		}
		delete(v, "config") // package config's
		for key, value := range v {
			if _, isString := value.(string); isString && (key == "source" || key == "bootstrap_digest") || key == "since" || key == "bootstrap" {
				v[key] = "…"
			}
		}
		text, err := json.MarshalIndent(v, "  ", "  ")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  %s\n", text)
	}
	compareGolden(t, "record.golden", b.String())
}

// A record of a later release is refused with a word, one of this release with more
// keys is not.
func TestRecordOfOthers(t *testing.T) {
	for _, tt := range []struct{ key, value, says string }{
		{keyState, `{"version":2}`, "version 2, this rafsd knows 1 to 1"},
		{keyState, `{"version":0}`, "version 0"},
		{keyState, `{"version":1,"last_mount_id":"secret"}`, "damaged"},
		{mountKey(1), `{`, "damaged"},
		{mountPrefix + "x", `{"version":1}`, "no number"},
		{configKey(1), `{"version":9}`, "version 9"},
		{keySession, "?", "session state"},
		{keyState, `{"version":1,"last_mount_id":5,"of_later":{}}`, ""},
		{recordPrefix + "of later", "?", ""},
	} {
		s := newStore(t)
		if err := s.Put(tt.key, []byte(tt.value)); err != nil {
			t.Fatal(err)
		}
		d, err := New(Options{Record: s, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = errors.Join(d.Close())
		}
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s %s: %v, want %q", tt.key, tt.value, err, tt.says)
		}
	}
}

// The end of life is counted on from the earlier process: a VMM that was there is
// waited for as one that left.
func TestLingerGoesOn(t *testing.T) {
	s := newStore(t)
	first := succeed(t, s, Options{FirstConnect: time.Hour})
	first.guest.Init()
	next := succeed(t, s, Options{FirstConnect: time.Hour, Linger: time.Millisecond})
	select {
	case err := <-next.Over():
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody came back, and the daemon waits on")
	}
}
