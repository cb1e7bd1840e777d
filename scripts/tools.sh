#!/usr/bin/env bash
# Installs what a build needs and the machine lacks: a C++ compiler, libclang for the bindings of
# RocksDB, cmake for RocksDB itself. Does nothing, and asks nobody, where all is there.
# Usage: scripts/tools.sh [cmake]
set -euo pipefail

# The library and not libclang-cpp, which another package brings and bindgen cannot use.
has_libclang() {
  local dir
  for dir in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"} /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /usr/lib64 /usr/lib /usr/local/lib; do
    if compgen -G "$dir/libclang.so" >/dev/null || compgen -G "$dir/libclang-[0-9]*.so" >/dev/null; then
      return 0
    fi
  done
  return 1
}

packages=()
command -v g++ >/dev/null || packages+=(g++)
has_libclang || packages+=(libclang-dev)
if [ "${1:-}" = cmake ]; then
  command -v cmake >/dev/null || packages+=(cmake)
fi

if ! command -v cargo >/dev/null; then
  echo "blockraft: there is no cargo. Install Rust (https://rustup.rs), open a new shell, and try again." >&2
  exit 1
fi
[ "${#packages[@]}" -eq 0 ] && exit 0

without() {
  case "${packages[*]}" in
  cmake) echo "blockraft: or without it, with SLOW=1 in the environment: RocksDB then takes some fifteen minutes, in each target folder" >&2 ;;
  esac
  exit 1
}

if ! command -v apt-get >/dev/null; then
  echo "blockraft: this machine lacks what Debian calls: ${packages[*]}. Install them, and try again." >&2
  without
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "blockraft: this machine lacks ${packages[*]}. As root, once:" >&2
    echo "    apt-get update && apt-get install -y ${packages[*]}" >&2
    without
  fi
  as_root=(sudo)
fi
echo "blockraft: installing ${packages[*]} (once)" >&2
export DEBIAN_FRONTEND=noninteractive
install() { "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; }
# Lists that are there and fresh enough save a minute.
install 2>/dev/null || { "${as_root[@]}" apt-get update -qq && install; } || {
  echo "blockraft: apt-get could not install ${packages[*]}. As root, by hand:" >&2
  echo "    apt-get update && apt-get install -y ${packages[*]}" >&2
  without
}
