package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// fileSize is the size of the file that -compare makes: it stays in the page cache
// and is more than a core's own caches hold.
const fileSize = 16 << 20

// prepare makes what the comparison needs in dir: a folder for virtiofsd, an image
// of the same file for rafsd, and adds both to the back-ends.
func (s *settings) prepare(ctx context.Context, dir string) error {
	content := testimage.Random(fileSize, 1)
	data := make([]byte, fileSize)
	if _, err := content.ReadAt(data, 0); err != nil {
		return fmt.Errorf("make the file: %w", err)
	}
	s.dir = filepath.Join(dir, "tree")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, s.file), data, 0o644); err != nil {
		return err
	}
	image := filepath.Join(dir, "image")
	cache := filepath.Join(dir, "cache")
	for _, d := range []string{image, cache} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	tree := testimage.NewTree()
	tree.File("/"+s.file, data)
	img, err := tree.Write(image, testimage.Options{Compressor: testimage.Zstd})
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	config := filepath.Join(dir, "rafsd.json")
	b, err := json.Marshal(map[string]any{
		"version": 2, "id": "bench",
		"backend": map[string]any{"type": "localfs", "localfs": map[string]any{"dir": img.BlobDir}},
		"cache":   map[string]any{"type": "filecache", "filecache": map[string]any{"work_dir": cache}},
		"rafs":    map[string]any{},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, b, 0o600); err != nil {
		return err
	}
	queues := slices.Max(s.queues)
	s.backends = append(s.backends, spec{name: "rafsd", queues: queues, argv: []string{
		s.rafsd, "virtiofs", "--sock", "{sock}", "--queues", fmt.Sprint(queues), "--bootstrap", img.Bootstrap,
		"--config", config, "--log-level", "warn",
	}})
	s.null = true

	fetch, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	virtiofsd, err := testguest.Program(fetch, "virtiofsd", "")
	if err != nil {
		fmt.Printf("no virtiofsd to compare with: %v\n", err)
		return nil
	}
	// Without sandbox and seccomp, which cost it a little: the stricter comparison.
	s.backends = append(s.backends, spec{name: "virtiofsd", queues: 1, env: virtiofsd.Env, argv: slices.Concat(virtiofsd.Argv, []string{
		"--socket-path", "{sock}", "--shared-dir", "{dir}", "--sandbox", "none", "--seccomp", "none",
		"--log-level", "off",
	})})
	return nil
}
