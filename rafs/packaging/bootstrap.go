package packaging

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs"
)

// Limits of a bootstrap layer.
const (
	maxLayer = 1 << 30
	// A bootstrap is at most so many times as large as its compressed layer, and
	// a little more.
	maxRatio = 256
	maxSlack = 16 << 20
	// maxWindow bounds the memory of a decoder.
	maxWindow = 64 << 20
)

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ReadBootstrap reads the layer of an image that holds its bootstrap. name is
// what messages call the bootstrap. The result is the caller's to close.
func (img *Image) ReadBootstrap(ctx context.Context, p Place, name string) (*rafs.Bootstrap, error) {
	d := &img.Bootstrap
	if d.Digest.Validate() != nil || d.Digest.Algorithm() != "sha256" || d.Size <= 0 || d.Size > maxLayer {
		return nil, fmt.Errorf("bootstrap layer of digest %q and %d bytes: want sha256 and at most %d bytes", d.Digest, d.Size, maxLayer)
	}
	fail := func(err error) (*rafs.Bootstrap, error) {
		return nil, fmt.Errorf("bootstrap layer %s: %w", d.Digest, err)
	}
	id := d.Digest.Encoded()
	src, err := p.Blob(id)
	if err != nil {
		return fail(err)
	}
	body, err := src.ReadRange(ctx, 0, d.Size)
	if err != nil {
		return fail(err)
	}
	// Nothing was written: a failure to close changes nothing.
	defer func() { _ = body.Close() }()
	hash := sha256.New()
	layer := io.TeeReader(body, hash)
	b, unpackErr := unpack(layer, name, uint64(d.Size))
	// What was unpacked counts only if all of the layer is what was asked for; if
	// it is not, that is the cause of whatever went wrong.
	_, err = io.Copy(io.Discard, layer)
	if err == nil && hex.EncodeToString(hash.Sum(nil)) != id {
		err = errors.New("its content has another digest")
	}
	if err == nil {
		err = unpackErr
	}
	if err == nil {
		return b, nil
	}
	if b != nil {
		err = errors.Join(err, b.Close())
	}
	return fail(err)
}

// unpack finds the bootstrap in a layer of stored bytes.
func unpack(layer io.Reader, name string, stored uint64) (*rafs.Bootstrap, error) {
	plain, done, err := decompress(layer)
	if err != nil {
		return nil, err
	}
	defer done()
	limit := stored*maxRatio + maxSlack
	tr := tar.NewReader(io.LimitReader(plain, int64(limit)))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("no image/image.boot in its tar")
		}
		if err != nil {
			return nil, err
		}
		if p := path.Clean("/" + h.Name); h.Typeflag != tar.TypeReg || p != "/image/image.boot" && p != "/image.boot" {
			continue
		}
		if size := uint64(h.Size); h.Size <= 0 || size > rafs.MaxBootstrapSize || size > limit {
			return nil, fmt.Errorf("a bootstrap of %d bytes in a layer of %d", h.Size, stored)
		}
		b := rafs.NewBootstrap(name, nil)
		if err := b.Replace(uint64(h.Size), func(dst []byte) error {
			_, err := io.ReadFull(tr, dst)
			return err
		}); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		return b, nil
	}
}

// decompress tells by the first bytes how a layer is compressed.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(4)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case head[0] == 0x1F && head[1] == 0x8B:
		z, err := gzip.NewReader(in)
		return z, func() {}, err
	case string(head) == "\x28\xB5\x2F\xFD":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return in, func() {}, nil
}
