package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testguest"
)

// What a runtime mounts into the shared folder of a sandbox that runs: volumes,
// single files, ConfigMaps, file systems of their own. Kata is replayed, not seen;
// the guest and the mounts are real.

// submountScript looks at each thing before it is there, after it came, and after it
// went. "seen NAME SECONDS" is how long that took at most.
const submountScript = stepScript + `
c=$share/containers
now() { cut -d' ' -f1 /proc/uptime | sed 's/[.]//; s/^0*//'; } # in 1/100 s
# The names are looked up before: the guest may have cached that they are not there.
ask() { start=$(now); step $1; }
seen() {
	n=0
	until eval "$2"; do
		n=$((n+1)); [ $n -lt 400 ] || { echo "never seen: $1"; exit 1; }
		sleep 0.05
	done
	echo "seen $1 $(($(now) - start))"
}
refused() { # what says that the file system is read-only
	(eval "$1") >/tmp/refusal 2>&1 && { echo "not refused: $1"; exit 1; }
	grep -q 'Read-only file system' /tmp/refusal || { echo "refused otherwise: $1"; cat /tmp/refusal; exit 1; }
}
for name in resolv.conf volume ro ro.conf config one two; do
	[ -e $c/$name ] && { echo "$name is there too early"; exit 1; }
done

ask bind # L38
seen file '[ "$(cat $c/resolv.conf 2>/dev/null)" = "nameserver 192.0.2.1" ]'
seen directory '[ "$(cat $c/volume/a/b 2>/dev/null)" = "in the volume" ]'
seen read-only '[ -e $c/ro/file ] && [ -s $c/ro.conf ]'
echo "of the guest" >$c/volume/new || exit 1
echo "nameserver 192.0.2.2" >>$c/resolv.conf || exit 1
refused 'echo x >$c/ro/file'
refused 'echo x >>$c/ro/file'
refused 'echo x >$c/ro/new'
refused 'mkdir $c/ro/folder'
refused 'rm $c/ro/file'
refused 'mv $c/ro/file $c/ro/other'
refused 'chmod 600 $c/ro/file'
refused 'ln -s x $c/ro/link'
refused 'echo x >>$c/ro.conf'
[ "$(cat $c/ro/file)" = "not to be written" ] || exit 1

ask equal # L40
seen both '[ -e $c/one/data ] && [ -e $c/two/data ]'
for round in 1 2 3; do
	for disk in one two; do
		[ "$(cat $c/$disk/data)" = "disk $disk" ] || { echo "$disk holds $(cat $c/$disk/data)"; exit 1; }
	done
	echo 3 >/proc/sys/vm/drop_caches
done
echo "changed one" >$c/one/changed || exit 1
echo "changed two" >$c/two/changed || exit 1
for path in . one one/data two two/data volume; do echo "id:$path $(stat -c '%d %i' $c/$path)"; done

ask config # L41
seen config '[ "$(cat $c/config/key 2>/dev/null)" = "first" ]'
ls -l $c/config/ >/dev/null
for value in second third; do
	ask $value
	seen swap-$value '[ "$(cat $c/config/key)" = "'$value'" ]'
done

exec 7<$c/volume/a/b # L39
cat <&7 >/dev/null
exec 7<&-
ask unbind
for name in resolv.conf volume ro ro.conf one two config; do
	seen gone-$name '! stat $c/$name >/tmp/gone 2>&1'
	grep -q 'No such file or directory' /tmp/gone || { cat /tmp/gone; exit 1; }
done
echo all steps done
`

