package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
)

const tag = "fs0"

// TestGuestSeesTheCorpus boots one guest that has every image of the corpus
// mounted and compares what it sees, contents included, with the truth.
func TestGuestSeesTheCorpus(t *testing.T) {
	corpusInGuest(t, testguest.Config{Kind: testguest.UML}, corpus.Variants(t))
}

// TestGuestQEMU does the same with another front-end: PCI, MSI-X, real eventfds,
// memory at other addresses. Emulated, it is slower: some images of each kind.
func TestGuestQEMU(t *testing.T) {
	var some []corpus.Variant
	for _, name := range []string{"v5-dir-zstd-sha256-small", "v6-dir-zstd-blake3-small", "v6-dir-zstd-4k-small", "v5-merge3-lz4-oci"} {
		some = append(some, namedVariant(t, name))
	}
	corpusInGuest(t, testguest.Config{Kind: testguest.QEMU}, some)
}

// TestMatrix boots every guest that we know.
func TestMatrix(t *testing.T) {
	matrix(t, func(t *testing.T, c testguest.Config) { corpusInGuest(t, c, corpus.Variants(t)) })
}

// TestMatrixOfSandboxes leads sandboxes' lives with each of them.
func TestMatrixOfSandboxes(t *testing.T) {
	matrix(t, func(t *testing.T, c testguest.Config) {
		t.Run("kata-go", func(t *testing.T) { kataGo.life(t, c) })
		t.Run("kata-rust", func(t *testing.T) { kataRust.life(t, c) })
		t.Run("submounts", func(t *testing.T) { submountsOfKata(t, c) })
		t.Run("submounts-virtiofsd", func(t *testing.T) { submountsOfVirtiofsd(t, c) })
		t.Run("dax", func(t *testing.T) { daxWithoutWindow(t, c) })
		t.Run("thousand", func(t *testing.T) { thousandMountsGiveBack(t, c) })
		t.Run("shim", func(t *testing.T) { shimDrives(t, c) })
	})
}

// matrix runs f with every guest that we know.
func matrix(t *testing.T, f func(t *testing.T, c testguest.Config)) {
	t.Helper()
	if os.Getenv("RAFSD_MATRIX") != "1" {
		t.Skip("long: make test-matrix")
	}
	for _, c := range testguest.Hypervisors() {
		if c.QEMUSuite == "bookworm" {
			// The emulator of QEMU 7.2 makes cmpxchg16b fault now and then, which
			// ends newer kernels in their allocator whatever devices they have.
			c.QEMUArgs = []string{"-cpu", "max,-cx16"}
		}
		t.Run(c.String(), func(t *testing.T) { f(t, c) })
	}
}

// corpusInGuest mounts variants by the API before the guest boots, and compares
// the manifest of each as the guest prints it.
func corpusInGuest(t *testing.T, c testguest.Config, variants []corpus.Variant) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute // a guest without KVM on a busy machine is slow
	args := []string{}
	if c.Kind == testguest.UML {
		args = append(args, "--tag", tag) // its driver reads the tag from the device
	}
	d := start(t, args...)
	cache := t.TempDir()
	for _, v := range variants {
		d.mount(t, "/"+v.Name, v.Bootstrap, localfs(v.Blobs(t), cache))
	}
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: tag, MountAt: "/mnt"}}
	c.Script = `
cd /mnt
for image in *; do
	echo "@@IMAGE $image"
	rafs-guest manifest "/mnt/$image" || exit 1
done
cd /
umount /mnt
`
	r := boot(t, c)
	seen := map[string][]manifest.Entry{}
	for part := range strings.SplitSeq(r.Output, "@@IMAGE ") {
		name, text, _ := strings.Cut(part, "\n")
		if name == "" {
			continue
		}
		entries, err := manifest.Parse([]byte(text))
		if err != nil {
			t.Fatalf("%s: the guest printed no manifest: %v", name, err)
		}
		seen[name] = entries
	}
	if len(seen) != len(variants) {
		t.Errorf("the guest saw %d images, want %d", len(seen), len(variants))
	}
	for _, v := range variants {
		if diff := manifest.Compare(seen[v.Name], v.Truth(t), manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
			t.Errorf("%s as the guest sees it:\n%s", v.Name, diff)
		}
	}
}

// TestGuestSeesMountsComeAndGo: an image appears and vanishes under a running
// guest that has looked for it before.
func TestGuestSeesMountsComeAndGo(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	v := corpus.Variants(t)[0]
	d := start(t, "--tag", tag)
	cache, blobs := t.TempDir(), v.Blobs(t)

	// The guest asks by writing a line, and sees the answer in the tree.
	steps := newSteps()
	c.Output = steps
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: tag, MountAt: "/mnt"}}
	c.Script = `
step() { echo "@@STEP $1"; echo; } # the last newline of all is held back until more comes
wait_for() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 300 ] || { echo "gave up: $1"; exit 1; }; sleep 0.1; done; }
[ -e /mnt/rafs ] && { echo "too early"; exit 1; }
step mount
wait_for '[ -d /mnt/rafs/one/lower ]'
first=$(ls -A /mnt/rafs/one/lower | head -n 1)
[ -n "$first" ] || exit 1
exec 5< "/mnt/rafs/one/lower"
step umount
wait_for '! [ -e /mnt/rafs ]'
step again
wait_for '[ -e "/mnt/rafs/one/lower/$first" ]'
ls -A /mnt/rafs/one/lower >/dev/null || exit 1
echo done
`
	go func() {
		for step := range steps.lines {
			switch step {
			case "mount", "again":
				d.mount(t, "/rafs/one/lower", v.Bootstrap, localfs(blobs, cache))
			case "umount":
				d.umount(t, "/rafs/one/lower")
			}
		}
	}()
	r := boot(t, c)
	steps.close()
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "done") {
		t.Errorf("the guest said:\n%s", r.Output)
	}
}

// boot runs the guest and wants its script to succeed.
func boot(t *testing.T, c testguest.Config) testguest.Result {
	t.Helper()
	r, err := testguest.Boot(t.Context(), c)
	if err != nil {
		t.Fatalf("%v\noutput:\n%.2000s\nconsole:\n%.4000s", err, r.Output, r.Console)
	}
	if r.ExitCode != 0 {
		t.Fatalf("%s: exit code %d\n%.4000s", c, r.ExitCode, r.Output)
	}
	t.Logf("%s: Linux %s, first process after %v, %v in all", c, r.Kernel, r.BootTime.Round(1e6), r.Time.Round(1e6))
	return r
}

// steps turns the guest's output into the names of the steps it asks for.
type steps struct {
	lines chan string
	rest  string
}

func newSteps() *steps { return &steps{lines: make(chan string, 16)} }

func (s *steps) close() { close(s.lines) }

func (s *steps) Write(p []byte) (int, error) {
	s.rest += string(p)
	for {
		line, rest, ok := strings.Cut(s.rest, "\n")
		if !ok {
			return len(p), nil
		}
		s.rest = rest
		if step, ok := strings.CutPrefix(strings.TrimSpace(line), "@@STEP "); ok {
			select {
			case s.lines <- step:
			default:
				return 0, fmt.Errorf("more steps than expected")
			}
		}
	}
}
