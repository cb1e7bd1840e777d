#!/usr/bin/env python3
"""The alerts against real faults: one fault after another on real nodes, and which alerts a real Prometheus raises.

Writes dashboards/alert-matrix.md. The rules are the shipped ones with their times divided by SCALE, scraped each
second, so that ten minutes pass in one. Each fault must raise its alerts and no others. Root: the nodes have network
namespaces and small disks of their own.

    alert_matrix.py [--jobs N] [NAME…]     some faults alone; the others' rows are those of the last run here
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
import time

import faults
import live
from live import say

SCALE = 10
# No fault is waited for longer than this.
FOR_MAX = 60
TABLE = live.ROOT / "dashboards/alert-matrix.md"
# Alerts that no fault here raises, and why.
ELSEWHERE = {
    "TwoReadyLeaders": "promise 3: no fault is known that does it",
    "BlockForked": "promise 2: no fault is known that does it",
    "PositionsInconsistent": "promise 8: no fault is known that does it",
    "ApplyLagGrowing": "apply waits for no disk; only a slow processor does it",
    "ApplyLagHigh": "as ApplyLagGrowing",
    "ApplyStalled": "as ApplyLagGrowing",
    "FollowerCannotCatchUp": "wants a follower slower than the cluster for minutes on end",
    "VersionSkew": "wants two versions of the binary",
    "MembershipChangeStuck": "a change is over in milliseconds, or refused beforehand",
}


def shorten(text):
    """`5m` → `30s`, and what the expressions count in seconds."""

    def seconds(m):
        return sum(int(n) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[u] for n, u in re.findall(r"(\d+)(ms|s|m|h|d)", m))

    def short(m, most=None):
        value = seconds(m) / SCALE
        return f"{int(1000 * (min(value, most) if most else value))}ms"

    text = re.sub(r"(?m)^(    for: )(\w+)$", lambda m: m[1] + short(m[2], FOR_MAX), text)
    text = re.sub(r"(?m)^(    keep_firing_for: )(\w+)$", lambda m: m[1] + short(m[2], FOR_MAX), text)
    text = re.sub(r"\[(\w+):(\w+)\]", lambda m: f"[{short(m[1])}:{short(m[2])}]", text)
    text = re.sub(r"\[(\w+)\]", lambda m: f"[{short(m[1])}]", text)
    text = re.sub(r"(process_start_time_seconds\)? < )(\d+)", lambda m: m[1] + str(int(m[2]) // SCALE), text)
    text = text.replace("60 * rate(", f"{60 // SCALE} * rate(").replace("14400)", f"{14400 // SCALE})")
    return text.replace("interval: 5s", "interval: 1s")


class Watch(threading.Thread):
    """Every alert that fires, with the second it began in."""

    def __init__(self, prometheus):
        super().__init__(daemon=True)
        self.prometheus, self.fired, self.is_over, self.begun = prometheus, {}, threading.Event(), time.monotonic()

    def run(self):
        while not self.is_over.wait(1):
            try:
                for sample in self.prometheus.query('ALERTS{alertstate="firing"}'):
                    name = sample["metric"]["alertname"].removeprefix("Blockraft")
                    self.fired.setdefault(name, round(time.monotonic() - self.begun))
            except (OSError, ValueError, live.Failed):
                pass

    def end(self):
        self.is_over.set()
        self.join()
        return self.fired


@dataclasses.dataclass
class Outcome:
    fault: object
    fired: dict
    wrong: list


def attack(fault, number):
    """One fault on a cluster of its own."""
    wrong, fired = [], {}
    settings = live.CALM | {"snapshot.threshold": 100, "snapshot.trailing_logs": 50, "store.min_free": "64MiB"} | fault.settings
    try:
        with live.Cluster(f"matrix-{number}", apart=True, settings=settings, per_node=fault.per_node, subnet=f"10.213.{number}", tag=number) as cluster:
            targets = [n.api for n in cluster.nodes if n.id not in fault.unscraped]
            cluster.leader()
            rules = shorten((live.ROOT / "dashboards/alerts.yml").read_text())
            with live.Prometheus({"blockraft": targets}, rules=rules) as prometheus:
                producer = live.Producer(cluster, rate=fault.rate, size=fault.size)
                producer.start()
                watch = Watch(prometheus)
                watch.start()
                scene = faults.Scene(cluster, producer, prometheus, watch)
                try:
                    scene.wait(12)
                    if not fault.unscraped and not fault.per_node and watch.fired:
                        wrong.append(f"before the fault: {watch.fired}")
                    watch.begun = time.monotonic()
                    fault.act(scene)
                    # Until what must fire does, and then a while for what must not.
                    end = time.monotonic() + fault.hold
                    while time.monotonic() < end:
                        scene.tick()
                finally:
                    scene.close()
                    producer.end()
                    fired = watch.end()
    except live.Failed as e:
        wrong.append(str(e))
    names = set(fired)
    if missing := fault.must - names:
        wrong.append(f"did not fire: {', '.join(sorted(missing))}")
    if more := names - fault.must - fault.may:
        wrong.append(f"fired too: {', '.join(f'{n} after {fired[n]} s' for n in sorted(more))}")
    say(f"{fault.name}: {', '.join(f'{n} ({s} s)' for n, s in sorted(fired.items())) or 'nothing'}", *(f"— WRONG: {w}" for w in wrong))
    return Outcome(fault, fired, wrong)


def table(outcomes, alerts):
    """Only columns that something raises."""
    columns = [a for a in alerts if any(a in o.fired for o in outcomes)]
    lines = [
        "# Which fault raises which alert",
        "",
        f"Written by `make alert-matrix`: each fault on a real cluster of three nodes, under load, watched by a real Prometheus with the shipped rules, their times divided by {SCALE} "
        f"(and no `for` above {FOR_MAX} s). ● fires, ○ fired and depends on the moment, empty: silent. A row is that of its fault's last run, not all of one build. Alertmanager sends less: see the inhibition in alertmanager.yml.",
        "",
        "| fault | alerts |",
        "| --- | --- |",
    ]
    for o in outcomes:
        said = [f"● {a}" for a in columns if a in o.fired and a in o.fault.must] + [f"○ {a}" for a in columns if a in o.fired and a not in o.fault.must]
        lines.append(f"| {o.fault.says} | {', '.join(said) or '–'} |")
    lines += ["", "## The same as a matrix", "", "| | " + " | ".join(columns) + " |", "| --- |" + " :-: |" * len(columns)]
    for o in outcomes:
        marks = ["●" if a in o.fired and a in o.fault.must else "○" if a in o.fired else "" for a in columns]
        lines.append(f"| {o.fault.name} | " + " | ".join(marks) + " |")
    rest = [a for a in alerts if a not in columns]
    lines += ["", "## Not raised here", "", "Their rules are tested by `promtool test rules alerts_test.yml` alone.", "", "| alert | why |", "| --- | --- |"]
    lines += [f"| {a} | {ELSEWHERE.get(a, 'its fault needs what this version has not')} |" for a in rest]
    return "\n".join(lines) + "\n"


def remember(outcomes):
    """What each fault raised when it was last tried here and raised what it should."""
    path = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft/alert-matrix.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for o in outcomes:
        known.pop(o.fault.name, None)
        if not o.wrong:
            known[o.fault.name] = o.fired
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1))
    return known


def methods():
    """What the binary has, as one node of it says."""
    with live.Cluster("matrix-methods", n=1, settings=live.CALM) as cluster:
        return live.until("its methods", lambda: live.call(cluster.nodes[0].api, "rpc_methods")["methods"])


def main(args):
    jobs = int(args.pop(args.index("--jobs") + 1)) if "--jobs" in args else 2
    args = [a for a in args if a != "--jobs"]
    if os.geteuid() != 0:
        raise live.Failed("namespaces and disks want root")
    chosen = [f for f in faults.FAULTS if not args or f.name in args]
    if unknown := set(args) - {f.name for f in faults.FAULTS}:
        raise live.Failed(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in faults.FAULTS)}")
    there = methods()
    if absent := [f for f in chosen if f.needs and f.needs not in there]:
        say("left out, for this binary has not their methods:", ", ".join(f.name for f in absent))
        chosen = [f for f in chosen if f not in absent]
    alerts = re.findall(r"alert: Blockraft(\w+)", (live.ROOT / "dashboards/alerts.yml").read_text())
    if unknown := set().union(*(f.must | f.may for f in faults.FAULTS)) - set(alerts):
        raise live.Failed(f"faults.py names alerts that there are not: {', '.join(sorted(unknown))}")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(attack, chosen, range(1, len(chosen) + 1)))
    wrong = [o for o in outcomes if o.wrong]
    known = remember(outcomes)
    all_there = [f for f in faults.FAULTS if not f.needs or f.needs in there]
    if not wrong and all(f.name in known for f in all_there):
        TABLE.write_text(table([Outcome(f, known[f.name], []) for f in all_there], alerts))
        say("written:", TABLE)
    for o in wrong:
        say("WRONG:", o.fault.name, *o.wrong)
    say(f"{len(outcomes)} faults, {len(wrong)} with other alerts than theirs")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except live.Failed as e:
        sys.exit(f"alert-matrix: {e}")
