package rafs_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs"
)

func mapFile(t *testing.T, content []byte) (*rafs.Bootstrap, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bootstrap")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := rafs.Map(f)
	if err != nil {
		t.Fatal(err)
	}
	return b, path
}

func TestMap(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 1000)
	b, path := mapFile(t, content)
	if !bytes.Equal(b.Data(), content) || b.Path() != path || b.ID().Size != int64(len(content)) || b.ID().Ino == 0 {
		t.Errorf("%d bytes of %s, %+v", len(b.Data()), b.Path(), b.ID())
	}
	if sum, err := b.SHA256(); err != nil || sum != sha256.Sum256(content) {
		t.Errorf("SHA256 = %x, %v", sum, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestMapRefuses(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, rafs.MaxBootstrapSize+1); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{dir: "not a regular file", big: "at most", empty: "empty", "/dev/null": "not a regular file"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rafs.Map(f); !errors.Is(err, rafs.ErrNotRAFS) || !strings.Contains(err.Error(), says) {
			t.Errorf("Map(%s) = %v, want ErrNotRAFS saying %q", path, err, says)
		}
		f.Close()
	}
}

// TestHolders: the mapping lives until the last holder leaves, and cannot be had
// again after that.
func TestHolders(t *testing.T) {
	b, _ := mapFile(t, []byte("content"))
	last := 0
	b.OnLastClose(func() { last++ })
	if !b.Retain() {
		t.Fatal("an open bootstrap could not be retained")
	}
	if err := b.Close(); err != nil || last != 0 || string(b.Data()) != "content" {
		t.Errorf("first Close: %v, %d, %q", err, last, b.Data())
	}
	if err := b.Close(); err != nil || last != 1 || b.Data() != nil {
		t.Errorf("last Close: %v, %d, %q", err, last, b.Data())
	}
	if b.Retain() {
		t.Error("a closed bootstrap was retained")
	}
	if err := b.Close(); err == nil {
		t.Error("one Close too many was not an error")
	}
}

func read(b *rafs.Bootstrap, p *byte) (v byte, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	return *p, nil
}

// TestGuard: only faults of the mapping become errors.
func TestGuard(t *testing.T) {
	b, path := mapFile(t, make([]byte, 3*4096))
	defer b.Close()
	last := &b.Data()[3*4096-1]
	if _, err := read(b, last); err != nil {
		t.Errorf("read of what is there: %v", err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := read(b, last); !errors.Is(err, rafs.ErrFault) || !strings.Contains(err.Error(), path) {
		t.Errorf("read of what was cut off: %v, want ErrFault naming the file", err)
	}
	if _, err := b.SHA256(); !errors.Is(err, rafs.ErrFault) {
		t.Errorf("digest of what was cut off: %v, want ErrFault", err)
	}
	if v, err := read(b, &b.Data()[0]); v != 0 || err != nil {
		t.Errorf("read of what is left: %d, %v", v, err)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("the guard left panics on faults switched on")
	}

	other, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(other)
	if panicked := func() (r any) {
		defer func() { r = recover() }()
		read(b, &other[0])
		return nil
	}(); panicked == nil {
		t.Error("a fault of other memory was taken for one of the bootstrap")
	}
	if panicked := func() (r any) {
		defer func() { r = recover() }()
		var err error
		defer b.Guard(debug.SetPanicOnFault(true), &err)
		panic("a bug")
	}(); panicked != "a bug" {
		t.Errorf("a panic became %v", panicked)
	}
}
