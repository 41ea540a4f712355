package layers

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/rafsd/rafsd/"

// forbidden says for each package (and everything below it, when it ends in
// "/...") which of our packages it must not reach, not even through others.
var forbidden = []struct {
	from string
	not  []string
}{
	{"vhostuser/...", []string{"fuseproto", "rafs", "blobstore", "shim-integration", "guest", "internal/vmm"}},
	{"vhostuser/wire", []string{"vhostuser/guestmem", "vhostuser/virtqueue", "vhostuser/session"}},
	{"vhostuser/guestmem", []string{"vhostuser/virtqueue", "vhostuser/session"}},
	{"vhostuser/virtqueue", []string{"vhostuser/wire", "vhostuser/session"}},
	{"vhostuser/session", []string{"vhostuser/virtqueue"}},
	{"vhostuser/keeper", []string{"net/http", "internal/hostfs"}},
	{"internal/record", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration"}},
	{"fuseproto/...", []string{"vhostuser", "rafs", "blobstore", "shim-integration", "guest"}},
	{"fuseproto/passthrough", []string{"fuseproto/vfs", "vhostuser", "rafs", "blobstore", "shim-integration", "internal/hostfs", "net"}},
	{"rafs", []string{"vhostuser", "fuseproto", "blobstore", "shim-integration", "rafs/v5", "rafs/v6", "rafs/fs"}},
	{"rafs/v5", []string{"fuseproto", "blobstore", "rafs/v6", "net/http"}},
	{"rafs/v6", []string{"fuseproto", "blobstore", "rafs/v5", "net/http"}},
	{"rafs/fs", []string{"vhostuser", "shim-integration", "fuseproto/vfs", "net/http"}},
	{"blobstore/...", []string{"vhostuser", "fuseproto", "rafs", "shim-integration", "guest"}},
	{"guest/...", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration", "net/http"}},
	{"cmd/rafs-guest", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration", "net/http"}},
	{"internal/vmm", []string{"fuseproto", "rafs", "blobstore", "shim-integration", "vhostuser/session", "vhostuser/virtqueue"}},
	{"internal/hostfs", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration"}},
	{"internal/apisock", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration"}},
	{"shim-integration/mountapi/client", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration/daemon", "net/http"}},
	{"internal/confine", []string{"vhostuser", "fuseproto", "rafs", "blobstore", "shim-integration"}},
}

// TestDirections fails when a package reaches what it must not know. rafs/fs
// reaches net/http only if blobstore's root package does: backends are joined in
// above it.
func TestDirections(t *testing.T) {
	for _, rule := range forbidden {
		for pkg, deps := range depsOf(t, rule.from) {
			for _, dep := range deps {
				for _, not := range rule.not {
					if dep != pkg && (dep == not || strings.HasPrefix(dep, not+"/")) {
						t.Errorf("%s reaches %s: %s must not know %s", pkg, dep, rule.from, not)
					}
				}
			}
		}
	}
}

// TestNothingImportsTestPackages keeps what only tests use out of what ships.
func TestNothingImportsTestPackages(t *testing.T) {
	for pkg, deps := range depsOf(t, "cmd/...") {
		for _, dep := range deps {
			for _, not := range []string{"internal/vmm", "internal/testimage", "internal/testguest", "internal/testregistry", "internal/corpus"} {
				if dep == not || strings.HasPrefix(dep, not+"/") {
					t.Errorf("%s ships %s, which is for tests", pkg, dep)
				}
			}
		}
	}
}

// depsOf lists, for each package that pattern names, all that it reaches: our
// own packages without the module's prefix, others as they are.
func depsOf(t *testing.T, pattern string) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-e", "-f", `{{.ImportPath}} {{join .Deps " "}}`, module+pattern).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pattern, err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		pkg := strings.TrimPrefix(fields[0], module)
		all[pkg] = nil
		for _, dep := range fields[1:] {
			all[pkg] = append(all[pkg], strings.TrimPrefix(dep, module))
		}
	}
	if len(all) == 0 {
		t.Fatalf("go list %s names no package", pattern)
	}
	return all
}
