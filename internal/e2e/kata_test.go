package e2e

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
)

// Whole lives of sandboxes as Kata's two runtimes lead them: their command lines,
// folders, calls and order. Kata itself is not here: what it does is replayed, not
// seen. The guest, its kernel and its overlays are real.

// kataTag is the tag of Kata's only virtio-fs device.
const kataTag = "kataShared"

// kata is what the runtimes do differently.
type kata struct {
	argv           string
	host, shared   string // folders of a sandbox: where the runtime mounts, and the slave of it
	source         string // which of both is shared
	escape         bool   // %2F in queries, a Content-Type on every request
	mountBeforeAPI bool   // the snapshot is mounted before the image is
	mountOptions   string // in the guest
	stop           func(t *testing.T, d *rafsd)
	killer         *killer // kills workers meanwhile; nil = nobody does
}

var kataGo = kata{
	argv: "virtiofs --log-level info --apisock {api} --sock {sock}",
	host: "mounts", shared: "shared", source: "shared",
	stop: func(t *testing.T, d *rafsd) {
		start := time.Now()
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := d.waitGone(t, 5*time.Second); code != 0 { // then comes SIGKILL
			t.Errorf("exit code %d after SIGTERM", code)
		}
		t.Logf("gone %v after SIGTERM", time.Since(start).Round(time.Millisecond))
		for _, socket := range []string{d.Socket, d.API} { // the runtime removes them too
			if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	},
}

var kataRust = kata{
	argv: "virtiofs --hybrid-mode --log-level info --apisock {api} --sock {sock}",
	host: "rw", shared: "ro", source: "rw",
	escape: true, mountBeforeAPI: true, mountOptions: "-o nodev",
	stop: func(t *testing.T, d *rafsd) {
		if err := d.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-d.exited
	},
}

// call sends a request as the runtime does and wants 204 and nothing.
func (k *kata) call(t *testing.T, d *rafsd, method, at string, body any) {
	t.Helper()
	if k.escape {
		at = url.QueryEscape(at)
	}
	text, status, err := d.request(method, "/api/v1/mount?mountpoint="+at, body)
	if err != nil || status != http.StatusNoContent || len(text) != 0 {
		t.Errorf("%s %s: %d %s, %v; want 204 and nothing", method, at, status, text, err)
	}
}

// container is one container of a sandbox.
type container struct {
	id       string
	variant  corpus.Variant
	blobs    string
	snapshot string // folder of the host with fs and work
}

func newContainers(t *testing.T, dir string) []*container {
	t.Helper()
	var all []*container
	for i, name := range []string{"v6-dir-zstd-rootfs", "v5-merge3-lz4-oci", "v6-dir-zstd-blake3-small"} {
		v := namedVariant(t, name)
		c := &container{id: strings.Repeat(string(rune('a'+i)), 64), variant: v, blobs: v.Blobs(t), snapshot: filepath.Join(dir, "snapshot"+name)}
		mkdir(t, filepath.Join(c.snapshot, "fs"), filepath.Join(c.snapshot, "work"))
		all = append(all, c)
	}
	return all
}

// unpack unpacks the container's image on the host.
func (c *container) unpack(t *testing.T, dir string) {
	t.Helper()
	mkdir(t, dir)
	tarFile := filepath.Join(t.TempDir(), "image.tar")
	for _, argv := range [][]string{
		{filepath.Join(binaries, "rafs"), "unpack", "--bootstrap", c.variant.Bootstrap, "--blob-dir", c.blobs, "--output", tarFile},
		{"tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir, "-f", tarFile},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%.2000s", argv[0], err, out)
		}
	}
}

