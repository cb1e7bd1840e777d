#!/usr/bin/env bash
# The binary. The first time in a target folder takes minutes, and says so.
# Usage: scripts/build.sh BINARY
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/took.sh
[ -x "$1" ] && exec scripts/cargo.sh build --release --locked --bin blockraft

# Says its own time.
[ -n "${ROCKSDB_LIB_DIR:-}${SLOW:-}" ] || scripts/rocksdb.sh >/dev/null
echo "blockraft: compiling the binary, the first time in this folder: four to eight minutes on two cores$(last_took binary)" >&2
SECONDS=0
scripts/cargo.sh build --release --locked --bin blockraft
# With RocksDB in it the time would mislead the next.
[ -n "${SLOW:-}" ] || took binary "$SECONDS"
