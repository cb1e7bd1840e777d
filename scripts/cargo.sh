#!/usr/bin/env bash
# cargo, with RocksDB linked as it was compiled once. Everything that builds goes through here.
# SLOW=1: the crate compiles RocksDB itself, some fifteen minutes a target folder, where there is no cmake.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/tools.sh
if [ -z "${ROCKSDB_LIB_DIR:-}" ] && [ -z "${SLOW:-}" ]; then
  dir=$(scripts/rocksdb.sh)
  if [ -n "$dir" ]; then
    export ROCKSDB_LIB_DIR="$dir" ROCKSDB_STATIC=1
  fi
fi
exec cargo "$@"
