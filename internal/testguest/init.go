package testguest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What differs between the kinds of guests, seen from inside.
type guestSide struct {
	out      string // the device that takes the script's output to the host
	tty      bool   // out is a terminal
	powerOff string // the command that ends the guest and the program that runs it
}

// writeInitramfs writes the archive that the guest's kernel unpacks: busybox, the
// modules to load, rafs-guest, the caller's files, the script and an /init that
// does what c says. nonce marks the lines of /init in the output.
func writeInitramfs(file string, c Config, m machine, rafsGuest []byte, nonce string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 256<<10)
	w := newCpioWriter(buf)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "mnt", "root", "etc"} {
		w.dir(d)
	}
	w.charDevice("dev/console", 0o600, 5, 1) // the kernel opens it for /init
	w.file("bin/busybox", 0o755, m.busybox.file)
	for _, a := range m.busybox.applets {
		if a != "busybox" {
			w.symlink("bin/"+a, "busybox")
		}
	}
	w.symlink("sbin", "bin")
	w.text("bin/rafs-guest", 0o755, string(rafsGuest))
	order := m.modules.loadOrder(slices.Concat(m.base, c.Modules))
	for _, name := range order {
		w.file("lib/modules/"+name+".ko", 0o644, filepath.Join(m.modules.dir, name+".ko"))
	}
	for to, from := range c.Files {
		w.tree(to, from)
	}
	w.text("run/script", 0o755, c.Script)
	w.text("init", 0o755, initScript(c, m.side, order, nonce))
	if err := w.close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// initScript is the guest's first process. It says on the output device, each in a
// line of its own that starts with the mark:
//
//	MARK init RELEASE   it runs; before that nothing is written
//	MARK mount I        mounting c.FS[I] failed, the reason follows up to the end
//	MARK exit CODE      the end, on a line of its own
func initScript(c Config, side guestSide, modules []string, nonce string) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("#!/bin/busybox sh")
	line("export PATH=/bin HOME=/root TERM=dumb")
	line("mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev")
	line("mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs tmp /tmp")
	for _, m := range modules {
		line("insmod /lib/modules/%s.ko", m)
	}
	line("n=0; while [ ! -e %[1]s ] && [ $n -lt 500 ]; do n=$((n+1)); sleep 0.02; done", side.out)
	if side.tty {
		line("stty -F %s raw -echo", side.out)
	}
	line("exec >%s 2>&1 </dev/null", side.out)
	line("echo '%s init' $(uname -r)", nonce)
	// The terminal is closed before the end, which waits for what it still holds.
	line("finish() { printf '\\n%s exit %%d\\n' $1; sync; exec >/dev/console 2>&1; sleep 0.02; %s; sleep 60; }", nonce, side.powerOff)
	for i, fs := range c.FS {
		if fs.MountAt == "" {
			continue
		}
		options := ""
		if fs.Options != "" {
			options = " -o " + shellQuote(fs.Options)
		}
		line("mkdir -p %[1]s && mount -t virtiofs%[2]s %[3]s %[1]s >/run/mount 2>&1 || { echo '%[4]s mount' %[5]d; cat /run/mount; dmesg | tail -n 10; finish 1; }",
			shellQuote(fs.MountAt), options, shellQuote(fs.Tag), nonce, i)
	}
	line("cd /root; sh /run/script; finish $?")
	return b.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
