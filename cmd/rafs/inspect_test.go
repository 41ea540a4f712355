package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// request answers one request in JSON.
func request(t *testing.T, answer any, args ...string) {
	t.Helper()
	out := ok(t, append([]string{"inspect"}, args...)...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(answer); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out)
	}
}

// TestInspectAnswersAsTheReference compares the shapes of nydus-image's answers,
// also for a caller that hands over flag and value as one argument.
func TestInspectAnswersAsTheReference(t *testing.T) {
	for _, name := range []string{"v5-dir-zstd-prefetch-fs-small", "v6-dir-zstd-prefetch-fs-small"} {
		v := variant(t, name)
		var stats struct {
			Inodes uint64 `json:"inodes_count"`
		}
		request(t, &stats, "-B", v.Bootstrap, "-R", "stats")
		if stats.Inodes < 255 || stats.Inodes > 270 {
			t.Errorf("%s: %d inodes", name, stats.Inodes)
		}
		var blobs []struct {
			ID           string `json:"blob_id"`
			Readahead    uint64 `json:"readahead_offset"`
			Size         uint64 `json:"readahead_size"`
			Decompressed uint64 `json:"decompressed_size"`
			Compressed   uint64 `json:"compressed_size"`
		}
		request(t, &blobs, "-R blobs", v.Bootstrap)
		if len(blobs) != 1 || len(blobs[0].ID) != 64 {
			t.Fatalf("%s: blobs %+v", name, blobs)
		}
		if want := uint64(len(blobsOf(t, v)[blobs[0].ID])); blobs[0].Compressed != want {
			t.Errorf("%s: %d bytes stored, the file has %d", name, blobs[0].Compressed, want)
		}
		type paths struct {
			Inode uint64   `json:"inode"`
			Path  []string `json:"path"`
		}
		var prefetch []paths
		request(t, &prefetch, "-B", v.Bootstrap, "-R", "prefetch")
		want := [][]string{{"/data"}, {"/links/hard/one", "/links/hard/two", "/links/hard2/three", "/links/z-four"}, {"/xattrs/many"}}
		for i := range want {
			if len(prefetch) != 3 || !reflect.DeepEqual(prefetch[i].Path, want[i]) {
				t.Fatalf("%s: prefetch %+v, want %v", name, prefetch, want)
			}
		}
		var check paths
		request(t, &check, "-B", v.Bootstrap, "-R", "icheck "+jsonNumber(prefetch[1].Inode))
		if !reflect.DeepEqual(check, prefetch[1]) {
			t.Errorf("%s: icheck %+v, want %+v", name, check, prefetch[1])
		}
		var chunks []map[string]any
		request(t, &chunks, "-B", v.Bootstrap, "-R", "chunk 1")
		if len(chunks) == 0 || chunks[0]["compressed_offset"] != 0.0 || !strings.HasPrefix(chunks[0]["path"].(string), "/data/") {
			t.Errorf("%s: chunk 1: %v", name, chunks)
		}
		var stat map[string]any
		request(t, &stat, "-B", v.Bootstrap, "-R", "stat links/hard/one")
		if stat["ino"] != float64(check.Inode) || stat["nlink"] != 4.0 {
			t.Errorf("%s: stat %v", name, stat)
		}
		for bad, says := range map[string]string{
			"bogus": "unknown request", "stat /none": "no such entry", "stat": "of what?", "chunk x": "not an offset",
			"icheck 1099511627776": "no such inode", "chunk 99999999": "no chunk of any blob", "blobs now": "takes nothing",
		} {
			fails(t, 1, []string{says}, "inspect", "-B", v.Bootstrap, "-R", bad)
		}
	}
}

func jsonNumber(n uint64) string {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestInspectPrompt: a session, errors included, until exit.
func TestInspectPrompt(t *testing.T) {
	v := variant(t, "v6-dir-zstd-prefetch-fs-small")
	cmd := exec.Command(program, "inspect", "-B", v.Bootstrap)
	cmd.Stdin = strings.NewReader("stats\n\n  ls  \ncd links\ncd nowhere\nstat hard/one\ncd /\nls xattrs\nblobs\nprefetch\nbogus\nhelp\nexit\nls\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Split(string(out), "Inspecting RAFS :> ")
	want := []string{"", "Version:", "", "\"links\"\n", "", "no such entry", "Nlink:               4\n", "", "\"many\"", "blob 0: ", "3 entries", "unknown request", "icheck INODE", ""}
	if len(answers) != len(want) {
		t.Fatalf("%d answers, want %d:\n%s", len(answers), len(want), out)
	}
	for i := range want {
		if !strings.Contains(answers[i], want[i]) {
			t.Errorf("answer %d is %q, want %q in it", i, answers[i], want[i])
		}
	}
}

// TestStatOfImages compares the counts with what the manifests of the same trees
// say.
func TestStatOfImages(t *testing.T) {
	var s struct {
		Dedup  bool      `json:"dedup_enabled"`
		Target bool      `json:"target_enabled"`
		Base   imageInfo `json:"base_image"`
		Image  imageInfo `json:"target_image"`
	}
	stat := func(args ...string) {
		t.Helper()
		if err := json.Unmarshal([]byte(ok(t, append([]string{"stat", "--json"}, args...)...)), &s); err != nil {
			t.Fatal(err)
		}
	}
	dict, small := variant(t, "v6-dir-zstd-16k-dict"), variant(t, "v6-dir-zstd-16m-small")
	var dirs, files, links, bytes uint64
	seen := map[string]bool{}
	for _, e := range small.Truth(t) {
		switch e.Type {
		case 'd':
			dirs++
		case 'l':
			links++
		case 'f':
			files++
			if e.Hardlink == "" || !seen[e.Hardlink] {
				bytes += e.Size
				seen[e.Hardlink] = true
			}
		}
	}
	stat("-B", small.Bootstrap)
	if b := &s.Base; b.Dirs != dirs || b.Files != files || b.Symlinks != links || b.FileSize != bytes || b.OwnChunks != 70 || s.Dedup || s.Target {
		t.Errorf("%+v, want %d directories, %d files, %d links, %d bytes", b, dirs, files, links, bytes)
	}
	// One image against itself, and against another of which it shares something.
	stat(small.Bootstrap, "--target", small.Bootstrap)
	if s.Image.OwnChunks != 0 || s.Image.RefChunks != s.Base.OwnChunks || s.Image.RefPlain != s.Base.OwnPlain {
		t.Errorf("against itself: %+v", s.Image)
	}
	stat(dict.Bootstrap, "-T", small.Bootstrap)
	if s.Image.OwnChunks+s.Image.RefChunks != 70 || s.Image.OwnChunks == 0 {
		t.Errorf("against another: %+v", s.Image)
	}
	folder := t.TempDir()
	copyFile(t, small.Bootstrap, folder, "a")
	copyFile(t, small.Bootstrap, folder, "b")
	stat("-D", folder)
	if !s.Dedup || s.Base.DedupChunks != 70 || s.Base.OwnChunks != 140 {
		t.Errorf("a folder of two: %+v", s.Base)
	}
	if out := ok(t, "stat", "-D", folder); !strings.Contains(out, "chunks by images that have them\n") || !strings.Contains(out, " 2  70\n") {
		t.Errorf("table:\n%s", out)
	}
	fails(t, 1, []string{"holds no image"}, "stat", "-D", t.TempDir())
	fails(t, 2, []string{"--target goes without"}, "stat", small.Bootstrap, "/data", "-T", small.Bootstrap)
	fails(t, 2, []string{"usage"}, "stat", "-D", folder, "/data")
}

func copyFile(t *testing.T, file, folder, name string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}
