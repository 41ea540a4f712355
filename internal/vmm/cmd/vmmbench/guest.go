package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// The tree that guests walk through.
const (
	guestDirs  = 40
	guestFiles = 50 // in each
	guestSize  = 4 << 10
	guestTag   = "fs0"
	guestReads = 2000 // random ones of 4 KiB
)

// insideWord is the first argument of this program where it runs in a guest.
const insideWord = "inside"

// task is what a guest does with the tree; how often it is done is its count.
type task struct {
	name  string
	count int
	cold  bool // with no inode and no page of the tree in the guest's memory
	run   func(dir string) error
}

func tasks() []task {
	find := func(dir string) error { return shell(`find "$1" -type f -size +100000 | wc -l`, dir) }
	return []task{
		{"find, nothing cached", guestDirs * guestFiles, true, find},
		{"find again", guestDirs * guestFiles, false, find},
		{"look for absent names", guestDirs * guestFiles, true, lookForAbsent},
		{"tar, nothing cached", guestDirs * guestFiles, true, func(dir string) error { return shell(`tar cf - -C "$1" . | wc -c`, dir) }},
		{"tar again", guestDirs * guestFiles, false, func(dir string) error { return shell(`tar cf - -C "$1" . | wc -c`, dir) }},
		{"random reads of 4 KiB", guestReads, true, randomReads},
	}
}

