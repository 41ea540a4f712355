package localfs_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
)

func TestFindsBlobsInOrder(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write(t, first, "one", "first/one")
	write(t, second, "one", "second/one")
	write(t, second, "two", "second/two")
	single := filepath.Join(first, "single")
	write(t, first, "single", "the only blob")

	folders := localfs.Options{Dir: first, AltDirs: []string{t.TempDir(), second}}
	tests := map[string]struct {
		o    localfs.Options
		id   string
		want string
		kind backend.Kind
	}{
		"in the first folder":           {o: folders, id: "one", want: "first/one"},
		"only in another folder":        {o: folders, id: "two", want: "second/two"},
		"nowhere":                       {o: folders, id: "three", kind: backend.Permanent},
		"named file, whatever the id":   {o: localfs.Options{BlobFile: single}, id: "any", want: "the only blob"},
		"a folder in place of the blob": {o: localfs.Options{Dir: filepath.Dir(first)}, id: filepath.Base(first), kind: backend.Temporary},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			src := blob(t, tt.o, tt.id)
			size, err := src.Size(t.Context())
			if tt.want == "" {
				if k, _ := backend.Classify(err); err == nil || k != tt.kind {
					t.Errorf("Size = %d, %v (%v), want an error that is %v", size, err, k, tt.kind)
				}
				return
			}
			if err != nil || size != int64(len(tt.want)) {
				t.Fatalf("Size = %d, %v, want %d", size, err, len(tt.want))
			}
			if got := read(t, src, 0, size); got != tt.want {
				t.Errorf("content = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadRange(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b", "0123456789")
	src := blob(t, localfs.Options{Dir: dir}, "b")
	if got := read(t, src, 3, 4); got != "3456" {
		t.Errorf("range 3+4 = %q, want 3456", got)
	}
	bad := map[string][2]int64{
		"behind the end": {11, 1}, "over the end": {5, 6}, "negative": {-1, 2},
		"empty": {0, 0}, "overflow": {1, 1<<63 - 1}, "far overflow": {1<<63 - 1, 1<<63 - 1},
	}
	for name, r := range bad {
		if rd, err := src.ReadRange(t.Context(), r[0], r[1]); err == nil {
			rd.Close()
			t.Errorf("%s: ReadRange(%d, %d) succeeded", name, r[0], r[1])
		} else if k, _ := backend.Classify(err); k != backend.Permanent {
			t.Errorf("%s: %v is %v, want permanent", name, err, k)
		}
	}
}

func TestFileThatShrinksWhileItIsRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b", "0123456789")
	rd, err := blob(t, localfs.Options{Dir: dir}, "b").ReadRange(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if err := os.Truncate(filepath.Join(dir, "b"), 4); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rd)
	if k, _ := backend.Classify(err); err == nil || k != backend.BadAnswer || string(got) != "0123" {
		t.Errorf("read %q, %v, want 0123 and a bad answer", got, err)
	}
}

func TestCancelledRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b", "0123456789")
	src := blob(t, localfs.Options{Dir: dir}, "b")
	ctx, cancel := context.WithCancel(t.Context())
	rd, err := src.ReadRange(ctx, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	cancel()
	if _, err := rd.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Read after cancel = %v", err)
	}
	if _, err := src.Size(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Size after cancel = %v", err)
	}
}

func TestRefusesIDsThatAreNoFileNames(t *testing.T) {
	b, err := localfs.New(localfs.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Blob("../x"); !errors.Is(err, backend.ErrID) {
		t.Errorf("Blob(../x) = %v, want ErrID", err)
	}
	if _, err := localfs.New(localfs.Options{}); err == nil {
		t.Error("neither dir nor blob_file was accepted")
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func blob(t *testing.T, o localfs.Options, id string) backend.Source {
	t.Helper()
	b, err := localfs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	src, err := b.Blob(id)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func read(t *testing.T, src backend.Source, off, n int64) string {
	t.Helper()
	rd, err := src.ReadRange(t.Context(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	got, err := io.ReadAll(rd)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}
