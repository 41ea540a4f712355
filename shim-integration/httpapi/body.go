package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"unicode/utf8"

	"github.com/rafsd/rafsd/shim-integration/daemon"
)

// maxBody is the longest request body in bytes.
const maxBody = 1 << 20

// readBody returns the body of r, nil if it has none. A body of length 0 is none.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, badRequest("reading the body: %v", err)
	case len(body) > maxBody:
		return nil, badRequest("body is longer than %d bytes", maxBody)
	case len(body) == 0:
		return nil, nil
	}
	return body, nil
}

// parameter returns a value of the query, "" if it is not there.
func parameter(r *http.Request, name string) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", badRequest("query: %v", err)
	}
	value := query.Get(name)
	if !utf8.ValidString(value) {
		return "", badRequest("query: %s is not valid UTF-8", name)
	}
	return value, nil
}

// mountpoint returns the value of that name in the query, which must be there.
func mountpoint(r *http.Request) (string, error) {
	value, err := parameter(r, "mountpoint")
	if err == nil && value == "" {
		err = badRequest("query: mountpoint is missing")
	}
	return value, err
}

// mountRequest reads a request to mount or remount.
func mountRequest(r *http.Request, body []byte) (daemon.MountRequest, error) {
	at, err := mountpoint(r)
	if err != nil {
		return daemon.MountRequest{}, err
	}
	request, err := mountBody(body)
	request.Mountpoint = at
	return request, err
}

// object reads a body that is a JSON object. Its errors name places, never values:
// there may be credentials.
func object(body []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(body) {
		return nil, badRequest("body is not valid UTF-8")
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(body, &keys); err != nil || keys == nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, badRequest("body is not JSON: offset %d: %v", syntax.Offset, err)
		}
		return nil, badRequest("body is not a JSON object")
	}
	return keys, nil
}

// text reads a string of an object.
func text(keys map[string]json.RawMessage, key string) (string, error) {
	raw, ok := keys[key]
	if !ok {
		return "", badRequest("body: key %s is missing", key)
	}
	var s string
	if !isString(raw) || json.Unmarshal(raw, &s) != nil {
		return "", badRequest("body: key %s: want a string", key)
	}
	return s, nil
}

// logLevel reads the body of PUT daemon.
func logLevel(body []byte) (string, error) {
	keys, err := object(body)
	if err != nil {
		return "", err
	}
	return text(keys, "log_level")
}

// configValues reads the body of PUT config: an object of strings.
func configValues(body []byte) (map[string]string, error) {
	keys, err := object(body)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(keys))
	for key := range keys {
		if out[key], err = text(keys, key); err != nil {
			return nil, badRequest("body: key %.80q: want a string", key)
		}
	}
	return out, nil
}

// checkBlobEntry reads the body of PUT blobs as far as nydusd does before it asks
// itself whether it can do it.
func checkBlobEntry(body []byte) error {
	keys, err := object(body)
	if err != nil {
		return err
	}
	for _, key := range []string{"type", "id"} {
		if _, err := text(keys, key); err != nil {
			return err
		}
	}
	for _, key := range []string{"config", "config_v2"} {
		if raw := bytes.TrimLeft(keys[key], " \t\r\n"); len(raw) > 0 && raw[0] == '{' {
			return nil
		}
	}
	return badRequest("body: neither config nor config_v2 is an object")
}

// mountBody reads the body of a mount. Unknown keys are ignored, as callers of
// other versions send some; keys are told apart by case. Its errors name keys,
// never values: the configuration inside holds credentials.
func mountBody(body []byte) (daemon.MountRequest, error) {
	var out daemon.MountRequest
	keys, err := object(body)
	if err != nil {
		return out, err
	}
	for _, f := range []struct {
		key      string
		to       *string
		required bool
	}{
		{"source", &out.Source, true},
		{"fs_type", &out.FSType, false},
		{"config", &out.Config, true},
	} {
		raw, ok := keys[f.key]
		if !ok {
			if f.required {
				return out, badRequest("body: key %s is missing", f.key)
			}
			continue
		}
		if !isString(raw) || json.Unmarshal(raw, f.to) != nil {
			return out, badRequest("body: key %s: want a string", f.key)
		}
	}
	raw, ok := keys["prefetch_files"]
	if !ok || string(raw) == "null" {
		return out, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return out, badRequest("body: key prefetch_files: want null or a list of strings")
	}
	for i, raw := range list {
		var file string
		if !isString(raw) || json.Unmarshal(raw, &file) != nil {
			return out, badRequest("body: key prefetch_files: element %d: want a string", i)
		}
		if !path.IsAbs(file) {
			return out, badRequest("body: key prefetch_files: element %d: want an absolute path", i)
		}
		out.PrefetchFiles = append(out.PrefetchFiles, file)
	}
	return out, nil
}

// isString tells a JSON string from null, which Unmarshal takes for "no change".
func isString(raw json.RawMessage) bool {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	return len(raw) > 0 && raw[0] == '"'
}

// statusError is an error of the protocol itself, with its status.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return e.message }

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// status tells the status of an error: the one place where classes of errors
// become numbers. Like nydusd, "exists" and "not found" are 500.
func status(err error) int {
	var own *statusError
	switch {
	case errors.As(err, &own):
		return own.status
	case errors.Is(err, daemon.ErrNoMetrics):
		return http.StatusNotFound
	case errors.Is(err, daemon.ErrStopping):
		return http.StatusServiceUnavailable
	case errors.Is(err, daemon.ErrUnsupported):
		return http.StatusNotImplemented
	case errors.Is(err, daemon.ErrState):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}
