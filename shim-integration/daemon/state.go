package daemon

import "fmt"

// event is what may change a State.
type event string

// The events of nydusd's state machine that reach a virtiofs daemon.
const (
	eventMount event = "Mount"
	eventStart event = "Start"
	eventStop  event = "Stop"
	eventExit  event = "Exit"

	eventTakeover event = "Takeover"
)

// next says which State an event leads to. What is not here is refused.
var next = map[State]map[event]State{
	StateInit:    {eventMount: StateReady, eventStop: StateStopped},
	StateReady:   {eventStart: StateRunning, eventStop: StateStopped, eventExit: StateStopped},
	StateRunning: {eventStop: StateReady},
}

// after returns the State after an event, or an error that wraps ErrState.
func (s State) after(e event) (State, error) {
	to, ok := next[s][e]
	if !ok {
		return s, fmt.Errorf("%s while %s: %w", e, s, ErrState)
	}
	return to, nil
}
