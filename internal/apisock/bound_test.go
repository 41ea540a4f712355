package apisock

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// pair returns both ends of a connection that was accepted by a bound listener.
func pair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	bound := Bound(l, "", slog.New(slog.DiscardHandler))
	if client, err = net.Dial("unix", l.Addr().String()); err == nil {
		server, err = bound.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
		l.Close()
	})
	return client, server
}

// TestDribblesAreGathered: what comes byte by byte is read in few pieces, and whole;
// who has sent something that was answered is not waited for.
func TestDribblesAreGathered(t *testing.T) {
	client, server := pair(t)
	const count = 300
	go func() {
		for i := range count {
			if _, err := client.Write([]byte{byte(i)}); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	var got []byte
	buf := make([]byte, 4096)
	reads := 0
	for len(got) < count {
		n, err := server.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		reads++
	}
	for i, b := range got {
		if b != byte(i) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	if reads > quickReads+count/10 {
		t.Errorf("%d reads for %d bytes", reads, count)
	}

	request, answer := []byte("short"), bytes.Repeat([]byte("long"), 100)
	start := time.Now()
	const turns = 10 * quickReads
	for range turns {
		if _, err := server.Write(answer); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := server.Read(buf); err != nil || !bytes.Equal(buf[:n], request) {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if _, err := client.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > turns*morePatience {
		t.Errorf("%d requests took %v", turns, took)
	}
}
