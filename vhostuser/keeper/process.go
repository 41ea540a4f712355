package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/internal/record"
)

// errDied is what becomes of calls to a worker that has ended.
var errDied = errors.New("the worker has ended")

// workerFD is the number of a worker's end of the socket pair.
const workerFD = 3

// worker is the keeper's view of one worker process.
type worker struct {
	link    *link
	cmd     *exec.Cmd
	binary  string // what it was started from
	version string // what it says it is; after it was ready
	dead    chan struct{}
	status  *os.ProcessState // after dead

	mu      sync.Mutex
	calls   map[uint64]chan *message // guarded by mu; nil once the link is closed
	lastID  uint64                   // guarded by mu
	stage   chan *message            // standby, ready, failed, over: of room for all of them
	started time.Time
}

// spawner starts processes on one thread that lives as long as the keeper: a
// child is killed when the *thread* that made it ends, and other threads of a Go
// program come and go.
type spawner struct{ jobs chan func() }

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) (err error) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		err = cmd.Start()
	}
	<-done
	return err
}

// close ends the thread. No child may be left.
func (s *spawner) close() { close(s.jobs) }

// startWorker starts a worker from the program at binary, which is told nothing
// yet.
func (k *Keeper) startWorker(binary string) (*worker, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(binary)
	cmd.Args = k.opts.Args
	cmd.Env = k.opts.Env
	cmd.ExtraFiles = []*os.File{theirs} // becomes workerFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, errors.Join(err, ours.sock.Close())
	}
	w := &worker{
		link: ours, cmd: cmd, binary: binary, dead: make(chan struct{}),
		calls: make(map[uint64]chan *message), stage: make(chan *message, 8), started: time.Now(),
	}
	if err := k.spawner.start(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start of a worker: %w", err), ours.sock.Close())
	}
	preferAsVictim(cmd.Process.Pid)
	var readers sync.WaitGroup
	readers.Go(func() { copyLines(k.opts.WorkerLog, stderr) })
	readers.Go(func() { k.hear(w) })
	k.tasks.Go(func() {
		// All that it has said before its end counts, so that is read first.
		readers.Wait()
		// The status is what is of interest, and it is there in any case.
		_ = cmd.Wait()
		w.status = cmd.ProcessState
		close(w.dead)
	})
	return w, nil
}

// preferAsVictim makes the kernel end the worker rather than the keeper when
// memory is short. Without the right to do so nothing is lost.
func preferAsVictim(pid int) {
	name := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	text, err := os.ReadFile(name)
	if err != nil {
		return
	}
	if have, err := strconv.Atoi(string(bytes.TrimSpace(text))); err == nil {
		_ = os.WriteFile(name, []byte(strconv.Itoa(min(have+100, 1000))), 0)
	}
}

// copyLines copies what a worker prints, a line at a time.
func copyLines(to io.Writer, from io.Reader) {
	r := bufio.NewReaderSize(from, 8<<10)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			if line[len(line)-1] != '\n' {
				line = append(bytes.Clone(line[:min(len(line), 8<<10-1)]), '\n')
			}
			// There is no place to report that a log cannot be written.
			_, _ = to.Write(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// call sends a message to the worker and waits for its answer, or for its death.
func (w *worker) call(m *message) (*message, error) {
	c := make(chan *message, 1)
	w.mu.Lock()
	if w.calls == nil {
		w.mu.Unlock()
		return nil, errDied
	}
	w.lastID++
	m.ID = w.lastID
	w.calls[m.ID] = c
	w.mu.Unlock()
	if err := w.send(m); err != nil {
		return nil, err
	}
	// What hangs is no better than what is dead: the next one may answer.
	timer := time.AfterFunc(callWithin, w.kill)
	defer timer.Stop()
	answer, ok := <-c
	if !ok {
		return nil, errDied
	}
	return answer, nil
}

// send sends a message. A worker that cannot be reached is as good as dead, and is
// made so.
func (w *worker) send(m *message) error {
	err := w.link.send(m)
	if err != nil && !errors.Is(err, record.ErrTooLarge) {
		w.kill()
		<-w.dead
		return errDied
	}
	return err
}

func (w *worker) kill() { _ = w.cmd.Process.Kill() }

// answered hands an answer to the call that waits for it.
func (w *worker) answered(m *message) {
	w.mu.Lock()
	c := w.calls[m.ID]
	delete(w.calls, m.ID)
	w.mu.Unlock()
	if c != nil {
		c <- m
	}
}

// hangUp ends all calls.
func (w *worker) hangUp() {
	w.mu.Lock()
	calls := w.calls
	w.calls = nil
	w.mu.Unlock()
	for _, c := range calls {
		close(c)
	}
}

// wait waits for one of the messages with which a worker tells how far it is.
func (w *worker) wait(ctx context.Context, within time.Duration) (*message, error) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case m := <-w.stage:
		return m, nil
	default:
	}
	select {
	case m := <-w.stage:
		return m, nil
	case <-w.dead:
		select {
		case m := <-w.stage: // its last words
			return m, nil
		default:
		}
		return nil, fmt.Errorf("%w: %v", errDied, w.status)
	case <-ctx.Done():
		return nil, errEnded
	case <-timer.C:
		return nil, fmt.Errorf("the worker did not get ready within %v", within)
	}
}

// crashed tells whether the worker ended by a fault of its own, rather than
// because somebody ended it.
func (w *worker) crashed() bool {
	s, ok := w.status.Sys().(syscall.WaitStatus)
	return !ok || !s.Signaled() || s.Signal() != syscall.SIGKILL && s.Signal() != syscall.SIGTERM
}
