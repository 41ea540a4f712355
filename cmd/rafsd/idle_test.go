package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTransportL53_NobodyWakesAnIdleDaemon: soon after its guest has gone quiet the daemon does
// nothing at all, whatever kept its threads awake before.
func TestTransportL53_NobodyWakesAnIdleDaemon(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	p := launch(t, options{}, strings.Fields(kataGo)...)
	p.ready()
	p.mount("/image", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	_, c := p.guest()
	file := someFile(t, v)
	// Long enough for everything that a busy daemon does more of.
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		checkFile(t, c, "/image", file)
	}
	// What remains is the runtime's: its garbage collector's, for a moment, and its
	// monitor's, once a minute.
	const most, tries = 3, 10
	last := switches(t, p.cmd.Process.Pid)
	var n int
	for range tries {
		time.Sleep(time.Second)
		now := switches(t, p.cmd.Process.Pid)
		if n = now - last; n <= most {
			return
		}
		last = now
	}
	t.Errorf("%d context switches in the last second of %d", n, tries)
}

// switches is how often the threads of a process and its children have been switched to.
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	number := func(s string) int {
		k, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task + "/status")
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			if _, count, ok := strings.Cut(line, "voluntary_ctxt_switches:"); ok {
				n += number(count)
			}
		}
		children, _ := os.ReadFile(task + "/children")
		for child := range strings.FieldsSeq(string(children)) {
			n += switches(t, number(child))
		}
	}
	return n
}
