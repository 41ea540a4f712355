package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs/open"
)

// program is the command, built once: as users have it, without the race detector,
// which would make each of the hundreds of runs below slow and find nothing in one
// goroutine.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "rafs-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "rafs")
		build := exec.Command("go", "build", "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

type result struct {
	stdout, stderr string
	code           int
}

// runRafs runs the command.
func runRafs(t *testing.T, args ...string) result {
	t.Helper()
	cmd := exec.Command(program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs the command and wants it to succeed in silence.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	r := runRafs(t, args...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("rafs %s: exit code %d, stderr %q", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// fails runs the command and wants the exit code and one line on stderr that
// holds all of the words.
func fails(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	r := runRafs(t, args...)
	if r.code != code || strings.Count(r.stderr, "\n") != 1 {
		t.Fatalf("rafs %s: exit code %d, stderr %q, want code %d and one line", strings.Join(args, " "), r.code, r.stderr, code)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("rafs %s: stderr %q does not say %q", strings.Join(args, " "), r.stderr, w)
		}
	}
}

// TestManifestIsTheTruth compares `rafs manifest` with what the reference served,
// for every image of the corpus.
func TestManifestIsTheTruth(t *testing.T) {
	for _, v := range corpus.Variants(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			out := ok(t, "manifest", "-B", v.Bootstrap, "-D", v.Blobs(t))
			got, err := manifest.Parse([]byte(out))
			if err != nil {
				t.Fatal(err)
			}
			if d := manifest.Compare(got, v.Truth(t), manifest.Options{MountTimes: manifest.MountTimesEpoch}); !d.Equal() {
				t.Error(d)
			}
		})
	}
}

// TestUnpackIsTheTruth compares the archive of every image with the truth.
func TestUnpackIsTheTruth(t *testing.T) {
	for _, v := range corpus.Variants(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			r := runRafs(t, "unpack", "-B", v.Bootstrap, "-D", v.Blobs(t), "-o", "-")
			if r.code != 0 {
				t.Fatalf("exit code %d: %s", r.code, r.stderr)
			}
			got := readTar(t, r.stdout)
			var want []manifest.Entry
			sockets := 0
			for _, e := range v.Truth(t) {
				if e.Type == manifest.Socket {
					sockets++
					continue
				}
				want = append(want, e)
			}
			if n := strings.Count(r.stderr, "a tar has no sockets\n"); n != sockets || strings.Count(r.stderr, "\n") != n {
				t.Errorf("%d sockets left out, want %d: %s", n, sockets, r.stderr)
			}
			d := manifest.Compare(got, want, manifest.Options{MountTimes: manifest.MountTimesEpoch})
			if !d.Equal() {
				t.Error(d)
			}
		})
	}
}

// readTar reads an archive as a manifest and checks its order.
func readTar(t *testing.T, archive string) []manifest.Entry {
	t.Helper()
	var (
		tr      = tar.NewReader(strings.NewReader(archive))
		byPath  = map[string]*manifest.Entry{}
		group   = map[string]string{} // path -> path of the first name
		members = map[string]uint64{} // names of a group
		order   []string
	)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(order) == 0 && h.Name != "./" {
			t.Errorf("the archive begins with %q, want ./", h.Name)
		}
		path := "/" + strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		if byPath[path] != nil {
			t.Errorf("%q stands in the archive twice", path)
		}
		if parent := filepath.Dir(path); path != "/" && byPath[parent] == nil {
			t.Errorf("%q comes before its parent", path)
		}
		order = append(order, path)
		if h.Typeflag == tar.TypeLink {
			first := "/" + strings.TrimPrefix(h.Linkname, "./")
			if byPath[first] == nil {
				t.Fatalf("%q is a link to %q, which did not come yet", path, first)
			}
			e := *byPath[first]
			e.Path = path
			byPath[path], group[path] = &e, first
			members[first]++
			continue
		}
		group[path] = path
		members[path] = 1
		byPath[path] = tarEntry(t, h, path, tr)
	}
	var c manifest.Collector
	keys := map[string]uint64{}
	for _, path := range order {
		first := group[path]
		if keys[first] == 0 {
			keys[first] = uint64(len(keys) + 1)
		}
		e := *byPath[path]
		e.Nlink = members[first]
		c.Add(e, manifest.InodeKey{Ino: keys[first]})
	}
	return c.Entries()
}

