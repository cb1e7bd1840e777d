#!/usr/bin/env python3
"""How soon somebody is paged: critical faults on real nodes, then a Prometheus that is started cold, a real Alertmanager, and
who is paged by it; then the fault's end, and whether that is told as well.

Writes dashboards/alert-pages.md. Rules, times of scraping and Alertmanager's configuration are the shipped ones; the receiver
is added. Root: the nodes have network namespaces and small disks of their own.

    pages.py [NAME…]        some of the faults alone: nothing is written
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import alert_matrix
import faults
import live
from live import say

RULES = live.ROOT / "dashboards/alerts.yml"
CONFIG = live.ROOT / "dashboards/alertmanager.yml"
TABLE = live.ROOT / "dashboards/alert-pages.md"
# Seconds from the start of Prometheus: what a page that waits for 30 s takes, scraped and looked at every 5 s.
WITHIN = 45
# A fault is in force before Prometheus starts.
SETTLE = 10
# `group_interval` is a minute; a fault's end is seen and sent within the rest.
ENDED_WITHIN = 150
# Clusters at a time.
JOBS = 2


def start_the_dead(scene):
    for node in scene.cluster.nodes:
        if not node.is_running():
            node.start()


def join(scene):
    for node in scene.cluster.nodes:
        node.heal()


def empty(scene):
    for node in scene.cluster.nodes:
        (node.folder / "ballast").unlink()


def let_go(scene):
    scene.close()
    scene.ends.clear()


def start_again(scene):
    """An exit that was asked for: the last one was no failure any more."""
    for node in scene.cluster.nodes:
        node.stop()
        node.start()


def stop_the_second(scene):
    """The one that is a cluster of its own."""
    next(n for n in scene.cluster.nodes if n.status()["membership"]["voters"] == [n.id]).stop()


# Fault, alerts that somebody is paged for, how it ends, and those of them that end with it. BlockConflict is kept on purpose for
# five minutes (`keep_firing_for`): alerts_test.yml shows its end. BlockForked compares heights that both sides have just passed:
# who starts to look later may see it with the next one alone, so the matrix has it.
PAGES = [
    ("quorum lost", {"NoLeader"}, start_the_dead, {"NoLeader"}),
    ("all cut off", {"NoLeader", "LeaderQuorumAckStale"}, join, {"NoLeader", "LeaderQuorumAckStale"}),
    ("full disk everywhere", {"LeaderNotReady"}, empty, {"LeaderNotReady"}),
    ("hung sync, follower", {"LogSyncStuck"}, let_go, {"LogSyncStuck"}),
    ("failing disk", {"CoreStopped"}, start_again, {"CoreStopped"}),
    ("conflicting producer", {"BlockConflict"}, let_go, set()),
    ("two clusters", {"TwoReadyLeaders"}, stop_the_second, {"TwoReadyLeaders"}),
]


class Pager(live.Posted):
    """Takes what Alertmanager sends: when each alert was first told to fire, and to have ended."""

    def __init__(self):
        self.told = {"firing": {}, "resolved": {}}

    def take(self, body):
        for alert in json.loads(body)["alerts"]:
            name = alert["labels"]["alertname"].removeprefix("Blockraft")
            self.told[alert["status"]].setdefault(name, time.monotonic())


class Alertmanager:
    """The shipped configuration, with a receiver."""

    def __init__(self, pager):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-alertmanager-"))
        self.address = f"127.0.0.1:{live.free_ports(1)[0]}"
        shipped = CONFIG.read_text()
        named = "  - name: pager\n"
        if shipped.count(named) != 1:
            raise live.Failed(f"{CONFIG} has not one receiver of the name that this knows")
        (self.folder / "alertmanager.yml").write_text(shipped.replace(named, f"{named}    webhook_configs: [{{url: \"{pager.endpoint}\"}}]\n"))

    def __enter__(self):
        argv = [live.find("prometheus-alertmanager", "prometheus-alertmanager"), f"--config.file={self.folder}/alertmanager.yml", f"--storage.path={self.folder}/data",
                f"--web.listen-address={self.address}", "--cluster.listen-address="]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.folder)
        live.until("Alertmanager is ready", lambda: live.ask(self.address, "GET", "/-/ready")[0] == 200)
        return self

    def has(self):
        return {a["labels"]["alertname"].removeprefix("Blockraft") for a in json.loads(live.ask(self.address, "GET", "/api/v2/alerts")[1])}

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def watch(scene, must, end, ending):
    """Seconds from the start of Prometheus until Alertmanager had each, and the pager; from the fault's end until the pager heard of it."""
    scene.wait(SETTLE)
    targets = [n.api for n in scene.cluster.nodes]
    with Pager() as pager, Alertmanager(pager) as alertmanager:
        had, begun = {}, time.monotonic()
        with live.Prometheus({"blockraft": targets}, rules=RULES.read_text(), every="5s", alertmanager=alertmanager.address):
            while not must <= set(had):
                if WITHIN < time.monotonic() - begun:
                    raise live.Failed(f"after {WITHIN} s Alertmanager lacks {', '.join(sorted(must - set(had)))}; it has {had}")
                for name in alertmanager.has():
                    had.setdefault(name, time.monotonic())
                scene.tick()
            while not must <= set(pager.told["firing"]):
                if WITHIN + 90 < time.monotonic() - begun:
                    raise live.Failed(f"nobody was paged for {', '.join(sorted(must - set(pager.told['firing'])))}")
                scene.tick()
            scene.repeated.clear()
            end(scene)
            ended = time.monotonic()
            while not ending <= set(pager.told["resolved"]):
                if ENDED_WITHIN < time.monotonic() - ended:
                    raise live.Failed(f"nobody was told of the end of {', '.join(sorted(ending - set(pager.told['resolved'])))}")
                scene.tick()
    return {name: (had[name] - begun, pager.told["firing"][name] - begun, pager.told["resolved"][name] - ended if name in ending else None) for name in must}


