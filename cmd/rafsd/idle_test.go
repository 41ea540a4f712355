package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNobodyWakesAnIdleDaemon: soon after its guest has gone quiet the daemon does
// nothing at all, whatever kept its threads awake before.
func TestNobodyWakesAnIdleDaemon(t *testing.T) {
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
	last := p.switches()
	var n int
	for range tries {
		time.Sleep(time.Second)
		now := p.switches()
		if n = now - last; n <= most {
			return
		}
		last = now
	}
	t.Errorf("%d context switches in the last second of %d", n, tries)
}

// switches is how often the process's threads have been switched to.
func (p *process) switches() (n int) {
	p.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		p.t.Fatal("no threads", err)
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if _, count, ok := strings.Cut(line, "voluntary_ctxt_switches:\t"); ok {
				var k int
				if _, err := fmt.Sscan(count, &k); err != nil {
					p.t.Fatal(err)
				}
				n += k
			}
		}
	}
	return n
}
