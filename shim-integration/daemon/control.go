package daemon

import (
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/shim-integration/daemon/logsink"
)

// SetLogLevel changes what is logged from now on: off, error, warn, info, debug or
// trace, in any case.
func (d *Daemon) SetLogLevel(name string) error {
	level, ok := logsink.Levels[strings.ToLower(name)]
	if !ok {
		return fmt.Errorf("%w: log level %.32q is none of off, error, warn, info, debug, trace", ErrInvalid, name)
	}
	if d.opts.Level == nil {
		return fmt.Errorf("log level: %w", ErrUnsupported)
	}
	if err := d.putState(func(s *stateRecord) { s.Level = strings.ToLower(name) }); err != nil {
		return err
	}
	d.log.Info("log level changes", "to", strings.ToLower(name))
	d.opts.Level.Set(level)
	return nil
}

// Errors returns the last errors that were logged, the oldest first, their bytes,
// and how many there ever were.
func (d *Daemon) Errors() (texts []string, size int, total uint64) {
	if d.opts.Events == nil {
		return []string{}, 0, 0
	}
	return d.opts.Events.Errors()
}

// Begin is what PUT start asks for: it is refused, since the daemon is running from
// its first answer on.
func (d *Daemon) Begin() error { return d.refuse(eventStart) }

// Takeover asks to go on with another daemon's session, which only one that was
// started for it could: it is refused.
func (d *Daemon) Takeover() error { return d.refuse(eventTakeover) }

// refuse returns the error of an event that changes nothing.
func (d *Daemon) refuse(e event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.state.after(e); err != nil {
		return err
	}
	return fmt.Errorf("%s while %s: %w", e, d.state, ErrState)
}

// Exit ends the daemon in good order, soon: Over yields nil.
func (d *Daemon) Exit() {
	d.log.Info("asked to end")
	d.life.end()
}
