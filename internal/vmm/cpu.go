package vmm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OwnCPU is the processor time that this process has used.
func OwnCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ownWait is how long this process's threads were ready to run and got no processor.
func ownWait() time.Duration {
	_, waited, err := threadsTimes(os.Getpid())
	if err != nil {
		return 0
	}
	return waited
}

// ProcessCPU is the processor time that the process pid, with its children, has
// used so far. It is the scheduler's own count in nanoseconds where the kernel
// shows that, summed over the threads that live; else clock ticks.
func ProcessCPU(pid int) (time.Duration, error) {
	used, _, err := processTimes(pid)
	return used, err
}

// processTimes is ProcessCPU, and how long threads were ready to run and got no
// processor, as far as the kernel shows that.
func processTimes(pid int) (sum, waited time.Duration, err error) {
	sum, waited, err = threadsTimes(pid)
	if err != nil {
		if sum, err = ticksCPU(pid); err != nil {
			return 0, 0, err
		}
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(b)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			if d, w, err := processTimes(child); err == nil {
				sum += d
				waited += w
			}
		}
	}
	return sum, waited, nil
}

func threadsTimes(pid int) (sum, waited time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, 0, fmt.Errorf("process %d has no schedstat", pid)
	}
	for _, name := range threads {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var ns, late int64
		if _, err := fmt.Sscan(string(b), &ns, &late); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		sum += time.Duration(ns)
		waited += time.Duration(late)
	}
	return sum, waited, nil
}

func ticksCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; fields are counted behind it.
	_, rest, ok := bytes.Cut(b, []byte(") "))
	for ok && bytes.Contains(rest, []byte(") ")) {
		_, rest, ok = bytes.Cut(rest, []byte(") "))
	}
	fields := strings.Fields(string(rest))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}