func tarEntry(t *testing.T, h *tar.Header, path string, content io.Reader) *manifest.Entry {
	t.Helper()
	types := map[byte]manifest.Type{
		tar.TypeReg: manifest.Regular, tar.TypeDir: manifest.Directory, tar.TypeSymlink: manifest.Symlink,
		tar.TypeChar: manifest.CharDevice, tar.TypeBlock: manifest.BlockDevice, tar.TypeFifo: manifest.Fifo,
	}
	e := &manifest.Entry{
		Path: path, Type: types[h.Typeflag], Mode: uint16(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid),
		Mtime: manifest.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())},
		Major: uint32(h.Devmajor), Minor: uint32(h.Devminor), Size: uint64(h.Size),
	}
	if e.Type == manifest.Symlink {
		e.Target, e.Size = h.Linkname, uint64(len(h.Linkname))
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: value})
		}
	}
	e.SortXattrs()
	if e.Type == manifest.Regular {
		hash := sha256.New()
		if _, err := io.Copy(hash, content); err != nil {
			t.Fatal(err)
		}
		hash.Sum(e.SHA256[:0])
	}
	return e
}

// variant returns one image of the corpus.
func variant(t *testing.T, name string) corpus.Variant {
	t.Helper()
	all := corpus.Variants(t)
	i := slices.IndexFunc(all, func(v corpus.Variant) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("the corpus has no %s", name)
	}
	return all[i]
}

func TestCheckFindsNoFaultInSoundImages(t *testing.T) {
	for _, v := range corpus.Variants(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			if out := ok(t, "check", "-B", v.Bootstrap, "-D", v.Blobs(t), "--data"); !strings.Contains(out, "metadata and data are sound") {
				t.Errorf("output %q", out)
			}
		})
	}
}

