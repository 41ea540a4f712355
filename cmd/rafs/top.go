package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
	"github.com/rafsd/rafsd/vhostuser"
)

// clearScreen takes the cursor home and clears what is below.
const clearScreen = "\x1b[H\x1b[J"

func (c *ctl) top() *cobra.Command {
	var once bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what the daemon does, live",
		Long: `Show what the daemon does: rates and latencies of each queue and each image, hits and
misses, bytes fetched, and the rates of directories. In a terminal the view is renewed until the command is
interrupted; elsewhere, with --once or with --json, it is one of one interval.

Latencies are those of the daemon: from when a request is taken from the queue until
its answer is ready.`,
		Example: `  rafs ctl top
  rafs ctl top --once --interval 10s
  rafs ctl top --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every <= 0 {
				return usageError{errors.New("--interval: want more than 0")}
			}
			out := cmd.OutOrStdout()
			f, isFile := out.(*os.File)
			live := !once && !c.json && isFile && term.IsTerminal(int(f.Fd()))
			err := c.with(cmd.Context(), func(api *client.Client) error {
				before, err := api.Metrics(cmd.Context())
				if err != nil {
					return err
				}
				for {
					select {
					case <-time.After(every):
					case <-cmd.Context().Done():
						return cmd.Context().Err()
					}
					now, err := api.Metrics(cmd.Context())
					if err != nil {
						return err
					}
					v := newView(before, now)
					if c.json {
						return json.NewEncoder(out).Encode(v)
					}
					if live {
						fmt.Fprint(out, clearScreen)
					}
					v.print(out)
					if !live {
						return nil
					}
					before = now
				}
			})
			if live && errors.Is(err, context.Canceled) {
				return nil // the user has seen enough
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one view and end")
	cmd.Flags().DurationVar(&every, "interval", time.Second, "time that a view is of")
	return cmd
}

// view is what happened between two looks at the counters. Rates are per second,
// latencies in seconds.
type view struct {
	Seconds float64     `json:"seconds"`
	Rate    float64     `json:"requests_per_second"`
	Waiting uint32      `json:"waiting"`
	Queues  []queueView `json:"queues"`
	Mounts  []mountView `json:"mounts"`
}

type queueView struct {
	Queue    uint32  `json:"queue"`
	Rate     float64 `json:"requests_per_second"`
	P50      float64 `json:"p50_seconds"`
	P99      float64 `json:"p99_seconds"`
	Waiting  uint32  `json:"waiting"`
	Waited   float64 `json:"waited_per_second"`
	Kicks    float64 `json:"kicks_per_second"`
	Signals  float64 `json:"signals_per_second"`
	PollHits float64 `json:"poll_hits_per_second"`
	PollMiss float64 `json:"poll_misses_per_second"`
	Batch    float64 `json:"requests_per_batch"`
	Broken   uint64  `json:"broken"` // since the start
}

// mountView is of an image; of a directory only the rate is known.
type mountView struct {
	Mountpoint string  `json:"mountpoint"`
	Rate       float64 `json:"requests_per_second"`
	P50        float64 `json:"p50_seconds"`
	P99        float64 `json:"p99_seconds"`
	Errors     float64 `json:"errors_per_second"`
	Read       float64 `json:"read_bytes_per_second"`
	Hits       float64 `json:"hits_per_second"`
	Misses     float64 `json:"misses_per_second"`
	Fetched    float64 `json:"fetched_bytes_per_second"`

	directory bool
}

func newView(before, now *mountv1.MetricsResponse) view {
	v := view{Seconds: time.Duration(now.GetUnixNanos() - before.GetUnixNanos()).Seconds(), Queues: []queueView{}, Mounts: []mountView{}}
	// What began meanwhile, in another worker or as another mount, counts from 0.
	per := func(then, now uint64) float64 {
		if then > now {
			then = 0
		}
		if v.Seconds <= 0 {
			return 0
		}
		return math.Round(float64(now-then)/v.Seconds*1000) / 1000
	}
	queues := before.GetQueues()
	for i, q := range now.GetQueues() {
		old := &mountv1.QueueMetrics{}
		if i < len(queues) && queues[i].GetRequests() <= q.GetRequests() {
			old = queues[i]
		}
		spread := spreadOf(old.GetLatency(), q.GetLatency())
		one := queueView{
			Queue: q.GetQueue(), Rate: per(old.GetRequests(), q.GetRequests()), Waiting: q.GetWaiting(), Waited: per(old.GetWaited(), q.GetWaited()),
			P50: spread.Quantile(0.5).Seconds(), P99: spread.Quantile(0.99).Seconds(),
			Kicks: per(old.GetKicks(), q.GetKicks()), Signals: per(old.GetSignals(), q.GetSignals()),
			PollHits: per(old.GetPollHits(), q.GetPollHits()), PollMiss: per(old.GetPollMisses(), q.GetPollMisses()), Broken: q.GetBroken(),
		}
		if batches := per(old.GetBatches(), q.GetBatches()); batches > 0 {
			one.Batch = math.Round(one.Rate/batches*100) / 100
		}
		v.Rate += one.Rate
		v.Waiting += one.Waiting
		v.Queues = append(v.Queues, one)
	}
	images := make(map[string]*mountv1.ImageMetrics)
	for _, m := range before.GetImages() {
		images[m.GetMountpoint()] = m
	}
	for _, m := range now.GetImages() {
		old := images[m.GetMountpoint()]
		if old.GetRequests() > m.GetRequests() {
			old = nil
		}
		spread := spreadOf(old.GetLatency(), m.GetLatency())
		v.Mounts = append(v.Mounts, mountView{
			Mountpoint: m.GetMountpoint(), Rate: per(old.GetRequests(), m.GetRequests()), Errors: per(old.GetErrors(), m.GetErrors()),
			P50: spread.Quantile(0.5).Seconds(), P99: spread.Quantile(0.99).Seconds(),
			Read: per(old.GetDataRead(), m.GetDataRead()), Hits: per(old.GetWholeHits(), m.GetWholeHits()),
			Misses: per(old.GetPartialHits(), m.GetPartialHits()), Fetched: per(old.GetBackendBytes(), m.GetBackendBytes()),
		})
	}
	directories := make(map[string]uint64)
	for _, m := range before.GetDirectories() {
		directories[m.GetMountpoint()] = m.GetRequests()
	}
	for _, m := range now.GetDirectories() {
		v.Mounts = append(v.Mounts, mountView{Mountpoint: m.GetMountpoint(), Rate: per(directories[m.GetMountpoint()], m.GetRequests()), directory: true})
	}
	return v
}

// spreadOf returns what was counted between two looks.
func spreadOf(before, now *mountv1.Latency) vhostuser.Histogram {
	var b, n vhostuser.Histogram
	copy(b.Count[:], before.GetCounts())
	copy(n.Count[:], now.GetCounts())
	return n.Minus(&b)
}

func (v *view) print(out io.Writer) {
	fmt.Fprintf(out, "%s  %.0f requests/s, %d waiting\n\n", time.Now().Format(time.TimeOnly), v.Rate, v.Waiting)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "QUEUE\tREQUESTS/s\tP50\tP99\tWAITING\tWAITED/s\tKICKS/s\tSIGNALS/s\tPOLLS/s\tFOUND\tBATCH\tBROKEN\t")
	for _, q := range v.Queues {
		found := "-"
		if polls := q.PollHits + q.PollMiss; polls > 0 {
			found = fmt.Sprintf("%.0f%%", 100*q.PollHits/polls)
		}
		fmt.Fprintf(t, "%d\t%.0f\t%s\t%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%.1f\t%d\t\n", q.Queue, q.Rate, short(q.P50), short(q.P99),
			q.Waiting, q.Waited, q.Kicks, q.Signals, q.PollHits+q.PollMiss, found, q.Batch, q.Broken)
	}
	t.Flush()
	fmt.Fprintln(out)
	t = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "REQUESTS/s\tP50\tP99\tERRORS/s\tREAD\tHITS/s\tMISSES/s\tFETCHED\t  MOUNT")
	for _, m := range v.Mounts {
		if m.directory {
			fmt.Fprintf(t, "%.0f\t-\t-\t-\t-\t-\t-\t-\t  %s\n", m.Rate, m.Mountpoint)
			continue
		}
		fmt.Fprintf(t, "%.0f\t%s\t%s\t%.0f\t%s/s\t%.0f\t%.0f\t%s/s\t  %s\n", m.Rate, short(m.P50), short(m.P99), m.Errors,
			bytesOf(m.Read), m.Hits, m.Misses, bytesOf(m.Fetched), m.Mountpoint)
	}
	t.Flush()
}

// short prints seconds with two digits.
func short(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d == 0 {
		return "-"
	}
	unit := time.Duration(1)
	for unit*100 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}

// bytesOf prints a number of bytes with a binary prefix.
func bytesOf(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB"} {
		if n < 1024 {
			return fmt.Sprintf("%.3g %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.3g GiB", n)
}
