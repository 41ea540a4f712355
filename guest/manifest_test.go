package guest_test

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest"
	"github.com/rafsd/rafsd/internal/manifest"
)

const nobody = 65534

// tree builds a folder and, by hand, the entries that stand for it.
type tree struct {
	t    *testing.T
	dir  string
	want []manifest.Entry
}

func (tr *tree) must(err error) {
	tr.t.Helper()
	if err != nil {
		tr.t.Fatal(err)
	}
}

// add notes an entry that the caller has made at the path; owner and times are set
// here, so that nothing is taken over from the file system.
func (tr *tree) add(e manifest.Entry) *manifest.Entry {
	tr.t.Helper()
	p := tr.dir + e.Path
	if os.Geteuid() == 0 {
		e.UID, e.GID = uint32(1000+len(tr.want)), 4294967294
		tr.must(unix.Lchown(p, int(e.UID), int(e.GID)))
	} else {
		e.UID, e.GID = uint32(os.Getuid()), uint32(os.Getgid())
	}
	if e.Type != manifest.Symlink {
		tr.must(unix.Chmod(p, uint32(e.Mode))) // after chown, which clears set-id bits
	}
	if e.Type != manifest.Directory && e.Nlink == 0 {
		e.Nlink = 1
	}
	tr.want = append(tr.want, e)
	return &tr.want[len(tr.want)-1]
}