// submounts is the host's side of submountScript: host is the folder where the
// runtime mounts, base one with room.
func submounts(t *testing.T, base, host string) *answers {
	t.Helper()
	at := func(name string) string { return filepath.Join(host, name) }
	from := func(name string) string { return filepath.Join(base, "from", name) }
	mkdir(t, from("volume/a"), from("ro"), from("config"))
	write(t, from("resolv.conf"), "nameserver 192.0.2.1\n")
	write(t, from("volume/a/b"), "in the volume\n")
	write(t, from("ro/file"), "not to be written\n")
	write(t, from("ro.conf"), "not to be written\n")
	// Kubernetes' layout: what the pod reads is a link through ..data, which is
	// replaced at one stroke.
	config := func(value string) {
		dir := "..version_" + value
		mkdir(t, from("config/"+dir))
		write(t, from("config/"+dir+"/key"), value+"\n")
		if err := os.Symlink(dir, from("config/..data_tmp")); err != nil {
			t.Fatal(err)
		}
		old, _ := os.Readlink(from("config/..data")) // "" the first time
		if err := os.Rename(from("config/..data_tmp"), from("config/..data")); err != nil {
			t.Fatal(err)
		}
		if old != "" {
			if err := os.RemoveAll(from("config/" + old)); err != nil {
				t.Fatal(err)
			}
		}
	}
	config("first")
	if err := os.Symlink("..data/key", from("config/key")); err != nil {
		t.Fatal(err)
	}

	return &answers{t: t, acks: at("acks"), steps: map[string]func(){
		"bind": func() {
			for _, name := range []string{"resolv.conf", "ro.conf"} {
				write(t, at(name), "") // where a file is mounted there is a file
				if name == "ro.conf" {
					bindReadOnly(t, from(name), filepath.Join(base, "private", name), at(name))
				} else {
					bind(t, from(name), at(name), false)
				}
			}
			mkdir(t, at("volume"), at("ro"))
			bind(t, from("volume"), at("volume"), false)
			bindReadOnly(t, from("ro"), filepath.Join(base, "private", "ro"), at("ro"))
		},
		"equal": func() {
			for _, name := range []string{"one", "two"} {
				loopFS(t, from(name+".ext4"), at(name))
				write(t, at(name+"/data"), "disk "+name+"\n")
			}
			var one, two unix.Stat_t
			if err := errors.Join(unix.Stat(at("one/data"), &one), unix.Stat(at("two/data"), &two)); err != nil || one.Ino != two.Ino {
				t.Errorf("inodes %d and %d, %v: the disks do not show what they should", one.Ino, two.Ino, err)
			}
		},
		"config": func() {
			mkdir(t, at("config"))
			bindReadOnly(t, from("config"), filepath.Join(base, "private", "config"), at("config"))
		},
		"second": func() { config("second") },
		"third":  func() { config("third") },
		"unbind": func() {
			for path, want := range map[string]string{
				from("volume/new"): "of the guest\n", from("resolv.conf"): "nameserver 192.0.2.1\nnameserver 192.0.2.2\n",
				at("one/changed"): "changed one\n", at("two/changed"): "changed two\n",
			} {
				if text, err := os.ReadFile(path); err != nil || string(text) != want {
					t.Errorf("%s holds %q, %v; want %q", path, text, err, want)
				}
			}
			for _, name := range []string{"resolv.conf", "volume", "ro", "ro.conf", "one", "two", "config"} {
				unmountSoon(t, at(name))
				if err := os.Remove(at(name)); err != nil {
					t.Error(err)
				}
			}
		},
	}}
}

// bindReadOnly mounts source at a place, read-only, by way of a private one, as Kata
// does: that a mount becomes read-only does not spread to the slaves of its place,
// but a mount of what is read-only already does.
func bindReadOnly(t *testing.T, source, private, at string) {
	t.Helper()
	if info, err := os.Stat(source); err != nil {
		t.Fatal(err)
	} else if info.IsDir() {
		mkdir(t, private)
	} else {
		mkdir(t, filepath.Dir(private))
		write(t, private, "")
	}
	bind(t, source, private, true)
	bind(t, private, at, false)
}

