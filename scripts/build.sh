#!/usr/bin/env bash
# The binary. The first time in a target folder takes minutes, and says so.
# Usage: scripts/build.sh BINARY
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/took.sh
[ -x "$1" ] && exec scripts/cargo.sh build --release --locked --bin blockraft

scripts/tools.sh
library="${ROCKSDB_LIB_DIR:-}"
# Says its own time.
[ -n "$library${SLOW:-}" ] || library=$(scripts/rocksdb.sh)
kind=binary
minutes="four to eight minutes"
if [ -z "$library" ]; then
  kind=binary-and-rocksdb
  minutes="some twenty minutes, RocksDB included"
fi
echo "blockraft: compiling the binary, the first time in this folder: $minutes on two cores$(last_took "$kind")" >&2
SECONDS=0
scripts/cargo.sh build --release --locked --bin blockraft
took "$kind" "$SECONDS"
