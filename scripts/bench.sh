#!/usr/bin/env bash
# Load on a cluster that is there for it: three nodes here, in a temporary folder, gone at the end.
# Usage: scripts/bench.sh BINARY [arguments of `blockraft bench`]
set -euo pipefail
binary=$1
shift
port=${BENCH_PORT:-7601}
dir=$(mktemp -d)
"$binary" dev --produce 0 --dir "$dir/nodes" --base-port "$port" >"$dir/log" 2>&1 &
cluster=$!
finish() {
  kill -TERM "$cluster" 2>/dev/null && wait "$cluster" || true
  rm -rf "$dir"
}
trap finish EXIT
export BLOCKRAFT_ENDPOINTS="127.0.0.1:$port,127.0.0.1:$((port + 1)),127.0.0.1:$((port + 2))"
if ! "$binary" ctl ready --wait 30s >/dev/null; then
  tail -n 20 "$dir/log" >&2
  echo "blockraft: the cluster for the benchmark did not come up; the end of its output is above" >&2
  exit 1
fi
"$binary" bench "$@"
