package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
)

// TestL42_DAXWithoutWindow: a guest that asks for DAX, which nobody offers, is told
// at the mount; the daemon is unharmed and the same guest mounts without it. With
// both personalities, under QEMU, whose kernel could do DAX.
func TestL42_DAXWithoutWindow(t *testing.T) {
	daxWithoutWindow(t, testguest.Config{Kind: testguest.QEMU})
}

func daxWithoutWindow(t *testing.T, c testguest.Config) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	dirs := map[string]string{"api": t.TempDir(), "alone": t.TempDir()}
	for name, dir := range dirs {
		write(t, filepath.Join(dir, "file"), name+"\n")
		mkdir(t, filepath.Join(dir, "fs"), filepath.Join(dir, "work"), filepath.Join(dir, "lower"))
		write(t, filepath.Join(dir, "lower", "below"), "below\n")
		write(t, filepath.Join(dir, "lower", "deleted"), "below\n")
	}
	var tags [2][]string
	if c.Kind == testguest.UML {
		tags = [2][]string{{"--tag", "api"}, {"--tag", "alone"}}
	}
	api := start(t, tags[0]...)
	kataGo.call(t, api, http.MethodPost, "/containers", map[string]string{"fs_type": "passthrough_fs", "source": dirs["api"], "config": ""})
	// Of what Kata passes, and what an overlay's upper layer needs besides.
	alone := startAs(t, append([]string{"--cache=auto", "--shared-dir=" + dirs["alone"], "--socket-path={sock}", "--thread-pool-size=1", "--announce-submounts", "--xattr", "--modcaps=+sys_admin"}, tags[1]...)...)
	c.FS = []testguest.FS{{Socket: api.Socket, Tag: "api"}, {Socket: alone.Socket, Tag: "alone"}}
	c.Modules = []string{"overlay"}
	c.Script = `
try() { # tag, folder in it
	mkdir -p /at/$1
	for option in dax dax=always; do
		mount -t virtiofs -o $option $1 /at/$1 2>/tmp/refusal && { echo "$1: -o $option is accepted"; exit 1; }
		grep -qi 'invalid argument' /tmp/refusal || { echo "$1: -o $option is refused otherwise"; cat /tmp/refusal; exit 1; }
	done
	mount -t virtiofs $1 /at/$1 || exit 1
	cd /at/$1/$2
	[ "$(cat file)" = $1 ] || { echo "$1: wrong content"; exit 1; }
	dd if=/dev/urandom of=written bs=64k count=16 2>/dev/null && sync || exit 1
	sha256sum <written | sed "s/^/$1 /"
	mkdir root
	mount -t overlay overlay -o lowerdir=lower,upperdir=fs,workdir=work,index=off root || { dmesg | tail -n 5; exit 1; }
	dmesg | grep -i 'missing required' && exit 1
	echo over >root/below && rm root/deleted && mkdir root/new && mv root/new root/newer || exit 1
	umount root && rmdir root && cd / && umount /at/$1
}
try api containers
try alone .
echo mounted both
`
	r := boot(t, c)
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "mounted both") {
		t.Fatalf("the guest said:\n%s", r.Output)
	}
	for name, dir := range dirs {
		if got := field(t, r.Output, name); !strings.HasPrefix(got, sha256File(t, filepath.Join(dir, "written"))) {
			t.Errorf("%s: the guest wrote what has %s, the host has another", name, got)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "fs", "below")); err != nil || string(text) != "over\n" {
			t.Errorf("%s: the upper layer holds %q, %v", name, text, err)
		}
		if !hasWhiteout(upperLayer(t, filepath.Join(dir, "fs"))) {
			t.Errorf("%s: no whiteout in the upper layer", name)
		}
	}
	if code := alone.waitGone(t, 10*time.Second); code != 0 { // with its VMM
		t.Errorf("virtiofsd's personality ended with exit code %d", code)
	}
}

func sha256File(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
