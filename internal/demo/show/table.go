package show

import (
	"fmt"
	"strings"
)

// Table is the report for a person: a column for each phase.
func (r Report) Table() string {
	boot := "boot time"
	if !r.Real {
		boot = "connect time"
	}
	rows := [][3]string{
		{"", "container start", "every file"},
		{boot, seconds(r.Start.Boot), seconds(r.All.Boot)},
		{"then, until its end", seconds(r.Start.Took), seconds(r.All.Took)},
		{"files read", grouped(int64(r.Start.Files)), grouped(int64(r.All.Files))},
		{"bytes read", size(r.Start.Read), size(r.All.Read)},
		{"bytes of the image", size(r.Image), size(r.Image)},
		{"bytes fetched so far", size(r.Start.Fetched), size(r.All.Fetched)},
		{"range requests so far", grouped(int64(r.Start.Answers)), grouped(int64(r.All.Answers))},
		{"percent", percent(r.Start.Fetched, r.Image), percent(r.All.Fetched, r.Image)},
	}
	var b strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&b, "  %-22s %16s %14s\n", row[0], row[1], row[2])
	}
	return b.String()
}
