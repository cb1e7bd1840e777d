#!/usr/bin/env bash
# RocksDB (9.8.4, in rocksdict 0.3.29), opened with avoid_flush_during_recovery after its process was killed, gives back a
# record that was written without a sync, and never syncs it: not at the open, nor with a synced write behind it.
#
# One would expect that a synced write is as durable as what it follows, since both are in one log by their numbers. But
# the log of the process before is kept as it is, the new write goes into a file of its own, and that file alone is
# synced. By default (flush during recovery) what was recovered goes into a table, which is synced. Output seen with Python
# 3.11; what is synced is what a library in front of fsync and fdatasync notes from the open on:
#
#   avoid_flush_during_recovery=false: read b'1', the old log is gone, a table is synced: True
#   avoid_flush_during_recovery=true: read b'1', the old log stays, it is synced: False, the new one is: True
#
# So a process that is killed between a write and its sync, and started again, builds upon a record that a power loss
# takes away from under what it was told is durable. blockraft syncs the logs it finds before RocksDB opens them
# (store/log/open.rs). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check rocksdict==0.3.29
cat >"$dir/note.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    int log = open(getenv("SYNCED"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(log, "%s\n", path);
    close(log);
}

int fsync(int fd) {
    note(fd);
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    note(fd);
    return syscall(SYS_fdatasync, fd);
}
C
cc -shared -fPIC -o "$dir/note.so" "$dir/note.c"
cat >"$dir/try.py" <<'PY'
import os
import pathlib
import sys

from rocksdict import Options, Rdict, WriteOptions

step, path, avoids = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
noted = pathlib.Path(os.environ["SYNCED"])


def logs():
    return {file.name for file in path.glob("*.log") if file.stat().st_size}


def opened():
    """With the option that has no setter, by way of the file RocksDB keeps its options in."""
    latest = max(path.glob("OPTIONS-*"))
    option = "avoid_flush_during_recovery="
    latest.write_text(latest.read_text().replace(option + "false", option + avoids))
    return Rdict(str(path), *Options.load_latest(str(path)))


if step == "make":
    Rdict(str(path), Options(raw_mode=True)).close()
elif step == "killed":
    db = opened()
    db[b"first"] = b"1"
    os._exit(0)
else:
    before = logs()
    assert len(before) == 1, before
    noted.unlink(missing_ok=True)
    db = opened()
    options = WriteOptions()
    options.sync = True
    first = db[b"first"]
    db.put(b"second", b"2", options)
    synced = {pathlib.Path(line).name for line in noted.read_text().splitlines()}
    (new,) = logs() - before
    assert first == b"1"
    assert new in synced, synced
    said = f"avoid_flush_during_recovery={avoids}: read {first}"
    if avoids == "true":
        assert before <= logs()
        print(f"{said}, the old log stays, it is synced: {before <= synced}, the new one is: {new in synced}")
        assert not before & synced, "it is synced now"
    else:
        assert not before & logs()
        has_table = any(name.endswith(".sst") for name in synced)
        print(f"{said}, the old log is gone, a table is synced: {has_table}")
        assert has_table, synced
    sys.stdout.flush()
    os._exit(0)
PY
export SYNCED="$dir/synced"
for avoids in false true; do
  for step in make killed again; do
    LD_PRELOAD="$dir/note.so" "$dir/venv/bin/python" "$dir/try.py" "$step" "$dir/db-$avoids" "$avoids"
  done
done
