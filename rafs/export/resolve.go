package export

import (
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/rafs"
)

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// Resolve finds path inside the image. Symbolic links on the way are followed
// inside the image ("/" is the image's root), the last part only if follow is
// set. Errors name the part that failed.
func Resolve(img rafs.Image, path string, follow bool) (ino uint64, err error) {
	dirs := []uint64{img.Root()} // from the root to where we are
	todo := split(path)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		dir := dirs[len(dirs)-1]
		switch name {
		case ".":
			continue
		case "..":
			if len(dirs) > 1 {
				dirs = dirs[:len(dirs)-1]
			}
			continue
		}
		child, err := img.Lookup(dir, []byte(name))
		if err != nil {
			return 0, fmt.Errorf("%q: %q: %w", path, name, err)
		}
		var a rafs.Attr
		if err := img.Attr(child, &a); err != nil {
			return 0, fmt.Errorf("%q: %q: %w", path, name, err)
		}
		if a.Mode&rafs.ModeType == rafs.ModeSymlink && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return 0, fmt.Errorf("%q: more than %d symbolic links", path, maxLinks)
			}
			target, err := img.Readlink(child, nil)
			if err != nil {
				return 0, fmt.Errorf("%q: %q: %w", path, name, err)
			}
			if strings.HasPrefix(string(target), "/") {
				dirs = dirs[:1]
			}
			todo = append(split(string(target)), todo...)
			continue
		}
		dirs = append(dirs, child)
	}
	return dirs[len(dirs)-1], nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
