package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/export"
)

// node is one inode as ls, tree and stat show it; its JSON form is stable.
type node struct {
	Name   string            `json:"name"`
	Ino    uint64            `json:"ino"`
	Type   string            `json:"type"`
	Mode   string            `json:"mode"` // octal permission bits
	Nlink  uint32            `json:"nlink"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   uint64            `json:"size"`
	Rdev   string            `json:"rdev,omitempty"` // major:minor
	Mtime  string            `json:"mtime"`          // RFC 3339, UTC, nanoseconds
	Target string            `json:"target,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"` // values in hex; only stat
	Chunks []chunk           `json:"chunks,omitempty"` // only stat
	Error  string            `json:"error,omitempty"`

	rwx string // as ls -l has it
}

type chunk struct {
	FileOffset       uint64 `json:"file_offset"`
	Length           uint32 `json:"length"`
	Blob             string `json:"blob"`
	Index            uint32 `json:"index"`
	CompressedOffset uint64 `json:"compressed_offset"`
	CompressedSize   uint32 `json:"compressed_size"`
	Digest           string `json:"digest"`
}

var typeNames = map[uint32]struct {
	name   string
	letter byte
}{
	rafs.ModeRegular: {"file", '-'}, rafs.ModeDir: {"directory", 'd'}, rafs.ModeSymlink: {"symlink", 'l'},
	rafs.ModeChar: {"char", 'c'}, rafs.ModeBlock: {"block", 'b'}, rafs.ModeFIFO: {"fifo", 'p'}, rafs.ModeSocket: {"socket", 's'},
}

// describe fills in what one inode's record says.
func describe(img rafs.Image, name string, ino uint64) (node, error) {
	n := node{Name: name, Ino: ino}
	var a rafs.Attr
	if err := img.Attr(ino, &a); err != nil {
		return n, err
	}
	typ := typeNames[a.Mode&rafs.ModeType]
	n.Type, n.rwx = typ.name, string(typ.letter)+permissions(a.Mode)
	n.Mode = fmt.Sprintf("%04o", a.Mode&0o7777)
	n.Nlink, n.UID, n.GID, n.Size = a.Nlink, a.UID, a.GID, a.Size
	n.Mtime = time.Unix(a.Mtime, int64(a.MtimeNsec)).UTC().Format(time.RFC3339Nano)
	switch a.Mode & rafs.ModeType {
	case rafs.ModeSymlink:
		target, err := img.Readlink(ino, nil)
		if err != nil {
			return n, err
		}
		n.Target = string(target)
	case rafs.ModeChar, rafs.ModeBlock:
		major, minor := rafs.SplitRdev(a.Rdev)
		n.Rdev = fmt.Sprintf("%d:%d", major, minor)
	}
	return n, nil
}

// permissions are the nine letters of ls -l.
func permissions(mode uint32) string {
	b := []byte("---------")
	for i, letter := range "rwxrwxrwx" {
		if mode&(0o400>>i) != 0 {
			b[i] = byte(letter)
		}
	}
	for _, special := range []struct {
		bit   uint32
		at    int
		set   byte
		clear byte
	}{{0o4000, 2, 's', 'S'}, {0o2000, 5, 's', 'S'}, {0o1000, 8, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		if b[special.at] == 'x' {
			b[special.at] = special.set
		} else {
			b[special.at] = special.clear
		}
	}
	return string(b)
}

// line is the node as ls -l shows it.
func (n *node) line() string {
	if n.Error != "" {
		return fmt.Sprintf("?????????? %s: %s", quoteName(n.Name), n.Error)
	}
	size := strconv.FormatUint(n.Size, 10)
	if n.Rdev != "" {
		size = n.Rdev
	}
	s := fmt.Sprintf("%s %3d %5d %5d %10s %s %s", n.rwx, n.Nlink, n.UID, n.GID, size, n.Mtime, quoteName(n.Name))
	if n.Target != "" {
		s += " -> " + quoteName(n.Target)
	}
	return s
}

// quoteName keeps a name of any bytes on one line and a terminal safe.
func quoteName(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` {
		return q
	}
	return name
}