def page(number, name, must, end, ending):
    fault = next(f for f in faults.FAULTS if f.name == name)
    try:
        settings = live.CALM | alert_matrix.SETTINGS | fault.settings
        with live.Cluster(f"pages-{number}", apart=True, settings=settings, subnet=f"10.214.{number}", tag=100 + number) as cluster:
            cluster.leader()
            producer = live.Producer(cluster, rate=fault.rate, size=fault.size)
            producer.start()
            scene = faults.Scene(cluster, producer, None, None)
            try:
                scene.wait(alert_matrix.CALM_FOR)
                fault.act(scene)
                times = watch(scene, must, end, ending)
            finally:
                scene.close()
                producer.end()
    except Exception as e:
        why = str(e) if isinstance(e, live.Failed) else traceback.format_exc()
        say(f"{name} — WRONG: {why}")
        return fault, None
    for alert, (had, told, ended) in sorted(times.items()):
        say(f"{name}: Alertmanager has {alert} after {had:.0f} s, the pager after {told:.0f} s" + (f"; its end is told after {ended:.0f} s" if ended else ""))
    return fault, times


def table(pages, version):
    lines = [
        "# How soon somebody is paged",
        "",
        f"Written by `make alert-pages` ({version}): each fault on a real cluster of three nodes under load, in force before Prometheus is started, cold, with the shipped rules and times of scraping "
        f"(5 s); Alertmanager with the shipped configuration and a receiver. Seconds. Alertmanager must have each within {WITHIN}; the page itself waits for the rest of its group (`group_wait` 10 s), its end for `group_interval` (1 m).",
        "",
        "| fault | alert | Alertmanager has it after | somebody is paged after | its end is told after |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for fault, times in pages:
        for alert, (had, told, ended) in sorted(times.items()):
            lines.append(f"| {fault.says} | {alert} | {had:.0f} | {told:.0f} | {f'{ended:.0f}' if ended else 'kept firing on purpose'} |")
    return "\n".join(lines) + "\n"


def main(names):
    if os.geteuid() != 0:
        raise live.Failed("namespaces and disks want root")
    if unknown := set(names) - {p[0] for p in PAGES}:
        raise live.Failed(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(p[0] for p in PAGES)}")
    live.stop_on_signals()
    chosen = [(i, *p) for i, p in enumerate(PAGES, 1) if not names or p[0] in names]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        pages = list(pool.map(lambda p: page(*p), chosen))
    wrong = [f.name for f, times in pages if times is None]
    if not wrong and not names:
        TABLE.write_text(table(pages, live.run(live.binary(), "--version").strip()))
        say("written:", TABLE)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except live.Failed as e:
        sys.exit(f"pages: {e}")
