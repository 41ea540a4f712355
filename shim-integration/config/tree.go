package config

import (
	"encoding/json"
	"fmt"
	"math"
	"sort"
	"strconv"
)

// object is one level of a configuration text, whatever syntax it came in, with
// the path that leads to it. Its accessors return a key's value, or the default
// if the key is absent or null; what does not fit is recorded as the first fault
// of the whole text, by its key and never with its value.
type object struct {
	path  string
	keys  map[string]any
	fault *error
}

func newObject(keys map[string]any) object {
	return object{keys: keys, fault: new(error)}
}

func (o object) err() error { return *o.fault }

func (o object) name(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

func (o object) fail(key, format string, args ...any) {
	if *o.fault == nil {
		*o.fault = fmt.Errorf("key %s: %s", o.name(key), fmt.Sprintf(format, args...))
	}
}

func (o object) wrongType(key, want string, v any) {
	o.fail(key, "want %s, found %s", want, kindOf(v))
}

// kindOf names the kind of a value for an error message.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number, int64, float64:
		return "a number"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "an object"
	default:
		return "a date or time"
	}
}

func (o object) has(key string) bool { return o.keys[key] != nil }

// require records a fault if key is absent.
func (o object) require(key string) {
	if !o.has(key) {
		o.fail(key, "missing")
	}
}

func (o object) str(key, def string) string {
	switch v := o.keys[key].(type) {
	case nil:
		return def
	case string:
		return v
	default:
		o.wrongType(key, "a string", v)
		return def
	}
}

func (o object) boolean(key string, def bool) bool {
	switch v := o.keys[key].(type) {
	case nil:
		return def
	case bool:
		return v
	default:
		o.wrongType(key, "true or false", v)
		return def
	}
}

// uint returns a whole number of at most max.
func (o object) uint(key string, def, max uint64) uint64 {
	var n uint64
	var err error
	switch v := o.keys[key].(type) {
	case nil:
		return def
	case json.Number:
		n, err = strconv.ParseUint(v.String(), 10, 64)
	case int64:
		if v < 0 {
			err = strconv.ErrRange
		}
		n = uint64(v)
	default:
		o.wrongType(key, "a whole number", v)
		return def
	}
	if err != nil || n > max {
		o.fail(key, "want a whole number from 0 to %d", max)
		return def
	}
	return n
}

func (o object) u32(key string, def uint32) uint32 {
	return uint32(o.uint(key, uint64(def), math.MaxUint32))
}

func (o object) secret(key string) Secret { return NewSecret(o.str(key, "")) }
func (o object) url(key string) URL       { return NewURL(o.str(key, "")) }

// strings returns a list of strings, never nil, so that it prints as [].
func (o object) strings(key string) []string {
	list, ok := o.list(key)
	out := make([]string, 0, len(list))
	if !ok {
		return out
	}
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			o.wrongType(fmt.Sprintf("%s[%d]", key, i), "a string", v)
			return out
		}
		out = append(out, s)
	}
	return out
}

func (o object) list(key string) ([]any, bool) {
	switch v := o.keys[key].(type) {
	case nil:
		return nil, false
	case []any:
		return v, true
	case []map[string]any: // an array of tables in TOML
		list := make([]any, len(v))
		for i := range v {
			list[i] = v[i]
		}
		return list, true
	default:
		o.wrongType(key, "a list", v)
		return nil, false
	}
}

// object returns the object of that key; false if it is absent or null.
func (o object) object(key string) (object, bool) {
	switch v := o.keys[key].(type) {
	case nil:
		return object{path: o.name(key), fault: o.fault}, false
	case map[string]any:
		return object{path: o.name(key), keys: v, fault: o.fault}, true
	default:
		o.wrongType(key, "an object", v)
		return object{path: o.name(key), fault: o.fault}, false
	}
}

// objects returns the objects of a list.
func (o object) objects(key string) []object {
	list, _ := o.list(key)
	out := make([]object, 0, len(list))
	for i, v := range list {
		element := fmt.Sprintf("%s[%d]", key, i)
		m, ok := v.(map[string]any)
		if !ok {
			o.wrongType(element, "an object", v)
			break
		}
		out = append(out, object{path: o.name(element), keys: m, fault: o.fault})
	}
	return out
}

// stringMap returns an object whose values are all strings.
func (o object) stringMap(key string) map[string]Secret {
	in, ok := o.object(key)
	out := make(map[string]Secret, len(in.keys))
	if !ok {
		return out
	}
	// In order, so that the fault reported is always the same one.
	names := make([]string, 0, len(in.keys))
	for name := range in.keys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		out[name] = in.secret(name)
	}
	return out
}
