package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
)

func newCat() *cobra.Command {
	var src source
	cmd := &cobra.Command{
		Use:     "cat [IMAGE] PATH...",
		Short:   "Print files of the image",
		Long:    "Print the content of regular files. Symbolic links are followed inside the image.",
		Example: "  rafs cat -B image.boot -D blobs /etc/passwd /etc/group",
		Args:    src.operands(1, math.MaxInt),
		RunE: func(cmd *cobra.Command, paths []string) error {
			paths = src.take(paths)
			return withData(cmd.Context(), &src, func(img rafs.Image, chunks *export.BlobChunks) error {
				content := export.NewContent(img, chunks)
				out := bufio.NewWriterSize(os.Stdout, 1<<20)
				for _, path := range paths {
					ino, err := export.Resolve(img, path, true)
					if err != nil {
						return err
					}
					var a rafs.Attr
					if err := img.Attr(ino, &a); err != nil {
						return fmt.Errorf("%q: %w", path, err)
					}
					if a.Mode&rafs.ModeType != rafs.ModeRegular {
						return fmt.Errorf("%q: %w", path, rafs.ErrNotRegular)
					}
					if _, err := io.Copy(out, content.Open(cmd.Context(), ino, a.Size)); err != nil {
						return fmt.Errorf("%q: %w", path, err)
					}
				}
				return out.Flush()
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.blobFlags(cmd)
	return cmd
}

func newManifest() *cobra.Command {
	var src source
	cmd := &cobra.Command{
		Use:   "manifest [IMAGE]",
		Short: "Print one line a path: type, mode, owner, times, xattrs, sha256",
		Long: `Print everything about the image's tree, one line a path, sorted by path: type,
mode, owner, size, device, links, mtime, target, hard links, xattrs and sha256. Two
images hold the same tree exactly when their manifests are equal.`,
		Example: "  rafs manifest -B image.boot -D blobs > image.manifest",
		Args:    src.operands(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			src.take(args)
			return withData(cmd.Context(), &src, func(img rafs.Image, chunks *export.BlobChunks) error {
				total, err := export.ContentSize(img)
				if err != nil {
					return err
				}
				add, end := progress("reading", total)
				entries, err := export.Manifest(cmd.Context(), img, export.NewContent(img, chunks), export.ManifestOptions{Progress: add})
				end()
				if err != nil {
					return err
				}
				return manifest.Write(os.Stdout, entries)
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.blobFlags(cmd)
	return cmd
}

func newUnpack() *cobra.Command {
	var (
		src    source
		output string
	)
	cmd := &cobra.Command{
		Use:   "unpack [IMAGE]",
		Short: "Write the whole image as a tar archive",
		Long: `Write the image as a PAX tar archive: hard links, extended attributes, device
nodes, times to the nanosecond; the root as "./", parents before children, each
path once. Sockets have no place in a tar: each is left out with a line on stderr.
The exit code is 0 only for a whole archive; a file that is not whole is removed.`,
		Example: `  rafs unpack -B image.boot -D blobs --output image.tar
  rafs unpack -B image.boot -C nydusd.json --output - | tar tv`,
		Args: src.operands(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			src.take(args)
			if output == "" {
				return usageError{errors.New("--output is required (a file, or - for stdout)")}
			}
			return withData(cmd.Context(), &src, func(img rafs.Image, chunks *export.BlobChunks) error {
				total, err := export.ContentSize(img)
				if err != nil {
					return err
				}
				add, end := progress("unpacking", total)
				defer end()
				return writeOutput(output, func(w io.Writer) error {
					return export.Tar(cmd.Context(), img, export.NewContent(img, chunks), w, export.TarOptions{
						Skipped:  func(path string) { fmt.Fprintf(os.Stderr, "rafs: left out %q: a tar has no sockets\n", path) },
						Progress: add,
					})
				})
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.blobFlags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "archive `FILE` to write, - for stdout (required)")
	must(cmd.MarkFlagFilename("output"))
	return cmd
}

// withData opens image and blobs for the time of f.
func withData(ctx context.Context, src *source, f func(rafs.Image, *export.BlobChunks) error) (err error) {
	img, err := src.image(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close(), src.close()) }()
	chunks, closeBlobs, err := src.blobs(img)
	if err != nil {
		return err
	}
	defer closeBlobs()
	return f(img, chunks)
}

// writeOutput lets f write to a file, or to stdout if path is "-". The file
// appears under its name only when it is whole.
func writeOutput(path string, f func(io.Writer) error) error {
	if path == "-" {
		out := bufio.NewWriterSize(os.Stdout, 1<<20)
		if err := f(out); err != nil {
			return err
		}
		return out.Flush()
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return writeDevice(path, f)
	}
	part := fmt.Sprintf("%s.%d.part", path, os.Getpid())
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 1<<20)
	err = f(out)
	if err == nil {
		err = out.Flush()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return nil
}

// writeDevice lets f write to a pipe or device that is there already.
func writeDevice(path string, f func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 1<<20)
	err = f(out)
	if err == nil {
		err = out.Flush()
	}
	return errors.Join(err, file.Close())
}

// printJSON writes v as one JSON document.
func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
