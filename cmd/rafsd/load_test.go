package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The load on the API: what comes at the same time.
const (
	silentConns = 1000
	slowConns   = 20
	mounters    = 100
)

// mountPace is the pace of those who mount: all of them at once, in the middle of it
// they umount, all at once, and at its end they begin anew.
const mountPace = time.Second

// TestAPIUnderLoad: a thousand silent connections, a hundred callers that mount and
// umount, slow ones and garbage; the guest's reads go on, right. With RAFSD_LONG=1 the
// 99th percentile of their time is compared with and without that, in turns, and
// printed; so is the same load on another daemon, which tells how much of it is the
// processors' being busy. The load comes from a process that runs only when nobody
// else wants to.
func TestAPIUnderLoad(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{binary: binary}, strings.Fields(kataGo)...)
	p.ready()
	work := shortDir(t)
	p.mount("/image", v.bootstrap, localConfig(v.blobs, work))
	_, c := p.guest()
	file := someFile(t, v)
	checkFile(t, c, "/image", file)
	e, err := c.Resolve(testContext(t), "/image"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open(testContext(t), e.NodeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	rounds, turns := 1, 1
	var other *process // only in the long form
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds, turns = 10, 6
		other = launch(t, options{binary: binary}, strings.Fields(kataGo)...)
		other.ready()
	}
	// read adds to took how long warm reads of 4 KiB take, for as long as one pace.
	read := func(took *[]time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
		defer cancel()
		for end := time.Now().Add(mountPace); time.Now().Before(end); {
			start := time.Now()
			b, err := c.Read(ctx, e.NodeID, open.Fh, 0, 4096)
			if *took = append(*took, time.Since(start)); err != nil || uint64(len(b)) != min(4096, e.Attr.Size) {
				t.Fatalf("read: %d bytes, %v", len(b), err)
			}
		}
	}
	const most = 1.3
	var calm, loaded, elsewhere []time.Duration
	good, goodElsewhere := 0, 0
	for round := range rounds {
		calm, loaded, elsewhere = calm[:0], loaded[:0], elsewhere[:0]
		// In turns, since the machine's other users change within seconds.
		mounts := 0
		for range turns {
			read(&calm)
			stop := p.loadAPI(v, work)
			read(&loaded)
			mounts += stop()
			if other != nil {
				stop := other.loadAPI(v, work)
				read(&elsewhere)
				mounts += stop()
			}
		}
		base := p99(calm)
		ratio := float64(p99(loaded)) / float64(base)
		if ratio <= most {
			good++
		}
		text := fmt.Sprintf("round %d: p99 %v, under load %v, ratio %.2f", round, base, p99(loaded), ratio)
		if other != nil {
			ratio := float64(p99(elsewhere)) / float64(base)
			if ratio <= most {
				goodElsewhere++
			}
			text += fmt.Sprintf("; with the load on another daemon %v, ratio %.2f", p99(elsewhere), ratio)
		}
		t.Logf("%s; %d mounts", text, mounts)
	}
	t.Logf("at most %.1f in %d of %d rounds, with the load on another daemon in %d", most, good, rounds, goodElsewhere)
	checkFile(t, c, "/image", file)
	p.info()
}

// p99 returns the 99th percentile. It sorts took.
func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}

// asLoader makes this binary the process that loads an API: the value is a loaderArgs.
const asLoader = "RAFSD_TEST_LOADER"

// loaderArgs say what the loader does.
type loaderArgs struct {
	API       string
	Bootstrap string
	Config    string
	Idle      bool // it runs when nobody else wants to
}

