package open_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

func put(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func small() *testimage.Tree {
	tree := testimage.NewTree()
	tree.File("/dir/file", []byte("content"), testimage.Xattr("user.a", "1"), testimage.Xattr("user.b", "22"))
	tree.Symlink("/link", "dir/file")
	return tree
}

// TestRefused: what is not an image of this reader is refused in one line that
// says what it is.
func TestRefused(t *testing.T) {
	v5, v6 := written(t, 5), written(t, 6)
	change := func(b []byte, off int, with ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], with)
		return b
	}
	for name, tt := range map[string]struct {
		content []byte
		is      error
		says    string
	}{
		"empty":              {nil, rafs.ErrNotRAFS, "empty"},
		"text":               {[]byte("hello"), rafs.ErrNotRAFS, "no magic"},
		"zeros":              {make([]byte, 1<<16), rafs.ErrNotRAFS, "no magic"},
		"zstd":               {[]byte{0x28, 0xB5, 0x2F, 0xFD, 0}, rafs.ErrUnsupported, "zstd"},
		"gzip":               {[]byte{0x1F, 0x8B, 8, 0}, rafs.ErrUnsupported, "gzip"},
		"tar":                {append(tarHeader("image/", 0), make([]byte, 1024)...), rafs.ErrUnsupported, "tar file"},
		"no bootstrap":       {append(make([]byte, 9000), tarHeader("image.boot", 9000)...), rafs.ErrNotRAFS, "no magic"},
		"blob with toc":      {append(make([]byte, 9000), tarHeader("rafs.blob.toc", 0)...), rafs.ErrNotRAFS, "without a bootstrap in it"},
		"blob with header":   {append(make([]byte, 9000), tarHeader("blob.meta", 100)...), rafs.ErrNotRAFS, "data blob"},
		"blob":               {append(make([]byte, 9000), 0x0B, 0xB1, 0x0B, 0xB1), rafs.ErrNotRAFS, "data blob"},
		"v4":                 {change(v5, 4, 0, 4, 0, 0), rafs.ErrUnsupported, "0x400"},
		"pre-release v6":     {change(v6, 1024+80, 0xC, 0, 0, 0x40), rafs.ErrUnsupported, "pre-release v6"},
		"plain EROFS":        {change(v6, 1024+8, 0, 0, 0, 0), rafs.ErrNotRAFS, "EROFS image without the RAFS mark"},
		"v5, only the magic": {v5[:8], rafs.ErrDamaged, "8 bytes"},
		"v5, cut":            {v5[:8192], rafs.ErrDamaged, "8192 bytes"},
		"v6, cut":            {v6[:2000], rafs.ErrDamaged, "2000 bytes"},
		"v6, one block":      {v6[:4096], rafs.ErrDamaged, "4096 bytes"},
		"v6, odd size":       {v6[:len(v6)-1], rafs.ErrDamaged, "multiple of 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := open.Image(put(t, filepath.Join(t.TempDir(), "b"), tt.content), open.Options{})
			if err == nil {
				img.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("refused with %q, want %v saying %q", err, tt.is, tt.says)
			}
		})
	}
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"folder": dir, "fifo": fifo, "nothing": filepath.Join(dir, "none")} {
		if img, err := open.Image(path, open.Options{}); err == nil {
			img.Close()
			t.Errorf("%s opened as an image", name)
		}
	}
}

