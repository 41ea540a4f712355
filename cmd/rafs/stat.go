package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/open"
)

func newStat() *cobra.Command {
	var (
		src      source
		folder   string
		target   string
		digester string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "stat [IMAGE] [PATH]",
		Short: "Show everything about one path, or how the image reuses chunks",
		Long: `With a PATH: everything about it, attributes, xattrs, chunks.

Without one: how many files and chunks the image has, how large they are, and how
many chunks it reuses, as nydus-image stat counts them. A whole folder of images
(--dir) is counted as one base; --target names an image of which is told how many
chunks the base has already.`,
		Example: `  rafs stat -B image.boot --json /etc/os-release
  rafs stat -B image.boot
  rafs stat -B base.boot --target image.boot
  rafs stat --dir images --target registry.example/app:tag`,
		Args: func(cmd *cobra.Command, args []string) error {
			if folder != "" {
				return cobra.NoArgs(cmd, args)
			}
			return src.operands(0, 1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			args = src.take(args)
			switch {
			case len(args) == 0:
				return statImages(cmd.Context(), &src, folder, target, asJSON)
			case target != "":
				return usageError{errors.New("--target goes without a PATH")}
			}
			return withImage(cmd.Context(), &src, func(img rafs.Image) error {
				n, err := statPath(img, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(n)
				}
				return n.print(os.Stdout)
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.configFlag(cmd)
	f := cmd.Flags()
	f.StringVarP(&folder, "dir", "D", "", "count all images of a `FOLDER` as the base")
	f.StringVarP(&target, "target", "T", "", "tell how many chunks of this `IMAGE` the base has")
	f.StringVar(&digester, "digester", "", "taken for nydus-image's sake: images say it themselves")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	must(cmd.MarkFlagDirname("dir"))
	must(f.MarkHidden("digester"))
	return cmd
}

// statImages counts the base, and the target if there is one.
func statImages(ctx context.Context, src *source, folder, target string, asJSON bool) error {
	s := newImageStat()
	add := func(src source, into *imageInfo) error {
		return withImage(ctx, &src, func(img rafs.Image) error { return s.add(img, into) })
	}
	switch {
	case folder != "":
		s.Dedup = true
		if err := s.addFolder(folder); err != nil {
			return err
		}
	default:
		if err := add(*src, &s.Base); err != nil {
			return err
		}
	}
	if target != "" {
		s.Target = true
		t := *src
		t.bootstrap = target
		if err := add(t, &s.TargetImage); err != nil {
			return err
		}
	}
	s.finish()
	if asJSON {
		return printJSON(s)
	}
	return s.print(os.Stdout)
}

// imageInfo is what is counted of images. The JSON names are nydus-image's.
type imageInfo struct {
	Dirs       uint64     `json:"dirs"`
	Files      uint64     `json:"files"`
	Symlinks   uint64     `json:"symlinks"`
	Chunks     uint64     `json:"chunks"` // of files, each use counted
	FileSize   uint64     `json:"file_size"`
	Stored     uint64     `json:"comp_size"`
	Plain      uint64     `json:"uncomp_size"`
	Padding    uint64     `json:"padding_size"` // to whole blocks of 4 KiB
	ChunkSizes [9]uint64  `json:"chunk_sizes"`  // chunks that there were, if a chunk had 1<<(12+i) bytes
	FileSizes  [45]uint64 `json:"file_sizes"`   // files by the bits of their size

	DedupChunks uint64 `json:"dedup_chunks"` // of the base, each digest once
	DedupStored uint64 `json:"dedup_comp_size"`
	DedupPlain  uint64 `json:"dedup_uncomp_size"`
	OwnChunks   uint64 `json:"own_chunks"` // of each image, each digest once; of the target, those that the base has not
	OwnStored   uint64 `json:"own_comp_size"`
	OwnPlain    uint64 `json:"own_uncomp_size"`
	RefChunks   uint64 `json:"ref_chunks"` // of the target, those that the base has
	RefStored   uint64 `json:"ref_comp_size"`
	RefPlain    uint64 `json:"ref_uncomp_size"`
}

type imageStat struct {
	Dedup       bool      `json:"dedup_enabled"`
	Target      bool      `json:"target_enabled"`
	Base        imageInfo `json:"base_image"`
	TargetImage imageInfo `json:"target_image"`

	known  map[chunkKey]knownChunk // of the base
	images []uint64                // chunks of the base that are in i+1 images
}

// chunkKey tells chunks apart: by digest, or, where there is none, by place.
type chunkKey struct {
	digest [32]byte
	blob   string
	index  uint32
}

type knownChunk struct {
	stored, plain uint64
	images        int
}

func newImageStat() *imageStat { return &imageStat{known: map[chunkKey]knownChunk{}} }

// addFolder adds all images of a folder to the base.
func (s *imageStat) addFolder(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	images := 0
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		img, err := open.Image(filepath.Join(folder, e.Name()), open.Options{})
		if errors.Is(err, rafs.ErrNotRAFS) {
			continue
		}
		if err != nil {
			return err
		}
		images++
		if err := errors.Join(s.add(img, &s.Base), img.Close()); err != nil {
			return err
		}
	}
	if images == 0 {
		return fmt.Errorf("%s holds no image", folder)
	}
	return nil
}

// add counts an image.
func (s *imageStat) add(img rafs.Image, into *imageInfo) error {
	own := map[chunkKey]knownChunk{}
	seen := map[uint64]bool{}
	err := rafs.Walk(img, func(e *rafs.WalkEntry) error {
		if e.Err != nil {
			return fmt.Errorf("%s: %q: %w", img.Info().Path, e.Path, e.Err)
		}
		switch e.Attr.Mode & rafs.ModeType {
		case rafs.ModeDir:
			into.Dirs++
		case rafs.ModeSymlink:
			into.Symlinks++
		case rafs.ModeRegular:
			into.Files++
			if seen[e.Ino] {
				return nil
			}
			seen[e.Ino] = e.Attr.Nlink > 1
			return into.file(img, e.Ino, e.Attr.Size, own)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, k := range own {
		base, referenced := s.known[key]
		if into == &s.TargetImage && referenced {
			into.RefChunks, into.RefStored, into.RefPlain = into.RefChunks+1, into.RefStored+k.stored, into.RefPlain+k.plain
			continue
		}
		into.OwnChunks, into.OwnStored, into.OwnPlain = into.OwnChunks+1, into.OwnStored+k.stored, into.OwnPlain+k.plain
		if into == &s.Base {
			k.images = base.images + 1
			s.known[key] = k
		}
	}
	return nil
}

// file counts a regular file, once for all of its names.
func (i *imageInfo) file(img rafs.Image, ino, size uint64, own map[chunkKey]knownChunk) error {
	i.FileSizes[min(bits.Len64(size), len(i.FileSizes)-1)]++
	i.FileSize += size
	i.Padding += (size+4095)&^4095 - size
	for k := range i.ChunkSizes {
		i.ChunkSizes[k] += (size + 1<<(12+k) - 1) >> (12 + k)
	}
	var extents []rafs.Extent
	var err error
	for off := uint64(0); off < size; off += rafs.MaxExtents {
		if extents, err = img.Extents(ino, off, min(size-off, rafs.MaxExtents), extents[:0]); err != nil {
			return err
		}
		for _, x := range extents {
			if x.Blob < 0 || x.ChunkOffset != 0 {
				continue // a hole, or the rest of a chunk
			}
			var c rafs.Chunk
			if err := img.Chunk(int(x.Blob), x.Chunk, &c); err != nil {
				return err
			}
			i.Chunks++
			i.Stored += uint64(c.CompressedSize)
			i.Plain += uint64(c.UncompressedSize)
			key := chunkKey{digest: c.Digest}
			if c.Digest == [32]byte{} {
				key.blob, key.index = img.Blobs()[x.Blob].ID, x.Chunk
			}
			own[key] = knownChunk{stored: uint64(c.CompressedSize), plain: uint64(c.UncompressedSize)}
		}
	}
	return nil
}

func (s *imageStat) finish() {
	s.Base.Plain += s.Base.Padding
	if s.Target {
		s.TargetImage.Plain += s.TargetImage.Padding
	}
	if !s.Dedup {
		return
	}
	for _, k := range s.known {
		s.Base.DedupChunks++
		s.Base.DedupStored += k.stored
		s.Base.DedupPlain += k.plain
		for len(s.images) < k.images {
			s.images = append(s.images, 0)
		}
		s.images[k.images-1]++
	}
}

func (s *imageStat) print(w io.Writer) error {
	out := bufio.NewWriter(w)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	columns := []*imageInfo{&s.Base}
	fmt.Fprint(t, "\tbase\t")
	if s.Target {
		columns = append(columns, &s.TargetImage)
		fmt.Fprint(t, "target\t")
	}
	fmt.Fprintln(t)
	row := func(name string, of func(*imageInfo) uint64) {
		fmt.Fprintf(t, "%s\t", name)
		for _, c := range columns {
			fmt.Fprintf(t, "%d\t", of(c))
		}
		fmt.Fprintln(t)
	}
	row("directories", func(i *imageInfo) uint64 { return i.Dirs })
	row("files", func(i *imageInfo) uint64 { return i.Files })
	row("symlinks", func(i *imageInfo) uint64 { return i.Symlinks })
	row("chunks of files", func(i *imageInfo) uint64 { return i.Chunks })
	row("bytes of files", func(i *imageInfo) uint64 { return i.FileSize })
	row("bytes with padding", func(i *imageInfo) uint64 { return i.Plain })
	row("bytes stored", func(i *imageInfo) uint64 { return i.Stored })
	row("own chunks", func(i *imageInfo) uint64 { return i.OwnChunks })
	row("own bytes", func(i *imageInfo) uint64 { return i.OwnPlain })
	row("own bytes stored", func(i *imageInfo) uint64 { return i.OwnStored })
	if s.Dedup {
		row("different chunks", func(i *imageInfo) uint64 { return i.DedupChunks })
		row("different bytes", func(i *imageInfo) uint64 { return i.DedupPlain })
		row("different bytes stored", func(i *imageInfo) uint64 { return i.DedupStored })
	}
	if s.Target {
		row("chunks that the base has", func(i *imageInfo) uint64 { return i.RefChunks })
		row("bytes that the base has", func(i *imageInfo) uint64 { return i.RefPlain })
		row("bytes stored there", func(i *imageInfo) uint64 { return i.RefStored })
	}
	histogram := func(title string, first int, of func(*imageInfo) []uint64) {
		fmt.Fprintf(t, "\n%s\t\n", title)
		for k := range of(&s.Base) {
			if !slices.ContainsFunc(columns, func(c *imageInfo) bool { return of(c)[k] != 0 }) {
				continue
			}
			row(fmt.Sprintf("%d bits", first+k), func(i *imageInfo) uint64 { return of(i)[k] })
		}
	}
	histogram("files by size", 0, func(i *imageInfo) []uint64 { return i.FileSizes[:] })
	histogram("chunks by chunk size", 12, func(i *imageInfo) []uint64 { return i.ChunkSizes[:] })
	if s.Dedup {
		fmt.Fprint(t, "\nchunks by images that have them\t\n")
		for k, n := range s.images {
			if n > 0 {
				fmt.Fprintf(t, "%d\t%d\t\n", k+1, n)
			}
		}
	}
	return errors.Join(t.Flush(), out.Flush())
}
