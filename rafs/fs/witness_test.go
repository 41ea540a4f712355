package fs_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs/chunktable"
	"github.com/rafsd/rafsd/rafs/open"
)

// Independent readers of EROFS, with our filled cache files as its devices, must
// see the tree that we serve: they know nothing of chunk tables, go by block
// addresses alone, and so see what a kernel would.

// filledDevices fills the cache with all blobs of a v6 image and returns the data
// files by blob index, each a device of the image.
func filledDevices(t *testing.T, v corpus.Variant) []string {
	t.Helper()
	cache := t.TempDir()
	s := openStore(t, v.Blobs(t), cache)
	img, err := open.Image(v.Bootstrap, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(img.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	var devices []string
	for i := range img.Blobs() {
		d, err := chunktable.Describe(img, i)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Blob(d)
		if err != nil {
			t.Fatal(err)
		}
		n, err := img.ChunkCount(i)
		if err != nil {
			t.Fatal(err)
		}
		var known int
		for k := range n {
			if b.Fetch(t.Context(), k, k) == nil { // an image need not know all chunks of a layer
				known++
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		found, err := filepath.Glob(filepath.Join(cache, "rafsd-v1", d.ID+"*.data"))
		if err != nil || len(found) != 1 || known == 0 && n > 0 {
			t.Fatalf("blob %d: cache files %v, %v; %d of %d chunks", i, found, err, known, n)
		}
		// A device has whole blocks.
		st, err := os.Stat(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(found[0], (st.Size()+4095)&^4095); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, found[0])
	}
	return devices
}

// witnessed lists the variants for witnesses: all of v6, under the race detector
// those that are small.
func witnessed(t *testing.T) []corpus.Variant {
	var some []corpus.Variant
	for _, v := range corpus.Variants(t) {
		if !strings.HasPrefix(v.Name, "v6-") || strings.Contains(v.Name, "-inline") {
			continue // its bootstrap is inside a blob, where only we look for it
		}
		if raceEnabled && (strings.HasSuffix(v.Name, "-edge") || strings.HasSuffix(v.Name, "-rootfs")) {
			continue
		}
		some = append(some, v)
	}
	return some
}

// TestWitnesses asks both about every v6 image of the corpus.
func TestWitnesses(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("SKIPPED, NOT ASKED: fsck.erofs (erofs-utils) is not installed")
	}
	var goEROFS, extracted atomic.Int32
	t.Run("images", func(t *testing.T) {
		for _, v := range witnessed(t) {
			t.Run(v.Name, func(t *testing.T) {
				t.Parallel()
				devices := filledDevices(t, v)
				askGoEROFS(t, v, devices)
				goEROFS.Add(1)
				if fsck != "" && askFsck(t, fsck, v, devices) {
					extracted.Add(1)
				}
			})
		}
	})
	t.Logf("go-erofs agrees on %d images, fsck.erofs on %d", goEROFS.Load(), extracted.Load())
	if goEROFS.Load() < 40 || fsck != "" && extracted.Load() < 38 {
		t.Error("that is too few")
	}
}

// askGoEROFS compares all that go-erofs shows, contents and xattrs included.
func askGoEROFS(t *testing.T, v corpus.Variant, paths []string) {
	t.Helper()
	boot, err := os.Open(v.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	defer boot.Close()
	var devices []io.ReaderAt
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		devices = append(devices, f)
	}
	fsys, err := erofs.Open(boot, erofs.WithExtraDevices(devices...))
	if err != nil {
		t.Fatal(err)
	}
	var all manifest.Collector
	if err := eroTree(fsys, ".", &all); err != nil {
		t.Fatal(err)
	}
	want := v.Truth(t)
	for i := range want {
		want[i].Mode &= 0o777 // it shows no more of a mode
	}
	o := manifest.Options{MountTimes: manifest.MountTimesEpoch}
	if d := manifest.Compare(all.Entries(), want, o); !d.Equal() {
		t.Errorf("go-erofs sees another tree:\n%v", d)
	}
}

// askFsck compares what fsck.erofs extracts. It reports whether it could.
func askFsck(t *testing.T, fsck string, v corpus.Variant, devices []string) bool {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tree")
	args := []string{"--extract=" + out, "--preserve"}
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	if text, err := exec.Command(fsck, append(args, v.Bootstrap)...).CombinedOutput(); err != nil {
		if strings.Contains(string(text), "blksize 512 isn't supported") {
			t.Logf("NOT ASKED, fsck.erofs is too old for blocks of 512 bytes: %s", text)
			return false
		}
		t.Fatalf("%v: %s", err, text)
	}
	// It keeps neither hard links nor xattrs nor the times of directories, and its
	// chown takes the set-id bits away again.
	got, want := hostTree(t, out), v.Truth(t)
	for _, entries := range [][]manifest.Entry{got, want} {
		for i := range entries {
			entries[i].Mode &^= 0o6000
		}
	}
	o := manifest.Options{Ignore: []string{"nlink", "hardlink", "xattrs", "mtime"}}
	if d := manifest.Compare(got, want, o); !d.Equal() {
		t.Errorf("fsck.erofs extracts another tree:\n%v", d)
	}
	return true
}

// eroTree collects what go-erofs shows below path.
func eroTree(fsys iofs.FS, path string, all *manifest.Collector) error {
	info, err := iofs.Lstat(fsys, path)
	if err != nil {
		return err
	}
	st := info.Sys().(*erofs.Stat)
	typ := typeOf(info.Mode())
	below := path + "/"
	if path == "." {
		path, below = "", ""
	}
	e := manifest.Entry{
		Path: "/" + path, Type: typ, Mode: uint16(info.Mode().Perm()), UID: st.UID, GID: st.GID,
		Size: uint64(st.Size), Nlink: uint64(st.Nlink), Mtime: manifest.Time{Sec: int64(st.Mtime), Nsec: st.MtimeNs},
		Major: st.Rdev >> 8 & 0xFFF, Minor: st.Rdev&0xFF | st.Rdev>>12&0xFFF00,
	}
	for name, value := range st.Xattrs {
		if strings.HasPrefix(name, "system.posix_acl_") {
			name = strings.TrimSuffix(name, ".") // whose names it puts together wrongly
		}
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: value})
	}
	e.SortXattrs()
	switch typ {
	case manifest.Symlink:
		if e.Target, err = iofs.ReadLink(fsys, path); err != nil {
			return err
		}
	case manifest.Regular:
		data, err := iofs.ReadFile(fsys, path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		e.SHA256 = sha256.Sum256(data)
	}
	all.Add(e, manifest.InodeKey{Ino: uint64(st.Ino)})
	if typ != manifest.Directory {
		return nil
	}
	entries, err := iofs.ReadDir(fsys, dirName(path))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, d := range entries {
		if err := eroTree(fsys, below+d.Name(), all); err != nil {
			return err
		}
	}
	return nil
}

// dirName is how io/fs names a directory of the image.
func dirName(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func typeOf(m iofs.FileMode) manifest.Type {
	switch m.Type() {
	case iofs.ModeDir:
		return manifest.Directory
	case iofs.ModeSymlink:
		return manifest.Symlink
	case iofs.ModeNamedPipe:
		return manifest.Fifo
	case iofs.ModeSocket:
		return manifest.Socket
	case iofs.ModeDevice:
		return manifest.BlockDevice
	case iofs.ModeDevice | iofs.ModeCharDevice:
		return manifest.CharDevice
	}
	return manifest.Regular
}

// hostTree collects what a folder of the host holds.
func hostTree(t *testing.T, root string) []manifest.Entry {
	t.Helper()
	var all manifest.Collector
	err := filepath.WalkDir(root, func(path string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		typ, _ := manifest.TypeOfMode(st.Mode)
		e := manifest.Entry{
			Path: "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/"), Type: typ, Mode: uint16(st.Mode & 0o7777),
			UID: st.Uid, GID: st.Gid, Size: uint64(st.Size), Nlink: uint64(st.Nlink),
			Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		}
		switch typ {
		case manifest.Symlink:
			e.Target, err = os.Readlink(path)
		case manifest.Regular:
			var data []byte
			data, err = os.ReadFile(path)
			e.SHA256 = sha256.Sum256(data)
		}
		all.Add(e, manifest.InodeKey{Dev: st.Dev, Ino: st.Ino})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.Entries()
}
