package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
)

// inspectPrompt is what scripts for nydus-image wait for.
const inspectPrompt = "Inspecting RAFS :> "

func newInspect() *cobra.Command {
	var (
		src     source
		request string
	)
	cmd := &cobra.Command{
		Use:   "inspect [IMAGE]",
		Short: "Ask about the image's structures, at a prompt or once",
		Long: `Answer requests about the image's structures: at a prompt, in text, or one request
(--request), in JSON, as nydus-image inspect does.

` + inspectHelp,
		Example: `  rafs inspect -B image.boot
  rafs inspect -B image.boot -R blobs
  rafs inspect registry.example/app:tag -R "stat /etc/hosts"`,
		Args: src.operands(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			src.take(args)
			return withImage(cmd.Context(), &src, func(img rafs.Image) error {
				in := &inspector{img: img, dir: "/"}
				if cmd.Flags().Changed("request") {
					answer, err := in.answer(request)
					switch {
					case err == errExit || err == nil && answer == nil:
						return nil
					case err != nil:
						return err
					}
					return printJSON(answer)
				}
				return in.prompt(cmd.Context(), os.Stdin, os.Stdout)
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.blobFlags(cmd) // nydus-image takes them too
	cmd.Flags().StringVarP(&request, "request", "R", "", "answer one `REQUEST` in JSON and end")
	return cmd
}

const inspectHelp = `Requests:
  stats          the superblock, and where the tables are
  ls             the current directory
  cd DIR         another directory
  stat FILE      everything about one file, its chunks included
  blobs          the blob table
  prefetch       the prefetch table
  chunk OFFSET   the chunks whose stored bytes hold that offset of a blob, and their files
  icheck INODE   the paths of an inode
  help, exit`

// errExit ends the prompt.
var errExit = errors.New("exit")

// inspector answers requests about one image.
type inspector struct {
	img rafs.Image
	dir string // the current directory
}

// texter is an answer that has a form for people.
type texter interface{ text(w io.Writer) }

// prompt reads requests until exit or the end of in. A request that fails is told
// and does not end it.
func (in *inspector) prompt(ctx context.Context, r io.Reader, w io.Writer) error {
	out := bufio.NewWriter(w)
	lines := bufio.NewScanner(r)
	for {
		fmt.Fprint(out, inspectPrompt)
		if err := out.Flush(); err != nil {
			return err
		}
		if !lines.Scan() || ctx.Err() != nil {
			fmt.Fprintln(out)
			return errors.Join(out.Flush(), lines.Err())
		}
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		answer, err := in.answer(lines.Text())
		switch {
		case err == errExit:
			return out.Flush()
		case err != nil:
			fmt.Fprintln(out, oneLine(err))
		case answer != nil:
			answer.text(out)
		}
	}
}

// answer answers one request. Callers of nydus-image hand over blanks around it.
func (in *inspector) answer(request string) (texter, error) {
	verb, operand, _ := strings.Cut(strings.TrimSpace(request), " ")
	operand = strings.TrimSpace(operand)
	need := func(yes bool) error {
		switch {
		case yes && operand == "":
			return fmt.Errorf("request %q: of what? (see help)", verb)
		case !yes && operand != "":
			return fmt.Errorf("request %q takes nothing behind it (see help)", verb)
		}
		return nil
	}
	switch verb {
	case "stats":
		return superblock{in.img}, need(false)
	case "ls":
		return in.ls(operand)
	case "cd":
		return nil, errors.Join(need(true), in.cd(operand))
	case "stat":
		if err := need(true); err != nil {
			return nil, err
		}
		return in.stat(operand)
	case "blobs":
		return in.blobs(), need(false)
	case "prefetch":
		if err := need(false); err != nil {
			return nil, err
		}
		return in.prefetch()
	case "chunk":
		n, err := strconv.ParseUint(operand, 0, 63)
		if err != nil {
			return nil, fmt.Errorf("request chunk: %q is not an offset", operand)
		}
		return in.chunk(n)
	case "icheck":
		n, err := strconv.ParseUint(operand, 0, 63)
		if err != nil {
			return nil, fmt.Errorf("request icheck: %q is not an inode number", operand)
		}
		return in.icheck(n)
	case "help":
		return helpText(inspectHelp), nil
	case "exit", "quit", "q":
		return nil, errExit
	}
	return nil, fmt.Errorf("unknown request %q (stats, ls, cd, stat, blobs, prefetch, chunk, icheck)", verb)
}

type helpText string

func (h helpText) text(w io.Writer) { fmt.Fprintln(w, string(h)) }

// at is the path of an operand, seen from the current directory.
func (in *inspector) at(operand string) string {
	if operand == "" {
		return in.dir
	}
	if path.IsAbs(operand) {
		return path.Clean(operand)
	}
	return path.Join(in.dir, operand)
}

func (in *inspector) cd(operand string) error {
	if operand == "" {
		return nil
	}
	to := in.at(operand)
	ino, err := export.Resolve(in.img, to, true)
	if err != nil {
		return err
	}
	var c rafs.Cursor
	if err := in.img.ReadDir(ino, 0, &c); err != nil {
		return fmt.Errorf("%q: %w", to, err)
	}
	in.dir = to
	return nil
}

// superblock answers "stats".
type superblock struct{ img rafs.Image }

func (s superblock) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"inodes_count":%d}`, s.img.Info().Inodes), nil
}

func (s superblock) text(w io.Writer) {
	info := s.img.Info()
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-28s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	row("Version", "%d", info.Version)
	row("Inodes Count", "%d", info.Inodes)
	row("Chunk Size", "%d KB", info.ChunkSize/1024)
	row("Root Inode", "%d", s.img.Root())
	row("Flags", "%#x (%s)", info.Flags, strings.Join(info.FlagNames, " "))
	for _, t := range s.img.Tables() {
		row(strings.ToUpper(t.Name[:1])+t.Name[1:], "offset %#x, size %#x", t.Offset, t.Size)
	}
}

// listing answers "ls".
type listing []listed

type listed struct {
	Inode uint64 `json:"inode"`
	Name  string `json:"name"`
	Type  string `json:"type"`

	sign string
}

func (in *inspector) ls(operand string) (texter, error) {
	nodes, err := list(in.img, in.at(operand))
	if err != nil {
		return nil, err
	}
	all := listing{}
	for _, n := range nodes {
		x := listed{Inode: n.Ino, Name: n.Name, Type: n.Type, sign: " "}
		switch n.Type {
		case "file":
			x.sign = "-"
		case "directory":
			x.sign = "d"
		case "symlink":
			x.sign = "l"
		}
		all = append(all, x)
	}
	return all, nil
}

func (l listing) text(w io.Writer) {
	for _, x := range l {
		fmt.Fprintf(w, "%s %12d  %q\n", x.sign, x.Inode, x.Name)
	}
}

// fileStat answers "stat".
type fileStat struct {
	node
	Parent uint64 `json:"parent"`
	Blocks uint64 `json:"blocks"`

	attr   rafs.Attr
	chunks []chunkUse
}

func (in *inspector) stat(operand string) (texter, error) {
	at := in.at(operand)
	n, err := statPath(in.img, at)
	if err != nil {
		return nil, err
	}
	s := &fileStat{node: *n}
	if s.Parent, err = export.Resolve(in.img, path.Dir(at), true); err != nil {
		return nil, err
	}
	if err := in.img.Attr(n.Ino, &s.attr); err != nil {
		return nil, err
	}
	s.Name, s.Blocks = path.Base(at), s.attr.Blocks
	if n.Type == "file" {
		s.chunks, err = in.uses(n.Ino, n.Size)
	}
	return s, err
}

func (s *fileStat) text(w io.Writer) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-20s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	a := &s.attr
	row("Inode Number", "%d", s.Ino)
	row("Name", "%q", s.Name)
	row("Size", "%d", s.Size)
	row("Parent", "%d", s.Parent)
	row("Mode", "%#x", a.Mode)
	row("Permissions", "%o", a.Mode&0o7777)
	row("Nlink", "%d", a.Nlink)
	row("UID", "%d", a.UID)
	row("GID", "%d", a.GID)
	row("Mtime", "%d", a.Mtime)
	row("Mtime Nsec", "%d", a.MtimeNsec)
	row("Blocks", "%d", a.Blocks)
	if s.Target != "" {
		row("Target", "%q", s.Target)
	}
	if len(s.chunks) > 0 {
		fmt.Fprintln(w, "Chunks:")
	}
	for i := range s.chunks {
		s.chunks[i].text(w)
	}
}

// chunkUse is a chunk where a file uses it.
type chunkUse struct {
	Blob        string `json:"blob_id"`
	Index       uint32 `json:"index"`
	FileOffset  uint64 `json:"file_offset"`
	Offset      uint64 `json:"compressed_offset"`
	Size        uint32 `json:"compressed_size"`
	PlainOffset uint64 `json:"uncompressed_offset"`
	PlainSize   uint32 `json:"uncompressed_size"`
	Digest      string `json:"digest"`
	Path        string `json:"path,omitempty"`

	hole    bool
	nowhere bool // the image does not say where it is stored
}

func (c *chunkUse) text(w io.Writer) {
	if c.hole {
		fmt.Fprintf(w, "  file offset %d: a hole of %d bytes\n", c.FileOffset, c.PlainSize)
		return
	}
	stored := fmt.Sprintf("stored %d+%d", c.Offset, c.Size)
	if c.nowhere {
		stored = "stored where the blob's own chunk information says"
	}
	fmt.Fprintf(w, "  file offset %d: index %d, %s, uncompressed %d+%d, blob %s, digest %s\n",
		c.FileOffset, c.Index, stored, c.PlainOffset, c.PlainSize, c.Blob, c.Digest)
	if c.Path != "" {
		fmt.Fprintf(w, "    of %q\n", c.Path)
	}
}

// uses lists the chunks of a regular file.
func (in *inspector) uses(ino, size uint64) ([]chunkUse, error) {
	var (
		all     []chunkUse
		extents []rafs.Extent
		err     error
	)
	for off := uint64(0); off < size; off += rafs.MaxExtents {
		if extents, err = in.img.Extents(ino, off, min(size-off, rafs.MaxExtents), extents[:0]); err != nil {
			return nil, err
		}
		for _, x := range extents {
			u := chunkUse{FileOffset: x.FileOffset, PlainSize: x.Length, hole: x.Blob < 0}
			if !u.hole {
				var k rafs.Chunk
				if err := in.img.Chunk(int(x.Blob), x.Chunk, &k); err != nil {
					return nil, err
				}
				b := &in.img.Blobs()[x.Blob]
				u.Blob, u.Index, u.Digest, u.nowhere = b.ID, x.Chunk, hex.EncodeToString(k.Digest[:]), b.StoredByMeta()
				u.Offset, u.Size, u.PlainOffset, u.PlainSize = k.CompressedOffset, k.CompressedSize, k.UncompressedOffset, k.UncompressedSize
			}
			all = append(all, u)
		}
	}
	return all, nil
}

// blobTable answers "blobs".
type blobTable []blobEntry

type blobEntry struct {
	ID              string `json:"blob_id"`
	ReadaheadOffset uint64 `json:"readahead_offset"`
	ReadaheadSize   uint64 `json:"readahead_size"`
	Decompressed    uint64 `json:"decompressed_size"`
	Compressed      uint64 `json:"compressed_size"`

	chunks   uint32
	features []string
}

func (in *inspector) blobs() blobTable {
	all := blobTable{}
	for i := range in.img.Blobs() {
		b := &in.img.Blobs()[i]
		all = append(all, blobEntry{
			ID: b.ID, ReadaheadOffset: b.Readahead.Offset, ReadaheadSize: b.Readahead.Size,
			Decompressed: b.UncompressedSize, Compressed: b.RecordedSize,
			chunks: b.ChunkCount, features: rafs.BlobFeatureNames(b.Features),
		})
	}
	return all
}

func (t blobTable) text(w io.Writer) {
	for i, b := range t {
		fmt.Fprintf(w, "blob %d: %s\n  %d bytes stored, %d uncompressed, %d chunks, readahead %d+%d, %s\n",
			i, b.ID, b.Compressed, b.Decompressed, b.chunks, b.ReadaheadOffset, b.ReadaheadSize, strings.Join(b.features, " "))
	}
}

// prefetchTable answers "prefetch".
type prefetchTable []inodePaths

// inodePaths answers "icheck".
type inodePaths struct {
	Inode uint64   `json:"inode"`
	Path  []string `json:"path"`
}

func (p inodePaths) text(w io.Writer) {
	for _, path := range p.Path {
		fmt.Fprintf(w, "%12d  %q\n", p.Inode, path)
	}
}

func (t prefetchTable) text(w io.Writer) {
	fmt.Fprintf(w, "%d entries\n", len(t))
	for _, p := range t {
		p.text(w)
	}
}

// pathsOf finds the paths of inodes.
func (in *inspector) pathsOf(inos []uint64) (map[uint64][]string, error) {
	paths := map[uint64][]string{}
	for _, ino := range inos {
		paths[ino] = []string{}
	}
	err := rafs.Walk(in.img, func(e *rafs.WalkEntry) error {
		if all, wanted := paths[e.Ino]; wanted && (len(all) == 0 || all[len(all)-1] != string(e.Path)) {
			paths[e.Ino] = append(all, string(e.Path))
		}
		return nil
	})
	return paths, err
}

func (in *inspector) prefetch() (texter, error) {
	inos := in.img.Prefetch()
	paths, err := in.pathsOf(inos)
	all := prefetchTable{}
	for _, ino := range inos {
		all = append(all, inodePaths{ino, paths[ino]})
	}
	return all, err
}

func (in *inspector) icheck(ino uint64) (texter, error) {
	var a rafs.Attr
	if ino > rafs.MaxInode || in.img.Attr(ino, &a) != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, rafs.ErrStale)
	}
	paths, err := in.pathsOf([]uint64{ino})
	if err == nil && len(paths[ino]) == 0 {
		err = fmt.Errorf("inode %d is in no directory", ino)
	}
	return inodePaths{ino, paths[ino]}, err
}

// chunkUses answers "chunk".
type chunkUses []chunkUse

func (u chunkUses) text(w io.Writer) {
	for i := range u {
		u[i].text(w)
	}
}

// chunk lists the chunks whose stored bytes hold an offset of their blob, at
// each place where a file uses them.
func (in *inspector) chunk(off uint64) (texter, error) {
	found := chunkUses{}
	seen := map[uint64]bool{}
	err := rafs.Walk(in.img, func(e *rafs.WalkEntry) error {
		if e.Err != nil || e.Attr.Mode&rafs.ModeType != rafs.ModeRegular || e.Attr.Nlink > 1 && seen[e.Ino] {
			return nil
		}
		seen[e.Ino] = e.Attr.Nlink > 1
		uses, err := in.uses(e.Ino, e.Attr.Size)
		if err != nil {
			return err
		}
		for _, u := range uses {
			if !u.hole && !u.nowhere && off >= u.Offset && off-u.Offset < uint64(u.Size) {
				u.Path = string(e.Path)
				found = append(found, u)
			}
		}
		return nil
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no chunk of any blob is stored at %d", off)
	}
	return found, err
}