func shell(script, dir string) error {
	out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// lookForAbsent asks for names that are not there, as a program does that looks for
// its libraries in one directory after the other.
func lookForAbsent(dir string) error {
	for i := range guestDirs * guestFiles {
		name := filepath.Join(dir, fmt.Sprintf("dir%03d/lib%d.so", i%guestDirs, i%(guestFiles/2)))
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func randomReads(dir string) error {
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		return err
	}
	defer f.Close()
	b, places := make([]byte, 4<<10), rand.New(rand.NewPCG(1, 2))
	for range guestReads {
		if _, err := f.ReadAt(b, places.Int64N(fileSize/int64(len(b)))*int64(len(b))); err != nil {
			return err
		}
	}
	return nil
}

// inGuest does the tasks, if this is the program in a guest: its first argument is
// insideWord, then come the tree and how often all is done. Before and after each task
// is a pause in which the host can count.
func inGuest() bool {
	if len(os.Args) != 4 || os.Args[1] != insideWord {
		return false
	}
	rounds, err := strconv.Atoi(os.Args[3])
	for n := 0; n < rounds && err == nil; n++ {
		for _, t := range tasks() {
			if t.cold {
				err = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
			}
			fmt.Printf("@@begin\n\n")
			time.Sleep(guestPause)
			began := time.Now()
			if err == nil {
				err = t.run(os.Args[2])
			}
			if err != nil {
				break
			}
			fmt.Printf("@@end %d %s\n\n", time.Since(began).Microseconds(), t.name)
			time.Sleep(guestPause)
		}
	}
	if err != nil {
		fmt.Println("inside:", err)
		os.Exit(1)
	}
	return true
}

const guestPause = 200 * time.Millisecond

// visit is what was seen of one task in one boot.
type visit struct {
	took     time.Duration
	requests float64
}

// server is what a guest mounts.
type server struct {
	name  string
	start func(ctx context.Context, dir string, counting bool) (sock string, count func() (float64, error), stop func(), err error)
}

// guests lets guests do the same with an image on rafsd and with the same tree on
// virtiofsd, in turn. What virtiofsd is asked is counted in its log, in a boot of its
// own, since logging takes time.
func (s *settings) guests(ctx context.Context, work string) error {
	dir, bootstrap, config, err := guestTree(work)
	if err != nil {
		return err
	}
	fetch, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	virtiofsd, err := testguest.Program(fetch, "virtiofsd", "")
	if err != nil {
		return err
	}
	servers := []server{{ours, func(ctx context.Context, at string, _ bool) (string, func() (float64, error), func(), error) {
		sock, api := filepath.Join(at, "fs.sock"), filepath.Join(at, "api.sock")
		cmd := exec.Command(s.rafsd, "virtiofs", "--sock", sock, "--apisock", api, "--tag", guestTag, "--bootstrap", bootstrap,
			"--config", config, "--log-level", "warn")
		cmd.Stderr = os.Stderr
		return sock, func() (float64, error) { return requestsOf(ctx, api) }, func() { end(cmd) }, cmd.Start()
	}}}
	for _, cache := range []string{"auto", "always"} {
		servers = append(servers, server{theirs + " --cache " + cache, func(ctx context.Context, at string, counting bool) (string, func() (float64, error), func(), error) {
			sock, log, n := filepath.Join(at, "fs.sock"), "off", &requestCounter{}
			cmd := virtiofsd.Cmd(ctx, "--socket-path", sock, "--shared-dir", dir, "--sandbox", "none", "--seccomp", "none", "--tag", guestTag, "--cache", cache)
			if counting {
				log = "debug"
				cmd.Stderr = n
			}
			cmd.Args = append(cmd.Args, "--log-level", log)
			return sock, func() (float64, error) { return float64(n.n.Load()), nil }, func() { end(cmd) }, cmd.Start()
		}})
	}
	seen := map[string]map[string][]visit{}
	counts := map[string]map[string]float64{}
	for round := range s.rounds {
		for _, srv := range servers {
			// The first round counts, the others take the time.
			v, err := boot(ctx, srv, round == 0)
			if err != nil {
				return fmt.Errorf("%s: %w", srv.name, err)
			}
			if round == 0 {
				counts[srv.name] = map[string]float64{}
				for name, list := range v {
					counts[srv.name][name] = list[len(list)-1].requests
				}
				continue
			}
			if seen[srv.name] == nil {
				seen[srv.name] = map[string][]visit{}
			}
			for name, list := range v {
				seen[srv.name][name] = append(seen[srv.name][name], list...)
			}
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "task, times")
	for _, srv := range servers {
		fmt.Fprintf(t, "\t%s: ms\trequests each", srv.name)
	}
	for _, srv := range servers[1:] {
		fmt.Fprintf(t, "\tquicker than %s", srv.name)
	}
	fmt.Fprintln(t)
	for _, k := range tasks() {
		fmt.Fprintf(t, "%s, %d", k.name, k.count)
		times := map[string][]float64{}
		for _, srv := range servers {
			for _, v := range seen[srv.name][k.name] {
				times[srv.name] = append(times[srv.name], float64(v.took.Microseconds())/1000)
			}
			m, _, _ := spread(times[srv.name])
			fmt.Fprintf(t, "\t%.0f\t%.3f", m, counts[srv.name][k.name]/float64(k.count))
		}
		for _, srv := range servers[1:] {
			var v []float64
			for i, x := range times[srv.name] {
				v = append(v, x/times[ours][i])
			}
			m, l, g := spread(v)
			fmt.Fprintf(t, "\t%v", ratios{m, l, g})
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// guestTree makes the tree, as a folder and as an image.
func guestTree(work string) (dir, bootstrap, config string, err error) {
	dir = filepath.Join(work, "tree")
	tree := testimage.NewTree()
	add := func(name string, data []byte) error {
		tree.File("/"+name, data)
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), data, 0o644)
	}
	data := make([]byte, fileSize)
	if _, err := testimage.Random(fileSize, 1).ReadAt(data, 0); err != nil {
		return "", "", "", err
	}
	err = add("big", data)
	for i := 0; i < guestDirs*guestFiles && err == nil; i++ {
		err = add(fmt.Sprintf("dir%03d/file%03d", i/guestFiles, i%guestFiles), data[i:i+guestSize])
	}
	if err != nil {
		return "", "", "", err
	}
	bootstrap, config, err = makeImage(work, "image", tree)
	return dir, bootstrap, config, err
}

// boot runs a guest on a server and returns what it did, by task.
func boot(ctx context.Context, srv server, counting bool) (map[string][]visit, error) {
	at, err := os.MkdirTemp("", "vmmbench-guest-") // short: a socket's path has 107 bytes
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(at)
	sock, count, stop, err := srv.start(ctx, at, counting)
	if err != nil {
		return nil, err
	}
	defer stop()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(sock); err == nil {
			break
		} else if time.Now().After(end) {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &witness{count: count, visits: map[string][]visit{}}
	const rounds = 2 // the first fills caches of the host
	r, err := testguest.Boot(ctx, testguest.Config{
		Kind: testguest.UML, Files: map[string]string{"/bin/vmmbench": self}, Output: w, Timeout: 10 * time.Minute,
		FS:     []testguest.FS{{Socket: sock, Tag: guestTag, MountAt: "/mnt"}},
		Script: fmt.Sprintf("exec vmmbench %s /mnt %d", insideWord, rounds),
	})
	if err != nil {
		return nil, err
	}
	if r.ExitCode != 0 {
		return nil, fmt.Errorf("exit code %d: %.2000s", r.ExitCode, r.Output)
	}
	for name, list := range w.visits {
		if len(list) != rounds {
			return nil, fmt.Errorf("%s was seen %d times, want %d", name, len(list), rounds)
		}
		w.visits[name] = slices.Clone(list[1:])
	}
	fmt.Printf("%s, Linux %s, %v:", srv.name, r.Kernel, r.Time.Round(time.Second))
	for _, t := range tasks() {
		for _, v := range w.visits[t.name] {
			fmt.Printf(" %s %v %.0f;", t.name, v.took.Round(time.Millisecond), v.requests)
		}
	}
	fmt.Println()
	return w.visits, w.err
}

// witness counts requests when the guest says that a task begins and ends.
type witness struct {
	count  func() (float64, error)
	rest   string
	before float64
	visits map[string][]visit
	err    error
}

func (w *witness) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		w.rest = rest
		line = strings.TrimSpace(line)
		if line != "@@begin" && !strings.HasPrefix(line, "@@end ") {
			continue
		}
		n, err := w.count()
		if err != nil {
			w.err = errors.Join(w.err, err)
		}
		if line == "@@begin" {
			w.before = n
			continue
		}
		took, name, _ := strings.Cut(strings.TrimPrefix(line, "@@end "), " ")
		us, err := strconv.Atoi(took)
		if err != nil {
			w.err = errors.Join(w.err, err)
		}
		w.visits[name] = append(w.visits[name], visit{time.Duration(us) * time.Microsecond, n - w.before})
	}
}

// requestsOf is how many requests rafsd has taken from all queues.
func requestsOf(ctx context.Context, api string) (sum float64, err error) {
	text, err := callAPI(ctx, api, http.MethodGet, "/metrics", "")
	if err != nil {
		return 0, err
	}
	found := false
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		if !strings.HasPrefix(sc.Text(), requestsMetric) {
			continue
		}
		v, err := strconv.ParseFloat(sc.Text()[strings.LastIndexByte(sc.Text(), ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		found, sum = true, sum+v
	}
	if !found {
		err = fmt.Errorf("no %s among the metrics", requestsMetric)
	}
	return sum, err
}

const requestsMetric = "rafsd_queue_requests_total"

// requestCounter counts the requests in virtiofsd's log.
type requestCounter struct {
	n    atomic.Int64
	mu   sync.Mutex
	rest []byte
}

func (c *requestCounter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = append(c.rest, p...)
	whole := bytes.LastIndexByte(c.rest, '\n') + 1
	c.n.Add(int64(bytes.Count(c.rest[:whole], []byte("Received request: opcode="))))
	c.rest = append(c.rest[:0], c.rest[whole:]...)
	return len(p), nil
}
