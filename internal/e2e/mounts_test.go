package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testguest"
)

// submounts mounts two file systems under a shared folder whose files have the same
// inode numbers.
func submounts(t *testing.T, base, shared string) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		loopFS(t, filepath.Join(base, name+".img"), filepath.Join(shared, name))
		write(t, filepath.Join(shared, name, "file"), name)
	}
	var st [2]unix.Stat_t
	for i, name := range []string{"one", "two"} {
		if err := unix.Stat(filepath.Join(shared, name, "file"), &st[i]); err != nil {
			t.Fatal(err)
		}
	}
	if st[0].Ino != st[1].Ino || st[0].Dev == st[1].Dev {
		t.Fatalf("inode %d of %d and %d of %d: the test shows nothing", st[0].Ino, st[0].Dev, st[1].Ino, st[1].Dev)
	}
}

// ends wants a guest's script to have come to its end.
func ends(t *testing.T, r testguest.Result) {
	t.Helper()
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "done") {
		t.Errorf("the guest said:\n%s", r.Output)
	}
}

// TestL38L39L40L41L42_SharedFolder: what happens on the host below a shared folder
// while a guest has it mounted.
func TestL38L39L40L41L42_SharedFolder(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 5 * time.Minute
	inHost(t, func(base string) {
		shared, elsewhere := filepath.Join(base, "shared"), filepath.Join(base, "elsewhere")
		acks := filepath.Join(shared, "acks")
		mkdir(t, acks, filepath.Join(shared, "dir"), filepath.Join(shared, "snapshot"), filepath.Join(elsewhere, "dir"), filepath.Join(elsewhere, "snapshot"))
		write(t, filepath.Join(shared, "conf"), "covered")
		write(t, filepath.Join(elsewhere, "conf"), "mounted")
		write(t, filepath.Join(elsewhere, "dir/inside"), "inside")
		write(t, filepath.Join(elsewhere, "snapshot/state"), "state")
		// A ConfigMap as the kubelet lays it out.
		mkdir(t, filepath.Join(shared, "map/v1"))
		write(t, filepath.Join(shared, "map/v1/key"), "old")
		for name, target := range map[string]string{"map/..data": "v1", "map/key": "..data/key"} {
			if err := os.Symlink(target, filepath.Join(shared, name)); err != nil {
				t.Fatal(err)
			}
		}
		d := startAs(t, append(strings.Fields(kataGo.argv), "--tag", kataTag)...)
		kataGo.call(t, d, http.MethodPost, "/containers", map[string]string{"fs_type": "passthrough_fs", "source": shared, "config": ""})

		a := &answers{t: t, acks: acks, steps: map[string]func(){
			"bind": func() { // L38
				bind(t, filepath.Join(elsewhere, "conf"), filepath.Join(shared, "conf"), false)
				bind(t, filepath.Join(elsewhere, "dir"), filepath.Join(shared, "dir"), true)
				bind(t, filepath.Join(elsewhere, "snapshot"), filepath.Join(shared, "snapshot"), false)
				submounts(t, base, shared) // L40
			},
			"unbind": func() { // L39, without any call to us: after the time that descriptors idle
				at, start := filepath.Join(shared, "snapshot"), time.Now()
				for unix.Unmount(at, 0) != nil {
					if time.Since(start) > 20*time.Second {
						t.Errorf("%s is still busy", at)
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Logf("unmounted %v after the guest's last use", time.Since(start).Round(time.Millisecond))
			},
			"swap": func() { // L41
				mkdir(t, filepath.Join(shared, "map/v2"))
				write(t, filepath.Join(shared, "map/v2/key"), "new")
				fresh := filepath.Join(shared, "map/..data_tmp")
				if err := os.Symlink("v2", fresh); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(fresh, filepath.Join(shared, "map/..data")); err != nil {
					t.Fatal(err)
				}
			},
		}}
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag}}
		c.Script = `
share=/share
acks=$share/containers/acks
` + stepScript + `
within() { n=0; until eval "$2"; do n=$((n+1)); [ $n -lt 200 ] || { echo "never: $1"; exit 1; }; sleep 0.1; done; echo "$1 ${n}00 ms"; }
mkdir -p $share
mount -t virtiofs -o dax=always kataShared $share 2>/dev/null && { echo "dax without a window"; exit 1; }
mount -t virtiofs kataShared $share || { echo "no mount after a refused dax"; exit 1; }
cd $share/containers || exit 1
[ "$(cat conf)" = covered ] || exit 1
step bind
within file-bind-seen '[ "$(cat conf)" = mounted ]'
within folder-bind-seen '[ -e dir/inside ]'
touch dir/new 2>&1 | grep -q 'Read-only' || { echo "not EROFS: $(touch dir/new 2>&1)"; exit 1; }
echo changed >conf || exit 1
[ "$(cat one/file)$(cat two/file)" = onetwo ] || { echo "mixed: $(cat one/file) $(cat two/file)"; exit 1; }
echo "ids $(stat -c %d:%i one/file) $(stat -c %d:%i two/file) $(stat -c %d:%i one) $(stat -c %d:%i two)"
[ "$(cat snapshot/state)" = state ] || exit 1
step unbind
within unmount-seen '! [ -e snapshot/state ]'
[ "$(cat map/key)" = old ] || exit 1
step swap
within swap-seen '[ "$(cat map/key)" = new ]'
cd /
umount $share || exit 1
echo done
`
		r := a.boot(t, c)
		ends(t, r)
		ids := strings.Fields(field(t, r.Output, "ids"))
		seen := map[string]bool{}
		for _, id := range ids {
			seen[id] = true
		}
		if len(ids) != 4 || len(seen) != 4 {
			t.Errorf("device and inode of files and folders of two mounts are %v, want four", ids)
		}
		for _, what := range []string{"file-bind-seen", "folder-bind-seen", "unmount-seen", "swap-seen"} {
			t.Logf("%s after %s", what, field(t, r.Output, what))
		}
		if b, err := os.ReadFile(filepath.Join(elsewhere, "conf")); err != nil || string(b) != "changed\n" {
			t.Errorf("what the guest wrote is %q, %v", b, err)
		}
		d.stop(t)
	})
}

