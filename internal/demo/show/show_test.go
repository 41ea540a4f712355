package show

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
)

// programs is the folder with rafsd and rafs-guest, built once.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "show-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-o", dir+"/", "../../../cmd/rafsd", "../../../cmd/rafs-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	programs = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(dir); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// shrink makes the image small enough for the race detector. TestProgram of the
// command has the whole.
const shrink = 24

// theSample is written once; tests that change what is true about it clone it.
var theSample = sync.OnceValues(func() (*sample, error) {
	return writeSample(context.Background(), filepath.Join(programs, "image"), shrink)
})

// shared is a way to get it; small writes another.
func shared(context.Context, string) (*sample, error) { return theSample() }

func small(ctx context.Context, dir string) (*sample, error) { return writeSample(ctx, dir, shrink) }

func getSample(t *testing.T) *sample {
	t.Helper()
	s, err := theSample()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func options(out *bytes.Buffer, kind Guest) Options {
	return Options{Rafsd: filepath.Join(programs, "rafsd"), RafsGuest: filepath.Join(programs, "rafs-guest"), Guest: kind, Out: out}
}

// emptyTemp makes a folder the one for temporary files and wants it empty again at
// the end of the test.
func emptyTemp(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") // short, for the socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left in the folder for temporary files: %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}

// TestDemo is the demonstration without a guest, and with one if RAFSD_LONG=1.
func TestDemo(t *testing.T) {
	kinds := []Guest{None}
	if os.Getenv("RAFSD_LONG") == "1" {
		kinds = []Guest{None, UML, QEMU}
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			emptyTemp(t)
			var out bytes.Buffer
			r, err := run(t.Context(), options(&out, kind), shared)
			if err != nil {
				t.Fatalf("%v; printed:\n%s", err, &out)
			}
			if r.Real != (kind != None) {
				t.Errorf("Real = %v", r.Real)
			}
			switch {
			case r.Start.Fetched < 1 || r.Start.Fetched > r.Image || r.Start.Answers < 1 || r.Start.Answers > len(startReads):
				t.Errorf("a container's start fetched %d bytes in %d answers of an image of %d", r.Start.Fetched, r.Start.Answers, r.Image)
			case r.All.Fetched < r.Image*9/10 || r.All.Fetched > r.Image:
				t.Errorf("all files fetched %d of %d bytes", r.All.Fetched, r.Image)
			case r.Start.Files != len(startReads) || r.All.Files < 1000 || r.All.Read < r.Start.Read:
				t.Errorf("read %d and %d files, %d and %d bytes", r.Start.Files, r.All.Files, r.Start.Read, r.All.Read)
			}
			for _, want := range []string{
				`\nregistry  http://127\.0\.0\.1:\d+/v2/demo/shop `,
				`\n +lrwxrwxrwx +1 0 +0 +7 .* bin -> usr/bin\n`,
				`\n +drwxrwxrwt .* tmp\n`,
			} {
				if !regexp.MustCompile(want).Match(out.Bytes()) {
					t.Errorf("nothing printed matches %s", want)
				}
			}
			if !strings.HasSuffix(out.String(), "\n\n"+r.Table()) {
				t.Error("the table is not the end")
			}
			if t.Failed() {
				t.Logf("printed:\n%s", &out)
			}
		})
	}
}

// TestWrongData is about an image that is not what the manifest says.
func TestWrongData(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*sample)
		want   string
	}{
		{"a checksum of the start", func(s *sample) {
			sum := s.sums[startReads[2]]
			sum[0] ^= 1
			s.sums = map[read][sha256.Size]byte{startReads[2]: sum}
		}, startReads[2].path + ": sha256 "},
		{"a checksum", func(s *sample) { entry(s, "/opt/shop/data/catalogue.json").SHA256[31] ^= 1 }, "/opt/shop/data/catalogue.json: sha256 "},
		{"a mode", func(s *sample) { entry(s, "/usr/bin/su").Mode = 0o755 }, "/usr/bin/su: mode 4755, want 0755"},
		{"a name", func(s *sample) { s.truth = s.truth[:len(s.truth)-1] }, "names, want "},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := *getSample(t)
			changed.truth = slices.Clone(changed.truth)
			c.change(&changed)
			var out bytes.Buffer
			_, err := visitTwice(t.Context(), options(&out, None), &changed, frontend{}, filepath.Join(shortDir(t), "1"), sayTo(&out))
			if !errors.Is(err, ErrWrong) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want ErrWrong with %q", err, c.want)
			}
		})
	}
}

