package hostfs_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/hostfs"
)

func TestDirOpenRefusesWhatIsNotAPlainFile(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := hostfs.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()

	tests := map[string]struct {
		name    string
		ok      bool
		badName bool
	}{
		"regular file":        {name: "file", ok: true},
		"symbolic link":       {name: "link"},
		"fifo with no writer": {name: "fifo"},
		"folder":              {name: "dir"},
		"missing":             {name: "none"},
		"empty name":          {name: "", badName: true},
		"parent":              {name: "..", badName: true},
		"itself":              {name: ".", badName: true},
		"two components":      {name: "dir/file", badName: true},
		"absolute":            {name: "/etc/passwd", badName: true},
		"NUL inside":          {name: "fi\x00le", badName: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := d.Open(tt.name, os.O_RDONLY, 0)
			if f != nil {
				defer f.Close()
			}
			if (err == nil) != tt.ok {
				t.Fatalf("Open(%q) error = %v, want ok %v", tt.name, err, tt.ok)
			}
			if got := errors.Is(err, hostfs.ErrName); got != tt.badName {
				t.Errorf("Open(%q) error = %v, ErrName %v, want %v", tt.name, err, got, tt.badName)
			}
			if tt.ok {
				if got, err := io.ReadAll(f); err != nil || string(got) != "data" {
					t.Errorf("content = %q, %v, want data", got, err)
				}
			}
		})
	}
}

func TestSubdirDoesNotFollowALink(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	if err := os.Symlink(other, filepath.Join(root, "cache")); err != nil {
		t.Fatal(err)
	}
	d, err := hostfs.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if sub, err := d.Subdir("cache", 0o700); err == nil {
		sub.Close()
		t.Error("Subdir followed a symbolic link out of its folder")
	}
	for range 2 { // made, then found
		sub, err := d.Subdir("own", 0o700)
		if err != nil {
			t.Fatal(err)
		}
		st, err := sub.Stat()
		if err != nil || st.Mode&0o777 != 0o700 {
			t.Errorf("mode = %#o, %v, want 0700", st.Mode, err)
		}
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRemove(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := hostfs.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // there, then gone: both fine
		if err := d.Remove("x"); err != nil {
			t.Error(err)
		}
	}
	if err := d.Remove("../x"); !errors.Is(err, hostfs.ErrName) {
		t.Errorf("Remove(../x) = %v, want ErrName", err)
	}
}

func TestOpenRegular(t *testing.T) {
	root := t.TempDir()
	fifo := filepath.Join(root, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := hostfs.OpenRegular(fifo); err == nil {
		f.Close()
		t.Error("a fifo was opened as a regular file")
	}
	if f, err := hostfs.OpenRegular(root); err == nil {
		f.Close()
		t.Error("a folder was opened as a regular file")
	}
}
