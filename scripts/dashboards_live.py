#!/usr/bin/env python3
"""Runs every query of the Grafana boards on a real Prometheus that scrapes a live cluster, and names the panels without data.

The cluster lives a little first: blocks, refusals, readers, a snapshot, a leader killed and back. What stays empty all
the same is in EMPTY, with the reason; a panel that is empty without one, or has data in spite of one, is an error.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import live
from live import say

BOARDS = live.ROOT / "dashboards/boards"
# Panel title, or title/legend → why a healthy cluster has nothing to show there.
EMPTY = {
    "Since the last block/limit of BlockProductionStalled": "chain.block_interval is 0: no interval is expected",
    "Errors of the databases": "no database fails",
}


def fill(expr, cluster):
    """As Grafana fills in its variables."""
    expr = expr.replace("$__rate_interval", "20s").replace("${cluster}", cluster).replace("$cluster", cluster)
    # A young cluster has no full minute behind it.
    expr = expr.replace("$instance", ".+").replace("[30d:1m]", "[30d:1s]")
    if "$" in expr:
        raise live.Failed(f"a variable is left in {expr}")
    return expr


def refused(cluster):
    """Of a leader that lives on: one that is killed at once is not scraped before."""
    api = cluster.leader().api
    head = live.call(api, "block_head")
    fence = head["term"]
    same = {"height": head["block"]["height"], "hash": "0x" + "ab" * 32, "timestamp": str(time.time_ns()), "header": "0x", "data": "0x"}
    for params in ({"block": same}, {"block": {**same, "height": same["height"] + 100000}}, {"block": same, "fence": fence - 1}):
        try:
            live.call(api, "block_propose", params)
        except live.Refused:
            pass


def exercise(cluster, producer):
    """Enough life for every family to have moved."""
    leader = cluster.leader()
    api = leader.api
    live.until("200 blocks", lambda: 200 <= producer.agreed)
    for method in ("raft_cluster", "raft_leader", "raft_members", "nonsense"):
        try:
            live.call(api, method)
        except live.Refused:
            pass
    is_over = threading.Event()
    # A slow reader: it asks for everything and reads a little.
    readers = [subprocess.Popen(["curl", "-sN", "--limit-rate", "1k", f"http://{n.api}/v1/applied?fromHeight=1"], stdout=subprocess.DEVNULL) for n in cluster.nodes]
    try:
        say("the leader, node", leader.id, "is killed")
        leader.kill()
        other = cluster.leader()
        say("node", other.id, "leads")
        leader.start()
        live.until("the node is back", lambda: leader.status().get("leaderId"))
        # Hand-overs where this version has them.
        for _ in range(2):
            try:
                say("hand-over:", live.call(cluster.leader().api, "raft_transferLeader", timeout=10)["outcome"])
            except live.Refused as e:
                say("no hand-over:", e)
        threading.Thread(target=executors, args=(cluster, is_over), daemon=True).start()
        unanswered(cluster)
        away = cluster.followers()[0]
        say("node", away.id, "is away for longer than the log is kept")
        away.kill()
        end = producer.agreed + 400
        live.until("400 more blocks", lambda: end <= producer.agreed)
        away.start()
        live.until("it is back", lambda: cluster.leader().status()["appliedIndex"] - 20 <= away.status()["appliedIndex"])
        refused(cluster)
        for node in cluster.nodes:
            live.ask(node.api, "GET", "/nowhere")
            live.call(node.api, "node_setLogFilter", {"filter": "info"})
        end = producer.agreed + 200
        live.until("200 more blocks", lambda: end <= producer.agreed)
        time.sleep(3)
    finally:
        is_over.set()
        for reader in readers:
            reader.kill()
            reader.wait()


def executors(cluster, is_over):
    """One beside each node: it reports each head. One that fell silent would keep its node from leading."""
    while not is_over.wait(0.5):
        for node in cluster.nodes:
            try:
                at = live.call(node.api, "block_head")
                live.call(node.api, "executor_report", {"height": at["block"]["height"], "hash": at["block"]["hash"]})
            except live.Refused as e:
                if e.code == -32601:
                    say("no executor's report:", e)
                    return
            except (OSError, ValueError, TypeError):
                pass


def unanswered(cluster):
    """Proposals without a verdict: the followers stand still while they are on their way."""
    leader, followers = cluster.leader(), cluster.followers()
    head = live.call(leader.api, "block_head")
    block = {"height": head["block"]["height"] + 1, "hash": "0x" + "cd" * 32, "timestamp": str(time.time_ns()), "header": "0x", "data": "0x"}
    for node in followers:
        node.signal(signal.SIGSTOP)
    try:
        for n in range(5):
            live.call(leader.api, "block_propose", {"block": {**block, "height": block["height"] + n}, "timeoutMs": 50})
    except live.Refused as e:
        say("without a quorum:", e)
    finally:
        for node in followers:
            node.signal(signal.SIGCONT)


def panels(board):
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield panel


def main():
    wrong, empty, n_queries = [], [], 0
    used = set()
    with live.Collector() as collector:
        settings = live.CALM | {"snapshot.threshold": 100, "snapshot.trailing_logs": 50, "telemetry.otlp_endpoint": collector.endpoint, "telemetry.otlp_protocol": "http"}
        with live.Cluster("boards-live", settings=settings) as cluster, live.Prometheus(
            {"blockraft": [n.api for n in cluster.nodes]}, rules=(live.ROOT / "dashboards/alerts.yml").read_text().replace("interval: 5s", "interval: 1s")
        ) as prometheus:
            cluster.leader()
            producer = live.Producer(cluster, rate=40)
            producer.start()
            exercise(cluster, producer)
            now = time.time()
            for path in sorted(BOARDS.glob("*.json")):
                board = json.loads(path.read_text())
                for variable in board["templating"]["list"]:
                    if m := re.match(r"label_values\((.*), (\w+)\)$", str(variable.get("definition", ""))):
                        values = prometheus.get(f"label/{m[2]}/values", **{"match[]": fill(m[1], cluster.id)})
                        if not values:
                            wrong.append(f"{path.name}: variable {variable['name']} has no value")
                for note in board["annotations"]["list"]:
                    if "expr" in note and not prometheus.query(fill(note["expr"], cluster.id)):
                        wrong.append(f"{path.name}: annotation {note['name']} finds nothing")
                for panel in panels(board):
                    for target in panel["targets"]:
                        n_queries += 1
                        expr = fill(target["expr"], cluster.id)
                        if target.get("instant"):
                            result = prometheus.query(expr)
                        else:
                            result = prometheus.get("query_range", query=expr, start=now - 60, end=now, step="2s")["result"]
                        values = [v for s in result for v in ([s["value"]] if "value" in s else s["values"])]
                        has_data = any(v[1] != "NaN" for v in values)
                        both = f"{panel['title']}/{target['legendFormat']}"
                        key = both if both in EMPTY else panel["title"]
                        if not has_data and key in EMPTY:
                            empty.append(f"{path.name}: {both}: {EMPTY[key]}")
                            used.add(key)
                        elif not has_data:
                            wrong.append(f"{path.name}: {both} has no data: {target['expr']}")
                        if target.get("exemplar"):
                            found = prometheus.get("query_exemplars", query=expr, start=now - 120, end=now)
                            if not any(x["labels"].get("trace_id") for s in found for x in s["exemplars"]):
                                wrong.append(f"{path.name}: {panel['title']} has no exemplar")
            producer.end()
    wrong += [f"EMPTY names {key!r}, which has data" for key in EMPTY if key not in used]
    for line in empty:
        say("empty, as expected:", line)
    for line in wrong:
        say("WRONG:", line)
    say(f"{n_queries} queries were run, {len(empty)} are expected to be empty, {len(wrong)} are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except live.Failed as e:
        sys.exit(f"dashboards-live: {e}")
