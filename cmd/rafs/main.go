// Command rafs looks into RAFS images: lists, prints, checks and unpacks them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/internal/version"
)

// Exit codes: 1 for wrong input and failed work, 2 for a wrong command line.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "rafs:", oneLine(err))
	var usage usageError
	if errors.As(err, &usage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "rafs",
		Short: "Look into RAFS container images",
		Long: `rafs reads RAFS images (nydus versions 5 and 6): a bootstrap, which holds the
metadata, and blobs, which hold the data. IMAGE, or --bootstrap, is a bootstrap, a
blob that holds one, an image in a registry (registry.example/app:tag), or one in a
folder with an OCI layout (oci:FOLDER). Blobs come from there, from a folder in which
each file has its blob's id as name (--blob-dir), or from where a nydusd configuration
says (--config: localfs or registry). Every byte is compared with the image's
digests before it is shown.`,
		Example: `  rafs tree --bootstrap image.boot
  rafs cat --bootstrap image.boot --blob-dir blobs /etc/os-release
  rafs unpack --bootstrap image.boot --config nydusd.json --output - | tar t
  rafs check --bootstrap image.boot --blob-dir blobs --data
  rafs ls registry.example/app:tag /etc`,
		Version:       version.Version + " (" + version.Commit + ")",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("which command? see rafs --help")}
			}
			return usageError{unknownCommand(cmd, args[0])}
		},
	}
	root.SetFlagErrorFunc(suggestFlag)
	root.AddCommand(newLs(), newStat(), newCat(), newTree(), newUnpack(), newManifest(), newCheck(), newInspect(), newCtl())
	for _, c := range root.Commands() {
		c.Args = argsOf(c)
	}
	return root
}