// life leads a sandbox's whole life with three containers.
func (k *kata) life(t *testing.T, c testguest.Config) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	program := buildStatic(t, "./workload")
	inHost(t, func(base string) {
		// t0: folders and their mounts.
		host, shared := filepath.Join(base, "sandbox", k.host), filepath.Join(base, "sandbox", k.shared)
		acks := filepath.Join(host, "acks")
		mkdir(t, host, shared, acks)
		bind(t, host, shared, true)
		mount(t, "", shared, "", unix.MS_SLAVE, "")
		containers := newContainers(t, base)

		// t1 and t2: the daemon. User-mode Linux needs the tag, as an extra argument.
		argv := strings.Fields(k.argv)
		if c.Kind == testguest.UML {
			argv = append(argv, "--tag", kataTag)
		}
		d := startAs(t, argv...)
		// t3: the shared folder, before there is a VMM.
		source := filepath.Join(base, "sandbox", k.source)
		k.call(t, d, http.MethodPost, "/containers", map[string]string{"fs_type": "passthrough_fs", "source": source, "config": ""})

		// t4 to t8, from the guest's side.
		c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag}}
		c.Files = map[string]string{"/bin/workload": program}
		c.Modules = []string{"overlay"}
		var ids []string
		for _, one := range containers {
			ids = append(ids, one.id)
		}
		c.Script = "ids='" + strings.Join(ids, " ") + "'\nmount_options='" + k.mountOptions + "'\n" + `
share=/run/kata-containers/shared
acks=$share/containers/acks
` + stepScript + `
mkdir -p $share
mount -t virtiofs $mount_options kataShared $share/ || exit 1
[ -d $share/containers ] || { echo "no containers"; exit 1; }
[ -e $share/rafs ] && { echo "rafs is there too early"; exit 1; }
step containers
for id in $ids; do
	root=$share/containers/$id/rootfs
	snapshot=$share/containers/$id/snapshotdir
	mount -t overlay overlay -o upperdir=$snapshot/fs,workdir=$snapshot/work,lowerdir=$share/rafs/$id/lowerdir,index=off $root || { dmesg | tail; exit 1; }
	if [ -x $root/bin/cat ]; then # a program of the image, before the workload changes it
		[ "$(chroot $root /bin/cat /bin/cat | sha256sum)" = "$(sha256sum <$root/bin/cat)" ] || { echo "a program of the image does not run"; exit 1; }
		echo executed
	fi
	workload $root || { dmesg | tail; exit 1; }
done
dmesg | grep -i 'missing required' && exit 1
for id in $ids; do umount $share/containers/$id/rootfs || exit 1; done
step stopped
for id in $ids; do
	ls $share/containers/$id/snapshotdir/fs 2>/dev/null && { echo "the snapshot is still there"; exit 1; }
	[ -e $share/rafs/$id ] && { echo "the image is still there"; exit 1; }
done
umount $share
echo life is over
`
		a := &answers{t: t, acks: acks, steps: map[string]func(){
			"containers": func() {
				for _, one := range containers {
					folder := filepath.Join(host, one.id)
					image := func() {
						k.call(t, d, http.MethodPost, "/rafs/"+one.id+"/lowerdir", map[string]string{
							"fs_type": "rafs", "source": one.variant.Bootstrap, "config": localfs(one.blobs, filepath.Join(base, "cache")),
						})
					}
					if !k.mountBeforeAPI {
						image()
					}
					mkdir(t, filepath.Join(folder, "rootfs"), filepath.Join(folder, "snapshotdir"))
					bind(t, one.snapshot, filepath.Join(folder, "snapshotdir"), false)
					if k.mountBeforeAPI {
						image()
					}
				}
			},
			// t7: the image first, then the snapshot, at once and not lazily.
			"stopped": func() {
				for _, one := range containers {
					k.call(t, d, http.MethodDelete, "/rafs/"+one.id+"/lowerdir", nil)
					at := filepath.Join(host, one.id, "snapshotdir")
					if k.killer != nil {
						k.killer.unmount(t, at)
						continue
					}
					unmount(t, at)
				}
			},
		}}
		if k.killer != nil {
			for name, step := range a.steps { // callers of the API would have to ask again
				a.steps[name] = func() { k.killer.pause(step) }
			}
			k.killer.start(t, d)
			defer k.killer.stop(t)
		}
		r := a.boot(t, c)
		if k.killer != nil {
			k.killer.stop(t)
		}
		if !strings.HasSuffix(strings.TrimSpace(r.Output), "life is over") || !strings.Contains(r.Output, "executed") {
			t.Errorf("the guest said:\n%s", r.Output)
		}
		k.stop(t, d) // t8

		// What the guest's overlay has written is what an overlay of the host writes.
		for _, one := range containers {
			work := filepath.Join(base, "compare"+one.variant.Name)
			lower, root := filepath.Join(work, "lower"), filepath.Join(work, "root")
			one.unpack(t, lower)
			mkdir(t, filepath.Join(work, "fs"), filepath.Join(work, "work"), root)
			mount(t, "overlay", root, "overlay", 0, "upperdir="+filepath.Join(work, "fs")+",workdir="+filepath.Join(work, "work")+",lowerdir="+lower+",index=off")
			if out, err := exec.Command(program, root).CombinedOutput(); err != nil {
				t.Fatalf("on the host: %v\n%s", err, out)
			}
			unmount(t, root)
			got, want := upperLayer(t, filepath.Join(one.snapshot, "fs")), upperLayer(t, filepath.Join(work, "fs"))
			if len(want) < 30 || !hasWhiteout(want) {
				t.Errorf("%s: the host's upper layer has %d entries, the comparison shows little", one.variant.Name, len(want))
			}
			if diff := manifest.Compare(got, want, manifest.Options{Ignore: []string{"mtime", "nlink"}}); !diff.Equal() {
				t.Errorf("%s: the upper layer differs from one of the host:\n%s", one.variant.Name, diff)
			}
		}
	})
}

func hasWhiteout(entries []manifest.Entry) bool {
	for _, e := range entries {
		if e.Type == manifest.CharDevice && e.Major == 0 && e.Minor == 0 {
			return true
		}
	}
	return false
}

// boot boots the guest and answers its steps meanwhile, on this goroutine.
func (a *answers) boot(t *testing.T, c testguest.Config) testguest.Result {
	t.Helper()
	steps := newSteps()
	c.Output = steps
	ended := make(chan struct{})
	var r testguest.Result
	var err error
	go func() {
		defer close(ended)
		r, err = testguest.Boot(t.Context(), c)
	}()
	a.serve(steps.lines, ended)
	if err != nil {
		t.Fatalf("%v\noutput:\n%.2000s\nconsole:\n%.4000s", err, r.Output, r.Console)
	}
	if r.ExitCode != 0 {
		t.Fatalf("%s: exit code %d\n%.4000s", c, r.ExitCode, r.Output)
	}
	t.Logf("%s: Linux %s, first process after %v, %v in all", c, r.Kernel, r.BootTime.Round(1e6), r.Time.Round(1e6))
	return r
}

// TestL36L37_SandboxOfKataGo: overlays over images mount, and what is written to
// them is right on the host.
func TestL36L37_SandboxOfKataGo(t *testing.T) {
	kataGo.life(t, testguest.Config{Kind: testguest.UML})
}

func TestL36L37_SandboxOfKataRust(t *testing.T) {
	kataRust.life(t, testguest.Config{Kind: testguest.QEMU})
}
