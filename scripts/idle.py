#!/usr/bin/env python3
"""What idling costs: three nodes after one block, nothing proposed, beside three of Debian's etcd with the same heartbeat.

    idle.py [MINUTES]       ten, if nothing is said

Both run at the same time. Per node: CPU, memory, disk, writes to the disk, lines in the log. The exit code is 1 when a
node of ours takes more than is asked for: CPU at most etcd's, memory at most half of etcd's, 40 MiB of disk beside the
ballast, one write a minute, no line.
"""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import live
from live import say, until

HEARTBEAT_MS = 50
# Of both: what starting leaves to do is done by then.
SETTLE = 20
DISK_MAX = 40 << 20


class Etcd:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-etcd-"))
        ports = live.free_ports(6)
        self.clients = [f"http://127.0.0.1:{p}" for p in ports[:3]]
        self.peers = [f"http://127.0.0.1:{p}" for p in ports[3:]]
        self.processes = []

    def __enter__(self):
        etcd = live.find("etcd", "etcd-server")
        members = ",".join(f"n{i}={p}" for i, p in enumerate(self.peers))
        for i, (client, peer) in enumerate(zip(self.clients, self.peers)):
            argv = [etcd, "--name", f"n{i}", "--data-dir", str(self.data(i)), "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", members, "--initial-cluster-state", "new",
                    "--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(10 * HEARTBEAT_MS), "--logger", "zap"]
            with open(self.folder / f"n{i}.log", "wb") as log:
                self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log))
        until("etcd has a leader", lambda: self.put("k", "v"))
        return self

    def put(self, key, value):
        pair = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value.encode()).decode()}
        return live.ask(self.clients[0].removeprefix("http://"), "POST", "/v3/kv/put", json.dumps(pair))[0] == 200

    def data(self, i):
        return self.folder / f"n{i}"

    def __exit__(self, *_):
        for p in self.processes:
            p.kill()
            p.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def cpu(pid):
    """Seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid):
    line = next(l for l in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def anonymous(pid):
    """Of it, what no file is behind: the rest is the program itself."""
    line = next(l for l in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def written(pid):
    line = next(l for l in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines() if l.startswith("write_bytes"))
    return int(line.split()[1])


def disk(folder):
    """Blocks on the disk, the ballast apart."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return sum(p.stat().st_blocks * 512 for p in files if "ballast" not in p.name.lower())


class Watched:
    def __init__(self, system, pid, folder, log):
        self.system, self.pid, self.folder, self.log = system, pid, folder, log
        self.cpu, self.bytes, self.lines, self.n_writes = cpu(pid), written(pid), self.count(), 0
        self.last = self.bytes

    def count(self):
        return len(self.log.read_bytes().splitlines())

    def look(self):
        now = written(self.pid)
        self.n_writes += now != self.last
        self.last = now

    def end(self, seconds):
        return {"cpu": 100 * (cpu(self.pid) - self.cpu) / seconds, "rss": rss(self.pid), "own": anonymous(self.pid), "disk": disk(self.folder), "writes": 60 * self.n_writes / seconds,
                "kib": (self.last - self.bytes) / 1024, "lines": self.count() - self.lines}


def main(minutes):
    with live.Cluster("idle") as cluster, Etcd() as etcd:
        leader = cluster.leader()
        block = {"height": 1, "hash": "0x01", "timestamp": str(time.time_ns()), "header": "0x", "data": "0x"}
        until("one block", lambda: live.call(leader.api, "block_propose", {"block": block}))
        time.sleep(SETTLE)
        nodes = [Watched("blockraft", n.process.pid, n.data, n.log) for n in cluster.nodes]
        nodes += [Watched("etcd", p.pid, etcd.data(i), etcd.folder / f"n{i}.log") for i, p in enumerate(etcd.processes)]
        term = leader.status()["term"]
        begin = time.monotonic()
        while time.monotonic() - begin < 60 * minutes:
            time.sleep(1)
            for node in nodes:
                node.look()
        seconds = time.monotonic() - begin
        seen = {system: [n.end(seconds) for n in nodes if n.system == system] for system in ("blockraft", "etcd")}
        if leader.status().get("term") != term:
            say("another leader was elected meanwhile: the machine was too busy for this")
    print(f"\n{seconds:.0f} s, nothing proposed, heartbeat {HEARTBEAT_MS} ms; per node\n")
    print("| | CPU % of a core | RSS MiB | of it not the program's file | disk MiB | writes a minute | KiB written | log lines |\n|---|---|---|---|---|---|---|---|")
    for system, of in seen.items():
        for i, n in enumerate(of):
            print(f"| {system} {i + 1} | {n['cpu']:.2f} | {n['rss'] / 2**20:.1f} | {n['own'] / 2**20:.1f} | {n['disk'] / 2**20:.1f} | {n['writes']:.2f} | {n['kib']:.0f} | {n['lines']} |")
    ours, theirs = seen["blockraft"], seen["etcd"]
    over = []
    for what, is_over in {
        "CPU: the busiest of ours beside the busiest of etcd's": max(n["cpu"] for n in theirs) < max(n["cpu"] for n in ours),
        "CPU: all of ours beside all of etcd's": sum(n["cpu"] for n in theirs) < sum(n["cpu"] for n in ours),
        "memory: more than half of etcd's": max(n["rss"] for n in theirs) < 2 * max(n["rss"] for n in ours),
        "disk: more than 40 MiB": any(DISK_MAX < n["disk"] for n in ours),
        "writes: more than one a minute": any(1 < n["writes"] for n in ours),
        "log: lines": any(n["lines"] for n in ours),
    }.items():
        print("over:" if is_over else "not over:", what)
        over += [what] if is_over else []
    return 1 if over else 0


if __name__ == "__main__":
    try:
        sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10))
    except live.Failed as e:
        sys.exit(f"idle: {e}")
