package show

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
)

// machine reads an image through the daemon that listens on a socket. Each visit
// starts a machine, which is gone when the visit is over. A machine serves one
// visit at a time.
type machine interface {
	// name says what it is, before it is known which one it will be.
	name() string
	// prepare gets what the machine needs. It fails with *missingError where this
	// host cannot have such a machine, as may visits.
	prepare(context.Context) error
	// tag is what the daemon must be told to call the file system, "" if nothing.
	tag() string
	// start lists all names and reads startReads.
	start(ctx context.Context, socket string) (visit, error)
	// everything reads and compares all there is.
	everything(ctx context.Context, socket string, truth []manifest.Entry) (visit, error)
}

// visit is what a machine brought back.
type visit struct {
	who  string        // the machine as it turned out
	boot time.Duration // until it could read
	took time.Duration // from then to the end of the visit

	// Of start.
	top   []string // the top of the tree, as by ls -l
	names int      // in the whole tree, with the root
	sums  map[read][sha256.Size]byte

	// Of everything.
	differences manifest.Differences
}

// missingError says what a host lacks for a machine.
type missingError struct{ what error }

func (e *missingError) Error() string { return e.what.Error() }
func (e *missingError) Unwrap() error { return e.what }

// machines returns what to try for a choice, in order.
func machines(choice Guest, rafsGuest string, log io.Writer, say func(what, format string, a ...any)) ([]machine, error) {
	uml := &guest{kind: testguest.UML, rafsGuest: rafsGuest, log: log, say: say}
	qemu := &guest{kind: testguest.QEMU, rafsGuest: rafsGuest, log: log, say: say}
	switch choice {
	case Auto, "":
		return []machine{uml, qemu, frontend{}}, nil
	case UML:
		return []machine{uml}, nil
	case QEMU:
		return []machine{qemu}, nil
	case None:
		return []machine{frontend{}}, nil
	}
	return nil, fmt.Errorf("no kind of guest %q, there are %v", choice, Guests)
}
