#!/usr/bin/env bash
# RocksDB (9.8.4, in rocksdict 0.3.29) reads a data block of every newer table of the first level to give one value, though the
# iterator is bounded to that one key and none of those tables holds it: 20 MiB for 1 MiB, with values of 1 MiB in 20 tables.
#
# One would expect that the upper bound, or the smallest key of a table, keeps tables out that begin behind it. But a
# bound is looked at once the table's first block is read. A key in front of all that every batch rewrites makes a plain
# get cost the same, without Bloom filters: all tables may hold the key then. What goes to blob files is read once, as
# the blocks hold no more than where it is. Output seen with Python 3.11, MiB read for one value of 1 MiB:
#
#   rocksdb_version=9.8.4
#   bounded seek: 20.0, get: 1.0
#   with a key in front that is rewritten: bounded seek: 20.0, get: 20.0
#   with that key and blob files: bounded seek: 1.0, get: 1.0
#
# A raft log lies in the first level until it is purged, and is read by bounded seeks for whoever lags: at 1 MiB a block a
# quarter of a leader's CPU time was such reads. blockraft keeps large payloads out of the tables (store/log/payloads.rs).
# Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check rocksdict==0.3.29
cat >"$dir/try.py" <<'PY'
import pathlib
import sys

from rocksdict import DBCompressionType, Options, Rdict, ReadOptions

TABLES, VALUE = 20, bytes(1 << 20)


def key(n):
    return b"entry" + n.to_bytes(8, "big")


def read_so_far():
    """Bytes that this process had from reads, from the page cache or not."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def mib_read(path, has_front_key, has_blobs):
    options = Options(raw_mode=True)
    options.set_compression_type(DBCompressionType.none())
    options.set_level_zero_file_num_compaction_trigger(2 * TABLES)
    if has_blobs:
        options.set_enable_blob_files(True)
        options.set_min_blob_size(64 << 10)
    db = Rdict(path, options)
    for n in range(TABLES):
        db[key(n)] = VALUE
        if has_front_key:
            db[b"committed"] = key(n)
        db.flush()
    assert [file["level"] for file in db.live_files()] == [0] * TABLES
    bounds = ReadOptions()
    bounds.fill_cache(False)
    bounds.set_iterate_lower_bound(key(0))
    bounds.set_iterate_upper_bound(key(1))
    iterator = db.iter(bounds)
    before = read_so_far()
    iterator.seek(key(0))
    assert iterator.value() == VALUE
    seek = read_so_far() - before
    before = read_so_far()
    assert db[key(0)] == VALUE
    get = read_so_far() - before
    del iterator
    db.close()
    return round(seek / len(VALUE), 1), round(get / len(VALUE), 1)


folder = pathlib.Path(sys.argv[1])
plain = mib_read(str(folder / "plain"), False, False)
options = next((folder / "plain").glob("OPTIONS-*")).read_text()
print(next(line for line in options.splitlines() if "rocksdb_version" in line).strip())
front = mib_read(str(folder / "front"), True, False)
blobs = mib_read(str(folder / "blobs"), True, True)
print(f"bounded seek: {plain[0]}, get: {plain[1]}")
print(f"with a key in front that is rewritten: bounded seek: {front[0]}, get: {front[1]}")
print(f"with that key and blob files: bounded seek: {blobs[0]}, get: {blobs[1]}")
if plain[0] < TABLES or 2 < plain[1] or min(front) < TABLES or 2 < max(blobs):
    raise SystemExit("finding no longer holds: tables behind the bound are left alone, or blobs are not")
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
echo "finding holds: a bounded seek reads a block of every newer table"
