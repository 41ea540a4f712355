package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// ctl is what the commands that drive a daemon share.
type ctl struct {
	socket string
	json   bool
}

func newCtl() *cobra.Command {
	c := &ctl{}
	cmd := &cobra.Command{
		Use:   "ctl",
		Short: "Drive a running rafsd by its mount API",
		Long: `Drive a running rafsd by its mount API: the socket that it was started with
(rafsd virtiofs --ttrpc PATH), or rafsd.ttrpc in the folder of its --apisock.`,
		Example: `  rafs ctl --socket /run/rafsd.ttrpc ls
  rafs ctl --socket /run/rafsd.ttrpc mount /rafs/c1 image.boot --config nydusd.json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("which command? see rafs ctl --help")}
			}
			return usageError{unknownCommand(cmd, args[0])}
		},
	}
	cmd.PersistentFlags().StringVarP(&c.socket, "socket", "s", os.Getenv("RAFSD_TTRPC"), "socket of the mount API (default $RAFSD_TTRPC)")
	cmd.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	cmd.AddCommand(c.mount(), c.umount(), c.remount(), c.ls(), c.info(), c.watch(), c.prefetch(), c.inflight(), c.metrics(), c.top(), c.upgrade())
	for _, sub := range cmd.Commands() {
		sub.Args = argsOf(sub)
	}
	return cmd
}

// with calls f with a connection.
func (c *ctl) with(ctx context.Context, f func(*client.Client) error) error {
	if c.socket == "" {
		return usageError{errors.New("--socket is needed (or $RAFSD_TTRPC)")}
	}
	// ttrpc would write to standard error what the errors below say anyway.
	if err := log.SetLevel("panic"); err != nil {
		return err
	}
	api, err := client.Dial(ctx, c.socket)
	if err != nil {
		return err
	}
	return errors.Join(f(api), api.Close())
}

// print prints a message as JSON, or as human does.
func (c *ctl) print(cmd *cobra.Command, m proto.Message, human func(w io.Writer)) error {
	out := cmd.OutOrStdout()
	if !c.json {
		human(out)
		return nil
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s\n", b)
	}
	return err
}

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// mountFlags are those of mount and remount.
func (c *ctl) mountFlags(cmd *cobra.Command, fsType *string, run func(*client.Client, context.Context, *mountv1.MountRequest) (*mountv1.MountInfo, error)) {
	var config, digest string
	var prefetch []string
	cmd.Flags().StringVarP(&config, "config", "C", "", "file with the image's configuration, as nydusd's")
	cmd.Flags().StringVar(&digest, "digest", "", "SHA-256 that the bootstrap must have, in hex")
	cmd.Flags().StringArrayVar(&prefetch, "prefetch", nil, "path in the image to fetch in the background; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := &mountv1.MountRequest{Mountpoint: args[0], Source: args[1], FsType: *fsType, BootstrapDigest: digest, PrefetchFiles: prefetch}
		if config != "" {
			f, err := os.Open(config)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			if len(text) > maxConfig {
				return fmt.Errorf("%s is longer than %d bytes", config, maxConfig)
			}
			r.Config = string(text)
		}
		return c.with(cmd.Context(), func(api *client.Client) error {
			m, err := run(api, cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.print(cmd, m, func(w io.Writer) { printMounts(w, []*mountv1.MountInfo{m}) })
		})
	}
}

func (c *ctl) mount() *cobra.Command {
	var fsType string
	cmd := &cobra.Command{
		Use:   "mount MOUNTPOINT SOURCE",
		Short: "Mount an image, or a directory of the host",
		Long: `Mount an image, whose bootstrap is SOURCE, at MOUNTPOINT in the guest's tree; or, with
--type passthrough_fs, the directory SOURCE of the host. When the command ends, the guest
can see it.`,
		Example: `  rafs ctl mount /rafs/c1 image.boot --config nydusd.json
  rafs ctl mount /shared /srv/share --type passthrough_fs`,
		Args: cobra.ExactArgs(2),
	}
	cmd.Flags().StringVar(&fsType, "type", "rafs", "rafs or passthrough_fs")
	c.mountFlags(cmd, &fsType, func(api *client.Client, ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountInfo, error) {
		return api.Mount(ctx, r)
	})
	return cmd
}

func (c *ctl) remount() *cobra.Command {
	var fsType string
	cmd := &cobra.Command{
		Use:   "remount MOUNTPOINT SOURCE",
		Short: "Put another image, or another configuration, in the place of one",
		Long: `Put the image whose bootstrap is SOURCE in the place of the one at MOUNTPOINT. If the
bootstrap is the same, only the configuration changes, and open files go on; else they
are stale.`,
		Example: `  rafs ctl remount /rafs/c1 image.boot --config renewed.json`,
		Args:    cobra.ExactArgs(2),
	}
	c.mountFlags(cmd, &fsType, func(api *client.Client, ctx context.Context, r *mountv1.MountRequest) (*mountv1.MountInfo, error) {
		return api.Remount(ctx, r)
	})
	return cmd
}

func (c *ctl) upgrade() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade PROGRAM",
		Short: "Have another program of rafsd serve, without the guest noticing",
		Long: `Have the rafsd at PROGRAM serve in the place of the one that does now. It is started
and checked first; then mounts, open files and requests go over to it. If it does not come
up, the old one serves on, and the command says why.`,
		Example: `  rafs ctl upgrade /usr/libexec/rafsd-1.5/rafsd`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return c.with(cmd.Context(), func(api *client.Client) error {
				r, err := api.Upgrade(cmd.Context(), path)
				if err != nil {
					return err
				}
				return c.print(cmd, r, func(w io.Writer) {
					fmt.Fprintf(w, "version %s serves, after a pause of %v\n", r.GetVersion(), time.Duration(r.GetPauseMicros())*time.Microsecond)
				})
			})
		},
	}
}

func (c *ctl) umount() *cobra.Command {
	return &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Short:   "Take a mount out of the guest's tree",
		Example: `  rafs ctl umount /rafs/c1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error { return api.Umount(cmd.Context(), args[0]) })
		},
	}
}