// setTimes gives every path its mtime at the end: making names changes folders.
func (tr *tree) setTimes() {
	tr.t.Helper()
	for i := range tr.want {
		e := &tr.want[i]
		e.Mtime = manifest.Time{Sec: int64(-2 + i), Nsec: uint32(999_999_999 - i)}
		if e.Hardlink != "" {
			e.Mtime = manifest.Time{Sec: 77, Nsec: 7}
		}
		ts := []unix.Timespec{{Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}, {Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}}
		tr.must(unix.UtimesNanoAt(unix.AT_FDCWD, tr.dir+e.Path, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func TestManifestOfATree(t *testing.T) {
	root := os.Geteuid() == 0
	tr := &tree{t: t, dir: t.TempDir()}
	tr.add(manifest.Entry{Path: "/", Type: 'd', Mode: 0o755})

	file := func(path, content string, mode uint16) *manifest.Entry {
		t.Helper()
		tr.must(os.WriteFile(tr.dir+path, []byte(content), 0o600))
		return tr.add(manifest.Entry{Path: path, Type: 'f', Mode: mode, Size: uint64(len(content)), SHA256: sha256.Sum256([]byte(content))})
	}
	file("/empty", "", 0o640)
	file("/setid", "x", 0o6755)
	file("/big", strings.Repeat("0123456789abcdef", 3<<16), 0o644) // more than one buffer
	file("/odd \n\\\xff\x01name", "odd", 0o644)
	file("/"+strings.Repeat("n", 255), "long", 0o644)

	tr.must(os.Mkdir(tr.dir+"/sticky", 0o755))
	tr.add(manifest.Entry{Path: "/sticky", Type: 'd', Mode: 0o1777})
	path := "/deep"
	for range 60 {
		tr.must(os.Mkdir(tr.dir+path, 0o755))
		tr.add(manifest.Entry{Path: path, Type: 'd', Mode: 0o700})
		path += "/d"
	}
	file(path, "deep", 0o600)

	file("/hard-b", "linked", 0o600)
	tr.must(os.Link(tr.dir+"/hard-b", tr.dir+"/sticky/a"))
	tr.must(os.Link(tr.dir+"/hard-b", tr.dir+"/hard-a"))
	b := &tr.want[len(tr.want)-1]
	b.Nlink, b.Hardlink = 3, "/hard-a"
	for _, p := range []string{"/hard-a", "/sticky/a"} {
		e := *b
		e.Path = p
		tr.want = append(tr.want, e)
	}

	link := func(path, target string) {
		t.Helper()
		tr.must(os.Symlink(target, tr.dir+path))
		tr.add(manifest.Entry{Path: path, Type: 'l', Mode: 0o777, Size: uint64(len(target)), Target: target})
	}
	link("/link-dash", "-")
	link("/link-to-dir", "deep") // not followed
	link("/link-dangling", "/nowhere/\xfe")
	link("/link-long", strings.Repeat("t", 4095))

	tr.must(unix.Mkfifo(tr.dir+"/fifo", 0o600)) // must not be opened: that would wait
	tr.add(manifest.Entry{Path: "/fifo", Type: 'p', Mode: 0o620})
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	tr.must(err)
	defer unix.Close(sock)
	tr.must(unix.Bind(sock, &unix.SockaddrUnix{Name: tr.dir + "/sock"}))
	tr.add(manifest.Entry{Path: "/sock", Type: 's', Mode: 0o700})
	if root {
		for p, mode := range map[string]uint32{"/char": unix.S_IFCHR, "/block": unix.S_IFBLK} {
			tr.must(unix.Mknod(tr.dir+p, mode|0o600, int(unix.Mkdev(4095, 1048575))))
			typ, _ := manifest.TypeOfMode(mode)
			tr.add(manifest.Entry{Path: p, Type: typ, Mode: 0o600, Major: 4095, Minor: 1048575})
		}
	}

	tr.setTimes()
	xattrs := map[string][]manifest.Xattr{
		"/big":    {{Name: "user.a,=b", Value: "\x00\xff"}, {Name: "user.empty"}},
		"/sticky": {{Name: "user.dir", Value: strings.Repeat("v", 2000)}},
	}
	if root {
		xattrs["/link-dash"] = []manifest.Xattr{{Name: "trusted.link", Value: "l"}}
		xattrs["/fifo"] = []manifest.Xattr{{Name: "trusted.fifo", Value: "f"}}
	}
	for i := range tr.want {
		e := &tr.want[i]
		for _, x := range xattrs[e.Path] {
			err := unix.Lsetxattr(tr.dir+e.Path, x.Name, []byte(x.Value), 0)
			if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
				t.Logf("xattrs not compared, %s has none: %v", e.Path, err)
				continue
			}
			tr.must(err)
			e.Xattrs = append(e.Xattrs, x)
		}
	}

	manifest.Sort(tr.want)
	got, err := guest.Manifest(tr.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := manifest.Compare(got, tr.want, manifest.Options{}); !d.Equal() {
		t.Errorf("manifest of %d paths, want %d:\n%s", len(got), len(tr.want), d)
	}
	if len(tr.want) < 70 {
		t.Errorf("only %d paths were built", len(tr.want))
	}
}

// A folder with more names than one call of the kernel returns.
func TestManifestOfAWideDirectory(t *testing.T) {
	dir := t.TempDir()
	const n = 6_000                      // of more than 200 bytes: more than the buffer of 1 MiB
	first := filepath.Join(dir, "first") // hard links are quicker to make than files
	if err := os.WriteFile(first, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := strings.Repeat(string(rune('a'+i%26)), 190) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		if err := os.Link(first, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := guest.Manifest(dir, nil)
	if err != nil || len(got) != n+2 {
		t.Fatalf("%d paths, %v, want %d", len(got), err, n+2)
	}
	for i := 1; i < len(got); i++ {
		if got[i-1].Path >= got[i].Path {
			t.Fatalf("path %d: %q after %q", i, got[i].Path, got[i-1].Path)
		}
	}
}

// asNobody calls f on a thread that has no right to read what root may read. The
// thread ends with the goroutine.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setfsuid(nobody); err != nil {
			done <- err
			return
		}
		if uid, err := unix.SetfsuidRetUid(-1); err != nil || uid != nobody {
			done <- errors.New("the thread's user did not change")
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestManifestReportsWhatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{filepath.Dir(dir), dir} { // nobody must get here
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]os.FileMode{"a": 0o644, "b secret": 0o000, "z": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(path), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		_, err := guest.Manifest(dir, nil)
		var e *guest.Error
		if !errors.As(err, &e) || !errors.Is(err, unix.EACCES) || e.Op != "open" {
			t.Errorf("without going on: error %v, want that of an open", err)
		}

		var failed []string
		got, err := guest.Manifest(dir, func(err error) { failed = append(failed, err.Error()) })
		if err != nil {
			t.Error(err)
		}
		var paths []string
		for _, e := range got {
			paths = append(paths, e.Path)
		}
		if s := strings.Join(paths, " "); s != "/ /a /z" {
			t.Errorf("paths %s, want / /a /z", s)
		}
		if s := strings.Join(failed, "; "); len(failed) != 2 ||
			!strings.Contains(s, `/b\x20secret: open: permission denied`) || !strings.Contains(s, "/closed: open: permission denied") {
			t.Errorf("reported %q", failed)
		}
	})
}

// A file that has other bytes than its size says is an error. Files of /proc/sys
// have: their size is 0.
func TestManifestChecksSizes(t *testing.T) {
	const dir = "/proc/sys/fs/inotify"
	if _, err := os.Stat(dir); err != nil {
		t.Skip(err)
	}
	_, err := guest.Manifest(dir, nil)
	if err == nil || !strings.Contains(err.Error(), "its size is 0") {
		t.Errorf("error %v, want one about the size", err)
	}
}

func TestManifestOfNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file name")
	if _, err := guest.Manifest(file, nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Manifest(file, nil); !errors.Is(err, unix.ENOTDIR) || !strings.Contains(err.Error(), `file\x20name`) {
		t.Errorf("a file: %v", err)
	}
}

func TestManifestFollowsDirItself(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(".", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	got, err := guest.Manifest(filepath.Join(dir, "self"), nil)
	if err != nil || len(got) != 2 || got[1].Path != "/self" || got[1].Type != manifest.Symlink {
		t.Errorf("%+v, %v, want the root and the link in it", got, err)
	}
}
