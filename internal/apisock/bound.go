package apisock

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxConns bounds the connections of an API: silent ones are never closed, since
// some callers take that for the daemon's death, so that a caller that forgets its
// connections must not use up the descriptors that guests need.
const maxConns = 4096

// Bound returns l with at most 4096 connections at a time, fewer if the process may
// not open that many files. One above that gets the refusal and is closed.
func Bound(l net.Listener, refusal string, log *slog.Logger) net.Listener {
	most := int64(maxConns)
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		most = min(most, int64(min(lim.Cur, 1<<40)/4))
	}
	return &boundListener{Listener: l, most: most, refusal: []byte(refusal), log: log}
}

type boundListener struct {
	net.Listener
	most    int64
	refusal []byte
	open    atomic.Int64
	log     *slog.Logger
	told    atomic.Int64 // when the last warning was, in seconds
}

func (l *boundListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &boundConn{Conn: c, l: l}, nil
		}
		l.open.Add(-1)
		if now := time.Now().Unix(); l.told.Swap(now) != now {
			l.log.Warn("API: a connection was refused", "open", l.most)
		}
		// The socket's own buffer takes it: nobody is waited for.
		_ = c.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_, _ = c.Write(l.refusal)
		_ = c.Close()
	}
}

// Somebody who sends a request byte by byte costs a wake-up for each, at the expense
// of the guest. So after some reads in a row that brought next to nothing, without an
// answer between them, the next one waits for more to come together: ever longer, up to
// mostPatience.
const (
	nextToNothing = 64 // bytes
	quickReads    = 16
	morePatience  = 10 * time.Millisecond
	mostPatience  = 200 * time.Millisecond
)

// boundConn gives its place back when it is closed, and is read at leisure if what
// comes does not hurry either.
type boundConn struct {
	net.Conn
	l        *boundListener
	once     sync.Once
	dribbles atomic.Int32 // reads of next to nothing since the last answer
}

// Read implements net.Conn.
func (c *boundConn) Read(p []byte) (int, error) {
	if n := c.dribbles.Load(); n > quickReads {
		time.Sleep(min(time.Duration(n-quickReads)*morePatience, mostPatience))
	}
	n, err := c.Conn.Read(p)
	if n < nextToNothing {
		c.dribbles.Add(1)
	} else {
		c.dribbles.Store(0)
	}
	return n, err
}

// Write implements net.Conn.
func (c *boundConn) Write(p []byte) (int, error) {
	c.dribbles.Store(0)
	return c.Conn.Write(p)
}

// NetConn returns the connection itself.
func (c *boundConn) NetConn() net.Conn { return c.Conn }

func (c *boundConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.open.Add(-1) })
	return err
}
