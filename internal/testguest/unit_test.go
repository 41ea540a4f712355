package testguest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func TestDebianMirror(t *testing.T) {
	tests := map[string]struct {
		file, text, want string
	}{
		"one-line list":   {"sources.list", "# deb http://no.example/debian sid main\ndeb [arch=amd64] http://m.example/debian bookworm main\n", "http://m.example/debian"},
		"slash at end":    {"sources.list", "deb https://m.example/debian/ bookworm main\n", "https://m.example/debian"},
		"deb822":          {"sources.list.d/debian.sources", "Types: deb\n# URIs: http://no.example/debian\nURIs: http://m.example/a/debian\nSuites: bookworm\n", "http://m.example/a/debian"},
		"no space":        {"sources.list.d/debian.sources", "URIs:http://m.example/debian\n", "http://m.example/debian"},
		"list of mirrors": {"mirrors/debian.list", "https://m.example/debian\n", "https://m.example/debian"},
		"local files":     {"sources.list.d/x.list", "deb file:///srv/debian sid main\n", "file:///srv/debian"},
		"security only":   {"sources.list", "deb http://m.example/debian-security bookworm-security main\n", ""},
		"other vendor":    {"sources.list", "deb http://m.example/ubuntu noble main\n", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("RAFSD_TESTBED_MIRROR", "")
			dir := t.TempDir()
			file := filepath.Join(dir, tt.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(tt.text), 0o644)); err != nil {
				t.Fatal(err)
			}
			got, err := debianMirror(dir)
			if got != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("mirror %q, %v, want %q", got, err, tt.want)
			}
			t.Setenv("RAFSD_TESTBED_MIRROR", "http://mine.example/debian/")
			if got, err := debianMirror(dir); got != "http://mine.example/debian" || err != nil {
				t.Errorf("with RAFSD_TESTBED_MIRROR: %q, %v", got, err)
			}
			t.Setenv("RAFSD_TESTBED_MIRROR", "http://mine.example/debian sid main\ndeb http://evil.example/debian")
			if got, err := debianMirror(dir); err == nil {
				t.Errorf("with a wrong RAFSD_TESTBED_MIRROR: %q", got)
			}
		})
	}
}

func TestListsOfSuites(t *testing.T) {
	for s, want := range map[suite]string{
		"sid": "[sid]", "bookworm": "[bookworm]", "experimental": "[sid experimental]",
		"bookworm-backports": "[bookworm bookworm-backports]", "trixie-backports": "[trixie trixie-backports]", "trixie": "[trixie trixie-backports]",
	} {
		if got := fmt.Sprint(s.lists()); got != want {
			t.Errorf("lists of %s: %s, want %s", s, got, want)
		}
	}
}

