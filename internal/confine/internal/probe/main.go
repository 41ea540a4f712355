// Command probe does to itself what its arguments say and tells what is left: the
// tests of package confine build it without cgo and look at it.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/internal/confine"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what string, args []string) error {
	switch what {
	case "limit":
		keep, err := strconv.ParseUint(args[0], 16, 64)
		if err != nil {
			return err
		}
		spread()
		if err := confine.NoNewPrivs(); err != nil {
			return err
		}
		if err := confine.Limit(confine.Set(keep)); err != nil {
			return err
		}
		return threads()
	case "parent":
		return parent(args)
	case "child":
		return child(args[0], confine.Mode(args[1]))
	}
	return fmt.Errorf("unknown word %q", what)
}

// spread makes the runtime start some threads and waits until they are there.
func spread() {
	for range 8 {
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		fd := int(r.Fd()) // a blocking read holds a thread
		go func() { var b [1]byte; _, _ = syscall.Read(fd, b[:]); _ = w }()
	}
	for {
		if tasks, err := os.ReadDir("/proc/self/task"); err != nil || len(tasks) > 8 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// threads prints a line for each thread with what the kernel says of it.
func threads() error {
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var line []string
		for l := range strings.Lines(string(text)) {
			if strings.HasPrefix(l, "Cap") || strings.HasPrefix(l, "NoNewPrivs") {
				line = append(line, strings.Join(strings.Fields(l), ""))
			}
		}
		fmt.Println(strings.Join(line, " "))
	}
	return nil
}

func parent(args []string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := confine.Child{Path: self, Args: append([]string{self, "child"}, args...)}
	code, err := c.Run(signals)
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// child shuts itself in and answers commands, a line each: "read PATH", "mounts",
// "fd" (is /proc/self/fd of before still good), "exit CODE".
func child(dir string, mode confine.Mode) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { <-term; os.Exit(7) }()
	proc, err := os.Open("/proc/self")
	if err != nil {
		return err
	}
	if err := confine.EnterDir(dir, mode); err != nil {
		return err
	}
	fmt.Println("ready", os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, arg, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "read":
			text, err := os.ReadFile(arg)
			fmt.Printf("%q %v\n", text, err)
		case "mounts":
			text, err := at(proc, "mountinfo")
			fmt.Printf("%q %v\n", text, err)
		case "exit":
			code, _ := strconv.Atoi(arg)
			os.Exit(code)
		}
	}
	return in.Err()
}

// at reads a file below an open directory.
func at(dir *os.File, name string) (string, error) {
	fd, err := syscall.Openat(int(dir.Fd()), name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b := make([]byte, 64<<10)
	n, err := f.Read(b)
	return string(b[:n]), err
}
