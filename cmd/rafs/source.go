package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/open"
	"github.com/rafsd/rafsd/shim-integration/backends"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// source is where an image comes from, as flags say.
type source struct {
	bootstrap string
	blobDir   string
	config    string
}

// bootstrapFlag adds the flag that every command has.
func (s *source) bootstrapFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.bootstrap, "bootstrap", "B", "", "the image's metadata `FILE` (required)")
	must(cmd.MarkFlagFilename("bootstrap"))
}

// blobFlags adds the flags of commands that read data.
func (s *source) blobFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.blobDir, "blob-dir", "D", "", "`FOLDER` of blobs, files named by blob id")
	cmd.Flags().StringVarP(&s.config, "config", "C", "", "nydusd configuration `FILE` that says where blobs are")
	must(cmd.MarkFlagDirname("blob-dir"))
	must(cmd.MarkFlagFilename("config"))
	cmd.MarkFlagsMutuallyExclusive("blob-dir", "config")
}

// must stops at a mistake of ours in declaring flags.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// image opens the bootstrap.
func (s *source) image() (rafs.Image, error) {
	if s.bootstrap == "" {
		return nil, usageError{errors.New("--bootstrap is required")}
	}
	return open.Image(s.bootstrap, open.Options{})
}

// blobs opens the place of the blobs and returns a reader of chunks, with what
// closes both.
func (s *source) blobs(img rafs.Image) (*export.BlobChunks, func(), error) {
	b, err := s.backend()
	if err != nil {
		return nil, nil, err
	}
	chunks := export.NewBlobChunks(img, func(id string) export.Source {
		src, err := b.Blob(id)
		if err != nil {
			return brokenSource{err}
		}
		return src
	})
	return chunks, func() {
		chunks.Close()
		// Everything was read; nothing is lost if closing fails.
		_ = b.Close()
	}, nil
}

func (s *source) backend() (backend.Backend, error) {
	switch {
	case s.blobDir != "":
		return localfs.New(localfs.Options{Dir: s.blobDir})
	case s.config == "":
		return nil, usageError{errors.New("data is needed: --blob-dir or --config says where the blobs are")}
	}
	c, err := config.ReadFile(s.config)
	if err != nil {
		return nil, err
	}
	return backends.New(c.Backend, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
}

// brokenSource answers every read of a blob with the reason why there is none.
type brokenSource struct{ err error }

func (b brokenSource) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, b.err
}
