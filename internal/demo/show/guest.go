package show

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
)

// guest is a machine that is one: a real kernel with its own virtio-fs.
type guest struct {
	kind      testguest.Kind
	rafsGuest string // the program, "" to build it
	log       io.Writer
	say       func(what, format string, a ...any)

	config testguest.Config // after prepare
}

const (
	fsTag   = "rafs"
	mountAt = "/image"
)

func (g *guest) name() string {
	if g.kind == testguest.QEMU {
		return "QEMU"
	}
	return "user-mode Linux"
}

func (g *guest) tag() string {
	if g.kind == testguest.UML {
		return fsTag
	}
	return "" // QEMU knows the tag itself
}

func (g *guest) prepare(ctx context.Context) error {
	var err error
	c := testguest.Config{Kind: g.kind, RafsGuest: g.rafsGuest}
	if g.config, err = testguest.Prepare(ctx, c); err == nil {
		return nil
	}
	installed, installErr := installNeeds(ctx, hostNeeds, g.log, g.say)
	switch {
	case installErr != nil:
		return &missingError{installErr}
	case !installed:
		return &missingError{err}
	}
	if g.config, err = testguest.Prepare(ctx, c); err != nil {
		return &missingError{err}
	}
	return nil
}

// boot runs a script in a guest that has the image at mountAt.
func (g *guest) boot(ctx context.Context, socket, script string, files map[string]string) (testguest.Result, visit, error) {
	c := g.config
	c.FS = []testguest.FS{{Socket: socket, Tag: fsTag, MountAt: mountAt, Options: "ro"}}
	c.Script = script
	c.Files = files
	r, err := testguest.Boot(ctx, c)
	if g.log != nil {
		fmt.Fprintf(g.log, "%s\n%s\n", r.Console, r.Output)
	}
	v := visit{
		who:  fmt.Sprintf("Linux %s (%s, %s)", r.Kernel, g.name(), c),
		boot: r.BootTime, took: r.Time - r.BootTime,
	}
	switch {
	case err == nil && r.ExitCode != 0:
		return r, v, fmt.Errorf("the guest's script ended with %d: %s", r.ExitCode, oneLine(r.Output))
	case errors.Is(err, testguest.ErrDied) && r.Kernel == "" && ctx.Err() == nil:
		// It never ran, so it cannot be our file system that ended it.
		return r, v, &missingError{err}
	}
	return r, v, err
}

// startScript prints, in this order: the top of the tree, a line "names N", and
// what sha256sum prints for each of startReads.
func startScript() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("set -e")
	line("cd %s", mountAt)
	line("ls -l")
	line("ls -lR >/tmp/names")
	line("echo names $(find . | wc -l)")
	for _, r := range startReads {
		if r.head == 0 {
			line("sha256sum <.%s", r.path)
		} else {
			line("head -c %d .%s | sha256sum", r.head, r.path)
		}
	}
	return b.String()
}

func (g *guest) start(ctx context.Context, socket string) (visit, error) {
	r, v, err := g.boot(ctx, socket, startScript(), nil)
	if err != nil {
		return v, err
	}
	return v, v.parseStart(r.Output)
}

// parseStart reads what startScript prints.
func (v *visit) parseStart(output string) error {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	for ; len(lines) > 0; lines = lines[1:] {
		if n, ok := strings.CutPrefix(lines[0], "names "); ok {
			var err error
			if v.names, err = strconv.Atoi(n); err != nil {
				return fmt.Errorf("the guest's count of names: %w", err)
			}
			lines = lines[1:]
			break
		}
		if !strings.HasPrefix(lines[0], "total ") {
			v.top = append(v.top, lines[0])
		}
	}
	if len(lines) != len(startReads) {
		return fmt.Errorf("the guest printed %d checksums, want %d: %s", len(lines), len(startReads), oneLine(output))
	}
	v.sums = map[read][sha256.Size]byte{}
	for i, r := range startReads {
		digits, _, _ := strings.Cut(lines[i], " ")
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != sha256.Size {
			return fmt.Errorf("the guest's checksum of %s: %q is none", r.path, lines[i])
		}
		v.sums[r] = [sha256.Size]byte(sum)
	}
	return nil
}

// everythingScript compares in the guest, and prints what differs for us to tell
// in which way: nothing if all is right.
const everythingScript = `set -e
rafs-guest manifest ` + mountAt + ` >/tmp/seen
cmp -s /tmp/seen /truth || cat /tmp/seen
`

func (g *guest) everything(ctx context.Context, socket string, truth []manifest.Entry) (visit, error) {
	file := filepath.Join(filepath.Dir(socket), "truth")
	if err := writeManifest(file, truth); err != nil {
		return visit{}, err
	}
	defer os.Remove(file)
	r, v, err := g.boot(ctx, socket, everythingScript, map[string]string{"/truth": file})
	if err != nil || r.Output == "" {
		return v, err
	}
	seen, err := manifest.Parse([]byte(r.Output))
	if err != nil {
		return v, fmt.Errorf("the guest's manifest: %w", err)
	}
	v.differences = manifest.Compare(seen, truth, manifest.Options{})
	if v.differences.Equal() {
		return v, errors.New("the guest's manifest differs, and yet holds the same")
	}
	return v, nil
}

func writeManifest(file string, entries []manifest.Entry) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(manifest.Write(f, entries), f.Close())
}
