# Sourced: how long something took on this machine, so that the next time can be said ahead.
_took="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/blockraft/took"

# `; the last time it took 2 min 41 s here`, or nothing.
last_took() {
  local seconds
  seconds=$(cat "$_took/$1" 2>/dev/null) || return 0
  [[ "$seconds" =~ ^[0-9]+$ ]] || return 0
  echo "; the last time it took $((seconds / 60)) min $((seconds % 60)) s here"
}

# took NAME SECONDS; a folder that cannot be written to is no reason to fail.
took() {
  { mkdir -p "$_took" && echo "$2" >"$_took/$1"; } 2>/dev/null || true
}