// TestL40_AnnouncedSubmounts: in virtiofsd's place each mount has a device number of
// its own in the guest, and an overlay works where the capabilities allow it.
func TestL40_AnnouncedSubmounts(t *testing.T) {
	c := testguest.Need(t, testguest.Config{Kind: testguest.UML})
	c.Timeout = 5 * time.Minute
	inHost(t, func(base string) {
		shared := filepath.Join(base, "shared")
		acks := filepath.Join(shared, "acks")
		mkdir(t, acks, filepath.Join(shared, "lower"), filepath.Join(shared, "upper"), filepath.Join(shared, "work"), filepath.Join(shared, "root"))
		write(t, filepath.Join(shared, "lower/file"), "lower")
		d := startAs(t, "--socket-path", "{sock}", "--shared-dir", shared, "--cache", "auto", "--thread-pool-size=1",
			"-o", "announce_submounts", "--xattr", "--modcaps=+sys_admin", "--tag", kataTag)
		a := &answers{t: t, acks: acks, steps: map[string]func(){
			"mount": func() { submounts(t, base, shared) }, // after the daemon has shut itself in
		}}
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/share"}}
		c.Modules = []string{"overlay"}
		c.Script = `
acks=/share/acks
` + stepScript + `
step mount
cd /share
[ "$(cat one/file)$(cat two/file)" = onetwo ] || { echo "mixed: $(cat one/file) $(cat two/file)"; exit 1; }
echo "devices $(stat -c %d .) $(stat -c %d one/file) $(stat -c %d two/file)"
echo "inodes $(stat -c %i one/file) $(stat -c %i two/file)"
mount -t overlay overlay -o upperdir=/share/upper,workdir=/share/work,lowerdir=/share/lower,index=off /share/root || { dmesg | tail; exit 1; }
rm root/file && echo new >root/other || exit 1
umount root || exit 1
echo done
`
		r := a.boot(t, c)
		ends(t, r)
		devices := strings.Fields(field(t, r.Output, "devices"))
		if len(devices) != 3 || devices[0] == devices[1] || devices[1] == devices[2] || devices[0] == devices[2] {
			t.Errorf("device numbers %v, want three", devices)
		}
		inodes := strings.Fields(field(t, r.Output, "inodes"))
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(shared, "one/file"), &st); err != nil || len(inodes) != 2 || inodes[0] != strconv.FormatUint(st.Ino, 10) || inodes[1] != inodes[0] {
			t.Errorf("inode numbers %v, want the host's %d", inodes, st.Ino)
		}
		if err := unix.Lstat(filepath.Join(shared, "upper/file"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("no whiteout in the upper layer: mode %#o, device %d, %v", st.Mode, st.Rdev, err)
		}
		if code := d.waitGone(t, 10*time.Second); code != 0 {
			t.Errorf("exit code %d after the VMM has gone, want 0", code)
		}
	})
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
