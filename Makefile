# rafsd: `make help` lists the targets.

GO          ?= go
BIN         := $(CURDIR)/bin
COMMIT      := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BUILD_TIME  := $(shell git show -s --format=%cI HEAD 2>/dev/null || echo unknown)
VERSION     := $(shell git describe --tags --always 2>/dev/null || echo unknown)
VERSION_PKG := github.com/rafsd/rafsd/internal/version
LDFLAGS     := -s -w -X $(VERSION_PKG).Version=$(VERSION) -X $(VERSION_PKG).Commit=$(COMMIT) -X $(VERSION_PKG).BuildTime=$(BUILD_TIME)
TEST_TIMEOUT ?= 15m
# Packages of the hit path: what they allocate is counted without the race detector.
HIT_PATH    := ./vhostuser ./fuseproto ./rafs/... ./blobstore/... ./shim-integration/daemon ./internal/vmm/nullfs
FUZZTIME    ?= 3m
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## build rafsd, rafs and rafs-guest into bin/ (static)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: build ## boot a real guest that reads an image lazily through rafsd
	$(GO) run ./internal/demo -rafsd $(BIN)/rafsd $(DEMO_FLAGS)

.PHONY: test
test: ## all tests with the race detector (guests are booted where they can be)
	$(GO) test -race -timeout $(TEST_TIMEOUT) ./...
	$(GO) test -run 'Alloc|SteadyState' $(HIT_PATH)

.PHONY: contract
contract: ## the HTTP API against nydus-snapshotter's own client (a module of its own)
	cd shim-integration/contract && $(GO) vet ./... && $(GO) test -timeout $(TEST_TIMEOUT) ./...

.PHONY: test-matrix
test-matrix: build ## boot every guest kernel and VMM that we know (long)
	RAFSD_MATRIX=1 $(GO) test -count=1 -timeout 60m -run 'Matrix' -v ./internal/e2e

.PHONY: lint
lint: ## gofmt, go vet (amd64, arm64), staticcheck
	@test -z "$$(gofmt -l -s cmd vhostuser fuseproto rafs blobstore shim-integration guest internal)" || { gofmt -l -s cmd vhostuser fuseproto rafs blobstore shim-integration guest internal; echo 'gofmt -s is needed for the files above'; exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

.PHONY: generate
generate: ## write generated files anew
	$(GO) generate ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 3m) each
	@set -e; for pkg in $$($(GO) list ./...); do \
	  dir=$$($(GO) list -f '{{.Dir}}' $$pkg); \
	  for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | sed 's/func //'); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$pkg; \
	  done; \
	done

NYDUSD      ?=

.PHONY: bench
bench: build ## rafsd beside virtiofsd, nydusd (NYDUSD=path) and the floor: table, CSV, chart; under ten minutes
	CGO_ENABLED=0 $(GO) build -o $(BIN)/vmmbench ./internal/vmm/cmd/vmmbench
	$(BIN)/vmmbench -part rows,blocked,images -rafsd $(BIN)/rafsd $(if $(NYDUSD),-nydusd $(NYDUSD)) -rounds 11 -time 120ms -patience 2m -out docs/benchmarks

.PHONY: bench-guest
bench-guest: build ## guests on rafsd and on virtiofsd: find, tar, random reads, and requests for each file
	CGO_ENABLED=0 $(GO) build -o $(BIN)/vmmbench ./internal/vmm/cmd/vmmbench
	$(BIN)/vmmbench -part guest -rafsd $(BIN)/rafsd -rounds 4

.PHONY: bench-shared
bench-shared: build ## shared folders, written to, beside virtiofsd; throughput by queues and depth
	$(GO) run ./internal/vmm/cmd/vmmbench -compare -passthrough -rafsd $(BIN)/rafsd
	$(GO) run ./internal/vmm/cmd/vmmbench -scale -rafsd $(BIN)/rafsd -svg docs/scaling.svg

.PHONY: bench-library
bench-library: ## Go benchmarks of the library
	$(GO) test -run '^$$' -bench . -benchmem ./vhostuser/... ./fuseproto/... ./rafs/... ./blobstore/... ./shim-integration/daemon

.PHONY: soak
soak: ## long random load (10^6 requests and more; half an hour of guests that come and go while workers die)
	RAFSD_LONG=1 $(GO) test -count=1 -timeout 120m ./internal/e2e ./vhostuser/... ./internal/vmm/...
	RAFSD_SOAK=30m $(GO) test -count=1 -timeout 60m -v -run TestSoak ./cmd/rafsd

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