func (c *ctl) ls() *cobra.Command {
	var digests bool
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the mounts",
		Example: `  rafs ctl ls --digests --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error {
				list, err := api.List(cmd.Context(), digests)
				if err != nil {
					return err
				}
				return c.print(cmd, &mountv1.ListResponse{Mounts: list}, func(w io.Writer) { printMounts(w, list) })
			})
		},
	}
	cmd.Flags().BoolVar(&digests, "digests", false, "work out the digest of every bootstrap")
	return cmd
}

func printMounts(w io.Writer, list []*mountv1.MountInfo) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MOUNTPOINT\tTYPE\tID\tBACKEND\tBLOBS\tSOURCE")
	for _, m := range list {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%s\n", m.GetMountpoint(), m.GetFsType(), m.GetMountId(), orDash(m.GetBackendType()), len(m.GetBlobs()), m.GetSource())
		if m.GetBootstrapDigest() != "" {
			fmt.Fprintf(t, "  sha256:%s\n", m.GetBootstrapDigest())
		}
	}
	t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (c *ctl) info() *cobra.Command {
	return &cobra.Command{
		Use:     "info",
		Short:   "Describe the daemon",
		Example: `  rafs ctl info`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error {
				i, err := api.Info(cmd.Context())
				if err != nil {
					return err
				}
				return c.print(cmd, i, func(w io.Writer) {
					guest := "none"
					if i.GetFrontEndConnected() {
						guest = "connected"
					}
					fmt.Fprintf(w, "state    %s\nversion  %s (%s)\npid      %d\nmounts   %d\nVMM      %s\n",
						i.GetState(), i.GetVersion(), i.GetGitCommit(), i.GetPid(), i.GetMounts(), guest)
				})
			})
		},
	}
}

func (c *ctl) watch() *cobra.Command {
	return &cobra.Command{
		Use:     "watch",
		Short:   "Print what happens, a line each, until the daemon ends",
		Example: `  rafs ctl watch --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error {
				err := api.Watch(cmd.Context(), func(e *mountv1.Event) error {
					return c.print(cmd, e, func(w io.Writer) {
						kind := strings.ToLower(strings.TrimPrefix(e.GetKind().String(), "EVENT_KIND_"))
						fmt.Fprintln(w, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %s", time.Unix(0, e.GetUnixNanos()).UTC().Format(time.RFC3339),
							kind, e.GetState(), e.GetMountpoint(), lost(e.GetLost()), e.GetMessage())), " "))
					})
				})
				if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
					return nil // the daemon ended, or the user did
				}
				return err
			})
		},
	}
}