// unmountSoon unmounts what a guest has used and uses no more: not lazily, so that it
// fails as long as the daemon holds something there.
func unmountSoon(t *testing.T, at string) {
	t.Helper()
	const bound = 2 * time.Second
	start := time.Now()
	for {
		err := unix.Unmount(at, 0)
		took := time.Since(start)
		switch {
		case err == nil:
			t.Logf("umount %s after %v", filepath.Base(at), took.Round(time.Millisecond))
			return
		case err != unix.EBUSY || took > 10*bound:
			t.Errorf("umount %s: %v after %v", at, err, took)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// checkIdentities compares what stat said of the disks with equal inode numbers.
func checkIdentities(t *testing.T, output string, ownDevices bool) {
	t.Helper()
	device, id := map[string]string{}, map[string]string{}
	for _, path := range []string{".", "one", "one/data", "two", "two/data", "volume"} {
		id[path] = field(t, output, "id:"+path)
		device[path], _, _ = strings.Cut(id[path], " ")
	}
	seen := map[string]string{}
	for path, i := range id {
		if other := seen[i]; other != "" {
			t.Errorf("%s and %s are one file, %s, to the guest", path, other, i)
		}
		seen[i] = path
	}
	if got := device["one"] != device["two"] && device["one"] != device["."]; got != ownDevices {
		t.Errorf("devices of their own: %v, want %v: %v", got, ownDevices, device)
	}
	for _, disk := range []string{"one", "two"} {
		if device[disk] != device[disk+"/data"] {
			t.Errorf("a file of disk %s is on another device than its root: %v", disk, device)
		}
	}
}

// logSeen shows how long the guest waited for what the host had done.
func logSeen(t *testing.T, output string) {
	t.Helper()
	for line := range strings.Lines(output) {
		var name string
		var hundredths int
		if n, _ := fmt.Sscanf(line, "seen %s %d", &name, &hundredths); n == 2 {
			t.Logf("%s seen within %v", name, time.Duration(hundredths)*10*time.Millisecond)
		}
	}
}

// TestL38L39L40L41_SubmountsAsKataGo: binds of files and folders that come later are
// seen and the read-only ones stay so (38), what the host unmounts is gone and
// nothing keeps it busy (39), equal inode numbers of two file systems are two files
// (40), a ConfigMap's new version is read (41). In nydusd's personality.
func TestL38L39L40L41_SubmountsAsKataGo(t *testing.T) {
	submountsOfKata(t, testguest.Config{Kind: testguest.UML})
}

func submountsOfKata(t *testing.T, c testguest.Config) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	inHost(t, func(base string) {
		host, shared := filepath.Join(base, "sandbox", "mounts"), filepath.Join(base, "sandbox", "shared")
		mkdir(t, host, shared, filepath.Join(host, "acks"))
		bind(t, host, shared, true)
		mount(t, "", shared, "", unix.MS_SLAVE, "")
		argv := strings.Fields(kataGo.argv)
		if c.Kind == testguest.UML {
			argv = append(argv, "--tag", kataTag)
		}
		d := startAs(t, argv...)
		kataGo.call(t, d, http.MethodPost, "/containers", map[string]string{"fs_type": "passthrough_fs", "source": shared, "config": ""})
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/run/kata-containers/shared"}}
		c.Script = "share=/run/kata-containers/shared\nacks=$share/containers/acks\n" + submountScript
		r := submounts(t, base, host).boot(t, c)
		finishSubmounts(t, r, false)
	})
}

func finishSubmounts(t *testing.T, r testguest.Result, ownDevices bool) {
	t.Helper()
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "all steps done") {
		t.Errorf("the guest said:\n%s", r.Output)
		return
	}
	checkIdentities(t, r.Output, ownDevices)
	logSeen(t, r.Output)
}

// TestL38L39L40L41_SubmountsAsVirtiofsd is the same in virtiofsd's personality, as
// Kata starts it: the daemon has a mount namespace of its own, and disks have
// devices of their own in the guest.
func TestL38L39L40L41_SubmountsAsVirtiofsd(t *testing.T) {
	submountsOfVirtiofsd(t, testguest.Config{Kind: testguest.UML})
}

func submountsOfVirtiofsd(t *testing.T, c testguest.Config) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	inHost(t, func(base string) {
		host, shared := filepath.Join(base, "sandbox", "mounts"), filepath.Join(base, "sandbox", "shared")
		mkdir(t, host, shared, filepath.Join(host, "acks"))
		bind(t, host, shared, true)
		mount(t, "", shared, "", unix.MS_SLAVE, "")
		argv := []string{"--cache=auto", "--shared-dir=" + shared, "--socket-path={sock}", "--thread-pool-size=1", "--announce-submounts"}
		if c.Kind == testguest.UML {
			argv = append(argv, "--tag", kataTag)
		}
		d := startAs(t, argv...)
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag, MountAt: "/run/kata-containers/shared/containers"}}
		c.Script = "share=/run/kata-containers/shared\nacks=$share/containers/acks\n" + submountScript
		r := submounts(t, base, host).boot(t, c)
		finishSubmounts(t, r, true)
		if code := d.waitGone(t, 10*time.Second); code != 0 { // with its VMM
			t.Errorf("exit code %d", code)
		}
	})
}
