package show

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func decimal(n int) string { return strconv.Itoa(n) }

// grouped is n with a comma after every three digits.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for at := len(s) - 3; at > 0 && s[at-1] != '-'; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// size is n bytes in the unit that a person would choose.
func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n == 1:
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}

// percent is part of whole; "100%" is all of it and never a rounded part.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	p := 100 * float64(part) / float64(whole)
	if part < whole && p > 99.9 {
		p = 99.9
	}
	if p >= 10 && p <= 99 || part == whole {
		return fmt.Sprintf("%.0f%%", p)
	}
	return fmt.Sprintf("%.1f%%", p)
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// oneLine is a text of several lines as one, cut to what fits on a screen twice.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 160
	if len(s) > most {
		s = s[:most-3] + "..."
	}
	return s
}

// reason is the part of an error that tells a person what is missing: of what
// apt-get says, the first complaint.
func reason(err error) string {
	text := err.Error()
	if _, complaint, ok := strings.Cut(text, "E: "); ok {
		text, _, _ = strings.Cut(complaint, "E: ")
	}
	return strings.TrimRight(oneLine(text), "; ")
}
