package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/wire"
)

// Listener is where front-ends come from. Close may be called by any goroutine;
// the rest is for one.
type Listener struct {
	sock *net.UnixListener // nil if conn was inherited
	path string            // of the socket that we made, or ""
	id   os.FileInfo       // of the file at path

	mu   sync.Mutex    // guards conn and gone
	conn *net.UnixConn // an inherited connection that was not handed out yet
	gone bool
}

// backlog is how many front-ends may wait for the present one to leave.
const backlog = 8

// Listen makes a socket at path, for its owner only. A socket there that nobody
// listens at is replaced; anything else is an error.
func Listen(path string) (*Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("vhost-user socket %s: %w", path, err)
	}
	return l, nil
}

// maxPath is what the kernel takes of a socket's path, less the NUL.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

func listen(path string) (*Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("path of %d bytes, at most %d", len(path), maxPath)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener duplicates it
	addr := &unix.SockaddrUnix{Name: path}
	err = unix.Bind(fd, addr)
	if err == unix.EADDRINUSE {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		err = unix.Bind(fd, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	// Nobody can connect before listen: no moment is left with a wider mode,
	// and the umask, which all threads share, is left alone.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	id, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	sock, err := fileListener(f)
	if err != nil {
		return nil, err
	}
	return &Listener{sock: sock, path: path, id: id}, nil
}

// removeStale unlinks the socket at path if nobody listens at it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a file that is no socket (%v)", info.Mode().Type())
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return errors.New("another process listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func fileListener(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("%T, want a unix socket", l)
	}
	return u, nil
}

// Inherit takes over descriptor fd, which some parent process has opened: a
// listening socket, or a connection to one front-end. It owns fd from now on.
func Inherit(fd int) (*Listener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("vhost-user descriptor %d: %w", fd, err)
	}
	if listening == 0 {
		conn, err := wire.ConnFromFD(fd)
		if err != nil {
			return nil, fmt.Errorf("vhost-user %w", err)
		}
		return &Listener{conn: conn}, nil
	}
	f := os.NewFile(uintptr(fd), "vhost-user listener")
	defer f.Close()
	sock, err := fileListener(f)
	if err != nil {
		return nil, fmt.Errorf("vhost-user descriptor %d: %w", fd, err)
	}
	sock.SetUnlinkOnClose(false)
	return &Listener{sock: sock}, nil
}

// File returns a descriptor of the listening socket for another process, which
// may Inherit it. It is the caller's; the Listener stays as it was.
func (l *Listener) File() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.sock == nil {
		return nil, errors.New("vhost-user listener has no listening socket")
	}
	return l.sock.File()
}

// accept waits for the next front-end. io.EOF says that there is none to come.
func (l *Listener) accept() (*net.UnixConn, error) {
	if l.sock != nil {
		return l.sock.AcceptUnix()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	conn := l.conn
	l.conn = nil
	switch {
	case l.gone:
		return nil, net.ErrClosed
	case conn == nil:
		return nil, io.EOF
	}
	return conn, nil
}

// Close ends the listener, and removes the socket if Listen made it and it is
// still that one. Closing twice is harmless.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return nil
	}
	l.gone = true
	if l.conn != nil {
		err := l.conn.Close()
		l.conn = nil
		return err
	}
	if l.sock == nil {
		return nil
	}
	if l.path != "" {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.id) {
			// Before the socket closes, so that nobody finds it dead.
			_ = os.Remove(l.path)
		}
	}
	return l.sock.Close()
}
