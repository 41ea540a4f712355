package e2e

import (
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testguest"
)

// ends wants a guest's script to have come to its end.
func ends(t *testing.T, r testguest.Result) {
	t.Helper()
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "done") {
		t.Errorf("the guest said:\n%s", r.Output)
	}
}

// TestOverlayAsVirtiofsd: in virtiofsd's place an overlay works too, if the
// capabilities allow it.
func TestOverlayAsVirtiofsd(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 5 * time.Minute
	shared := t.TempDir()
	mkdir(t, filepath.Join(shared, "lower"), filepath.Join(shared, "upper"), filepath.Join(shared, "work"), filepath.Join(shared, "root"))
	write(t, filepath.Join(shared, "lower/file"), "lower")
	d := startAs(t, "--socket-path", "{sock}", "--shared-dir", shared, "--cache", "auto", "--thread-pool-size=1",
		"-o", "announce_submounts", "--xattr", "--modcaps=+sys_admin", "--tag", kataTag)
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/share"}}
	c.Modules = []string{"overlay"}
	c.Script = `
cd /share
mount -t overlay overlay -o upperdir=/share/upper,workdir=/share/work,lowerdir=/share/lower,index=off /share/root || { dmesg | tail; exit 1; }
rm root/file && echo new >root/other || exit 1
umount root || exit 1
echo done
`
	ends(t, boot(t, c))
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(shared, "upper/file"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("no whiteout in the upper layer: mode %#o, device %d, %v", st.Mode, st.Rdev, err)
	}
	if code := d.waitGone(t, 10*time.Second); code != 0 {
		t.Errorf("exit code %d after the VMM has gone, want 0", code)
	}
}

// TestMountGoesUnderOpenFiles: an image is unmounted while a guest holds its files
// open. They are stale, nothing of it stays, and other mounts do not notice.
func TestMountGoesUnderOpenFiles(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 5 * time.Minute
	v := namedVariant(t, "v6-dir-zstd-blake3-small")
	acks := t.TempDir()
	d := start(t, "--tag", kataTag)
	cache, blobs := t.TempDir(), v.Blobs(t)
	d.mount(t, "/stays", v.Bootstrap, localfs(blobs, cache))
	kataGo.call(t, d, http.MethodPost, "/acks", map[string]string{"fs_type": "passthrough_fs", "source": acks, "config": ""})
	before := 0
	a := &answers{t: t, acks: acks, steps: map[string]func(){
		"mount": func() {
			before = d.openFiles(t)
			d.mount(t, "/goes", v.Bootstrap, localfs(blobs, t.TempDir()))
		},
		"umount": func() { d.umount(t, "/goes") },
		"check": func() {
			d.waitFor(t, "the descriptors of the image are given back", func() bool { return d.openFiles(t) <= before })
		},
	}}
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/mnt"}}
	c.Script = `
acks=/mnt/acks
` + stepScript + `
step mount
find /mnt/goes -type f -exec cat {} + >/dev/null
file=$(find /mnt/goes -type f -size +0 | head -n 1)
[ -n "$file" ] || exit 1
exec 5<"$file" 6<"/mnt/goes"
step umount
sleep 2 # attributes of its root last a second
stat -L /proc/self/fd/6 >/dev/null 2>/tmp/err && { echo "a folder of it is still there"; exit 1; }
grep -qi 'stale' /tmp/err || { echo "not ESTALE: $(cat /tmp/err)"; exit 1; }
ls /mnt/goes 2>/dev/null && { echo "its name is still there"; exit 1; }
step check
find /mnt/stays -type f | head -n 5 | while read -r f; do cat "$f" >/dev/null || echo "lost $f"; done
exec 5<&- 6<&-
echo done
`
	r := a.boot(t, c)
	ends(t, r)
	if strings.Contains(r.Output, "lost") {
		t.Errorf("another mount has noticed:\n%s", r.Output)
	}
	d.stop(t)
}

// TestThousandMountsInGuest: all of them are there, appear while the guest looks, and
// can be layers of an overlay, which refuses automounts.
func TestThousandMountsInGuest(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 5 * time.Minute
	v := namedVariant(t, "v6-merge3-lz4-4k-oci")
	acks := t.TempDir()
	d := start(t, "--tag", kataTag)
	cache, blobs := t.TempDir(), v.Blobs(t)
	kataGo.call(t, d, http.MethodPost, "/acks", map[string]string{"fs_type": "passthrough_fs", "source": acks, "config": ""})
	a := &answers{t: t, acks: acks, steps: map[string]func(){
		"mount": func() {
			for i := range 1000 {
				d.mount(t, "/rafs/"+strconv.Itoa(i), v.Bootstrap, localfs(blobs, cache))
			}
		},
	}}
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/mnt"}}
	c.Modules = []string{"overlay"}
	c.Script = `
acks=/mnt/acks
` + stepScript + `
[ -e /mnt/rafs ] && exit 1
step mount
[ "$(ls /mnt/rafs | wc -l)" = 1000 ] || { echo "$(ls /mnt/rafs | wc -l) names"; exit 1; }
for i in 0 1 500 999; do
	rafs-guest manifest /mnt/rafs/$i >/tmp/$i || exit 1
	cmp /tmp/0 /tmp/$i || exit 1
done
mkdir -p /tmp/root
mount -t overlay overlay -o lowerdir=/mnt/rafs/3:/mnt/rafs/4:/mnt/rafs/999 /tmp/root || { dmesg | tail; exit 1; }
[ "$(ls -A /tmp/root)" = "$(ls -A /mnt/rafs/3)" ] || exit 1
echo done
`
	ends(t, a.boot(t, c))
	d.stop(t)
}