func entry(s *sample, path string) *manifest.Entry {
	for i := range s.truth {
		if s.truth[i].Path == path {
			return &s.truth[i]
		}
	}
	panic("no " + path)
}

// shortDir is t.TempDir for sockets, whose paths have at most 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestDaemonFails is about daemons that are none: each end of one is told with what
// it said, and nothing is left.
func TestDaemonFails(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"at once", "echo no luck >&2; exit 3", "rafsd ended too early (exit status 3); it said:\n  no luck"},
		{"to listen", `: >"$3"; exec sleep 60`, "connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			emptyTemp(t)
			program := filepath.Join(t.TempDir(), "rafsd")
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			o := options(&out, None)
			o.Rafsd = program
			if _, err := run(t.Context(), o, shared); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// interrupter is an Out that cancels when it sees a word.
type interrupter struct {
	bytes.Buffer
	at     string
	cancel context.CancelFunc
	pid    int // of rafsd, if it was told
}

func (i *interrupter) Write(p []byte) (int, error) {
	fmt.Sscanf(string(p), "rafsd process %d", &i.pid) // one line is that
	if bytes.HasPrefix(p, []byte(i.at)) {
		i.cancel()
	}
	return i.Buffer.Write(p)
}

// TestInterrupted is Ctrl-C at each line that is printed.
func TestInterrupted(t *testing.T) {
	for _, at := range []string{"image", "rafsd", "start", "all"} {
		t.Run(at, func(t *testing.T) {
			emptyTemp(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &interrupter{at: at, cancel: cancel}
			o := options(&out.Buffer, None)
			o.Out = out
			write := shared
			if at == "image" {
				write = small
			}
			if _, err := run(ctx, o, write); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want %v; printed:\n%s", err, context.Canceled, out)
			}
			if out.pid != 0 && unix.Kill(out.pid, 0) == nil {
				t.Errorf("process %d is still there", out.pid)
			}
		})
	}
}

// fake is a machine of tests for the choice among machines.
type fake struct {
	machine
	err error
}

func (fake) name() string { return "fake" }

func TestFirstOf(t *testing.T) {
	network := &missingError{errors.New("user-mode Linux: apt-get update: exit status 100: E: Failed to fetch http://a/b\n  Could not connect; E: Some index files")}
	broken := errors.New("broken")
	for _, c := range []struct {
		name    string
		list    []machine
		tried   int
		want    error
		printed string
	}{
		{"the first is there", []machine{fake{}, frontend{}}, 1, nil, ""},
		{"the first is missing", []machine{fake{err: network}, frontend{}}, 2, nil,
			"no guest  Failed to fetch http://a/b Could not connect; internal/vmm reads the image instead\n"},
		{"missing inside another error", []machine{fake{err: errors.Join(network, broken)}, fake{}, frontend{}}, 2, nil,
			"guest     no fake (Failed to fetch http://a/b Could not connect), so fake\n"},
		{"the first fails", []machine{fake{err: broken}, frontend{}}, 1, broken, ""},
		{"the only one is missing", []machine{fake{err: network}}, 1, network, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			tried := 0
			_, err := firstOf(t.Context(), c.list, sayTo(&out), func(m machine) (Report, error) {
				tried++
				if f, ok := m.(fake); ok {
					return Report{}, f.err
				}
				return Report{}, nil
			})
			if tried != c.tried || !errors.Is(err, c.want) || out.String() != c.printed {
				t.Errorf("tried %d, error %v, printed %q; want %d, %v, %q", tried, err, &out, c.tried, c.want, c.printed)
			}
		})
	}
}

func TestParseStart(t *testing.T) {
	sums := strings.Repeat(strings.Repeat("ab", sha256.Size)+"  -\n", len(startReads))
	for _, c := range []struct{ name, output, want string }{
		{"whole", "total 0\ndrwxr-xr-x a\nlrwxrwxrwx b -> names 3\nnames 42\n" + sums, ""},
		{"a sum is missing", "names 42\n" + sums[:len(sums)-2*sha256.Size-4], "checksums"},
		{"no count", "drwxr-xr-x a\n" + sums, "printed 0 checksums"},
		{"bad count", "names many\n" + sums, "many"},
		{"no sum", "names 42\n" + strings.Replace(sums, "ab", "x-", 1), "is none"},
		{"short sum", "names 42\n" + strings.Replace(sums, "ab", "", 1), "is none"},
		{"long sum", "names 42\n" + strings.Replace(sums, "ab", "abab", 1), "is none"},
		{"nothing", "", "printed 0 checksums"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v visit
			err := v.parseStart(c.output)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one with %q", err, c.want)
				}
				return
			}
			if err != nil || v.names != 42 || len(v.top) != 2 || len(v.sums) != len(startReads) || v.sums[startReads[0]][5] != 0xab {
				t.Errorf("error %v, read %+v", err, v)
			}
		})
	}
}

