package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/shim-integration/mountapi"
	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// A shim mounts a folder of the host, looks at what there is, and takes it away.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	socket, stop := startDaemon() // elsewhere: rafsd virtiofs --ttrpc SOCKET
	defer stop()

	c, err := client.Dial(ctx, socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	shared := &mountv1.MountRequest{Mountpoint: "/shared", FsType: "passthrough_fs", Source: "/"}
	if _, err := c.Mount(ctx, shared); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := c.Mount(ctx, shared); errors.Is(err, client.ErrExists) {
		fmt.Println("it is there already")
	}
	mounts, err := c.List(ctx, false)
	for _, m := range mounts {
		fmt.Println(m.GetMountpoint(), m.GetFsType())
	}
	if err := errors.Join(err, c.Umount(ctx, "/shared")); err != nil {
		fmt.Println(err)
	}
	// Output:
	// it is there already
	// /shared passthrough_fs
}

func startDaemon() (socket string, stop func()) {
	dir, err := os.MkdirTemp("", "rafsd")
	if err != nil {
		panic(err)
	}
	log := slog.New(slog.DiscardHandler)
	d, err := daemon.New(daemon.Options{Log: log})
	if err != nil {
		panic(err)
	}
	s, err := mountapi.NewServer(d, nil, log)
	if err != nil {
		panic(err)
	}
	socket = filepath.Join(dir, "rafsd.ttrpc")
	l, err := apisock.Listen(socket)
	if err != nil {
		panic(err)
	}
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	return socket, func() {
		if err := errors.Join(s.Close(), <-done, d.Close(), os.RemoveAll(dir)); err != nil {
			panic(err)
		}
	}
}