func lost(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d events", n)
}

func (c *ctl) prefetch() *cobra.Command {
	return &cobra.Command{
		Use:   "prefetch MOUNTPOINT [PATH...]",
		Short: "Fetch data of an image before anyone asks for it",
		Long: `Fetch files and folders of the image at MOUNTPOINT in the background, or all of it if no
PATH is named. The command does not wait; rafs ctl watch tells when it is done.`,
		Example: `  rafs ctl prefetch /rafs/c1 /usr/bin /etc/passwd`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error { return api.Prefetch(cmd.Context(), args[0], args[1:]...) })
		},
	}
}

func (c *ctl) inflight() *cobra.Command {
	return &cobra.Command{
		Use:   "inflight",
		Short: "List the guest's requests that wait for something",
		Long: `List the guest's requests that wait for something, the oldest first: the file, and the
chunk of a blob that has to come first.`,
		Example: `  rafs ctl inflight --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error {
				list, err := api.Inflight(cmd.Context())
				if err != nil {
					return err
				}
				return c.print(cmd, &mountv1.InflightResponse{Ops: list}, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					fmt.Fprintln(t, "REQUEST\tAGE\tMOUNT\tFILE\tOFFSET\tSIZE\tWAITS FOR\tGUEST PID\tUNIQUE")
					for _, o := range list {
						fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%d\t%d\t%s\t%d\t%d\n", o.GetOp(), time.Duration(o.GetAgeNanos()).Round(time.Millisecond),
							orDash(o.GetMountpoint()), fileOf(o), o.GetOffset(), o.GetSize(), waitsFor(o), o.GetGuestPid(), o.GetUnique())
					}
					t.Flush()
				})
			})
		},
	}
}

// fileOf names the file that a request is for.
func fileOf(o *mountv1.InflightOp) string {
	if o.GetPath() != "" {
		return strconv.QuoteToGraphic(o.GetPath())
	}
	return fmt.Sprintf("node %#x", o.GetNodeId())
}

// waitsFor names the chunk that a request waits for.
func waitsFor(o *mountv1.InflightOp) string {
	if o.GetBlob() == "" {
		return "-"
	}
	s := fmt.Sprintf("blob %.12s chunk %d", o.GetBlob(), o.GetChunk())
	if o.GetBlobOffset() >= 0 {
		s += fmt.Sprintf(" at %d", o.GetBlobOffset())
	}
	return s
}

func (c *ctl) metrics() *cobra.Command {
	return &cobra.Command{
		Use:     "metrics",
		Short:   "Print counters of requests and mounts",
		Example: `  rafs ctl metrics --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(api *client.Client) error {
				m, err := api.Metrics(cmd.Context())
				if err != nil {
					return err
				}
				return c.print(cmd, m, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					fmt.Fprintln(t, "REQUEST\tCOUNT\tERRORS\tWAITED")
					for _, o := range m.GetOps() {
						fmt.Fprintf(t, "%s\t%d\t%d\t%d\n", o.GetOp(), o.GetRequests(), o.GetErrors(), o.GetWaited())
					}
					for _, i := range m.GetImages() {
						fmt.Fprintf(t, "%s\tread %d\twhole %d\tpartial %d\n", i.GetMountpoint(), i.GetDataRead(), i.GetWholeHits(), i.GetPartialHits())
					}
					for _, d := range m.GetDirectories() {
						fmt.Fprintf(t, "%s\tnodes %d\topen %d\tidle %d\n", d.GetMountpoint(), d.GetNodes(), d.GetOpenFiles(), d.GetIdleDescriptors())
					}
					t.Flush()
				})
			})
		},
	}
}
