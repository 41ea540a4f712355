package logsink

import (
	"fmt"
	"os"
)

// File is a log file that is renamed to its name with ".1" behind when it would
// grow beyond a size. It is for one goroutine.
type File struct {
	path  string
	limit int64 // bytes; 0 = none
	size  int64
	f     *os.File
}

// OpenFile opens the log file at path to append to it.
func OpenFile(path string, limit int64) (*File, error) {
	l := &File{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return l, nil
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write appends p, whole, to one file.
func (l *File) Write(p []byte) (int, error) {
	if l.limit > 0 && l.size > 0 && l.size+int64(len(p)) > l.limit {
		l.rotate()
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate begins a new file; if it cannot, the old one goes on.
func (l *File) rotate() {
	if os.Rename(l.path, l.path+".1") != nil {
		return
	}
	old := l.f
	if l.open() != nil {
		return
	}
	old.Close()
}

// Close closes the file.
func (l *File) Close() error { return l.f.Close() }
