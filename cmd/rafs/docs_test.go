package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testimage"
)

// TestManual runs every command of docs/rafs.md in the order of the page and
// compares what it prints with what the page says: "..." alone stands for any
// lines, inside a line for anything.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	sampleImage(t, dir)
	page, commands := runPage(t, "../../docs/rafs.md", dir)
	if commands < 10 {
		t.Errorf("only %d commands found", commands)
	}
	for _, c := range newRoot().Commands() {
		if !strings.Contains(page, "\n## "+c.Name()+": ") {
			t.Errorf("docs/rafs.md does not describe rafs %s", c.Name())
		}
	}
}

// runPage runs the commands of a page in dir and returns its text and how many there
// were.
func runPage(t *testing.T, name, dir string, env ...string) (text string, commands int) {
	t.Helper()
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^```console\n(.*?)^```").FindAllStringSubmatch(string(page), -1) {
		for example := range strings.SplitSeq(strings.TrimPrefix(block[1], "$ "), "\n$ ") {
			command, want, _ := strings.Cut(example, "\n")
			commands++
			cmd := exec.Command("sh", "-c", command)
			cmd.Dir = dir
			cmd.Env = append(append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH")), env...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("$ %s\n%v\n%s", command, err, out)
				continue
			}
			if !pattern(want).MatchString(strings.TrimRight(string(out), "\n") + "\n") {
				t.Errorf("$ %s\nprinted\n%.2000s\nbut the page says\n%s", command, out, want)
			}
		}
	}
	return string(page), commands
}

// TestAPIManuals runs every command of docs/mountapi.md and docs/api.md against a daemon.
func TestAPIManuals(t *testing.T) {
	dir, err := os.MkdirTemp("", "ctl") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sampleImage(t, dir)
	if err := os.Rename(filepath.Join(dir, "image.boot"), filepath.Join(dir, "sample.boot")); err != nil {
		t.Fatal(err)
	}
	config := `{"version":2,"id":"/sample","backend":{"type":"localfs","localfs":{"dir":"` + dir + `/blobs"}},"cache":{"type":"blobcache","filecache":{"work_dir":"` + dir + `"}},"rafs":{}}`
	if err := os.WriteFile(filepath.Join(dir, "local.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := filepath.Join(dir, "rafsd")
	build := exec.Command("go", "build", "-o", daemon, "../rafsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	socket, api := filepath.Join(dir, "rafsd.ttrpc"), filepath.Join(dir, "api.sock")
	cmd := exec.Command(daemon, "virtiofs", "--sock", filepath.Join(dir, "v.sock"), "--ttrpc", socket, "--apisock", api)
	cmd.Dir = dir // the page mounts "."
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	}()
	for range 1000 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, commands := runPage(t, "../../docs/mountapi.md", dir, "SOCKET="+socket); commands < 9 {
		t.Errorf("only %d commands found", commands)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed: docs/api.md is not tried")
	}
	if _, commands := runPage(t, "../../docs/api.md", dir, "API="+api); commands < 7 {
		t.Errorf("only %d commands found", commands)
	}
}

// pattern makes a regular expression of what the page shows.
func pattern(want string) *regexp.Regexp {
	var re strings.Builder
	re.WriteString(`\A`)
	for line := range strings.Lines(strings.TrimRight(want, "\n") + "\n") {
		switch line = strings.TrimSuffix(line, "\n"); line {
		case "...":
			re.WriteString(`(?:.*\n)*?`)
		case "":
		default:
			re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`) + `\n`)
		}
	}
	re.WriteString(`\n*\z`)
	return regexp.MustCompile(re.String())
}

// sampleImage writes the image of the page into dir.
func sampleImage(t *testing.T, dir string) {
	t.Helper()
	tree := testimage.NewTree()
	tree.Dir("/etc")
	tree.File("/etc/hosts", []byte("127.0.0.1 localhost\n"))
	tree.Symlink("/etc/mtab", "/proc/mounts")
	tree.File("/usr/bin/true", []byte("#!/bin/sh\n"), testimage.Mode(0o755))
	img, err := tree.Write(t.TempDir(), testimage.Options{Version: 6, Compressor: testimage.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(img.Bootstrap, filepath.Join(dir, "image.boot")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(img.BlobDir, filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"version": 2,
		"backend": map[string]any{"type": "localfs", "localfs": map[string]any{"dir": "blobs"}},
		"cache":   map[string]any{"type": "blobcache", "filecache": map[string]any{"work_dir": "cache"}},
		"rafs":    map[string]any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nydusd.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
}
