package testguest

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// Progress gets a line for each step that may take long: downloads, above all.
// It may be replaced before the first use of this package.
var Progress io.Writer = os.Stderr

var progressMu sync.Mutex

func progress(format string, a ...any) {
	progressMu.Lock()
	defer progressMu.Unlock()
	fmt.Fprintf(Progress, "testguest: "+format+"\n", a...)
}
