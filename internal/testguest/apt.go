package testguest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// suite is a release of Debian by its name in a mirror: bookworm, trixie, sid,
// experimental, and NAME-backports.
type suite string

// lists are the suites whose package lists are needed to take packages from s.
func (s suite) lists() []suite {
	base, backports := strings.CutSuffix(string(s), "-backports")
	switch {
	case s == "experimental":
		return []suite{"sid", s}
	case backports:
		return []suite{suite(base), s}
	case s == "trixie":
		// The default guest has its kernel from here and its QEMU from the
		// backports: the larger lists are fetched once for both.
		return suite("trixie-backports").lists()
	}
	return []suite{s}
}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fetch downloads packages of suite s into dir and returns their files. With
// closure their dependencies come too, as for a machine on which nothing is
// installed. Nothing is installed: apt works on a state folder of its own in the
// cache, one process at a time for each suite.
//
// The mirrors of moving suites drop old versions: after a failed download the
// package lists are fetched anew and it is tried once more.
func (s suite) fetch(ctx context.Context, dir string, closure bool, packages ...string) ([]string, error) {
	return s.withLists(ctx, func(apt *aptState) ([]string, error) {
		if !closure {
			return apt.download(ctx, dir, packages)
		}
		return apt.downloadClosure(ctx, dir, packages)
	})
}

// depends returns the packages that installing the given one brings along.
func (s suite) depends(ctx context.Context, pkg string) (names []string, err error) {
	return s.withLists(ctx, func(apt *aptState) ([]string, error) {
		out, err := apt.run(ctx, "", "install", "--simulate", pkg)
		if err != nil {
			return nil, err
		}
		var names []string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" {
				names = append(names, f[1])
			}
		}
		return names, nil
	})
}

// withLists calls f with package lists, and again with fresh ones if it fails.
func (s suite) withLists(ctx context.Context, f func(*aptState) ([]string, error)) ([]string, error) {
	lists := s.lists()
	name := string(lists[len(lists)-1])
	unlock, err := lock(ctx, "apt-"+name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	apt, fresh, err := openApt(ctx, name, lists)
	if err != nil {
		return nil, err
	}
	apt.target = s
	out, err := f(apt)
	if err == nil || fresh || ctx.Err() != nil {
		return out, err
	}
	if uerr := apt.update(ctx); uerr != nil {
		return nil, errors.Join(err, uerr)
	}
	return f(apt)
}

// aptState is a private state folder of apt that knows a few suites.
type aptState struct {
	dir    string
	lists  []suite
	target suite // the one that packages are taken from
}

// openApt returns the state folder called name; fresh means that the package lists
// were fetched just now. The caller holds the folder's lock.
func openApt(ctx context.Context, name string, lists []suite) (apt *aptState, fresh bool, err error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, false, err
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, false, fmt.Errorf("guests are made from Debian's packages: %w", err)
	}
	mirror, err := debianMirror("/etc/apt")
	if err != nil {
		return nil, false, err
	}
	if _, err := os.Stat(debianKeyring); err != nil {
		return nil, false, fmt.Errorf("install debian-archive-keyring: %w", err)
	}
	apt = &aptState{dir: filepath.Join(cache, "apt", name), lists: lists}
	if err := apt.configure(mirror); err != nil {
		return nil, false, err
	}
	if st, err := os.Stat(apt.updated()); err == nil && time.Since(st.ModTime()) < maxListAge {
		return apt, false, nil
	}
	return apt, true, apt.update(ctx)
}

// maxListAge is how old package lists may be: older ones name files that a mirror
// has dropped already, if the suite moves.
const maxListAge = 24 * time.Hour

// updated is a file that is as old as the package lists.
func (apt *aptState) updated() string { return filepath.Join(apt.dir, "updated") }