// An entry is made once, whoever asks for it, and a build that fails leaves nothing.
func TestEntry(t *testing.T) {
	t.Setenv("RAFSD_TESTBED_CACHE", t.TempDir())
	ctx := t.Context()
	failing := errors.New("no such package")
	_, err := entry(ctx, "thing", func(_ context.Context, dir string) error {
		return errors.Join(failing, os.WriteFile(filepath.Join(dir, "half"), nil, 0o644))
	})
	if !errors.Is(err, failing) || !strings.Contains(err.Error(), "thing") {
		t.Errorf("failed build: %v", err)
	}
	var builds atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := entry(ctx, "thing", func(_ context.Context, dir string) error {
				builds.Add(1)
				return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) != 1 || files[0].Name() != "whole" {
				t.Errorf("entry holds %v, %v", files, err)
			}
		})
	}
	all.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestLockEndsWithContext(t *testing.T) {
	t.Setenv("RAFSD_TESTBED_CACHE", t.TempDir())
	unlock, err := lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no more time")
	cancel(cause)
	if _, err := lock(ctx, "x"); !errors.Is(err, cause) {
		t.Errorf("second lock: %v, want %v", err, cause)
	}
	unlock()
	again, err := lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestLoadOrder(t *testing.T) {
	m := moduleSet{depends: map[string][]string{
		"virtiofs": {"fuse", "virtio", "virtio_ring"}, "fuse": nil, "virtio": nil, "virtio_ring": {"virtio"},
		"a": {"b"}, "b": {"a"}, // a module never does this; it must not hang us
	}}
	if got := strings.Join(m.loadOrder([]string{"virtiofs", "built-in", "fuse", "a"}), " "); got != "fuse virtio virtio_ring virtiofs b a" {
		t.Errorf("order %s", got)
	}
}

// cpioEntry is what readCpio finds: mode, size and content of a name.
type cpioEntry struct {
	name    string
	mode    uint64
	rdev    string
	content string
}

// readCpio reads an archive as the kernel does.
func readCpio(t *testing.T, b []byte) []cpioEntry {
	t.Helper()
	var list []cpioEntry
	for at := 0; ; {
		if at%4 != 0 || len(b) < at+110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d of %d", at, len(b))
		}
		field := func(i int) uint64 {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		nameSize, size := int(field(11)), int(field(6))
		name := string(b[at+110 : at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) &^ 3
		e := cpioEntry{name, field(1), fmt.Sprintf("%d:%d", field(9), field(10)), string(b[data : data+size])}
		if name == "TRAILER!!!" {
			return list
		}
		list = append(list, e)
		at = (data + size + 3) &^ 3
	}
}

func TestCpio(t *testing.T) {
	host := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(host, "d/e"), 0o755), os.WriteFile(filepath.Join(host, "d/file"), []byte("12345"), 0o600),
		os.WriteFile(filepath.Join(host, "d/e/run"), nil, 0o755), os.Symlink("e/run", filepath.Join(host, "d/link")))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := newCpioWriter(&buf)
	w.charDevice("dev/console", 0o600, 5, 1)
	w.text("a/b/text", 0o644, "abc")
	w.symlink("a/l", "b")
	w.tree("/opt//x", filepath.Join(host, "d"))
	w.tree("single", filepath.Join(host, "d/link"))
	w.dir("a/b")
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range readCpio(t, buf.Bytes()) {
		got = append(got, fmt.Sprintf("%s %o %s %q", e.name, e.mode, e.rdev, e.content))
	}
	want := []string{
		`dev 40755 0:0 ""`, `dev/console 20600 5:1 ""`, `a 40755 0:0 ""`, `a/b 40755 0:0 ""`, `a/b/text 100644 0:0 "abc"`, `a/l 120777 0:0 "b"`,
		`opt 40755 0:0 ""`, `opt/x 40755 0:0 ""`, `opt/x/e 40755 0:0 ""`, `opt/x/e/run 100755 0:0 ""`, `opt/x/file 100600 0:0 "12345"`, `opt/x/link 120777 0:0 "e/run"`,
		`single 100755 0:0 ""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("archive:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCpioErrors(t *testing.T) {
	w := newCpioWriter(io.Discard)
	w.tree("x", filepath.Join(t.TempDir(), "missing"))
	w.text("y", 0o644, "")
	if err := w.close(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	sparse := filepath.Join(t.TempDir(), "sparse")
	if err := errors.Join(os.WriteFile(sparse, nil, 0o600), os.Truncate(sparse, 1<<32)); err != nil {
		t.Fatal(err)
	}
	w = newCpioWriter(io.Discard)
	w.file("x", 0o644, sparse)
	if err := w.close(); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("4 GiB: %v", err)
	}
}

// The output is the same in however many pieces it comes.
func TestOutputInPieces(t *testing.T) {
	const text = "#N init 6.1\nfirst\n#M exit 3\nlast, without newline\n#N exit 17\nrubbish"
	const want = "first\n#M exit 3\nlast, without newline"
	for size := 1; size <= len(text); size++ {
		var live bytes.Buffer
		began, ended := 0, 0
		o := &output{nonce: "#N", limit: 1000, live: &live, began: func() { began++ }, ended: func() { ended++ }}
		o.writePieces(t, text, size)
		release, got, done, code, err := o.state()
		if release != "6.1" || got != want || !done || code != 17 || err != nil || began != 1 || ended != 1 {
			t.Fatalf("pieces of %d: release %q, output %q, done %v, code %d, %v, began %d, ended %d", size, release, got, done, code, err, began, ended)
		}
		if live.String() != want {
			t.Fatalf("pieces of %d: read along %q", size, &live)
		}
	}
}

func (o *output) writePieces(t *testing.T, text string, size int) {
	t.Helper()
	for piece := range slices.Chunk([]byte(text), size) {
		if n, err := o.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
}

func TestOutputFaults(t *testing.T) {
	write := func(text string) *output {
		o := &output{nonce: "#N", limit: 20, began: func() {}, ended: func() {}}
		_, _ = o.Write([]byte(text))
		return o
	}
	if _, _, done, _, err := write("login: \n").state(); err == nil || !done {
		t.Errorf("foreign first line: done %v, %v", done, err)
	}
	if _, _, done, _, err := write("#N init 6.1\n" + strings.Repeat("x", 21)).state(); err == nil || !done {
		t.Errorf("too much output: done %v, %v", done, err)
	}
	if _, _, done, _, err := write("#N init 6.1\nsome").state(); err != nil || done {
		t.Errorf("no end yet: done %v, %v", done, err)
	}
	o := write("#N init 6.1\n#N mount 3\nno such tag\nat all\n#N exit 1\n")
	if i, why, failed := o.mountFailure(); i != 3 || why != "no such tag\nat all" || !failed {
		t.Errorf("mount failure %d, %q, %v", i, why, failed)
	}
	if _, _, failed := write("#N init 6.1\nfine\n#N exit 1\n").mountFailure(); failed {
		t.Error("a mount failed that did not")
	}
}

// bzImage builds an image around a payload, as the boot protocol has it.
func bzImage(payload []byte, size int) []byte {
	const sectors = 2
	image := make([]byte, (sectors+1)*512)
	image[0x1f1] = sectors
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)+4))
	image = append(image, make([]byte, 16)...)
	image = append(image, payload...)
	return append(binary.LittleEndian.AppendUint32(image, uint32(size)), "what follows"...)
}

func TestExtractVmlinux(t *testing.T) {
	elf := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 10_000)...)
	pack := map[string]func(io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
		"lz4": func(w io.Writer) io.WriteCloser {
			z := lz4.NewWriter(w)
			if err := z.Apply(lz4.LegacyOption(true)); err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
	for name, writer := range pack {
		t.Run(name, func(t *testing.T) {
			var payload bytes.Buffer
			w := writer(&payload)
			if _, err := w.Write(elf); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := extractVmlinux(t.Context(), bzImage(payload.Bytes(), len(elf)), busybox{})
			if err != nil || !bytes.Equal(got, elf) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(elf))
			}
			if _, err := extractVmlinux(t.Context(), bzImage(payload.Bytes(), len(elf)+1), busybox{}); err == nil {
				t.Error("a wrong size was accepted")
			}
		})
	}
	for name, image := range map[string][]byte{
		"empty":       nil,
		"not a image": make([]byte, 4096),
		"cut":         bzImage([]byte("\x1f\x8b payload"), 5)[:1600-40],
		"unknown":     bzImage([]byte("\x00\x01\x02\x03\x04\x05\x06\x07"), 5),
	} {
		if _, err := extractVmlinux(t.Context(), image, busybox{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAccelerationByEnvironment(t *testing.T) {
	for v, want := range map[string]bool{"kvm": true, "tcg": false} {
		t.Setenv("RAFSD_TESTBED_ACCEL", v)
		if got, why := useKVM(); got != want || why != "RAFSD_TESTBED_ACCEL" {
			t.Errorf("%s: KVM %v because of %s", v, got, why)
		}
	}
	t.Setenv("RAFSD_TESTBED_ACCEL", "")
	if kvm, why := useKVM(); why == "" {
		t.Errorf("KVM %v without a reason", kvm)
	}
}

func TestHint(t *testing.T) {
	if got := hint("one\n[1.0] Kernel panic - not syncing: no init\ntwo\n"); got != ": [1.0] Kernel panic - not syncing: no init" {
		t.Errorf("hint %q", got)
	}
	if got := hint("1\n2\n3\n4\n5\n6\n"); got != ": 2; 3; 4; 5; 6" {
		t.Errorf("hint %q", got)
	}
	if got := hint(""); got != "" {
		t.Errorf("hint %q", got)
	}
}
