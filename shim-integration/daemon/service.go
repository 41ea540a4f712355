package daemon

import (
	"errors"
	"time"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// State is what the daemon is doing, in the words of nydusd's API.
type State string

// The states a caller can see.
const (
	StateInit    State = "INIT"
	StateReady   State = "READY"
	StateRunning State = "RUNNING"
	StateStopped State = "STOPPED"
)

// Info describes the daemon to a caller. It holds no secrets in clear: a
// config.Config prints masked.
type Info struct {
	ID         string // "" if none was given
	Supervisor string // "" if none was given
	State      State
	Mounts     []MountInfo // ordered by mountpoint
	PID        int         // of the process that callers watch
}

// MountInfo describes one mount.
type MountInfo struct {
	Mountpoint string // absolute, clean
	ID         uint32 // of the mount in the guest's tree: never used twice
	FSType     FSType
	Source     string
	Mounted    time.Time
	Config     *config.Config // nil for what has none; immutable
}

// FSType is what is mounted.
type FSType string

// The kinds of mount.
const (
	FSRafs        FSType = "rafs"
	FSPassthrough FSType = "passthrough_fs"
)

// MountRequest asks for one mount.
type MountRequest struct {
	Mountpoint string
	FSType     string // as the caller spelled it
	Source     string // of an image: path of its bootstrap
	Config     string // configuration text
	// BootstrapDigest pins the SHA-256 of an image's bootstrap, in hex; "" does not.
	BootstrapDigest string
	// PrefetchFiles are absolute paths inside the image.
	PrefetchFiles []string
}

// Classes of errors that a door may want to tell apart; every error of the
// service wraps at most one of them.
var (
	ErrExists      = errors.New("already mounted")
	ErrNotMounted  = errors.New("not mounted")
	ErrInvalid     = errors.New("invalid argument")
	ErrUnsupported = errors.New("not supported yet")
	ErrState       = errors.New("not possible in this state")
	ErrPinned      = errors.New("not the image that was asked for")
	ErrStopping    = errors.New("the daemon is stopping")
)
