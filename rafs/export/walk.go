package export

import (
	"context"
	"fmt"

	"github.com/rafsd/rafsd/rafs"
)

// walk calls fn for every path of img until the first fault: an export of a
// damaged image is not whole and must not look it. Errors name the path.
func walk(ctx context.Context, img rafs.Image, fn func(path string, e *rafs.WalkEntry) error) error {
	return rafs.Walk(img, func(e *rafs.WalkEntry) error {
		err := e.Err
		if err == nil {
			err = ctx.Err()
		}
		path := string(e.Path)
		if err == nil {
			err = fn(path, e)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		return nil
	})
}
