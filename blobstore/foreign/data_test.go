package foreign_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore/foreign"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, n int) {
		if err := os.WriteFile(at(name), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("new.blob.data", 8192)
	write("old", 100)
	write("long.blob.data", 8193)
	write("target", 10)
	if err := os.Symlink(at("target"), at("link.blob.data")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("fifo.blob.data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for id, tt := range map[string]struct{ name, err string }{
		"new":  {"new.blob.data", ""},
		"old":  {"old", ""},
		"none": {"", ""},
		"long": {"", "8193 bytes, the blob has 5000"},
		"link": {"", "symbolic links"},
		"fifo": {"", "not a regular file"},
	} {
		d, err := foreign.Open([]string{at("missing"), dir}, id, 5000)
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", id, err, tt.err)
		}
		if (d != nil) != (tt.name != "") {
			t.Errorf("%s: opened %v", id, d != nil)
		}
		if d != nil {
			if d.Name() != at(tt.name) {
				t.Errorf("%s: opened %s", id, d.Name())
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestHolesAndEnds(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "id.blob.data"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 4096), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	d, err := foreign.Open([]string{dir}, "id", 0)
	if err != nil || d == nil {
		t.Fatal(d, err)
	}
	defer d.Close()
	if !d.Has(1<<20, 4096) || !d.Has(1<<20-4096, 4097) {
		t.Error("what was written is not there")
	}
	if d.Has(2<<20, 4096) || d.Has(8<<20, 1) {
		t.Log("this file system does not tell holes") // then they are read
	}
	p := make([]byte, 4096)
	if err := d.Read(p, 1<<20); err != nil || p[0] != 7 || p[4095] != 7 {
		t.Errorf("Read: %v", err)
	}
	if err := d.Read(p, 4<<20-1); err == nil {
		t.Error("read over the end of the file")
	}
}
