package show

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// need is something that guests are made with.
type need struct {
	file string // is there when it is installed
	pkg  string
	why  string
}

// hostNeeds are those of this host: everything else comes with Debian or is fetched without being
// installed. Ubuntu lacks the keys.
var hostNeeds = []need{
	{"/usr/bin/dpkg-deb", "dpkg", "to unpack packages"},
	{"/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring", "to check packages of Debian"},
}

// installNeeds installs what is missing, if anything is, or says why it cannot.
func installNeeds(ctx context.Context, needs []need, log io.Writer, say func(what, format string, a ...any)) (installed bool, err error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return false, errors.New("guests are made from Debian's packages, and there is no apt-get here")
	}
	packages, why := missing(needs)
	if packages == nil {
		return false, nil
	}
	list := strings.Join(packages, " ")
	if os.Geteuid() != 0 {
		return false, fmt.Errorf("only root can install what is missing (apt-get install %s)", list)
	}
	say("install", "apt-get install %s (%s)", list, strings.Join(why, ", "))
	install := append([]string{"install", "--yes", "--no-install-recommends"}, packages...)
	if aptGet(ctx, log, install...) == nil {
		return true, nil
	}
	// The package lists are missing, as in images of containers, or too old.
	if err := aptGet(ctx, log, "update"); err != nil {
		return false, err
	}
	return true, aptGet(ctx, log, install...)
}

// missing returns the packages of those needs that are not there, and what for.
func missing(needs []need) (packages, why []string) {
	for _, n := range needs {
		if _, err := os.Stat(n.file); err != nil {
			packages, why = append(packages, n.pkg), append(why, n.why)
		}
	}
	return packages, why
}

func aptGet(ctx context.Context, log io.Writer, args ...string) error {
	out := &tail{also: log}
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up behind itself
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
