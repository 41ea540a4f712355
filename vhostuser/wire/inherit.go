package wire

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ConnFromFD makes a connection of fd, a connected unix stream socket. It owns
// fd from the call on, also when it fails.
func ConnFromFD(fd int) (*net.UnixConn, error) {
	// FileConn duplicates the descriptor.
	f := os.NewFile(uintptr(fd), "vhost-user")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, unix.EBADF)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("descriptor %d: %T, want a unix socket", fd, c)
	}
	return u, nil
}
