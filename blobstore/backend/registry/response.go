package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// maxDrain is how much of a body that nobody wants is read to keep its
// connection.
const maxDrain = 16 << 10

func drain(resp *http.Response) {
	defer limitBody(resp)()
	// What cannot be read is dropped with the connection.
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
	_ = resp.Body.Close()
}

// maxBody is how long a body may take that is not the blob's.
const maxBody = 5 * time.Second

// limitBody cuts a body unless the function that it returns is called in time.
func limitBody(resp *http.Response) (stop func() bool) {
	return time.AfterFunc(maxBody, func() { _ = resp.Body.Close() }).Stop
}

// checkRange accepts a response that carries the n bytes at off of the blob,
// and returns the blob's size, or -1 if the response does not tell.
func checkRange(resp *http.Response, u *url.URL, off, n int64) (total int64, err error) {
	bad := func(format string, args ...any) (int64, error) {
		return 0, backend.Errorf(backend.BadAnswer, "%s: asked for bytes %d-%d: %w", show(u), off, off+n-1, fmt.Errorf(format, args...))
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" && resp.StatusCode < 300 {
		return bad("the answer is encoded (%s)", short(e))
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		first, last, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok {
			return bad("206 with the content range %q", short(resp.Header.Get("Content-Range")))
		}
		if first != off || last != off+n-1 {
			return bad("got bytes %d-%d", first, last)
		}
		if resp.ContentLength >= 0 && resp.ContentLength != n {
			return bad("got a body of %d bytes", resp.ContentLength)
		}
		return total, nil
	case http.StatusOK:
		if off != 0 {
			return bad("got the whole blob")
		}
		if resp.ContentLength >= 0 && resp.ContentLength < n {
			return bad("got a body of %d bytes", resp.ContentLength)
		}
		return resp.ContentLength, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return bad("416, the blob has no such bytes (%s)", short(resp.Header.Get("Content-Range")))
	}
	return 0, statusError(resp, u)
}

// parseContentRange parses "bytes 0-9/100"; total is -1 for "*".
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	a, b, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	num := func(s string) int64 {
		v, err := strconv.ParseUint(s, 10, 62)
		if err != nil {
			ok = false
		}
		return int64(v)
	}
	first, last, total = num(a), num(b), -1
	if size != "*" {
		total = num(size)
	}
	return first, last, total, ok && first <= last && (total < 0 || last < total)
}

// statusError is the error of an answer that is not one.
func statusError(resp *http.Response, u *url.URL) error {
	kind, after := backend.Permanent, time.Duration(0)
	switch c := resp.StatusCode; {
	case c == http.StatusUnauthorized || c == http.StatusForbidden:
		kind = backend.Denied
	case c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests, c >= 500:
		kind = backend.Temporary
		after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	case c < 400:
		kind = backend.BadAnswer
	}
	err := fmt.Errorf("%s: %d %s%s", show(u), resp.StatusCode, http.StatusText(resp.StatusCode), errorCode(resp))
	return &backend.Error{Kind: kind, RetryAfter: after, Err: err}
}

// retryAfter parses a Retry-After header: seconds, or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// errorCode returns the first error code of a registry's JSON answer, such as
// " (DENIED)". Nothing else of a body is shown.
func errorCode(resp *http.Response) string {
	if !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return ""
	}
	defer limitBody(resp)()
	var doc struct{ Errors []struct{ Code string } }
	if json.NewDecoder(io.LimitReader(resp.Body, 8<<10)).Decode(&doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	code := doc.Errors[0].Code
	if code == "" || len(code) > 40 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return ""
	}
	return " (" + code + ")"
}

// short bounds what an answer can write into a message.
func short(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
