package registry

import (
	"net/http"
	"reflect"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	type want struct {
		first, last, total int64
		ok                 bool
	}
	tests := map[string]want{
		"bytes 0-9/100":                  {0, 9, 100, true},
		"bytes 5-5/*":                    {5, 5, -1, true},
		"bytes 0-99/100":                 {0, 99, 100, true},
		"bytes 0-100/100":                {ok: false},
		"bytes 9-0/100":                  {ok: false},
		"bytes */100":                    {ok: false},
		"bytes 0-9":                      {ok: false},
		"0-9/100":                        {ok: false},
		"items 0-9/100":                  {ok: false},
		"bytes -1-9/100":                 {ok: false},
		"bytes 0-18446744073709551616/*": {ok: false},
		"bytes 0-9223372036854775807/*":  {ok: false},
		"bytes +0-9/100":                 {ok: false},
		"bytes  0-9/100":                 {ok: false},
		"":                               {ok: false},
	}
	for in, w := range tests {
		first, last, total, ok := parseContentRange(in)
		if ok != w.ok || ok && (want{first, last, total, ok}) != w {
			t.Errorf("parseContentRange(%q) = %d-%d/%d %v, want %+v", in, first, last, total, ok, w)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	tests := map[string]struct {
		in   []string
		want []challenge
	}{
		"bearer": {
			[]string{`Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull"`},
			[]challenge{{"bearer", "https://auth.example/token", "reg", "repository:a/b:pull"}},
		},
		"comma inside quotes": {
			[]string{`Bearer realm="https://a/?x=1,2", scope="repository:a:pull,push"`},
			[]challenge{{"bearer", "https://a/?x=1,2", "", "repository:a:pull,push"}},
		},
		"two in one header": {
			[]string{`Basic realm="x", Bearer realm="y",service=z`},
			[]challenge{{"basic", "x", "", ""}, {"bearer", "y", "z", ""}},
		},
		"two headers":           {[]string{"Negotiate", `BASIC realm="x"`}, []challenge{{scheme: "negotiate"}, {"basic", "x", "", ""}}},
		"escaped quote":         {[]string{`Basic realm="a\"b"`}, []challenge{{"basic", `a"b`, "", ""}}},
		"quote that never ends": {[]string{`Basic realm="abc`}, []challenge{{"basic", "abc", "", ""}}},
		"nonsense":              {[]string{"=,=;;", "\x00", ""}, nil},
		"value before a scheme": {[]string{`realm="x"`}, nil},
	}
	for name, tt := range tests {
		if got := parseChallenges(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	tests := map[string]time.Duration{
		"7": 7 * time.Second, "0": 0, "": 0, "-1": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
	}
	for in, want := range tests {
		if got := retryAfter(in, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", in, got, want)
		}
	}
}

// FuzzHeaders feeds hostile headers to all that parses them.
func FuzzHeaders(f *testing.F) {
	f.Add("bytes 0-9/100")
	f.Add(`Bearer realm="https://a/token",service="b",scope="c"`)
	f.Add(`Basic realm="a\"b", Digest x=y, , =`)
	f.Add("Fri, 31 Dec 1999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if first, last, total, ok := parseContentRange(s); ok && (first < 0 || last < first || total >= 0 && last >= total) {
			t.Fatalf("parseContentRange(%q) = %d-%d/%d", s, first, last, total)
		}
		if got := parseChallenges([]string{s, s}); len(got) > 8 {
			t.Fatalf("%d challenges", len(got))
		}
		if d := retryAfter(s, time.Now()); d < 0 {
			t.Fatalf("retryAfter(%q) = %v", s, d)
		}
	})
}