// TestInstall is about an apt-get of the test's own, whose package lists are not
// there before its update.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	there, absent := filepath.Join(dir, "there"), filepath.Join(dir, "absent")
	const apt = `#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >>calls
case "$2" in
update) : >lists ;;
install) test -e lists && : >absent || { echo "E: no lists" >&2; exit 100; } ;;
esac
`
	if err := errors.Join(os.WriteFile(there, nil, 0o600), os.WriteFile(filepath.Join(dir, "apt-get"), []byte(apt), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	needs := []need{{there, "a", "for a"}, {absent, "b", "for b"}}
	var out bytes.Buffer
	installed, err := installNeeds(t.Context(), needs, nil, sayTo(&out))
	if os.Geteuid() != 0 {
		if installed || err == nil || !strings.Contains(err.Error(), "apt-get install b") {
			t.Errorf("without root: %v, %v", installed, err)
		}
		return
	}
	if want := "install   apt-get install b (for b)\n"; !installed || err != nil || out.String() != want {
		t.Errorf("installed %v, %v, printed %q; want %q", installed, err, &out, want)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	const install = "-q install --yes --no-install-recommends b\n"
	if want := install + "-q update\n" + install; err != nil || string(calls) != want {
		t.Errorf("calls %q, %v, want %q", calls, err, want)
	}
	if installed, err := installNeeds(t.Context(), needs, nil, sayTo(&out)); installed || err != nil {
		t.Errorf("with all there: %v, %v", installed, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := installNeeds(t.Context(), needs, nil, sayTo(&out)); err == nil || !strings.Contains(err.Error(), "no apt-get") {
		t.Errorf("without apt-get: %v", err)
	}
}

func TestFormats(t *testing.T) {
	for got, want := range map[string]string{
		grouped(0):                            "0",
		grouped(999):                          "999",
		grouped(1000):                         "1,000",
		grouped(-1234567):                     "-1,234,567",
		grouped(-123):                         "-123",
		size(1):                               "1 byte",
		size(1023):                            "1023 bytes",
		size(1536):                            "1.5 KiB",
		size(3 << 20):                         "3.0 MiB",
		percent(1, 1000):                      "0.1%",
		percent(125, 1000):                    "12%",
		percent(1000, 1000):                   "100%",
		percent(999999, 1000000):              "99.9%",
		percent(1, 0):                         "-",
		seconds(4 * time.Millisecond):         "4 ms",
		seconds(2345 * time.Millisecond):      "2.3 s",
		oneLine(" a\n\tb  c "):                "a b c",
		oneLine(strings.Repeat("ü", 100)):     strings.Repeat("ü", 100)[:157] + "...",
		reason(errors.New("plain\nerror;\n")): "plain error",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, c := range []struct {
		kind manifest.Type
		mode uint16
		want string
	}{
		{manifest.Regular, 0o640, "-rw-r-----"},
		{manifest.Regular, 0o4755, "-rwsr-xr-x"},
		{manifest.Regular, 0o2644, "-rw-r-Sr--"},
		{manifest.Directory, 0o1777, "drwxrwxrwt"},
		{manifest.Directory, 0o1770, "drwxrwx--T"},
		{manifest.Symlink, 0o777, "lrwxrwxrwx"},
	} {
		if got := modeString(&manifest.Entry{Type: c.kind, Mode: c.mode}); got != c.want {
			t.Errorf("mode %o of %c: %s, want %s", c.mode, c.kind, got, c.want)
		}
	}
}

// TestTail keeps the end and passes everything on.
func TestTail(t *testing.T) {
	var all bytes.Buffer
	tail := &tail{also: &all}
	for i := range 2000 {
		fmt.Fprintf(tail, "line %d\n", i)
	}
	kept := tail.String()
	if len(kept) > 2*tailSize || !strings.HasSuffix(kept, "\n  line 1999") || !strings.HasPrefix(all.String(), "line 0\n") || strings.Count(all.String(), "\n") != 2000 {
		t.Errorf("kept %d bytes to %q, passed on %d", len(kept), kept[len(kept)-20:], all.Len())
	}
}
