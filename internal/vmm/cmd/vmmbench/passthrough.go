package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// cacheModes are the values of --cache that are compared.
var cacheModes = []string{"auto", "never"}

// shareBoth compares rafsd and virtiofsd as servers of a shared folder: one run for
// each cache mode, with the same options to both. Each has a folder of its own with
// the same file in it.
func (s *settings) shareBoth(ctx context.Context, work string) error {
	fetch, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	virtiofsd, err := testguest.Program(fetch, "virtiofsd", "")
	if err != nil {
		fmt.Printf("no virtiofsd to compare with: %v\n", err)
	}
	var all []sample
	for _, cache := range cacheModes {
		// Without sandbox and seccomp, which cost virtiofsd a little.
		options := []string{
			"--socket-path", "{sock}", "--shared-dir", "{dir}", "--cache", cache, "--xattr",
			"--sandbox", "none", "--seccomp", "none", "--log-level", "off",
		}
		servers := []spec{{name: "rafsd", queues: 1, argv: append([]string{s.rafsd}, options...)}}
		if err == nil {
			servers = append(servers, spec{name: "virtiofsd", queues: 1, env: virtiofsd.Env, argv: slices.Concat(virtiofsd.Argv, options)})
		}
		for _, b := range s.backends {
			argv := slices.Clone(b.argv)
			for i, a := range argv {
				argv[i] = strings.ReplaceAll(a, "{cache}", cache)
			}
			b.argv = argv
			servers = append(servers, b)
		}
		one := *s
		one.backends = nil
		for _, b := range servers {
			b.dir = filepath.Join(work, b.name+"-"+cache)
			if err := one.fill(b.dir); err != nil {
				return err
			}
			one.backends = append(one.backends, b)
		}
		fmt.Printf("\n--cache=%s\n", cache)
		samples, base, err := one.session(ctx, work, append(rows(1), writeRows()...))
		if err != nil {
			return fmt.Errorf("--cache=%s: %w", cache, err)
		}
		if err := report(os.Stdout, samples, base); err != nil {
			return err
		}
		for _, sm := range samples {
			sm.backend += "-" + cache
			all = append(all, sm)
		}
	}
	if s.csv != "" {
		return writeCSV(s.csv, all)
	}
	return nil
}

// fill makes a folder with the file that is read and written.
func (s *settings) fill(dir string) error {
	data := make([]byte, fileSize)
	if _, err := testimage.Random(fileSize, 1).ReadAt(data, 0); err != nil {
		return fmt.Errorf("make the file: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, s.file), data, 0o644)
}
