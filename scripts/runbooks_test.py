#!/usr/bin/env python3
"""Every command of the runbooks, run: those of the code blocks as they stand, those of the text with values put in.

Addresses and paths of the text become those of a live cluster. A command holds when it ends well and says something; a
`grep` that finds nothing fails, so a series that was renamed shows here. What wants systemd is only named without it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import live
from live import say

RUNBOOKS = live.ROOT / "dashboards/runbooks"
SYSTEMD = ("systemctl", "journalctl", "timedatectl")
# Ends well only where something was killed for memory.
FINDS_NOTHING = ("dmesg -T | grep -i oom",)


def commands():
    """Command → where it stands: those of the blocks, and those of the text."""
    shown, said = {}, {}
    for path in sorted(RUNBOOKS.glob("*.md")):
        text = path.read_text()
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            for line in block.strip().splitlines():
                shown.setdefault(line, []).append(path.stem)
        for inline in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            command = " ".join(inline.split())
            if re.match(r"(blockraft|systemctl|journalctl|dmesg|iostat) ", command):
                said.setdefault(command, []).append(path.stem)
    return shown, said


class Runner:
    def __init__(self, cluster, prometheus, folder):
        self.cluster, self.prometheus, self.wrong, self.left_out, self.n = cluster, prometheus, [], [], 0
        (folder / "blockraft").symlink_to(pathlib.Path(live.binary()).resolve())
        apis = ",".join(n.api for n in cluster.nodes)
        self.env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "BLOCKRAFT_ENDPOINTS": apis}

    def run(self, command, actual, where):
        program = command.split()[0]
        if program in SYSTEMD and not os.path.isdir("/run/systemd/system"):
            self.left_out.append(command)
            return ""
        self.n += 1
        done = subprocess.run(["bash", "-o", "pipefail", "-c", actual], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        said = done.stdout.decode(errors="replace").strip()
        if command in FINDS_NOTHING and not said:
            return ""
        if done.returncode or not said:
            self.wrong.append(f"{', '.join(where)}: `{command}`, as `{actual}`: exit {done.returncode}, {said[-300:] or 'nothing said'}")
        return said

    def real(self, command):
        """The same for this cluster."""
        leader, other = self.cluster.leader(), self.cluster.followers()[0]
        newest = live.call(leader.api, "snapshot_list")["snapshots"][0]["id"]
        host, port = other.peer.rsplit(":", 1)
        for was, now in [
            ("n2.internal:7400", other.api), ("n2.internal 7500", f"{host} {port}"), ("n2.internal", host), ("127.0.0.1:7400", leader.api),
            ("127.0.0.1:9090", self.prometheus.address), ("/etc/blockraft/node.toml", str(leader.config)), ("verify ID", f"verify {newest}"), ("--node 1 snapshot", f"--node {leader.id} snapshot"),
        ]:
            command = command.replace(was, now)
        return command


def with_values(cluster, fourth):
    """The commands of the text: what each becomes, in an order in which each is possible."""
    leader = cluster.leader()
    a, b = cluster.followers()
    block = live.call(leader.api, "block_get", {"height": 5})["block"]
    # On a terminal most of them ask first.
    return [
        ("blockraft ctl block range", "blockraft ctl block range 3"),
        ("blockraft ctl block reconcile HEIGHT HASH", f"blockraft ctl block reconcile 5 {block['hash']}"),
        ("blockraft ctl history", "blockraft ctl history"),
        # Ends only when it is told to.
        ("blockraft ctl watch", "timeout 5 blockraft ctl watch || [ $? = 124 ]"),
        ("blockraft ctl settings set", "blockraft ctl settings set state.history_blocks=20000 --yes"),
        ("blockraft ctl settings set state.history_bytes=4GiB", "blockraft ctl settings set state.history_bytes=4GiB --yes"),
        ("blockraft ctl --node ID snapshot create", f"blockraft ctl --node {a.id} snapshot create"),
        ("blockraft ctl --node ID snapshot purge-log", f"blockraft ctl --node {a.id} snapshot purge-log --yes"),
        ("blockraft ctl --node ID ready", f"blockraft ctl --node {leader.id} ready"),
        ("blockraft ctl transfer", "blockraft ctl transfer --yes"),
        ("blockraft ctl transfer ID", f"blockraft ctl transfer {leader.id} --yes"),
        ("blockraft ctl --node ID pause", f"blockraft ctl --node {leader.id} pause --yes"),
        ("blockraft ctl --node ID resume", f"blockraft ctl --node {leader.id} resume"),
        ("blockraft ctl members update ID --peer HOST:PORT", f"blockraft ctl members update {a.id} --peer {a.peer.replace('127.0.0.1', 'localhost')}"),
        (
            "blockraft ctl members add 4 n4.internal:7500 --api n4.internal:7400",
            f"blockraft ctl members add 4 {fourth.peer} --api {fourth.api}",
        ),
        ("blockraft ctl members promote 4", "blockraft ctl members promote 4"),
        ("blockraft ctl members demote ID", f"blockraft ctl members demote {b.id} --yes"),
        ("blockraft ctl members remove ID", f"blockraft ctl members remove {b.id} --yes"),
    ]


def main():
    shown, said = commands()
    settings = live.CALM | {"snapshot.threshold": 50, "snapshot.trailing_logs": 20}
    with tempfile.TemporaryDirectory() as folder, live.Cluster("runbooks", settings=settings) as cluster, live.Prometheus({"blockraft": [n.api for n in cluster.nodes]}) as prometheus:
        producer = live.Producer(cluster, rate=20)
        producer.start()

        def has_begun():
            head = live.call(cluster.leader().api, "block_head")
            return head and 80 < head["block"]["height"] and live.call(cluster.leader().api, "snapshot_list")["snapshots"]

        live.until("there are blocks, a checkpoint and a snapshot", has_begun)
        runner = Runner(cluster, prometheus, pathlib.Path(folder))
        for command, where in shown.items():
            if "/var/lib/blockraft" not in command:
                runner.run(command, runner.real(command), where)
        # A node that is stopped, for what looks into its folder.
        away = cluster.followers()[0]
        away.stop()
        for command, where in shown.items():
            if "/var/lib/blockraft" in command:
                runner.run(command, command.replace("/var/lib/blockraft", str(away.data)), where)
        offline = [
            ("blockraft inspect DIR --verify --json", f"blockraft inspect {away.data} --verify --json"),
            ("blockraft recover --plan DIR…", f"blockraft recover --plan {away.data}"),
            ("blockraft check --config /etc/blockraft/node.toml", f"blockraft check --config {away.config}"),
            ("dmesg -T | grep -i oom", "dmesg -T | grep -i oom"),
        ]
        tried = []
        for command, actual in offline:
            tried.append(command)
            runner.run(command, actual, said.get(command, ["nowhere"]))
        away.start()
        live.until("it is back", lambda: away.status().get("leaderId"))
        with live.Cluster("runbooks", n=1, settings=settings, first=4, peers=[]) as more:
            fourth = more.nodes[0]
            live.until("the fourth listens", lambda: fourth.status())
            for command, actual in with_values(cluster, fourth):
                tried.append(command)
                cluster.leader()
                runner.run(command, actual, said.get(command, ["nowhere"]))
        producer.end()
    wrong = runner.wrong
    for command, where in said.items():
        if command.split()[0] in SYSTEMD:
            runner.left_out.append(command)
        elif command not in tried:
            wrong.append(f"{', '.join(where)}: `{command}` is not run")
    wrong += [f"`{command}` stands in no runbook" for command in tried if command not in said]
    for line in runner.left_out:
        say("left out, there is no systemd:", line)
    for line in wrong:
        say("WRONG:", line)
    say(f"{runner.n} commands of {len(list(RUNBOOKS.glob('*.md')))} runbooks were run, {len(wrong)} are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except live.Failed as e:
        sys.exit(f"runbooks-test: {e}")