// loadAPI loads the API until the function that it returns is called, which returns
// how many mounts were made.
func (p *process) loadAPI(v variant, work string) (stop func() int) {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	args, err := json.Marshal(loaderArgs{API: p.api, Bootstrap: v.bootstrap, Config: localConfig(v.blobs, work)})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), asLoader+"="+string(args))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	said := bufio.NewReader(out)
	line := func() string {
		s, err := said.ReadString('\n')
		if err != nil {
			p.t.Errorf("the loader ended: %v", err)
		}
		return strings.TrimSpace(s)
	}
	line() // it has begun
	return func() int {
		in.Close()
		var mounts, failed int
		if _, err := fmt.Sscan(line(), &mounts, &failed); err != nil || mounts == 0 || failed > 0 {
			p.t.Errorf("%d mounts, %d calls failed, %v", mounts, failed, err)
		}
		if err := cmd.Wait(); err != nil {
			p.t.Error(err)
		}
		return mounts
	}
}

// runLoader is the loader's process.
func runLoader(text string) int {
	var a loaderArgs
	err := json.Unmarshal([]byte(text), &a)
	if err == nil && !a.Idle {
		err = a.again()
	}
	if err == nil {
		err = a.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loader:", err)
		return 1
	}
	return 0
}

// again starts the program anew with the scheduling policy of those who run when
// nobody else wants to, in all threads.
func (a loaderArgs) again() error {
	runtime.LockOSThread()
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return err
	}
	a.Idle = true
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Setenv(asLoader, string(text)); err != nil {
		return err
	}
	return syscall.Exec(exe, []string{exe}, os.Environ())
}

// run loads the API until standard input ends.
func (a loaderArgs) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dial := func() (net.Conn, error) {
		for {
			c, err := net.Dial("unix", a.API)
			if !errors.Is(err, unix.EAGAIN) { // too many wait to be accepted
				return c, err
			}
			sleep(ctx, time.Millisecond)
		}
	}
	var conns []net.Conn
	for range silentConns + slowConns {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	var all sync.WaitGroup
	for _, c := range conns[silentConns:] { // one byte now and then
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				const slow = "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\nX-Slow: "
				if _, err := c.Write([]byte{(slow + strings.Repeat("x", 100))[i%(len(slow)+100)]}); err != nil {
					return
				}
				sleep(ctx, 5*time.Millisecond)
			}
		})
	}
	all.Go(func() { // garbage
		for ctx.Err() == nil {
			c, err := dial()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "\x16\x03\x01 no request \x00\xff\r\n\r\n")
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = io.ReadAll(c)
			c.Close()
			sleep(ctx, 5*time.Millisecond)
		}
	})
	var mounts, failures atomic.Int64
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		MaxIdleConnsPerHost: mounters,
		DialContext:         func(context.Context, string, string) (net.Conn, error) { return dial() },
	}}
	call := func(method, at, body string) {
		req, err := http.NewRequest(method, "http://unix/api/v1/mount?mountpoint="+at, strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Fprintln(os.Stderr, "loader:", err)
			failures.Add(1)
			return
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusNoContent {
			fmt.Fprintf(os.Stderr, "loader: %s %s: %s %s, %v\n", method, at, resp.Status, text, err)
			failures.Add(1)
		}
	}
	body, err := json.Marshal(map[string]string{"fs_type": "rafs", "source": a.Bootstrap, "config": a.Config})
	if err != nil {
		return err
	}
	all.Go(func() {
		each := func(f func(at string)) {
			next := time.Now().Add(mountPace / 2)
			var some sync.WaitGroup
			for i := range mounters {
				some.Go(func() { f(fmt.Sprintf("/load/%d", i)) })
			}
			some.Wait()
			sleep(ctx, time.Until(next))
		}
		for {
			each(func(at string) { call("POST", at, string(body)); mounts.Add(1) })
			each(func(at string) { call("DELETE", at, "") })
			if ctx.Err() != nil {
				return
			}
		}
	})
	fmt.Println("begun")
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	for _, c := range conns {
		c.Close()
	}
	all.Wait()
	fmt.Println(mounts.Load(), failures.Load())
	return nil
}

// sleep sleeps for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
