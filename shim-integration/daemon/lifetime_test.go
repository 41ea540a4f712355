package daemon

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestLifetime(t *testing.T) {
	over := func(l *lifetime) (bool, error) {
		select {
		case err := <-l.over:
			return true, err
		default:
			return false, nil
		}
	}
	step := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}
	t.Run("nobody comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(10*time.Minute, 10*time.Second, false)
			step(10*time.Minute - time.Millisecond)
			if end, _ := over(l); end {
				t.Fatal("over too early")
			}
			step(time.Millisecond)
			if end, err := over(l); !end || !errors.Is(err, ErrNoFrontEnd) {
				t.Errorf("over %v, reason %v, want ErrNoFrontEnd", end, err)
			}
		})
	})
	t.Run("the VMM goes and comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(10*time.Minute, 10*time.Second, false)
			l.connect()
			step(time.Hour)
			l.disconnect(false)
			step(9 * time.Second)
			l.connect()
			step(time.Hour)
			if end, _ := over(l); end {
				t.Fatal("over while a VMM is connected")
			}
			l.disconnect(false)
			step(10 * time.Second)
			if end, err := over(l); !end || err != nil {
				t.Errorf("over %v, reason %v, want a good end after the linger time", end, err)
			}
		})
	})
	t.Run("never", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(0, 0, false)
			step(1000 * time.Hour)
			l.connect()
			l.disconnect(false)
			step(1000 * time.Hour)
			if end, _ := over(l); end {
				t.Error("over, though both times are 0")
			}
		})
	})
	t.Run("somebody only looks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(time.Minute, time.Second, false)
			step(20 * time.Second)
			l.connect()
			step(time.Millisecond)
			l.disconnect(false)
			step(40*time.Second - 2*time.Millisecond)
			if end, _ := over(l); end {
				t.Fatal("over long before the time for the first VMM")
			}
			step(time.Millisecond)
			if end, err := over(l); !end || !errors.Is(err, ErrNoFrontEnd) {
				t.Errorf("over %v, reason %v, want ErrNoFrontEnd at the old time", end, err)
			}
		})
	})
	t.Run("a short connection that was used", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(time.Minute, time.Second, false)
			l.connect()
			l.disconnect(true)
			step(time.Second)
			if end, err := over(l); !end || err != nil {
				t.Errorf("over %v, reason %v, want a good end after the linger time", end, err)
			}
		})
	})
	t.Run("stopped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLifetime(time.Second, time.Second, false)
			l.stop()
			step(time.Minute)
			if end, _ := over(l); end {
				t.Error("over after stop")
			}
		})
	})
}
