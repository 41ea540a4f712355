package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestTagAndQueues: what a front-end finds that asks for the configuration space,
// and how many queues are offered.
func TestTagAndQueues(t *testing.T) {
	for _, tt := range []struct {
		args    string
		tag     string
		queues  int // request queues offered
		request int // queues the front-end sets up
	}{
		{"--queues 3", "", 3, 3},
		{"--tag kataShared", "kataShared", 1, 1},
		{"--tag kataShared --queues 2", "kataShared", 2, 2},
	} {
		t.Run(tt.args, func(t *testing.T) {
			p := launch(t, options{}, strings.Fields("virtiofs --sock {sock} "+tt.args)...)
			ctx := testContext(t)
			vm, err := vmm.Dial(ctx, p.sock, vmm.Options{Wait: patience, RequestQueues: tt.request, RequestTag: tt.tag != ""})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Close()
			if got := vm.MaxQueues(); got != 1+tt.queues {
				t.Errorf("%d vrings offered, want %d", got, 1+tt.queues)
			}
			if tt.tag != "" && (vm.Tag() != tt.tag || vm.ConfigQueues() != tt.queues) {
				t.Errorf("tag %q and %d queues, want %q and %d", vm.Tag(), vm.ConfigQueues(), tt.tag, tt.queues)
			}
			c, err := vm.Mount(ctx, vmm.Linux612)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Getattr(ctx, vmm.RootID); err != nil {
				t.Error(err)
			}
			p.stop(syscall.SIGTERM)
		})
	}
}

// TestBootstrapAndAPI: what the command line mounts is seen by callers and by the
// guest before anything else happens; more can be mounted beside it.
func TestBootstrapAndAPI(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	temp, blobs := shortDir(t), shortDir(t)
	for _, id := range v.blobIDs(t) {
		if err := os.Symlink(filepath.Join(v.blobs, id), filepath.Join(blobs, id)); err != nil {
			t.Fatal(err)
		}
	}
	p := launch(t, options{env: []string{"TMPDIR=" + temp, "GOMAXPROCS=1"}}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}",
		"--bootstrap", v.bootstrap, "--localfs-dir", blobs, "--virtual-mountpoint", "/rafs/image/")
	p.ready()
	if got := p.info().BackendCollection; len(got) != 1 || got["/rafs/image"] == nil {
		t.Errorf("backend_collection: %v", got)
	}
	_, c := p.guest()
	checkFile(t, c, "/rafs/image", someFile(t, v))
	p.mount("/other", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	checkFile(t, c, "/other", someFile(t, v))
	if dirs, err := filepath.Glob(filepath.Join(temp, "rafsd-cache-*")); err != nil || len(dirs) != 1 {
		t.Errorf("temporary caches: %v, %v, want one", dirs, err)
	}
	p.stop(syscall.SIGTERM)
	if dirs, _ := filepath.Glob(filepath.Join(temp, "rafsd-cache-*")); len(dirs) != 0 {
		t.Errorf("temporary caches were left behind: %v", dirs)
	}
	if files, err := os.ReadDir(blobs); err != nil || len(files) != len(v.blobIDs(t)) {
		t.Errorf("something was written beside the blobs: %v, %v", files, err)
	}
}

// TestSettingsHaveEffect: a cache folder of our own, a log file, verification off.
func TestSettingsHaveEffect(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	dir := shortDir(t)
	settings, cache := filepath.Join(dir, "rafsd.toml"), filepath.Join(dir, "cache")
	text := "[log]\nlevel = \"debug\"\n[read]\nverify = \"off\"\n[cache]\ndir = \"" + cache + "\"\n"
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	logFile := filepath.Join(dir, "log")
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}", "--settings", settings,
		"--log-file", logFile, "--log-rotation-size", "1")
	p.ready()
	none := strings.Replace(localConfig(v.blobs, ""), `{"type":"filecache","filecache":{"work_dir":""}}`, `{"type":"dummycache"}`, 1)
	p.mount("/image", v.bootstrap, none)
	_, c := p.guest()
	checkFile(t, c, "/image", someFile(t, v))
	p.stop(syscall.SIGTERM)
	if found, err := filepath.Glob(filepath.Join(cache, "rafsd-v1*")); err != nil || len(found) != 1 {
		t.Errorf("folders in the cache: %v, %v, want one", found, err)
	}
	written, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"READ", "LOOKUP", "level=DEBUG", "signal=terminated", "not verified"} {
		if !strings.Contains(string(written), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if text := p.out.String(); text != "" {
		t.Errorf("with a log file, standard error got %q", text)
	}
}

// TestMirror: decision 7. The mirror is asked first and the origin is not needed.
func TestMirror(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	origin, mirror := startRegistry(t, v, testregistry.Options{}), startRegistry(t, v, testregistry.Options{})
	origin.Down()
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(origin, shortDir(t),
		`,"mirrors":[{"host":"http://`+mirror.Host()+`","headers":{"X-Test":"CANARY"},"failure_limit":5}]`))
	_, c := p.guest()
	checkFile(t, c, "/image", someFile(t, v))
	requests := mirror.Requests()
	if len(requests) == 0 || requests[0].Header.Get("X-Test") != "CANARY" {
		t.Errorf("requests to the mirror: %+v", requests)
	}
	p.info()
	p.stop(syscall.SIGTERM)
}

// TestCompletionScripts lets the shells that are there read their scripts.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var script strings.Builder
		if err := printCompletion(&script, shell); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(script.String(), "first-connect") || strings.Contains(script.String(), "dedup-db") {
			t.Errorf("%s: the options are not those of the help text", shell)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("SKIPPED for %s: not installed", shell)
			continue
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		return
	}
	var script strings.Builder
	bashCompletion(&script)
	cmd := exec.Command(bash, "-c", `source /dev/stdin; COMP_WORDS=(rafsd virtiofs --boo); COMP_CWORD=2; _rafsd; echo "${COMPREPLY[@]}"`)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "--bootstrap\n" {
		t.Errorf("--boo completes to %q, %v, want --bootstrap", out, err)
	}
}
