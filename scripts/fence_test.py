#!/usr/bin/env python3
"""The README's fence loops, each taken out of it and run against a live cluster, over a change of leader.

Every block that a loop was told is agreed must be in the chain, and no height twice. Rust's is
examples/sequencer.rs, which carries a node inside: its loop must stand in the README word by word.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading

import live
from live import say

README = (live.ROOT / "README.md").read_text()
LOOPS = {
    "sh": ("fence.sh", ["sh", "fence.sh"], ["curl", "jq", "openssl"]),
    "python": ("fence.py", [sys.executable, "fence.py"], []),
    "go": ("fence.go", ["go", "run", "fence.go"], ["go"]),
}


def block(language, name):
    found = [b for b in re.findall(rf"(?ms)^```{language}\n(.*?)^```", README) if name in b]
    if len(found) != 1:
        raise live.Failed(f"the README has not one {language} block that is called {name}")
    return found[0]


def play(language, cluster):
    name, argv, tools = LOOPS[language]
    if missing := [t for t in tools if not shutil.which(t)]:
        say("left out:", language, "for want of", *missing)
        return
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / name).write_text(block(language, name))
        env = {**os.environ, "BLOCKRAFT_ENDPOINTS": ",".join(n.api for n in cluster.nodes), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        first = live.call(cluster.leader().api, "block_head")
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
        reader.start()

        def heights():
            agreed = [l.replace(" ", "") for l in lines if "code" not in l and "refused" not in l]
            return [int(m[1]) for l in agreed if (m := re.search(r'(?i)"?height"?:(\d+)', l))]

        try:
            live.until(f"{language}: four blocks are agreed", lambda: 4 <= len(heights()))
            leader = cluster.leader()
            say(language, "goes; its leader, node", leader.id, "is killed")
            leader.kill()
            n = len(heights())
            live.until(f"{language}: four more under another fence", lambda: n + 4 <= len(heights()))
            leader.start()
            live.until("the node is back", lambda: leader.status().get("leaderId"))
        finally:
            os.killpg(process.pid, 9)
            process.wait()
            reader.join(5)
        told = heights()
        head = live.call(cluster.leader().api, "block_head")["block"]["height"]
        if len(set(told)) != len(told) or head < max(told) or min(told) <= (first["block"]["height"] if first else 0):
            raise live.Failed(f"{language} was told {told}, and the head is {head}")
        say(language, "agreed", len(told), "blocks over a change of leader")


def rust():
    example = (live.ROOT / "examples/sequencer.rs").read_text()
    if textwrap.indent(block("rust", "node.propose"), "    ") not in example:
        raise live.Failed("the README's Rust is not what examples/sequencer.rs has")
    say("rust is what examples/sequencer.rs has; `cargo run --release --example sequencer` runs it")


def main(args):
    rust()
    with live.Cluster("fence-test", settings=live.CALM) as cluster:
        for language in args or LOOPS:
            play(language, cluster)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except live.Failed as e:
        sys.exit(f"fence-test: {e}")
