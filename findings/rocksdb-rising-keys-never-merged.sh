#!/usr/bin/env bash
# RocksDB (9.8.4, in rocksdict 0.3.29) never merges the files of keys that only rise: after 200 flushes of a few KiB
# there are 200 files, with level compaction on, its defaults, and every compaction done.
#
# One would expect that four files in level 0 are compacted into one of up to 64 MiB (target_file_size_base). But
# files that do not overlap are "trivially moved": they change their level and stay as small as they are. A key
# at either end that every batch rewrites is enough to have all merged. Output seen with Python 3.11:
#
#   rocksdb_version=9.8.4
#   rising keys: 200 files, 1000000 bytes of values
#   rising keys and a hot one at either end: 1 files
#
# Whoever flushes often (a checkpoint flushes) and keeps a history by height pays for files, not for bytes: every
# checkpoint links them all. blockraft merges neighbours by hand (store/state/merge.rs). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check rocksdict==0.3.29
cat >"$dir/try.py" <<'PY'
import pathlib
import sys
import time

from rocksdict import Options, Rdict

FLUSHES, KEYS, VALUE = 200, 10, b"x" * 500


def files_after(path, has_hot_key):
    db = Rdict(path, Options(raw_mode=True))
    for flush in range(FLUSHES):
        for key in range(KEYS):
            db[(flush * KEYS + key).to_bytes(8, "big")] = VALUE
        if has_hot_key:
            db[b"\x00" * 8] = VALUE
            db[b"\xff" * 8] = VALUE
        db.flush()
    # Until nothing is compacted any more.
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < 3:
        n = len(db.live_files())
        if n != seen:
            seen, since = n, time.monotonic()
        time.sleep(0.1)
    db.close()
    return seen


folder = pathlib.Path(sys.argv[1])
rising = files_after(str(folder / "rising"), False)
options = next((folder / "rising").glob("OPTIONS-*")).read_text()
print(next(line for line in options.splitlines() if "rocksdb_version" in line).strip())
hot = files_after(str(folder / "hot"), True)
print(f"rising keys: {rising} files, {FLUSHES * KEYS * len(VALUE)} bytes of values")
print(f"rising keys and a hot one at either end: {hot} files")
if rising < FLUSHES or 20 < hot:
    raise SystemExit("finding no longer holds: the files were merged, or those of the twin were not")
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
echo "finding holds: files of rising keys are moved and never merged"
