package fuseproto

// Rerunner is what a Message may be beside: a request that its transport remembers
// beyond the end of this process. If the process ends before the reply was handed
// over, the next one runs the request again, and finds what this one noted. A
// *vhostuser.Request is one.
//
// The methods are called from the method that serves the request, and from nowhere
// else at that time. They cost a few stores and never fail.
type Rerunner interface {
	// Rerun tells whether an earlier process took the request and did not hand over a
	// reply.
	Rerun() bool
	// Note returns what was noted last, by this process or the earlier one; phase
	// PhaseNone if nothing was. note is valid until the next SetNote.
	Note() (phase uint8, errno int32, note []byte)
	// SetNote replaces the note by one of at most NoteSize bytes: wholly or not at
	// all, whenever the process ends.
	SetNote(phase uint8, errno int32, note []byte)
}

// Phases of a request that changes something.
const (
	PhaseNone      = iota // it has changed nothing yet
	PhaseExecuting        // it may have changed something; the note says how to tell
	PhaseResult           // it is done; errno and note are the result
)

// NoteSize is the most bytes of a note.
const NoteSize = 104

// Rerun tells whether an earlier process has begun this request: what it changes may
// have been changed already.
func (op *Op) Rerun() bool {
	r, ok := op.msg.(Rerunner)
	return ok && r.Rerun()
}

// Note returns what was noted of this request, PhaseNone if nothing was or nothing
// can be.
func (op *Op) Note() (phase uint8, errno int32, note []byte) {
	if r, ok := op.msg.(Rerunner); ok {
		return r.Note()
	}
	return PhaseNone, 0, nil
}

// SetNote notes how far this request has come, for the process that runs it again if
// this one ends. It does nothing where no process would.
func (op *Op) SetNote(phase uint8, errno int32, note []byte) {
	if r, ok := op.msg.(Rerunner); ok {
		r.SetNote(phase, errno, op.note[:copy(op.note[:], note)]) // of op: what goes to an interface is heap memory
	}
}

// begun notes that a request which is to happen once begins, and tells whether an
// earlier process has begun it.
func (op *Op) begun() bool {
	r, ok := op.msg.(Rerunner)
	if !ok {
		return false
	}
	if phase, _, _ := r.Note(); phase == PhaseResult && r.Rerun() {
		return true
	}
	r.SetNote(PhaseResult, 0, nil)
	return false
}

// Restorer is a FileSystem that can go on with a session of an earlier process.
type Restorer interface {
	// Restore is called in the place of Init: the session is one that an earlier
	// process has begun, with the number that Op.Session tells.
	Restore(flags, session uint64)
}
