#!/usr/bin/env bash
# cargo, with RocksDB linked as it was compiled once. Everything that builds goes through here.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/tools.sh
if [ -z "${ROCKSDB_LIB_DIR:-}" ]; then
  dir=$(scripts/rocksdb.sh)
  if [ -n "$dir" ]; then
    export ROCKSDB_LIB_DIR="$dir" ROCKSDB_STATIC=1
  fi
fi
exec cargo "$@"
