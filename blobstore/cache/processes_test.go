package cache_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/blobstore/cache"
)

// fillAsChild is the main function of a process of TestSeveralProcesses: it
// attaches again and again with another choice of chunks, and stores some.
func fillAsChild(spec string) int {
	dir, seedText, _ := strings.Cut(spec, "|")
	seed, err := strconv.ParseUint(seedText, 10, 64)
	if err != nil {
		panic(err)
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	tab := makeTable(300, 4096)
	c, err := cache.Open(cache.Options{Dir: dir, BootID: boot1, SyncDelay: time.Millisecond, Log: slog.New(slog.DiscardHandler), Fdatasync: func(*os.File) error { return nil }})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for range 10 {
		var some []uint32
		for i := range uint32(300) {
			if rng.IntN(3) == 0 {
				some = append(some, i)
			}
		}
		view := tab.only(some...)
		v, err := c.Attach(context.Background(), "blob", view)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if v.Entry() != "blob" {
			fmt.Println("entry", v.Entry())
			return 1
		}
		for range 40 {
			i := some[rng.IntN(len(some))]
			if v.Ready(i) {
				var got, want []byte
				want = content(i, 4096)
				if p, ok := v.Data(i, 0, 4096); ok {
					got = p
				}
				if string(got) != string(want) {
					fmt.Println("chunk", i, "is ready and wrong")
					return 1
				}
				continue
			}
			if err := v.Store(i, content(i, 4096)); err != nil {
				fmt.Println(err)
				return 1
			}
		}
		if err := v.Release(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	if err := c.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func TestSeveralProcessesFillOneCache(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var children []*exec.Cmd
	var outputs []*strings.Builder
	for seed := range 3 {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), fmt.Sprintf("RAFSD_TEST_CACHE_CHILD=%s|%d", dir, seed))
		out := new(strings.Builder)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children, outputs = append(children, cmd), append(outputs, out)
	}
	for k, cmd := range children {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", k, err, outputs[k])
		}
	}
	tab := makeTable(300, 4096)
	c := open(t, dir, nil)
	v := attach(t, c, "blob", tab)
	if got := ready(t, v, tab); len(got) < 150 {
		t.Errorf("%d chunks are ready after three processes filled the cache", len(got))
	}
	done(t, c, v)
	names, err := filepath.Glob(filepath.Join(dir, "rafsd-v1", "*"))
	if err != nil || len(names) != 3 {
		t.Errorf("the folder holds %v, %v; want one entry and the lock", names, err)
	}
}
