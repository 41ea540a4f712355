package e2e

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/testguest"
)

// liveScript are the words of scripts that work on images while they come and go. A
// folder of the host is mounted beside them, for the answers.
const liveScript = stepScript + `
mkdir -p /mnt && mount -t virtiofs kataShared /mnt || exit 1
acks=/mnt/host/acks
at() { echo /mnt/rafs/$1/lowerdir; }
stale() { # wants ESTALE of a command
	(eval "$1") >/tmp/stale 2>&1 && { echo "not stale: $1"; exit 1; }
	grep -qiE 'stale (nfs )?file handle' /tmp/stale || { echo "not stale, but: $1"; cat /tmp/stale; exit 1; }
}
# A read by the page cache of an open file fails, but the kernel may call it EIO: from
# where it has the page, the reason is not asked. Whoever opens it anew is told.
unreadable() {
	cat <&$1 >/tmp/unreadable 2>/tmp/stale && { echo "fd $1 can be read"; exit 1; }
	grep -qiE 'stale (nfs )?file handle|input/output error' /tmp/stale || { cat /tmp/stale; exit 1; }
	[ -s /tmp/unreadable ] && { echo "fd $1 gives bytes"; exit 1; }
	stale "cat /proc/self/fd/$1"
}
sum() { sha256sum <"$1" | cut -d' ' -f1; }
[ -e /mnt/rafs ] && { echo "too early"; exit 1; }
`

// live is a daemon whose guest answers steps, and what its tests mount.
type live struct {
	*rafsd
	acks         string
	small, other corpus.Variant
	blobs        map[string]string // by variant's name
	cache        string
	truth        map[string]string // digests of small's files, in hexadecimal
}

func startLive(t *testing.T, c testguest.Config) *live {
	t.Helper()
	l := &live{
		small: namedVariant(t, "v6-dir-zstd-blake3-small"), other: namedVariant(t, "v6-dir-zstd-rootfs"),
		cache: t.TempDir(), truth: map[string]string{},
	}
	for _, e := range l.small.Truth(t) {
		l.truth[e.Path] = hex.EncodeToString(e.SHA256[:])
	}
	l.blobs = map[string]string{l.small.Name: l.small.Blobs(t), l.other.Name: l.other.Blobs(t)}
	shared := t.TempDir()
	l.acks = filepath.Join(shared, "acks")
	mkdir(t, l.acks)
	args := []string{}
	if c.Kind == testguest.UML {
		args = append(args, "--tag", kataTag)
	}
	l.rafsd = start(t, args...)
	kataGo.call(t, l.rafsd, http.MethodPost, "/host", map[string]string{"fs_type": "passthrough_fs", "source": shared, "config": ""})
	return l
}

func (l *live) config(v corpus.Variant) string { return localfs(l.blobs[v.Name], l.cache) }

// run boots the guest and leads it through the steps.
func (l *live) run(t *testing.T, c testguest.Config, script string, steps map[string]func()) testguest.Result {
	t.Helper()
	c.FS = []testguest.FS{{Socket: l.Socket, Tag: kataTag}}
	c.Script = fmt.Sprintf("sum100k=%s\n", l.truth["/data/100k"]) + liveScript + script + "\necho live to the end\n"
	r := (&answers{t: t, acks: l.acks, steps: steps}).boot(t, c)
	if !strings.HasSuffix(strings.TrimSpace(r.Output), "live to the end") {
		t.Errorf("the guest said:\n%s", r.Output)
	}
	return r
}

// TestThousandMountsGiveBack: a thousand images come and go twice, under a guest that
// holds some of them open. What they cost, descriptors and memory, is given back.
func TestThousandMountsGiveBack(t *testing.T) {
	thousandMountsGiveBack(t, testguest.Config{Kind: testguest.UML})
}

func thousandMountsGiveBack(t *testing.T, c testguest.Config) {
	const images = 1000
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	l := startLive(t, c)
	at := func(i int) string { return fmt.Sprintf("/rafs/%d/lowerdir", i) }
	mountAll := func() {
		for i := range images {
			kataGo.call(t, l.rafsd, http.MethodPost, at(i), map[string]string{"fs_type": "rafs", "source": l.small.Bootstrap, "config": l.config(l.small)})
		}
		t.Logf("%d images: %d descriptors, %d KiB", images, l.openFiles(t), l.anonymous(t))
	}
	umountAll := func() {
		for i := range images {
			kataGo.call(t, l.rafsd, http.MethodDelete, at(i), nil)
		}
	}
	var files, memory int // before the first round, and after it
	back := func() {
		// Four for connections that are about to close.
		l.waitFor(t, fmt.Sprintf("return to %d descriptors", files), func() bool { return l.openFiles(t) <= files+4 })
		if memory == 0 {
			memory = l.anonymous(t)
		}
		// A thousand images that are not given back take more than this.
		l.waitFor(t, "return of memory", func() bool { return l.anonymous(t) <= memory+memory/4+4<<10 })
		t.Logf("none left: %d descriptors, before %d; %d KiB", l.openFiles(t), files, l.anonymous(t))
	}
	r := l.run(t, c, `
for round in first second; do
	step mount-$round
	cat /mnt/rafs/*/lowerdir/data/one | wc -c | sed 's/^/bytes /'
	exec 5<$(at 4)/data/100k 6<$(at 5)/dir
	step umount-$round
	echo 3 >/proc/sys/vm/drop_caches
	unreadable 5
	stale 'ls /proc/self/fd/6/'
	[ -e /mnt/rafs ] && { echo "something is left: $(ls /mnt/rafs)"; exit 1; }
	exec 5<&- 6<&-
	step back-$round
done
`, map[string]func(){
		"mount-first": func() {
			files = l.openFiles(t)
			mountAll()
		},
		"umount-first": umountAll, "back-first": back,
		"mount-second": mountAll, "umount-second": umountAll, "back-second": back,
	})
	if n := strings.Count(r.Output, fmt.Sprintf("bytes %d\n", images)); n != 2 {
		t.Errorf("%d of 2 rounds read a byte of every image:\n%s", n, r.Output)
	}
}

// anonymous is the memory that the daemon has taken for itself, in KiB: not the
// guest's, not files.
func (d *rafsd) anonymous(t *testing.T) int {
	t.Helper()
	return int(d.rssAnon(t) >> 10)
}
