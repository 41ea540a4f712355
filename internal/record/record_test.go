package record_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/record"
)

func TestEntriesOutliveTheirWriter(t *testing.T) {
	s := record.NewStore()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		s.Put("b/2", []byte("two"), int(f.Fd())), s.Put("b/1", []byte("one")), s.Put("a", nil), s.Put("b/1", []byte("ONE")),
		os.Remove(f.Name()), f.Close(), s.Delete("nothing"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var seen []string
	if err := s.Each("b/", func(key string, value []byte, fds []int) error {
		seen = append(seen, key+"="+string(value))
		for _, fd := range fds {
			b := make([]byte, 9)
			n, err := unix.Pread(fd, b, 0)
			seen = append(seen, string(b[:n]))
			if err := errors.Join(err, unix.Close(fd)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"b/1=ONE", "b/2=two", "kept"}; !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
}

func TestMemoryIsKeptAndGrows(t *testing.T) {
	s := record.NewStore()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	first, err := s.Memory("table", 4096)
	if err != nil {
		t.Fatal(err)
	}
	first[4095] = 7
	second, err := s.Memory("table", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if second[4095] != 7 || second[1<<30-1] != 0 {
		t.Errorf("%d, %d", second[4095], second[1<<30-1])
	}
	if err := s.DropMemory("table"); err != nil {
		t.Fatal(err)
	}
	third, err := s.Memory("table", 4096)
	if err != nil {
		t.Fatal(err)
	}
	if third[4095] != 0 {
		t.Error("memory that was given up has come back")
	}
}

func TestLimits(t *testing.T) {
	s := record.NewStore()
	defer s.Close()
	for name, err := range map[string]error{
		"no key":     s.Put("", nil),
		"long key":   s.Put(string(make([]byte, record.MaxKey+1)), nil),
		"long value": s.Put("k", make([]byte, record.MaxValue+1)),
		"no such descriptor": func() error {
			if err := s.Put("k", nil, 1<<20); err != nil {
				return record.ErrTooLarge
			}
			return nil
		}(),
		"memory": func() error { _, err := s.Memory("m", 0); return err }(),
	} {
		if !errors.Is(err, record.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
