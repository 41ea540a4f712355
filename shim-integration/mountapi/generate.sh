#!/usr/bin/env bash
# Writes the Go code of the mount API anew. protoc comes from Debian, the plugins are
# pinned in go.mod; lines that name versions of tools are left out, so that the result
# depends on the .proto file and the plugins alone.
set -euo pipefail
cd "$(dirname "$0")"
command -v protoc >/dev/null || { echo "protoc is missing: install protobuf-compiler" >&2; exit 1; }
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
go build -o "$tools/" google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
protoc --plugin="$tools/protoc-gen-go" --plugin="$tools/protoc-gen-go-ttrpc" \
  --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative v1/mount.proto
sed -i -E '/^\/\/ (versions:|- protoc|	protoc)/d; /^\/\/ \t?(- )?protoc/d' v1/*.pb.go
gofmt -s -w v1/*.pb.go
