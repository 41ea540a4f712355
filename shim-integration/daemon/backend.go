package daemon

import (
	"fmt"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// newBackend makes the back-end that a configuration describes. It asks nobody.
func newBackend(c *config.Backend) (backend.Backend, error) {
	switch c.Type {
	case "localfs":
		return localfs.New(localfs.Options{Dir: c.LocalFS.Dir, AltDirs: c.LocalFS.AltDirs, BlobFile: c.LocalFS.BlobFile})
	}
	return nil, fmt.Errorf("back-end type %s: %w", c.Type, ErrUnsupported)
}
