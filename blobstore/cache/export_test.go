package cache

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Repair makes the files base.map and base.data, copied from elsewhere, a pair.
func Repair(t testing.TB, base string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(base+".data", &st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(base + ".map")
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	h.dataIno = st.Ino
	f, err := os.OpenFile(base+".map", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		t.Fatal(err)
	}
}

// Seal gives each slot of a map the checksum that its content asks for.
func Seal(m []byte) {
	for at := headerSize; at+slotSize <= len(m); at += slotSize {
		binary.LittleEndian.PutUint32(m[at+20:], slotCRC(m[at:at+slotSize]))
	}
}
