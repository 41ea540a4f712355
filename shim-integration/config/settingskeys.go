package config

import (
	"fmt"
	"reflect"

	"github.com/rafsd/rafsd/internal/nearest"
)

// SettingsKeys lists the keys of Settings with their sections, in order.
func SettingsKeys() []string {
	var keys []string
	t := reflect.TypeFor[Settings]()
	for i := range t.NumField() {
		section := t.Field(i)
		for j := range section.Type.NumField() {
			keys = append(keys, section.Tag.Get("toml")+"."+section.Type.Field(j).Tag.Get("toml"))
		}
	}
	return keys
}

// suggestion is the end of an "unknown" message: the nearest right word.
func suggestion(word string, right []string) string {
	if near := nearest.Word(word, right); near != "" {
		return fmt.Sprintf(", did you mean %s?", near)
	}
	return ""
}
