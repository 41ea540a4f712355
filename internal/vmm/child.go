package vmm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Child returns the child process of pid whose second argument is word, 0 if there is
// none now: the worker of a back-end that has one.
func Child(pid int, word string) (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if err != nil {
				continue // it has ended
			}
			if argv := bytes.Split(args, []byte{0}); len(argv) > 1 && string(argv[1]) == word {
				return child, nil
			}
		}
	}
	return 0, nil
}

// Processes returns the processes that a back-end consists of: pid, and its worker if
// it has one.
func Processes(pid int) []int {
	if child, err := Child(pid, "worker"); err == nil && child != 0 {
		return []int{pid, child}
	}
	return []int{pid}
}
