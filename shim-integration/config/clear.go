package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
)

// EncodeClear returns c as JSON with all of its secrets, for DecodeClear of another
// process. It belongs into memory that nobody else reads, and nowhere else.
func (c *Config) EncodeClear() ([]byte, error) {
	b, err := json.Marshal(clear(reflect.ValueOf(c)))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}

// DecodeClear is the counterpart of EncodeClear. Keys that it does not know are those
// of a newer version, and count for nothing. Errors tell no value.
func DecodeClear(b []byte) (*Config, error) {
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("decode configuration: %T", err)
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

// UnmarshalJSON takes what clear makes of a credential.
func (s *Secret) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*s = NewSecret(text)
	return nil
}

var secretType, urlType = reflect.TypeFor[Secret](), reflect.TypeFor[URL]()

// clear returns v as what encoding/json prints as v, but for secrets, which are text.
func clear(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return clear(v.Elem())
	case reflect.Struct:
		switch v.Type() {
		case secretType:
			return v.Interface().(Secret).Reveal()
		case urlType:
			return v.Interface().(URL).Reveal()
		}
		m := make(map[string]any, v.NumField())
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() {
				continue
			}
			if f.Anonymous {
				maps.Copy(m, clear(v.Field(i)).(map[string]any))
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || name == "-" {
				name = f.Name
			}
			m[name] = clear(v.Field(i))
		}
		return m
	case reflect.Slice:
		if v.IsNil() {
			return nil
		}
		list := make([]any, v.Len())
		for i := range list {
			list[i] = clear(v.Index(i))
		}
		return list
	case reflect.Map:
		if v.IsNil() {
			return nil
		}
		m := make(map[string]any, v.Len())
		for it := v.MapRange(); it.Next(); {
			m[it.Key().String()] = clear(it.Value())
		}
		return m
	}
	return v.Interface()
}
