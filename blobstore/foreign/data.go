package foreign

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/hostfs"
)

// suffixes of a blob's data file, behind its id: of nydusd since 2.2, and before.
var suffixes = [...]string{".blob.data", ""}

// Data is the data file of one blob. Its methods are safe for concurrent use,
// except Close.
type Data struct{ f *os.File }

// Open opens the data file of the blob id in the first of dirs that has one. size
// is that of the blob's uncompressed address space, 0 if it is not known: a file
// that is longer is another blob's. It returns nil if there is none; an error
// says why one that is there cannot be used.
func Open(dirs []string, id string, size uint64) (*Data, error) {
	var errs []error
	for _, dir := range dirs {
		d, err := hostfs.OpenDir(dir)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		f, err := open(d, id, size)
		if err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, d.Close())
		if f != nil {
			return &Data{f}, nil
		}
	}
	return nil, errors.Join(errs...)
}

func open(d *hostfs.Dir, id string, size uint64) (*os.File, error) {
	var errs []error
	for _, suffix := range suffixes {
		f, err := d.Open(id+suffix, os.O_RDONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			var st unix.Stat_t
			if st, err = hostfs.Stat(f); err == nil && size != 0 && uint64(st.Size) > (size+4095)&^4095 {
				err = fmt.Errorf("%s: %d bytes, the blob has %d", f.Name(), st.Size, size)
			}
			if err == nil {
				return f, nil
			}
			err = errors.Join(err, f.Close())
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Name is the path of the file, for messages.
func (d *Data) Name() string { return d.f.Name() }

// Has reports whether any of the n bytes at off was ever written. Without it, they
// read as zeros.
func (d *Data) Has(off uint64, n uint32) bool {
	at, err := unix.Seek(int(d.f.Fd()), int64(off), unix.SEEK_DATA)
	if err == unix.ENXIO {
		return false
	}
	return err != nil || uint64(at) < off+uint64(n) // a file system that cannot tell says yes
}

// Read fills p with the bytes at off. It fails where the file ends before.
func (d *Data) Read(p []byte, off uint64) error {
	_, err := d.f.ReadAt(p, int64(off))
	return err
}

// Close closes the file.
func (d *Data) Close() error { return d.f.Close() }
