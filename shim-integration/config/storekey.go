package config

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"reflect"
	"sort"
)

// Key tells whether two mounts can use one blob store. It is a hash that takes
// secrets in, so it must not be printed or stored.
type Key [sha256.Size]byte

// StoreKey returns the Key of everything that decides where blobs come from and
// where their chunks are kept.
func (c *Config) StoreKey() Key {
	h := sha256.New()
	hashValue(h, reflect.ValueOf(c.Backend))
	hashValue(h, reflect.ValueOf(c.Cache.WorkDir()))
	if c.RAFS != nil {
		hashValue(h, reflect.ValueOf(c.RAFS.BatchSize))
	}
	return Key(h.Sum(nil))
}

// hashValue feeds v, whole and unambiguous, to h. Reflection, so that a key added
// to the configuration cannot be forgotten here.
func hashValue(h hash.Hash, v reflect.Value) {
	if v.IsValid() && v.CanInterface() {
		switch s := v.Interface().(type) {
		case Secret:
			hashString(h, s.Reveal())
			return
		case URL:
			hashString(h, s.Reveal())
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			hashString(h, "nil")
			return
		}
		hashString(h, "ptr")
		hashValue(h, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			hashValue(h, v.Field(i))
		}
	case reflect.Slice:
		hashUint(h, uint64(v.Len()))
		for i := range v.Len() {
			hashValue(h, v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		hashUint(h, uint64(len(keys)))
		for _, k := range keys {
			hashString(h, k.String())
			hashValue(h, v.MapIndex(k))
		}
	case reflect.String:
		hashString(h, v.String())
	case reflect.Bool:
		hashString(h, fmt.Sprint(v.Bool()))
	default:
		hashUint(h, v.Convert(reflect.TypeFor[uint64]()).Uint())
	}
}

func hashString(h hash.Hash, s string) {
	hashUint(h, uint64(len(s)))
	h.Write([]byte(s))
}

func hashUint(h hash.Hash, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:])
}
