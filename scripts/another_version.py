"""The same program under another version: a copy of the tree whose Cargo.toml says so, built beside the other.

$BLOCKRAFT_OTHER_BIN names one that there is already: the release before this one, say.
"""

import os
import pathlib
import re
import shutil
import subprocess
import threading

import live

LOCK = threading.Lock()
built = None


def version(program):
    return live.run(program, "--version").split()[1]


def bumped(text):
    major, minor, patch = text.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def binary():
    """Its path."""
    global built
    with LOCK:
        if built is None:
            other = os.environ.get("BLOCKRAFT_OTHER_BIN") or build()
            if version(other) == version(live.binary()):
                raise live.Failed(f"{other} has the version of {live.binary()}")
            built = other
    return built


def build():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", live.ROOT / "target")).resolve()
    tree, own = target / "another-version/tree", target / "another-version/target"
    own.mkdir(parents=True, exist_ok=True)
    copy(tree)
    manifest = (tree / "Cargo.toml").read_text()
    was = re.search(r'(?m)^version = "(.*)"$', manifest)[1]
    for name in ("Cargo.toml", "Cargo.lock"):
        text = (tree / name).read_text()
        (tree / name).write_text(text.replace(f'name = "blockraft"\nversion = "{was}"', f'name = "blockraft"\nversion = "{bumped(was)}"', 1))
    # What it depends on is built already.
    if not (own / "release").exists():
        seed(target / "release", own / "release")
    live.say(f"building {bumped(was)} beside {was}")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(own)}
    live.run(tree / "scripts/cargo.sh", "build", "--release", "--locked", "--bin", "blockraft", cwd=tree, env=environment)
    return str(own / "release/blockraft")


def copy(tree):
    """What git knows of, as it lies here; a file that did not change keeps its time, so that nothing is built for it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=live.ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source, goal = live.ROOT / name, tree / name
        if source.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, goal)
    # build.rs looks at it: without one every build begins anew.
    head = tree / ".git/HEAD"
    head.parent.mkdir(exist_ok=True)
    if not head.exists():
        head.touch()


def seed(there, release):
    if not (there / ".fingerprint").is_dir():
        return
    for part in (".fingerprint", "build", "deps"):
        shutil.copytree(there / part, release / part, symlinks=True, ignore=shutil.ignore_patterns("*blockraft*", "it-*", "*.o"))