// configure writes apt's configuration, which comes on top of the machine's own:
// that one may name proxies and credentials. Its hooks are switched off.
func (apt *aptState) configure(mirror string) error {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt.dir, d), 0o755); err != nil {
			return err
		}
	}
	var sources strings.Builder
	for _, s := range apt.lists {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", debianKeyring, mirror, s)
	}
	conf := fmt.Sprintf(`#clear APT::Update;
#clear DPkg;
Dir::State %[1]q;
Dir::State::status %[2]q;
Dir::Cache %[3]q;
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::SourceList %[4]q;
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
`, apt.dir+"/state", apt.dir+"/state/status", apt.dir+"/cache", apt.dir+"/sources.list")
	for name, text := range map[string]string{"sources.list": sources.String(), "apt.conf": conf, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(apt.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (apt *aptState) update(ctx context.Context) error {
	progress("fetching the package lists of %v", apt.lists)
	if _, err := apt.run(ctx, "", "--error-on=any", "update"); err != nil {
		return err
	}
	return os.WriteFile(apt.updated(), []byte{'\n'}, 0o644)
}

func (apt *aptState) download(ctx context.Context, dir string, packages []string) ([]string, error) {
	if _, err := apt.run(ctx, dir, append([]string{"download"}, packages...)...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// downloadClosure moves the files out of apt's own folder when they are whole. That
// folder is empty before, so that afterwards it holds the closure and nothing else.
func (apt *aptState) downloadClosure(ctx context.Context, dir string, packages []string) ([]string, error) {
	pattern := filepath.Join(apt.dir, "cache/archives/*.deb")
	old, err := filepath.Glob(pattern)
	if err == nil {
		err = removeAll(old)
	}
	if err != nil {
		return nil, err
	}
	if _, err := apt.run(ctx, "", append([]string{"--yes", "--download-only", "install"}, packages...)...); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for i, from := range files {
		files[i] = filepath.Join(dir, filepath.Base(from))
		if err := os.Rename(from, files[i]); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// run calls apt-get in dir and returns what it prints on stdout.
func (apt *aptState) run(ctx context.Context, dir string, args ...string) (string, error) {
	own := []string{"-c", apt.dir + "/apt.conf", "-qq"}
	if apt.target != "" {
		own = append(own, "-t", string(apt.target))
	}
	cmd := command(ctx, "apt-get", append(own, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("apt-get %s from %v: %w%s", strings.Join(args, " "), apt.lists, err, lastLines(errs.String(), 3))
	}
	return out.String(), nil
}

// command is a command that is ended with all its children when ctx ends.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd
}

// lastLines returns the last n lines of s behind ": ", joined by "; ".
func lastLines(s string, n int) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines[max(0, len(lines)-n):], "; ")
}

var mirrorPattern = regexp.MustCompile(`(?:^|\s)((?:https?|file)://\S+/debian)/?(?:\s|$)`)

// debianMirror finds the mirror of Debian that this machine's apt uses already: in
// one-line and deb822 source lists and in the mirror lists that they may name.
// RAFSD_TESTBED_MIRROR overrides it.
func debianMirror(etcApt string) (string, error) {
	if m := os.Getenv("RAFSD_TESTBED_MIRROR"); m != "" {
		if u, err := url.Parse(m); err != nil || u.Scheme == "" || strings.ContainsAny(m, " \t\n[]") {
			return "", fmt.Errorf("RAFSD_TESTBED_MIRROR: %q is no address of a mirror", m)
		}
		return strings.TrimSuffix(m, "/"), nil
	}
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources", "mirrors/*.list"} {
		files, err := filepath.Glob(filepath.Join(etcApt, pattern))
		if err != nil {
			return "", err
		}
		for _, name := range files {
			if m := mirrorIn(name); m != "" {
				return m, nil
			}
		}
	}
	return "", errors.New("this machine's apt knows no mirror of Debian: set RAFSD_TESTBED_MIRROR to the address of one")
}

// mirrorIn returns the first mirror that a list names; one that cannot be read
// names none.
func mirrorIn(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "#") {
			continue
		}
		if m := mirrorPattern.FindStringSubmatch(strings.Replace(line, "URIs:", "URIs: ", 1)); m != nil {
			return m[1]
		}
	}
	return ""
}
