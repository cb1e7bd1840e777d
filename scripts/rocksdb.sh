#!/usr/bin/env bash
# Compiles RocksDB once per machine, from the sources that the librocksdb-sys crate brings, as a unity
# build: three to six minutes on two cores, where the crate's own way takes some fifteen. Prints the folder with
# librocksdb.a, for ROCKSDB_LIB_DIR; prints nothing where the crate is to go its own way.
# Usage: scripts/rocksdb.sh [--dir]    --dir: print the folder, build nothing
set -euo pipefail
cd "$(dirname "$0")/.."

# The flags below are for this processor alone.
[ "$(uname -sm)" = "Linux x86_64" ] || exit 0

version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = ".*+\(.*\)"$/\1/p}' Cargo.lock)
dir="${XDG_CACHE_HOME:-$HOME/.cache}/blockraft/rocksdb-$version"
[ "${1:-}" = --dir ] && { echo "$dir"; exit 0; }

flags=(
  -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=40
  -DPORTABLE=x86-64-v2 -DROCKSDB_BUILD_SHARED=OFF -DFAIL_ON_WARNINGS=OFF
  -DWITH_TESTS=OFF -DWITH_BENCHMARK_TOOLS=OFF -DWITH_TOOLS=OFF -DWITH_CORE_TOOLS=OFF
  -DWITH_TRACE_TOOLS=OFF -DWITH_GFLAGS=OFF -DWITH_LIBURING=OFF -DWITH_NUMA=OFF
)
# By section, so that the linker leaves out what nobody calls. -O3 compiles a tenth longer, and is no faster.
optimise="-O2 -mpclmul -DNDEBUG -w -ffunction-sections -fdata-sections"
compiler=$(${CXX:-c++} --version 2>/dev/null | head -n 1) || compiler=none
key="$version | $compiler | $optimise ${flags[*]}"

# One that lies there without a key was put there by somebody, who knows why.
is_there() { [ -s "$dir/librocksdb.a" ] && { [ ! -e "$dir/key" ] || [ "$(cat "$dir/key")" = "$key" ]; }; }
is_there && { echo "$dir"; exit 0; }

scripts/tools.sh cmake
# A compiler that was installed just now.
compiler=$(${CXX:-c++} --version | head -n 1)
key="$version | $compiler | $optimise ${flags[*]}"

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
# Somebody else may have built it while this one waited.
is_there && { echo "$dir"; exit 0; }

. scripts/took.sh
echo "blockraft: compiling RocksDB $version, once for this machine: three to six minutes on two cores$(last_took rocksdb)" >&2
SECONDS=0
cargo fetch --locked --quiet
source=$(cargo metadata --format-version 1 --locked --offline |
  grep -o '"manifest_path":"[^"]*/librocksdb-sys-[^"]*/Cargo.toml"' | head -n 1 |
  sed 's/^"manifest_path":"//; s,/Cargo.toml"$,,')
[ -d "$source/rocksdb" ] || { echo "blockraft: the sources of librocksdb-sys are not in cargo's registry" >&2; exit 1; }

# A compiler takes up to 2 GiB for a batch.
jobs=$(nproc)
fit=$(awk '/^MemAvailable:/ { print int($2 / 2100000) }' /proc/meminfo)
[ "$fit" -ge "$jobs" ] || jobs=$((fit > 0 ? fit : 1))

# What a killed build left: whoever builds holds the lock.
rm -rf "$dir"/build.*
build=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$build"' EXIT
compile() {
  cmake -S "$source/rocksdb" -B "$build" "${flags[@]}" \
    "-DCMAKE_CXX_FLAGS_RELEASE=$optimise -ffile-prefix-map=$source=librocksdb-sys" &&
    cmake --build "$build" --target rocksdb --parallel "$jobs"
}
# The log is for a failure; what is seen meanwhile is how far it is.
if ! compile 2>&1 9>&- | tee "$build/log" | sed -un 's/^\(\[ *[0-9]*%\]\) Building .*/blockraft: RocksDB \1/p' >&2; then
  tail -n 30 "$build/log" >&2
  echo "blockraft: RocksDB could not be compiled; the end of the log is above" >&2
  exit 1
fi
# Whole or not at all: the name appears with the last byte there.
rm -f "$dir/key"
mv "$build/librocksdb.a" "$dir/librocksdb.a"
echo "$key" >"$build/key"
mv "$build/key" "$dir/key"
took rocksdb "$SECONDS"
echo "$dir"
