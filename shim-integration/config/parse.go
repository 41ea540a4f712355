package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// maxText is the longest configuration text that is read, in bytes.
const maxText = 1 << 20

// ErrInvalid is what every error of Parse wraps.
var ErrInvalid = errors.New("invalid configuration")

// Parse reads the configuration of one mount and checks it.
//
// The text is tried as JSON of version 2, as TOML of version 2 and as JSON of
// version 1, and the first form that it fits counts. If it fits none, the error
// is that of the form which it looks like: version 2 if it has a key "version",
// version 1 else. Errors name keys, lines and what was expected, never a value.
func Parse(text string) (*Config, error) {
	c, err := parse(text)
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

// ReadFile reads the configuration in the file at path, of at most 1 MiB.
func ReadFile(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func parse(text string) (*Config, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("text of %d bytes, at most %d are read", len(text), maxText)
	}
	if !utf8.ValidString(text) {
		return nil, errors.New("text is not valid UTF-8")
	}
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("text is empty")
	}
	tree, jsonErr := parseJSON(text)
	if jsonErr != nil {
		if looksLikeJSON(text) || errors.Is(jsonErr, errNotObject) {
			return nil, jsonErr
		}
		tree, err := parseTOML(text)
		if err != nil {
			return nil, err
		}
		return readV2(newObject(tree))
	}
	c, errV2 := readV2(newObject(tree))
	if errV2 == nil {
		return c, nil
	}
	c, errV1 := readV1(newObject(tree))
	if errV1 == nil {
		return c, nil
	}
	if _, ok := tree["version"]; ok {
		return nil, errV2
	}
	return nil, errV1
}

// looksLikeJSON tells which of two syntax errors helps: no TOML document begins
// with a brace.
func looksLikeJSON(text string) bool {
	return strings.HasPrefix(strings.TrimSpace(text), "{")
}

// errNotObject is the fault of a text that is JSON, but no set of keys.
var errNotObject = errors.New("want a JSON object")

func parseJSON(text string) (map[string]any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, jsonFault(text, d, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: text goes on behind the JSON object", position(text, d.InputOffset()))
	}
	object, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w, found %s", errNotObject, kindOf(tree))
	}
	return object, nil
}

func jsonFault(text string, d *json.Decoder, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: not JSON: %w", position(text, syntax.Offset), err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%s: not JSON: the text ends too early", position(text, int64(len(text))))
	}
	return fmt.Errorf("%s: not JSON", position(text, d.InputOffset()))
}

// position turns an offset into the line and column that an editor shows.
func position(text string, offset int64) string {
	offset = min(max(offset, 0), int64(len(text)))
	before := text[:offset]
	line := 1 + strings.Count(before, "\n")
	column := len(before) - (strings.LastIndexByte(before, '\n') + 1)
	return fmt.Sprintf("line %d column %d", line, column)
}

// quoted is text that a TOML error repeats from its input.
var quoted = regexp.MustCompile("\"[^\"]*\"|'[^']{2,}'|`[^`]*`")

// maxNesting bounds the brackets, braces and dots of a TOML text: its decoder
// takes quadratic time and a stack as deep as they are nested.
const maxNesting = 2000

func parseTOML(text string) (map[string]any, error) {
	if n := strings.Count(text, "[") + strings.Count(text, "{") + strings.Count(text, "."); n > maxNesting {
		return nil, fmt.Errorf("neither JSON nor reasonable TOML: %d brackets, braces and dots, at most %d are read", n, maxNesting)
	}
	tree := map[string]any{}
	if _, err := toml.NewDecoder(bytes.NewReader([]byte(text))).Decode(&tree); err != nil {
		var fault toml.ParseError
		if !errors.As(err, &fault) {
			return nil, errors.New("neither JSON nor TOML")
		}
		// The library's message quotes what it met, which may be a credential.
		why := quoted.ReplaceAllString(fault.Message, "'…'")
		return nil, fmt.Errorf("line %d: neither JSON nor TOML: %s", fault.Position.Line, why)
	}
	return tree, nil
}

// clip shortens a text from a configuration for an error message.
func clip(s string) string {
	const limit = 32
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
