#!/usr/bin/env python3
"""The pinned clients of JSON-RPC and server-sent events against a cluster of three; writes api/clients.md.

    run.py                          all, and the table anew
    run.py --quick                  those that CI runs; the table is only compared
    run.py --only NAME[;NAME…]      as above, for these rows
    run.py --with PACKAGE==VERSION  another version than the pinned one; the table is only compared

A cell that is worse than in the table that is committed makes the exit code 1, and so does a client that cannot be had,
but in --quick, which says so.
"""

import argparse
import datetime
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import live  # noqa: E402
from live import say  # noqa: E402
from rows import EVENTS, JSON_RPC, ROWS, Missing, prepare  # noqa: E402
from story import FEATURES, NONE, Story  # noqa: E402

TABLE = live.ROOT / "api/clients.md"
ORDER = "✗~✓"
FENCES = {"Python": "python", "Rust": "rust", "sh": "sh", "JavaScript": "js"}
HEAD = """# Clients

Written by `make clients`, which starts a cluster of three nodes and runs the clients below against it as their users call
them; a cell that gets worse fails it. ✓ works · ~ works in part · ✗ does not · – there is no such thing.

"""
NOTES = {
    JSON_RPC: """Each client is connected to a follower. *no params*, *by position*, *by name*: one call each way. *refusal*: what a caller can read
of the error of a proposal that is not for this node. *2^53 + 1*: a timestamp beyond what a double holds arrives exact, and the same as
a number is refused, not rounded. *3 MiB*: such a block is read and proposed again. *leadership*, *applied*: the feeds under their own names;
*raft_subscribe*: both under the name that geth's tools know. *leader change*: the leader is killed. *SIGTERM*: the last item of a
feed is `end`. *node back*: of ten blocks, five of them proposed while the node was down, what was missed and what came twice; the reader
comes back from the last index (alloy by itself, from where it began first). *429*: the node's own, over `api.rate_limit`; *503*: that of a
balancer without servers, whose body is a page.
""",
    EVENTS: """Each reads `GET /v1/applied?fromHeight=1`. *ids*: every block once, in order, with its index as its id. *3 MiB*: such a block comes without
its bytes and with `truncated`, to be read by `GET /v1/blocks/{height}`. *node back* and *kill -9*: of ten blocks, five of them proposed while
the node was down, what was missed and what came twice. *429*: over `api.rate_limit` a reader is told `end` and may come back. *503*: a balancer
without servers answers the reconnect; a browser's EventSource is over for good then, so make a new one, or let the balancer answer 200.
""",
}


def words(cell):
    return " ".join(cell).strip().replace("|", "/")


def write(cells, rows, today):
    old = read()
    text = HEAD
    for table in (JSON_RPC, EVENTS):
        features = FEATURES[table]
        text += f"## {table}\n\n{NOTES[table]}\n| client | version | seen | {' | '.join(features)} |\n|{'---|' * (3 + len(features))}\n"
        for row in (r for r in ROWS if r.table == table):
            if row in rows:
                text += f"| {row.name} | {row.version} | {today} | {' | '.join(words(cells[row.name].get(f, (NONE, ''))) for f in features)} |\n"
            elif row.name in old:
                text += old[row.name]["line"] + "\n"
        text += "\n"
    text += "## How\n\nThe lines that make each of them work, as they ran.\n"
    for row in ROWS:
        text += f"\n{row.name}:\n\n```{FENCES[row.language]}\n{row.how()}\n```\n"
    TABLE.write_text(text)


def read():
    """The committed table: cells by client and feature."""
    found, features = {}, []
    for line in TABLE.read_text().splitlines() if TABLE.exists() else []:
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("| client |"):
            features = cells[3:]
        elif line.startswith("| ") and len(cells) == 3 + len(features):
            found[cells[0]] = {"line": line, **dict(zip(features, cells[3:]))}
    return found


def compare(cells):
    """Cells that are worse than those of the table; others that differ are only said."""
    worse, old = [], read()
    for name, of in cells.items():
        for feature, cell in of.items():
            before = old.get(name, {}).get(feature)
            if before is None or before == words(cell) or NONE in (before[:1], cell[0]):
                continue
            line = f"{name}: {feature}: {before} -> {words(cell)}"
            if ORDER.index(cell[0]) < ORDER.index(before[0]):
                worse.append(line)
            else:
                say("changed:", line)
    return worse


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--with", dest="instead")
    parser.add_argument("--rust", help="a program that is built already, in place of cargo's")
    args = parser.parse_args()
    wanted = [r for r in ROWS if not args.only or r.name in args.only.split(";")]
    if args.quick:
        wanted = [r for r in wanted if r.is_quick or (args.rust and r.name.startswith("jsonrpsee"))]
    rows, missing = [], []
    for row in wanted:
        try:
            prepare(row, args.instead, **({"rust": lambda: args.rust} if args.rust else {}))
            rows.append(row)
        except Missing as e:
            missing.append(f"{row.name}: {e}")
            say("left out:", missing[-1])
    if not rows:
        say("no client is to be had here")
        return 0 if args.quick else 1
    cells = Story(rows).run()
    worse = compare(cells)
    if not args.quick and not args.instead:
        write(cells, rows, datetime.date.today().isoformat())
        say("wrote", TABLE.relative_to(live.ROOT))
    for line in worse:
        say("worse:", line)
    for line in missing:
        say("left out:", line)
    say(f"{len(rows)} clients, {sum(len(c) for c in cells.values())} cells, {len(worse)} worse, {len(missing)} left out")
    return 1 if worse or (missing and not args.quick) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except live.Failed as e:
        sys.exit(f"clients: {e}")
