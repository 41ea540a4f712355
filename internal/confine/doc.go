// Package confine takes away from a process what it does not need: the hope of
// more privileges, capabilities, and the sight of the host's files.
//
//	rafsd virtiofs                    rafsd --shared-dir DIR (as virtiofsd)
//	  NoNewPrivs, Limit                 the started process: Run, waits
//	  no namespace of its own:            │ clone: own mounts, own pids
//	  mounts made later are seen          ▼
//	                                    child: Sandbox.Enter, NoNewPrivs, Limit
//	                                      root = DIR, mounts still flow in
//
// Linux keeps capabilities and no_new_privs for each thread, and Go has many:
// NoNewPrivs and Limit change all of them at once or fail. That works only in a
// program without cgo, as all of ours are shipped; in others they return
// ErrThreads.
//
// Trust: this is for the time after something went wrong. What is taken away
// cannot be had again, by no path: the bounding set is emptied too.
package confine
