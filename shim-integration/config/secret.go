package config

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
)

// mask is what stands in the place of a secret.
const mask = "***"

// Secret is a credential. It prints as "***" whatever verb, encoder or logger
// it meets; only Reveal gives it away. The zero value is "not set" and prints as
// nothing.
//
// The value sits behind a pointer so that even a reflective print of a structure
// that holds a Secret in an unexported field, where fmt may call no method, shows
// an address and not the text.
type Secret struct{ text *string }

// NewSecret makes a Secret of s; an empty s is one that is not set.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal returns the credential itself. Its result belongs into a request to the
// place it is meant for and nowhere else.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsSet tells whether there is a credential.
func (s Secret) IsSet() bool { return s.text != nil }

func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return mask
}

// Format prints the mask for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue keeps the credential out of structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps the credential out of text encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON writes null for a credential that is not set, as nydusd's API does.
func (s Secret) MarshalJSON() ([]byte, error) {
	if s.text == nil {
		return []byte("null"), nil
	}
	return json.Marshal(mask)
}

// URL is an address that may carry credentials in its user part or its query,
// and prints without them. It need not be a well-formed URL: host names with and
// without a port are common.
type URL struct{ Secret }

// NewURL makes a URL of the text s.
func NewURL(s string) URL { return URL{NewSecret(s)} }

func (u URL) String() string {
	s := u.Reveal()
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "", s
	}
	// A password may hold an unescaped '/', '?' or '@', so the user part ends at
	// the last '@' there is: too much is masked then, never too little.
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = mask + rest[at:]
	}
	if before, query, ok := strings.Cut(rest, "?"); ok && query != "" {
		rest = before + "?" + mask
	}
	if found {
		return scheme + "://" + rest
	}
	return rest
}

// Format, LogValue, MarshalText and MarshalJSON print what String says.
func (u URL) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, u.String()) }
func (u URL) LogValue() slog.Value         { return slog.StringValue(u.String()) }
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }
func (u URL) MarshalJSON() ([]byte, error) { return json.Marshal(u.String()) }

// Parse returns the address with its credentials, for use in a connection.
func (u URL) Parse() (*url.URL, error) {
	parsed, err := url.Parse(u.Reveal())
	if err != nil {
		// url.Error repeats the text, credentials included.
		return nil, fmt.Errorf("%s is not a URL", u)
	}
	return parsed, nil
}

// Headers are HTTP headers whose values may be credentials: they print as names
// only.
type Headers map[string]Secret