// TestCheckNamesTheBadChunk flips one byte of a blob.
func TestCheckNamesTheBadChunk(t *testing.T) {
	v := variant(t, "v6-dir-zstd-blake3-small")
	blobs := v.Blobs(t)
	entries, err := os.ReadDir(blobs)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal([]byte(ok(t, "check", "-B", v.Bootstrap, "--json")), &r); err != nil {
		t.Fatal(err)
	}
	id := r.Blobs[0].ID
	if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == id }) {
		t.Fatalf("no blob %s", id)
	}
	blob, err := os.ReadFile(filepath.Join(blobs, id))
	if err != nil {
		t.Fatal(err)
	}
	blob[1000] ^= 1
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, id), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	got := runRafs(t, "check", "-B", v.Bootstrap, "-D", bad, "--data")
	if got.code != 1 || !strings.Contains(got.stdout, "fault: ") || !strings.Contains(got.stdout, id) || !strings.Contains(got.stdout, "offset") {
		t.Errorf("exit code %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	// An archive that is not whole leaves nothing behind.
	out := filepath.Join(t.TempDir(), "x.tar")
	fails(t, 1, []string{id, "offset"}, "unpack", "-B", v.Bootstrap, "-D", bad, "-o", out)
	if left, _ := filepath.Glob(out + "*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// TestCheckNamesBadChunkInfo flips one byte of what a blob says of its own
// chunks; the chunks themselves are sound.
func TestCheckNamesBadChunkInfo(t *testing.T) {
	v := variant(t, "v6-dir-none-blake3-small")
	img, err := open.Image(v.Bootstrap, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := img.Blobs()[0]
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	blob, err := os.ReadFile(filepath.Join(v.Blobs(t), b.ID))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		at   uint64
		says string
	}{
		"header": {b.ChunkInfo.Offset + b.ChunkInfo.StoredSize + 16, "chunk information header at offset 0x10: "},
		"entry":  {b.ChunkInfo.Offset + 7*16 + 8, ", chunk 7 at offset "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, dir := bytes.Clone(blob), t.TempDir()
			bad[tt.at] ^= 1
			if err := os.WriteFile(filepath.Join(dir, b.ID), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			r := runRafs(t, "check", "-B", v.Bootstrap, "-D", dir, "--data")
			if r.code != 1 || strings.Count(r.stdout, "fault: ") != 1 ||
				!strings.Contains(r.stdout, "fault: chunk information of blob "+b.ID) || !strings.Contains(r.stdout, tt.says) {
				t.Errorf("exit code %d, stdout %q, stderr %q, want one fault with %q", r.code, r.stdout, r.stderr, tt.says)
			}
		})
	}
}

// TestDamagedImage: the corpus has an image whose inode table points beside 56 of
// its inodes.
func TestDamagedImage(t *testing.T) {
	dir := filepath.Join(corpus.Dir(t), "images", "v5-tar-rafs-lz4-small")
	boot, blobs := filepath.Join(dir, "bootstrap"), filepath.Join(dir, "blobs")
	r := runRafs(t, "check", "-B", boot)
	if r.code != 1 || !strings.Contains(r.stdout, "fault: inode at offset") {
		t.Errorf("check: exit code %d, stdout %.300q", r.code, r.stdout)
	}
	for _, args := range [][]string{{"manifest"}, {"unpack", "-o", "-"}} {
		if r := runRafs(t, append(args, "-B", boot, "-D", blobs)...); r.code != 1 {
			t.Errorf("%s: exit code %d, want 1", args[0], r.code)
		}
	}
	if r := runRafs(t, "tree", "-B", boot); r.code != 1 || !strings.Contains(r.stdout, "\n  a/\n") {
		t.Errorf("tree: exit code %d, stdout %.300q", r.code, r.stdout)
	}
}

func TestLookingAround(t *testing.T) {
	v := variant(t, "v6-dir-zstd-rootfs")
	blobs := v.Blobs(t)
	if out := ok(t, "cat", "-B", v.Bootstrap, "-D", blobs, "/etc/os-release"); !strings.Contains(out, "Debian GNU/Linux") {
		t.Errorf("cat: %q", out)
	}
	if out := ok(t, "ls", "-B", v.Bootstrap, "/"); !strings.Contains(out, " etc\n") || !strings.Contains(out, "drwxr-xr-x") {
		t.Errorf("ls: %q", out)
	}
	var nodes []node
	if err := json.Unmarshal([]byte(ok(t, "ls", "-B", v.Bootstrap, "--json", "/etc")), &nodes); err != nil || len(nodes) == 0 {
		t.Errorf("ls --json: %d nodes, %v", len(nodes), err)
	}
	var n node
	if err := json.Unmarshal([]byte(ok(t, "stat", "-B", v.Bootstrap, "--json", "/etc/passwd")), &n); err != nil {
		t.Fatal(err)
	}
	if n.Type != "file" || n.Mode != "0644" || len(n.Chunks) != 1 || uint64(n.Chunks[0].Length) != n.Size {
		t.Errorf("stat --json: %+v", n)
	}
	if out := ok(t, "stat", "-B", v.Bootstrap, "/etc/passwd"); !strings.Contains(out, "chunk  at 0") {
		t.Errorf("stat: %q", out)
	}
	if out := ok(t, "tree", "-B", v.Bootstrap, "--depth", "1"); !strings.HasPrefix(out, "/\n  ") || strings.Contains(out, "    ") {
		t.Errorf("tree: %q", out)
	}
}

func TestWrongInput(t *testing.T) {
	v := variant(t, "v6-dir-zstd-rootfs")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, []string{"/nowhere/boot"}, "ls", "-B", "/nowhere/boot")
	fails(t, 1, []string{empty, "empty"}, "check", "-B", empty)
	fails(t, 1, []string{"/etc/nothing"}, "cat", "-B", v.Bootstrap, "-D", v.Blobs(t), "/etc/nothing")
	fails(t, 1, []string{"not a regular file"}, "cat", "-B", v.Bootstrap, "-D", v.Blobs(t), "/etc")
	fails(t, 1, []string{"blob "}, "cat", "-B", v.Bootstrap, "-D", t.TempDir(), "/etc/passwd")
	fails(t, 2, []string{"--blob-dir"}, "cat", "-B", v.Bootstrap, "--bloc-dir", "x", "/etc/passwd")
	fails(t, 2, []string{"which image? --bootstrap FILE"}, "ls")
	fails(t, 2, []string{"--blob-dir or --config"}, "cat", "-B", v.Bootstrap, "/etc/passwd")
	fails(t, 2, []string{"PATH"}, "cat", "-B", v.Bootstrap)
	fails(t, 2, []string{"unpack"}, "unpak")
	fails(t, 2, []string{"--help"}, "xyzzy-xyzzy")
	fails(t, 2, []string{"which command"})
}

func TestEveryCommandHasAnExample(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Name() != "help" && c.Name() != "completion" && c.Example == "" {
			t.Errorf("rafs %s --help has no example", c.Name())
		}
	}
}
