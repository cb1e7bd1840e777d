#!/usr/bin/env python3
"""What snapshots cost, how short they keep the log, and how fast a node starts. Prints Markdown tables for
benches/README.md.

Usage: scripts/snapshots_bench.py BINARY [--rounds N] [--seconds S] [--blocks N] [--quick]

1. Throughput and latency with snapshots on (the defaults) and off, taking turns on fresh clusters.
2. One checkpoint: how long a snapshot takes, with 10 000 blocks of 256 B and 1 000 of 1 MiB of history.
3. The log while N blocks of 1 KiB come at full speed: entries and bytes, and the disk's use.
4. From the start of the process to the first answer, with a full window and a log at its threshold.

Usage of one part alone: --only on-and-off|checkpoint|log|start
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

OFF = {"snapshot.threshold": "1000000000", "snapshot.threshold_bytes": "1TiB"}
PORT = int(os.environ.get("BENCH_PORT", "7651"))


def call(api, method, params=None, timeout=30):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}).encode()
    request = urllib.request.Request(f"http://{api}/", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        found = json.load(answer)
    if "error" in found:
        raise RuntimeError(f"{method}: {found['error']}")
    return found["result"]


def bench(binary, args):
    out = subprocess.run([binary, "bench", "--json", *args], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(out.stdout)


class Cluster:
    """Three nodes of `blockraft dev` in a folder of their own."""

    def __init__(self, binary, settings=()):
        self.binary = binary
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-bench-"))
        sets = [part for pair in settings for part in ("--set", pair)]
        self.log = open(self.dir / "log", "wb")
        self.process = subprocess.Popen(
            [binary, "dev", "--produce", "0", "--dir", str(self.dir / "nodes"), "--base-port", str(PORT), *sets],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        self.apis = [f"127.0.0.1:{PORT + i}" for i in range(3)]
        self.endpoints = ",".join(self.apis)
        ready = subprocess.run([binary, "ctl", "--endpoints", self.endpoints, "ready", "--wait", "60s"], stdout=subprocess.DEVNULL)
        if ready.returncode:
            self.close()
            raise SystemExit("the cluster for the benchmark did not come up")

    def leader(self):
        return next(api for api in self.apis if call(api, "raft_status")["role"] == "leader")

    def load(self, *args):
        return bench(self.binary, ["--yes", "--endpoints", self.endpoints, *args])

    def disk_bytes(self):
        """Of all nodes; a file with several names counts once."""
        seen, total = set(), 0
        # Folders come and go meanwhile, which walk() takes in its stride.
        for folder, _, names in os.walk(self.dir / "nodes"):
            for name in names:
                try:
                    stat = os.stat(os.path.join(folder, name))
                except OSError:
                    continue
                if stat.st_ino not in seen:
                    seen.add(stat.st_ino)
                    total += stat.st_blocks * 512
        return total

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def spread(values, form="{:.0f}"):
    low, high = form.format(min(values)), form.format(max(values))
    return form.format(statistics.median(values)) + (f" ({low}–{high})" if len(values) > 1 else "")


def on_and_off(binary, rounds, seconds, quick):
    loads = [("256 B, 64 in flight", ["--size", "256", "--in-flight", "64"]),
             ("1 KiB, 256 in flight", ["--size", "1KiB", "--in-flight", "256"]),
             ("1 KiB, 1000 blocks/s, open loop", ["--size", "1KiB", "--rate", "1000"])][: 1 if quick else 3]
    print("## Snapshots on and off\n\n| load | snapshots | blocks/s | p50 ms | p99 ms | p99.9 ms |\n|---|---|---|---|---|---|")
    for name, load in loads:
        found = {"on": [], "off": []}
        for i in range(rounds):
            for which in ("on", "off") if i % 2 == 0 else ("off", "on"):
                sets = [part for key, value in OFF.items() for part in ("--set", f"{key}={value}")] if which == "off" else []
                found[which].append(bench(binary, ["--nodes", "3", *sets, *load, "--duration", f"{seconds}s"]))
        for which, runs in found.items():
            ms = [spread([run["latencyUs"][q] / 1000 for run in runs], "{:.2f}") for q in ("p50", "p99", "p999")]
            print(f"| {name} | {which} | {spread([run['blocksPerSecond'] for run in runs])} | {' | '.join(ms)} |", flush=True)
    print()


def fill(cluster, blocks, size, in_flight):
    """At least so many blocks."""
    target = call(cluster.leader(), "raft_status")
    start = (target["head"] or {"height": 0})["height"]
    while (call(cluster.leader(), "raft_status")["head"] or {"height": 0})["height"] - start < blocks:
        cluster.load("--size", size, "--in-flight", str(in_flight), "--duration", "2s", "--warmup", "0s")


def checkpoint(binary, quick):
    print("## One snapshot on demand\n\n| history | size MiB | call ms, five times |\n|---|---|---|")
    histories = [("10 000 × 256 B", 10_000, "256", 256, []),
                 ("1 000 × 1 MiB", 1_000, "1MiB", 8, ["state.history_blocks=1000"])]
    for name, blocks, size, in_flight, settings in histories[: 1 if quick else 2]:
        cluster = Cluster(binary, [f"{k}={v}" for k, v in OFF.items()] + settings)
        try:
            fill(cluster, blocks // 10 if quick else blocks, size, in_flight)
            api, took, last = cluster.leader(), [], 0
            for _ in range(5):
                cluster.load("--size", size, "--in-flight", "4", "--duration", "1s", "--warmup", "0s")
                made = call(cluster.leader(), "snapshot_create", timeout=300)
                took.append(made["elapsedMs"])
                last = made["sizeBytes"]
            print(f"| {name} | {last / 2**20:.1f} | {', '.join(str(ms) for ms in took)} |", flush=True)
        finally:
            cluster.close()
    print()


def log_bound(binary, blocks):
    cluster = Cluster(binary)
    rows, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            for i, api in enumerate(cluster.apis):
                try:
                    s = call(api, "snapshot_status", timeout=5)
                    rows.append((time.monotonic(), i, s["lastLogIndex"], s["logEntries"], s["logBytes"]))
                except (OSError, RuntimeError):
                    pass
            stop.wait(0.05)

    sizes = []
    try:
        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.monotonic()
        done = 0
        while done < blocks:
            done += cluster.load("--size", "1KiB", "--in-flight", "256", "--duration", "5s", "--warmup", "0s")["blocks"]
            sizes.append((done, cluster.disk_bytes()))
        took = time.monotonic() - began
        stop.set()
        watcher.join()
        policy = call(cluster.leader(), "snapshot_status")
    finally:
        stop.set()
        cluster.close()
    rate = done / took
    threshold, trailing, interval = policy["threshold"], policy["trailingLogs"], policy["minIntervalMs"] / 1000
    print(f"## The log under {done} blocks of 1 KiB\n\n{rate:.0f} blocks/s on average; threshold {threshold}, trailing {trailing}, min_interval {interval} s.")
    print("The bound is max(threshold, rate × min_interval) + trailing + what arrives during one build.\n")
    print("| node | most entries | most MiB | fastest second, entries/s | bound without the build |\n|---|---|---|---|---|")
    for i in range(3):
        mine = [row for row in rows if row[1] == i]
        fastest = max([(b[2] - a[2]) / (b[0] - a[0]) for a, b in zip(mine, mine[20:]) if b[0] - a[0] > 0.5] or [0])
        bound = max(threshold, fastest * interval) + trailing
        print(f"| {i + 1} | {max(r[3] for r in mine)} | {max(r[4] for r in mine) / 2**20:.1f} | {fastest:.0f} | {bound:.0f} |")
    print("\n| blocks | disk of all nodes, MiB |\n|---|---|")
    step = max(1, len(sizes) // 10)
    for count, used in sizes[::step]:
        print(f"| {count} | {used / 2**20:.0f} |")


class Node:
    """One node alone, started and ended as often as one likes."""

    def __init__(self, binary):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-bench-"))
        self.api, peer = f"127.0.0.1:{PORT + 20}", f"127.0.0.1:{PORT + 21}"
        peers = f'[{{id=1,peer="{peer}",api="{self.api}"}}]'
        sets = {"cluster.id": "start-up", "node.id": 1, "node.data_dir": self.dir / "n1", "cluster.peers": peers,
                "peer.listen": peer, "api.listen": self.api}
        self.argv = [binary, "node", *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]
        self.log = open(self.dir / "log", "wb")
        self.process = None

    def start(self):
        """Seconds until the API answers, and until the node leads with its fence."""
        began = time.monotonic()
        self.process = subprocess.Popen(self.argv, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        return [self.until(path, began) for path in ("/livez", "/leader")]

    def until(self, path, began):
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"the node ended with {self.process.returncode}: {(self.dir / 'log').read_text()[-500:]}")
            try:
                with urllib.request.urlopen(f"http://{self.api}{path}", timeout=1):
                    return time.monotonic() - began
            except OSError:
                if 60 < time.monotonic() - began:
                    raise SystemExit(f"{path} did not answer within a minute")
                time.sleep(0.001)

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(60)

    def close(self):
        if self.process and self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def fill_window(binary, node, blocks, size):
    """So many blocks, and then entries until the next one would make a snapshot due."""
    load = ["--endpoints", node.api, "--size", size]
    while (call(node.api, "raft_status")["head"] or {"height": 0})["height"] < blocks:
        bench(binary, [*load, "--in-flight", "256", "--duration", "2s", "--warmup", "0s"])
    until = time.monotonic() + 60
    while time.monotonic() < until:
        s = call(node.api, "snapshot_status")
        left = s["threshold"] - s["compactionLag"]
        if 0 < left <= 20 or blocks == 1:
            return s
        if left <= 0:
            # One is being built.
            time.sleep(0.05)
            continue
        # So short that a node that was just started may accept none of them, which bench calls a failure.
        subprocess.run([binary, "bench", "--yes", *load, "--rate", "100", "--duration", "100ms", "--warmup", "0s"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    raise SystemExit("the log did not come to its threshold within a minute")


def start_up(binary, quick):
    print("## Start of a node\n\n| history | log, entries | replayed | ended by | API answers after, ms | leads with its fence after, ms |")
    print("|---|---|---|---|---|---|")
    histories = [("one block", 1, "256"), ("10 000 × 256 B", 10_000, "256"), ("10 000 × 10 KiB", 10_000, "10KiB")]
    for name, blocks, size in histories[: 2 if quick else 3]:
        node = Node(binary)
        try:
            node.start()
            if blocks == 1:
                bench(binary, ["--endpoints", node.api, "--size", size, "--in-flight", "1", "--duration", "100ms", "--warmup", "0s"])
            for how, word in ((signal.SIGKILL, "kill -9"), (signal.SIGTERM, "SIGTERM")):
                took, stood = [], []
                for _ in range(1 if quick else 7):
                    stood.append(fill_window(binary, node, blocks, size))
                    node.end(how)
                    took.append(node.start())
                answers, leads = ([one[i] * 1000 for one in took] for i in range(2))
                log, lag = ([s[key] for s in stood] for key in ("logEntries", "compactionLag"))
                print(f"| {name} | {spread(log)} | {spread(lag)} | {word} | {spread(answers)} | {spread(leads)} |", flush=True)
        finally:
            node.close()
    print()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=200_000)
    parser.add_argument("--only", choices=("on-and-off", "checkpoint", "log", "start"))
    parser.add_argument("--quick", action="store_true", help="that it works, not how fast it is")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.blocks = 1, 2, 2_000
    parts = {"on-and-off": lambda: on_and_off(args.binary, args.rounds, args.seconds, args.quick),
             "checkpoint": lambda: checkpoint(args.binary, args.quick),
             "log": lambda: log_bound(args.binary, args.blocks),
             "start": lambda: start_up(args.binary, args.quick)}
    for name, part in parts.items():
        if args.only in (None, name):
            part()


main()
