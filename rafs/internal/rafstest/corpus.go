package rafstest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// DamagedVariant is the image of the corpus whose inode table leads to wrong
// places.
const DamagedVariant = "v5-tar-rafs-lz4-small"

// Variants returns the names of the corpus's images with the manifest that holds
// for each, "" where there is none.
func Variants(t testing.TB, dir string) map[string]string {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(dir, "served", "INDEX"))
	if err != nil {
		t.Fatal(err)
	}
	manifests := map[string]string{}
	for line := range strings.Lines(string(index)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] == "#" {
			continue
		}
		manifests[fields[0]] = filepath.Join(dir, "served", fields[1]+".manifest")
		if fields[1] == "-" {
			manifests[fields[0]] = ""
		}
	}
	// The reference cannot serve these, but other images of the same sources.
	manifests["v6-dir-blobcachedir-dict"] = manifests["v6-dir-zstd-16k-dict"]
	manifests["v6-merge3-batch-encrypt-oci"] = manifests["v6-merge3-batch-oci"]
	manifests[DamagedVariant] = manifests["v6-tar-rafs-zstd-small"]
	return manifests
}

// Bootstrap returns the bootstrap of a variant: the file of that name, or the
// one that was cut out of its blob and has the blob's id for a name.
func Bootstrap(t testing.TB, dir, variant string) string {
	t.Helper()
	path := filepath.Join(dir, "images", variant, "bootstrap")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	found, err := filepath.Glob(filepath.Join(dir, "images", variant, "bootstraps", "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %d bootstraps, %v", variant, len(found), err)
	}
	return found[0]
}
