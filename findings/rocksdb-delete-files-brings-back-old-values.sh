#!/usr/bin/env bash
# RocksDB's DeleteFilesInRange (7.8.3; 11.8.1 too) brings back what was overwritten and what was deleted: inside the range a
# key reads the value before its last one afterwards, in a sound database, and the call returns Ok.
#
# One would expect what its comment says: that it deletes the files that lie in the range, and "could leave some keys" of the
# range. But it is the newest files that are small and lie in it, while the older ones below reach beyond it and stay: what
# is left is not the key as it was, but as it was earlier, and a deletion goes with its file. Output seen with Debian's
# librocksdb7.8 7.8.3-2, ten keys written as "old", then 5 as "new" and 6 deleted, one file for each:
#
#   levels 1 and 2 hold 1 and 1 files; key 5 reads new, key 6 reads None
#   after DeleteFilesInRange from 5 to 6: 0 and 1 files; key 5 reads old, key 6 reads old
#   with DeleteRange instead: key 5 reads None, key 6 reads None
#
# It is the cheap way to cut off the old end of a log or a history. Below where it cuts nothing may be read any more,
# as in blockraft, whose readers stop at the floor (store/state/prune.rs). Fails when it is otherwise.
set -euo pipefail
version=7.8.3-2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
get() { apt-get download "librocksdb7.8=$version" libgflags2.2 libsnappy1v5 liblz4-1 libbz2-1.0 libzstd1; }
(cd "$dir" && { get || { apt-get update -qq && get; }; } >/dev/null 2>&1 && for deb in *.deb; do dpkg-deb -x "$deb" .; done)
cat >"$dir/try.py" <<'PY'
import ctypes
import sys
import time

rocksdb = ctypes.CDLL("librocksdb.so.7.8")
for name in ("options_create", "open", "writeoptions_create", "readoptions_create", "flushoptions_create", "compactoptions_create",
             "writebatch_create", "get", "property_value"):
    getattr(rocksdb, "rocksdb_" + name).restype = ctypes.c_void_p


def call(name, *args):
    """Bytes are handed over with their number, an address or a number as it is."""
    flat = []
    for arg in args:
        if isinstance(arg, bytes):
            flat += [arg, ctypes.c_size_t(len(arg))]
        else:
            flat.append(ctypes.c_void_p(arg) if isinstance(arg, int) else arg)
    return getattr(rocksdb, "rocksdb_" + name)(*flat)


def sure(name, *args):
    """What can fail takes a place for its error last."""
    error = ctypes.c_char_p()
    answer = call(name, *args, ctypes.byref(error))
    if error.value:
        raise SystemExit(f"{name}: {error.value.decode()}")
    return answer


class Db:
    def __init__(self, path):
        options = call("options_create")
        call("options_set_create_if_missing", options, 1)
        # What is flushed moves down to level 1 by itself.
        call("options_set_level0_file_num_compaction_trigger", options, 1)
        self.db = sure("open", options, ctypes.c_char_p(path.encode()))
        self.write, self.read = call("writeoptions_create"), call("readoptions_create")

    def put(self, key, value):
        sure("put", self.db, self.write, key, value)

    def delete(self, key):
        sure("delete", self.db, self.write, key)

    def get(self, key):
        length = ctypes.c_size_t()
        at = sure("get", self.db, self.read, key, ctypes.byref(length))
        return ctypes.string_at(at, length.value).decode() if at else None

    def files(self, level):
        text = call("property_value", self.db, ctypes.c_char_p(b"rocksdb.num-files-at-level%d" % level))
        return int(ctypes.string_at(text))

    def flush_to_level_1(self):
        sure("flush", self.db, call("flushoptions_create"))
        for _ in range(600):
            if (self.files(0), self.files(1)) == (0, 1):
                return
            time.sleep(0.1)
        raise SystemExit("finding no longer holds: the file stays where it is")

    def move_to_level_2(self):
        options = call("compactoptions_create")
        call("compactoptions_set_change_level", options, 1)
        call("compactoptions_set_target_level", options, 2)
        call("compact_range_opt", self.db, options, b"0", b"9")
        assert self.files(2) == 1

    def close(self):
        call("close", self.db)


def filled(path):
    db = Db(path)
    for key in range(10):
        db.put(b"%d" % key, b"old")
    db.flush_to_level_1()
    db.move_to_level_2()
    db.put(b"5", b"new")
    db.delete(b"6")
    db.flush_to_level_1()
    return db


db = filled(sys.argv[1] + "/files")
print(f"levels 1 and 2 hold {db.files(1)} and {db.files(2)} files; key 5 reads {db.get(b'5')}, key 6 reads {db.get(b'6')}")
assert (db.get(b"5"), db.get(b"6")) == ("new", None)
sure("delete_file_in_range", db.db, b"5", b"6")
left = db.get(b"5"), db.get(b"6")
print(f"after DeleteFilesInRange from 5 to 6: {db.files(1)} and {db.files(2)} files; key 5 reads {left[0]}, key 6 reads {left[1]}")
db.close()

db = filled(sys.argv[1] + "/range")
batch = call("writebatch_create")
call("writebatch_delete_range", batch, b"5", b"7")
sure("write", db.db, db.write, batch)
print(f"with DeleteRange instead: key 5 reads {db.get(b'5')}, key 6 reads {db.get(b'6')}")
db.close()
if left != ("old", "old"):
    raise SystemExit("finding no longer holds: nothing older is read")
PY
libs=$(find "$dir" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
LD_LIBRARY_PATH="$libs" python3 "$dir/try.py" "$dir"
echo "finding holds: DeleteFilesInRange brings back what was overwritten and deleted"