func written(t testing.TB, version testimage.Version) []byte {
	t.Helper()
	b, err := os.ReadFile(write(t, small(), testimage.Options{Version: version}).Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDigest(t *testing.T) {
	b := written(t, 6)
	path := put(t, filepath.Join(t.TempDir(), "b"), b)
	right := sha256.Sum256(b)
	wrong := right
	wrong[31] ^= 1
	if img, err := open.Image(path, open.Options{Digest: &wrong}); !errors.Is(err, open.ErrDigest) {
		t.Errorf("wrong digest: %v, %v, want ErrDigest", img, err)
	} else if !strings.Contains(err.Error(), fmt.Sprintf("%x", right)) {
		t.Errorf("the error does not name the digest: %v", err)
	}
	for name, o := range map[string]open.Options{"pinned": {Digest: &right}, "wanted": {WantDigest: true}} {
		img, err := open.Image(path, o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if img.Info().Digest != right {
			t.Errorf("%s: digest %x, want %x", name, img.Info().Digest, right)
		}
		img.Close()
	}
}

// TestShared: opens of one state of a file share an image, others do not, and
// each lives until its last Close.
func TestShared(t *testing.T) {
	b := written(t, 6)
	path := put(t, filepath.Join(t.TempDir(), "b"), b)
	first, second := mustOpenOnly(t, path), mustOpenOnly(t, path)
	if first != second {
		t.Error("two opens of one file are two images")
	}
	first.Close()
	var a rafs.Attr
	if err := second.Attr(second.Root(), &a); err != nil {
		t.Errorf("after the other holder left: %v", err)
	}
	// Another state of the file, and another file of that name.
	if err := os.Chtimes(path, time.Time{}, time.Unix(12345, 0)); err != nil {
		t.Fatal(err)
	}
	third := mustOpenOnly(t, path)
	if err := os.Rename(put(t, path+".new", b), path); err != nil {
		t.Fatal(err)
	}
	fourth := mustOpenOnly(t, path)
	if third == second || fourth == third {
		t.Error("another state of the file is the same image")
	}
	for _, img := range []rafs.Image{second, third, fourth} {
		if err := img.Attr(img.Root(), &a); err != nil {
			t.Error(err)
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}
	fifth := mustOpenOnly(t, path)
	if fifth == fourth {
		t.Error("a closed image was given out again")
	}
	if err := fifth.Attr(fifth.Root(), &a); err != nil {
		t.Error(err)
	}
	fifth.Close()
}

func mustOpenOnly(t *testing.T, path string) rafs.Image {
	t.Helper()
	img, err := open.Image(path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestOpenAndCloseTogether: holders come and go from many sides.
func TestOpenAndCloseTogether(t *testing.T) {
	path := put(t, filepath.Join(t.TempDir(), "b"), written(t, 5))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var a rafs.Attr
			for range 200 {
				img, err := open.Image(path, open.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := img.Attr(img.Root(), &a); err != nil {
					t.Error(err)
				}
				if err := img.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// everything calls every method of an image for its root and for inode ino, and
// hands the errors to each.
func everything(img rafs.Image, ino uint64, each func(string, error)) {
	var (
		attr   rafs.Attr
		cursor rafs.Cursor
		dirent rafs.Dirent
		chunk  rafs.Chunk
	)
	each("attr", img.Attr(ino, &attr))
	_, err := img.Lookup(img.Root(), []byte("dir"))
	each("lookup", err)
	_, err = img.Parent(img.Root())
	each("parent", err)
	err = img.ReadDir(img.Root(), 0, &cursor)
	for ok := err == nil; ok; {
		ok, err = cursor.Next(&dirent)
	}
	each("readdir", err)
	_, err = img.XattrNames(ino, nil)
	each("xattr names", err)
	_, err = img.Xattr(ino, []byte("user.b"), nil)
	each("xattr", err)
	_, err = img.Extents(ino, 0, 1<<20, nil)
	each("extents", err)
	_, err = img.ChunkCount(0)
	each("chunk count", err)
	each("chunk", img.Chunk(0, 0, &chunk))
	each("check", img.Check(func(rafs.Fault) bool { return true }))
	img.Prefetch()
}

// TestTruncated: when the file shrinks under its mapping, calls fail, the
// process lives, and a file that is put back serves again.
func TestTruncated(t *testing.T) {
	for _, version := range []testimage.Version{5, 6} {
		for _, indexed := range []bool{false, true} {
			t.Run(fmt.Sprintf("v%d indexed %v", version, indexed), func(t *testing.T) {
				tree := small()
				for i := range 500 { // several pages
					tree.File(fmt.Sprintf("/other/%d", i), []byte{byte(i)})
				}
				w := write(t, tree, testimage.Options{Version: version, Prefetch: []string{"/dir/file"}})
				content, err := os.ReadFile(w.Bootstrap)
				if err != nil {
					t.Fatal(err)
				}
				img := mustOpen(t, w.Bootstrap)
				file, err := w.Inode("/dir/file")
				if err != nil {
					t.Fatal(err)
				}
				if indexed {
					everything(img, file.Ino, func(call string, err error) {
						if err != nil {
							t.Fatalf("%s: %v", call, err)
						}
					})
				}
				if err := os.Truncate(w.Bootstrap, 0); err != nil {
					t.Fatal(err)
				}
				everything(img, file.Ino, func(call string, err error) {
					if call == "chunk count" && indexed {
						return // answered by the index alone
					}
					if !errors.Is(err, rafs.ErrFault) {
						t.Errorf("%s of a truncated file: %v, want ErrFault", call, err)
					}
				})
				if err := os.WriteFile(w.Bootstrap, content, 0o600); err != nil {
					t.Fatal(err)
				}
				everything(img, file.Ino, func(call string, err error) {
					if err != nil {
						t.Errorf("%s of a file that is whole again: %v", call, err)
					}
				})
			})
		}
	}
}

// TestChangedInPlace: while readers go through an image, its bytes change at
// random. Any answer is good, a crash is not.
func TestChangedInPlace(t *testing.T) {
	for _, version := range []testimage.Version{5, 6} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			t.Parallel()
			w := write(t, testimage.Sample(), testimage.Options{Version: version, ChunkSize: 4096})
			img := mustOpen(t, w.Bootstrap)
			content, err := os.ReadFile(w.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(w.Bootstrap, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			done := make(chan struct{})
			var writer, readers sync.WaitGroup
			writer.Go(func() {
				seed := uint64(version)
				for {
					select {
					case <-done:
						return
					default:
					}
					seed = seed*6364136223846793005 + 1442695040888963407
					off := int64(seed>>33) % int64(len(content))
					f.WriteAt([]byte{byte(seed >> 20)}, off)
					f.WriteAt(content[off:off+1], off)
				}
			})
			for range 2 {
				readers.Go(func() {
					for range 8 {
						rafstest.Visit(img)
					}
				})
			}
			readers.Wait()
			close(done)
			writer.Wait()
		})
	}
}

// TestVerifyMetadata: an image of v5 is opened only if the digests of its inodes
// hold up to the root; one of v6 has none to hold.
func TestVerifyMetadata(t *testing.T) {
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		opened, err := open.Image(img.Bootstrap, open.Options{VerifyMetadata: true})
		if version == testimage.V6 {
			if !errors.Is(err, rafs.ErrUnsupported) || strings.Contains(err.Error(), "\n") {
				t.Errorf("v6: %v, want ErrUnsupported", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := opened.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(img.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		b[img.Layout.Inodes.Offset] ^= 1 // of the root, the first record
		path := filepath.Join(t.TempDir(), "bad.boot")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open.Image(path, open.Options{VerifyMetadata: true}); !errors.Is(err, rafs.ErrDamaged) || !strings.Contains(err.Error(), "digest") {
			t.Errorf("a changed digest: %v", err)
		}
		if opened, err := open.Image(path, open.Options{}); err != nil {
			t.Errorf("without the option: %v", err)
		} else {
			opened.Close()
		}
	}
}
