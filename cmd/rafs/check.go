package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
)

// report is what check found; its JSON form is stable.
type report struct {
	Bootstrap string       `json:"bootstrap"`
	Version   int          `json:"version"`
	Flags     []string     `json:"flags"`
	ChunkSize uint32       `json:"chunk_size"`
	Inodes    uint64       `json:"inodes"`
	Blobs     []blobReport `json:"blobs"`
	Data      bool         `json:"data_checked"`
	Faults    []string     `json:"faults"`
}

type blobReport struct {
	ID               string `json:"id"`
	Chunks           uint32 `json:"chunks"`
	CompressedSize   uint64 `json:"compressed_size"`
	UncompressedSize uint64 `json:"uncompressed_size"`
}

// maxFaults keeps a hostile image from filling memory and terminal.
const maxFaults = 100

func newCheck() *cobra.Command {
	var (
		src    source
		data   bool
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "check [IMAGE]",
		Short: "Verify every structure of the image, and its data",
		Long: `Verify every structure of the bootstrap: tables, inodes, directories, names,
extended attributes, chunk lists. With --data also read every chunk of every blob and
compare it with its digest, and compare the chunk information that a v6 blob has of its
own with the bootstrap. Each fault is a line: structure, offset, what is wrong.
The exit code is 0 only for an image without faults.`,
		Example: `  rafs check -B image.boot
  rafs check -B image.boot -D blobs --data --json`,
		Args: src.operands(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			src.take(args)
			r := &report{Faults: []string{}}
			check := func(img rafs.Image, chunks *export.BlobChunks) error {
				return r.check(cmd, img, chunks)
			}
			var err error
			if r.Data = data; data {
				err = withData(cmd.Context(), &src, check)
			} else {
				err = withImage(cmd.Context(), &src, func(img rafs.Image) error { return check(img, nil) })
			}
			if err != nil {
				return err
			}
			return r.print(asJSON)
		},
	}
	src.bootstrapFlag(cmd)
	src.blobFlags(cmd)
	cmd.Flags().BoolVar(&data, "data", false, "read and verify every chunk too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (r *report) check(cmd *cobra.Command, img rafs.Image, chunks *export.BlobChunks) error {
	info := img.Info()
	r.Bootstrap, r.Version, r.Flags = info.Path, info.Version, info.FlagNames
	r.ChunkSize, r.Inodes = info.ChunkSize, info.Inodes
	for _, b := range img.Blobs() {
		r.Blobs = append(r.Blobs, blobReport{b.ID, b.ChunkCount, b.CompressedSize, b.UncompressedSize})
	}
	err := img.Check(func(f rafs.Fault) bool { return r.add(f.String()) })
	if err != nil || chunks == nil {
		return err
	}
	total, err := export.DataSize(img)
	if err != nil {
		return err
	}
	add, end := progress("checking", total)
	defer end()
	return export.VerifyData(cmd.Context(), img, chunks, func(err error) bool { return r.add(oneLine(err)) }, add)
}

// add keeps a fault and reports whether there is room for more.
func (r *report) add(fault string) bool {
	r.Faults = append(r.Faults, fault)
	return len(r.Faults) < maxFaults
}

func (r *report) print(asJSON bool) error {
	if asJSON {
		if err := printJSON(r); err != nil {
			return err
		}
	} else {
		fmt.Printf("%s: RAFS v%d, %d inodes, chunks of %d bytes, %s\n",
			r.Bootstrap, r.Version, r.Inodes, r.ChunkSize, strings.Join(r.Flags, " "))
		for i, b := range r.Blobs {
			fmt.Printf("blob %d: %s, %d chunks, %d bytes compressed, %d uncompressed\n",
				i, b.ID, b.Chunks, b.CompressedSize, b.UncompressedSize)
		}
		for _, f := range r.Faults {
			fmt.Println("fault:", f)
		}
	}
	switch n := len(r.Faults); {
	case n >= maxFaults:
		return fmt.Errorf("%s: %d faults, and then the check was ended", r.Bootstrap, n)
	case n > 0:
		return fmt.Errorf("%s: %d faults", r.Bootstrap, n)
	case !asJSON && r.Data:
		fmt.Fprintln(os.Stdout, "metadata and data are sound")
	case !asJSON:
		fmt.Fprintln(os.Stdout, "metadata is sound (data was not read: --data does)")
	}
	return nil
}

func jsonLine(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	return append(line, '\n'), err
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
