// Package localfs is the backend of blobs that lie in folders of the host, as
// files named by blob id, or of one blob in one named file.
package localfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/internal/hostfs"
)

// Options are the keys of nydusd's localfs backend that mean something to us.
type Options struct {
	// Dir and AltDirs are looked through in this order for a file named by the
	// blob's id.
	Dir     string
	AltDirs []string
	// BlobFile, if set, is the file of every blob, whatever its id.
	BlobFile string
}

// New returns a backend. Folders and files are opened when a blob is read, so
// that they may come, go and be replaced while it lives.
func New(o Options) (backend.Backend, error) {
	if o.Dir == "" && o.BlobFile == "" {
		return nil, errors.New("localfs: one of dir and blob_file must be set")
	}
	return &local{o}, nil
}

type local struct{ o Options }

func (l *local) Name() string {
	if l.o.BlobFile != "" {
		return "localfs " + l.o.BlobFile
	}
	return "localfs " + l.o.Dir
}

func (l *local) Close() error { return nil }

func (l *local) Blob(id string) (backend.Source, error) {
	if err := backend.CheckID(id); err != nil {
		return nil, err
	}
	return &source{l, id}, nil
}

type source struct {
	l  *local
	id string
}

func (s *source) Size(ctx context.Context) (int64, error) {
	f, size, err := s.open(ctx)
	if err != nil {
		return 0, err
	}
	return size, f.Close()
}

func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	f, size, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if off < 0 || n <= 0 || off > size || n > size-off {
		err := backend.Errorf(backend.Permanent, "%s: has %d bytes, not the %d at %d", f.Name(), size, n, off)
		return nil, errors.Join(err, f.Close())
	}
	return &reader{ctx: ctx, f: f, off: off, end: off + n}, nil
}

// open finds and opens the blob's file.
func (s *source) open(ctx context.Context) (*os.File, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, context.Cause(ctx)
	}
	f, err := s.find()
	if err != nil {
		return nil, 0, &backend.Error{Kind: kind(err), Err: err}
	}
	st, err := hostfs.Stat(f)
	if err != nil {
		return nil, 0, errors.Join(&backend.Error{Kind: kind(err), Err: err}, f.Close())
	}
	return f, st.Size, nil
}

func (s *source) find() (*os.File, error) {
	if s.l.o.BlobFile != "" {
		return hostfs.OpenRegular(s.l.o.BlobFile)
	}
	f, first := hostfs.OpenRegular(s.l.o.Dir + "/" + s.id)
	if first == nil {
		return f, nil
	}
	for _, dir := range s.l.o.AltDirs {
		f, err := hostfs.OpenRegular(dir + "/" + s.id)
		if err == nil {
			return f, nil
		}
		if errors.Is(first, fs.ErrNotExist) {
			first = err // tells more than "not there", or tells the same
		}
	}
	return nil, first
}

// kind says what a store may expect of a failed open or read. A file that is
// not there, or is not ours to read, is so until somebody acts.
func kind(err error) backend.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return backend.Permanent
	case errors.Is(err, fs.ErrPermission):
		return backend.Denied
	}
	return backend.Temporary
}

// reader yields the bytes of one range of a file.
type reader struct {
	ctx      context.Context
	f        *os.File
	off, end int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if left := r.end - r.off; int64(len(p)) > left {
		p = p[:left]
	}
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	switch {
	case n > 0 || err == nil:
		return n, nil // an error comes back with the next call
	case err == io.EOF:
		return 0, backend.Errorf(backend.BadAnswer, "%s: ends at %d, %d bytes short of the range asked for", r.f.Name(), r.off, r.end-r.off)
	}
	return 0, &backend.Error{Kind: backend.Temporary, Err: err}
}

func (r *reader) Close() error { return r.f.Close() }