func newLs() *cobra.Command {
	var (
		src    source
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "ls [IMAGE] [PATH]",
		Short:   "List a directory of the image",
		Example: "  rafs ls -B image.boot /usr/bin\n  rafs ls registry.example/app:tag /usr/bin",
		Args:    src.operands(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			args = src.take(args)
			return withImage(cmd.Context(), &src, func(img rafs.Image) error {
				nodes, err := list(img, pathArg(args))
				if err != nil {
					return err
				}
				return showNodes(nodes, asJSON)
			})
		},
	}
	src.bootstrapFlag(cmd)
	src.configFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

// list describes the entries of a directory, or the one file that path names.
func list(img rafs.Image, path string) ([]node, error) {
	ino, err := export.Resolve(img, path, true)
	if err != nil {
		return nil, err
	}
	var c rafs.Cursor
	switch err := img.ReadDir(ino, 0, &c); {
	case errors.Is(err, rafs.ErrNotDir):
		n, err := describe(img, path, ino)
		return []node{n}, err
	case err != nil:
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	nodes := []node{}
	var d rafs.Dirent
	for {
		ok, err := c.Next(&d)
		if err != nil {
			return nodes, fmt.Errorf("%q: %w", path, err)
		}
		if !ok {
			return nodes, nil
		}
		n, err := describe(img, string(d.Name), d.Ino)
		if err != nil {
			n.Error = err.Error()
		}
		nodes = append(nodes, n)
	}
}

func showNodes(nodes []node, asJSON bool) error {
	if asJSON {
		return printJSON(nodes)
	}
	out := bufio.NewWriter(os.Stdout)
	for i := range nodes {
		fmt.Fprintln(out, nodes[i].line())
	}
	return out.Flush()
}

func statPath(img rafs.Image, path string) (*node, error) {
	ino, err := export.Resolve(img, path, false)
	if err != nil {
		return nil, err
	}
	n, err := describe(img, path, ino)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	err = export.EachXattr(img, ino, func(name string, value []byte) {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = hex.EncodeToString(value)
	})
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	if n.Type != "file" {
		return &n, nil
	}
	if n.Chunks, err = chunksOf(img, ino, n.Size); err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return &n, nil
}

// chunksOf lists the pieces of a regular file. The image is asked for a bounded
// part of it at a time.
func chunksOf(img rafs.Image, ino, size uint64) ([]chunk, error) {
	var (
		all     []chunk
		extents []rafs.Extent
		err     error
	)
	for off := uint64(0); off < size; off += rafs.MaxExtents {
		if extents, err = img.Extents(ino, off, min(size-off, rafs.MaxExtents), extents[:0]); err != nil {
			return nil, err
		}
		for _, x := range extents {
			c, err := chunkOf(img, x)
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		}
	}
	return all, nil
}

func chunkOf(img rafs.Image, x rafs.Extent) (chunk, error) {
	c := chunk{FileOffset: x.FileOffset, Length: x.Length, Index: x.Chunk}
	if x.Blob < 0 {
		return c, nil
	}
	var k rafs.Chunk
	if err := img.Chunk(int(x.Blob), x.Chunk, &k); err != nil {
		return c, err
	}
	c.Blob = img.Blobs()[x.Blob].ID
	c.CompressedOffset, c.CompressedSize = k.CompressedOffset, k.CompressedSize
	c.Digest = hex.EncodeToString(k.Digest[:])
	return c, nil
}
func (n *node) print(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "path   %s\ntype   %s\nmode   %s (%s)\nowner  %d:%d\nsize   %d\nlinks  %d\ninode  %d\nmtime  %s\n",
		quoteName(n.Name), n.Type, n.Mode, n.rwx, n.UID, n.GID, n.Size, n.Nlink, n.Ino, n.Mtime)
	if n.Rdev != "" {
		fmt.Fprintf(out, "device %s\n", n.Rdev)
	}
	if n.Target != "" {
		fmt.Fprintf(out, "target %s\n", quoteName(n.Target))
	}
	for _, name := range sortedKeys(n.Xattrs) {
		fmt.Fprintf(out, "xattr  %s = 0x%s\n", quoteName(name), n.Xattrs[name])
	}
	for _, c := range n.Chunks {
		if c.Blob == "" {
			fmt.Fprintf(out, "hole   at %d, %d bytes\n", c.FileOffset, c.Length)
			continue
		}
		fmt.Fprintf(out, "chunk  at %d, %d bytes: blob %s chunk %d at %d+%d digest %s\n",
			c.FileOffset, c.Length, c.Blob, c.Index, c.CompressedOffset, c.CompressedSize, c.Digest)
	}
	return out.Flush()
}

func newTree() *cobra.Command {
	var (
		src    source
		depth  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "tree [IMAGE]",
		Short:   "Print the image's whole tree",
		Example: "  rafs tree -B image.boot --depth 2",
		Args:    src.operands(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			src.take(args)
			return withImage(cmd.Context(), &src, func(img rafs.Image) error { return tree(img, depth, asJSON) })
		},
	}
	src.bootstrapFlag(cmd)
	src.configFlag(cmd)
	cmd.Flags().IntVar(&depth, "depth", 0, "how many levels to show (0: all)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// tree prints every path; damaged ones are shown as such and make it fail in the
// end.
func tree(img rafs.Image, depth int, asJSON bool) error {
	out := bufio.NewWriter(os.Stdout)
	damaged := 0
	err := rafs.Walk(img, func(e *rafs.WalkEntry) error {
		if depth > 0 && e.Depth > depth {
			return nil
		}
		n, err := describe(img, string(e.Path), e.Ino)
		if e.Err != nil {
			err = e.Err
		}
		if err != nil {
			damaged++
			n.Error = err.Error()
		}
		if asJSON {
			line, err := jsonLine(n)
			if err != nil {
				return err
			}
			_, err = out.Write(line)
			return err
		}
		name := "/"
		if e.Depth > 0 {
			name = quoteName(string(e.Name))
		}
		suffix := ""
		switch {
		case n.Error != "":
			suffix = " [" + n.Error + "]"
		case n.Target != "":
			suffix = " -> " + quoteName(n.Target)
		case n.Type == "directory" && e.Depth > 0:
			suffix = "/"
		}
		_, err = fmt.Fprintf(out, "%s%s%s\n", strings.Repeat("  ", e.Depth), name, suffix)
		return err
	})
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	if err == nil && damaged > 0 {
		err = fmt.Errorf("%s: %d damaged entries (rafs check names them)", img.Info().Path, damaged)
	}
	return err
}

// withImage opens the bootstrap for the time of f.
func withImage(ctx context.Context, src *source, f func(rafs.Image) error) error {
	img, err := src.image(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(img), img.Close(), src.close())
}

func pathArg(args []string) string {
	if len(args) == 0 {
		return "/"
	}
	return args[0]
}
