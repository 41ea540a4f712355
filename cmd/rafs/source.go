package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/blobstore/backend/registry"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/open"
	"github.com/rafsd/rafsd/rafs/packaging"
	"github.com/rafsd/rafsd/shim-integration/backends"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// source is where an image comes from, as the command line says.
type source struct {
	bootstrap string // a file, or what IMAGE may be
	blobDir   string
	config    string
	plainHTTP bool

	place packaging.Place // of an image that is packed, once it is open
}

// bootstrapFlag adds the flags that every command has.
func (s *source) bootstrapFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.bootstrap, "bootstrap", "B", "", "the image's metadata: a bootstrap `FILE`, or anything that IMAGE may be")
	cmd.Flags().BoolVar(&s.plainHTTP, "plain-http", false, "speak to the registry without TLS")
	must(cmd.MarkFlagFilename("bootstrap"))
}

// blobFlags adds the flags of commands that read data.
func (s *source) blobFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.blobDir, "blob-dir", "D", "", "`FOLDER` of blobs, files named by blob id")
	s.configFlag(cmd)
	must(cmd.MarkFlagDirname("blob-dir"))
	cmd.MarkFlagsMutuallyExclusive("blob-dir", "config")
}

func (s *source) configFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.config, "config", "C", "", "nydusd configuration `FILE` that says where blobs are, or how to reach the registry")
	must(cmd.MarkFlagFilename("config"))
}

// operands is the check of a command's arguments: the image first, unless
// --bootstrap names it, then from least to most others.
func (s *source) operands(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if s.bootstrap == "" && len(args) > 0 {
			args = args[1:]
		}
		return cobra.RangeArgs(least, most)(cmd, args)
	}
}

// take takes the image off the arguments, unless --bootstrap names it.
func (s *source) take(args []string) []string {
	if s.bootstrap == "" && len(args) > 0 {
		s.bootstrap, args = args[0], args[1:]
	}
	return args
}

// must stops at a mistake of ours in declaring flags.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// layoutPrefix marks the name of a folder with an OCI layout.
const layoutPrefix = "oci:"

// image opens the image: a bootstrap or a blob that holds one, an image in a
// registry, or one in a folder with an OCI layout.
func (s *source) image(ctx context.Context) (rafs.Image, error) {
	if s.bootstrap == "" {
		return nil, usageError{errors.New("which image? --bootstrap FILE, registry.example/app:tag or oci:FOLDER")}
	}
	if dir, ok := strings.CutPrefix(s.bootstrap, layoutPrefix); ok {
		tag := ""
		if _, err := os.Stat(dir); err != nil {
			if i := strings.LastIndexByte(dir, ':'); i >= 0 {
				dir, tag = dir[:i], dir[i+1:]
			}
		}
		l, err := packaging.OpenLayout(dir)
		if err != nil {
			return nil, err
		}
		return s.packed(ctx, l, tag)
	}
	if _, err := os.Stat(s.bootstrap); err == nil || !errors.Is(err, os.ErrNotExist) {
		return open.Image(s.bootstrap, open.Options{})
	}
	ref, err := packaging.ParseReference(strings.TrimPrefix(s.bootstrap, "docker://"))
	if err != nil {
		return nil, fmt.Errorf("%s: no such file, and no image in a registry or folder either (registry.example/app:tag, oci:FOLDER)", s.bootstrap)
	}
	o, err := s.registryOptions(ctx, ref)
	if err != nil {
		return nil, err
	}
	b, err := registry.New(o)
	if err != nil {
		return nil, err
	}
	return s.packed(ctx, b.(registry.Images), ref.Tag)
}

// packed opens the image that a reference at p leads to. p is then the place of
// its blobs, unless flags name another.
func (s *source) packed(ctx context.Context, p packaging.Place, reference string) (rafs.Image, error) {
	img, err := openPacked(ctx, p, reference, s.bootstrap)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image %s: %w", s.bootstrap, err), p.Close())
	}
	s.place = p
	return img, nil
}

func openPacked(ctx context.Context, p packaging.Place, reference, name string) (rafs.Image, error) {
	found, err := packaging.Find(ctx, p, reference)
	if err != nil {
		return nil, err
	}
	b, err := found.ReadBootstrap(ctx, p, name)
	if err != nil {
		return nil, err
	}
	img, err := open.Bootstrap(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return img, nil
}

// registryOptions says how to reach a registry: as the configuration does, if
// there is one, and with the credentials that docker and podman keep.
func (s *source) registryOptions(ctx context.Context, ref packaging.Reference) (registry.Options, error) {
	o := registry.Options{Timeout: 30 * time.Second, ConnectTimeout: 10 * time.Second, RetryLimit: 2}
	if s.config != "" {
		c, err := config.ReadFile(s.config)
		if err != nil {
			return o, err
		}
		if c.Backend == nil || c.Backend.Registry == nil {
			return o, fmt.Errorf("%s: its back-end is not a registry", s.config)
		}
		o = backends.RegistryOptions(c.Backend.Registry, logger())
	}
	o.Host, o.Repo, o.Log = ref.Host, ref.Repo, logger()
	if s.plainHTTP || s.config == "" && ref.Loopback() {
		o.Scheme = "http"
	}
	if o.Auth != "" || o.RegistryToken != "" {
		return o, nil
	}
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return o, fmt.Errorf("docker's configuration: %w", err)
	}
	cred, err := credentials.Credential(store)(ctx, ref.Host)
	switch {
	case err != nil:
		return o, fmt.Errorf("credentials for %s: %w", ref.Host, err)
	case cred.RefreshToken != "":
		return o, fmt.Errorf("credentials for %s: an identity token, which is not supported (log in with user and password)", ref.Host)
	case cred.AccessToken != "":
		o.RegistryToken = cred.AccessToken
	case cred.Username != "":
		o.Auth = base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))
	}
	return o, nil
}

func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// close gives up the place of a packed image.
func (s *source) close() error {
	if s.place == nil {
		return nil
	}
	return s.place.Close()
}

// blobs opens the place of the blobs and returns a reader of chunks, with what
// closes both.
func (s *source) blobs(img rafs.Image) (*export.BlobChunks, func(), error) {
	b, closeBlobs, err := s.backend()
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
		closeBlobs()
	}, nil
}

// backend is where the blobs are: where flags say, or where the image is.
func (s *source) backend() (backend.Backend, func(), error) {
	var b backend.Backend
	var err error
	switch {
	case s.blobDir != "":
		b, err = localfs.New(localfs.Options{Dir: s.blobDir})
	case s.place != nil:
		return s.place, func() {}, nil
	case s.config == "":
		return nil, nil, usageError{errors.New("data is needed: --blob-dir or --config says where the blobs are")}
	default:
		var c *config.Config
		if c, err = config.ReadFile(s.config); err == nil {
			b, err = backends.New(c.Backend, logger())
		}
	}
	if err != nil {
		return nil, nil, err
	}
	// Everything was read; nothing is lost if closing fails.
	return b, func() { _ = b.Close() }, nil
}

// brokenSource answers every read of a blob with the reason why there is none.
type brokenSource struct{ err error }

func (b brokenSource) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, b.err
}
