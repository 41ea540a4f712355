package apisock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a unix socket in bytes.
const maxPath = 107

// Listen binds the API's socket at path, mode 0600 before anyone can connect. A
// stale socket there is replaced; one that somebody still listens on, or a file
// of another kind, is an error. A relative path is one below the present
// directory. Closing the listener removes the socket file.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("api socket %s: path of %d bytes, at most %d are possible", path, len(path), maxPath)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("api socket %s: %w", path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener works on a duplicate
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("api socket %s: bind: %w", path, err)
	}
	l, err := listen(fd, f, path)
	if err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("api socket %s: %w", path, err)
	}
	return l, nil
}

// listen finishes what a bound socket needs: its mode first, then connections.
func listen(fd int, f *os.File, path string) (net.Listener, error) {
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, path: path, file: info}, nil
}

// removeStale removes a socket at path that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file that is no socket stands there")
	}
	conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
	if err == nil {
		conn.Close()
		return errors.New("in use: another process listens there")
	}
	if errors.Is(err, unix.EAGAIN) || os.IsTimeout(err) {
		return errors.New("in use: another process listens there and is busy")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// File returns a descriptor of what Listen returned, for another process, which may
// Inherit it. It is the caller's.
func File(l net.Listener) (*os.File, error) {
	if own, ok := l.(*listener); ok {
		if u, ok := own.Listener.(*net.UnixListener); ok {
			return u.File()
		}
	}
	return nil, fmt.Errorf("api socket: a %T has no file", l)
}

// Inherit takes over a socket that another process has made and will remove. f is
// closed.
func Inherit(f *os.File) (net.Listener, error) {
	defer f.Close() // FileListener works on a duplicate
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}

// listener removes its socket file at the end, unless somebody else's stands
// there by then.
type listener struct {
	net.Listener
	path string
	file fs.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() {
		if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.file) {
			_ = os.Remove(l.path) // a caller that removes it too is not wrong
		}
	})
	return err
}
