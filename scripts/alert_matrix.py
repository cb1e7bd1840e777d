#!/usr/bin/env python3
"""The alerts against real faults: one fault after another on real nodes, and which alerts a real Prometheus raises.

Writes dashboards/alert-matrix.md, all of one build. The rules are the shipped ones with their times divided by SCALE,
scraped each second, so that ten minutes pass in one. Each fault must raise its alerts and no others, and an hour of
normal life none. Root: the nodes have network namespaces and small disks of their own.

    alert_matrix.py [--jobs N]             all of it: what this build has not shown yet here
    alert_matrix.py --again                all of it, whatever was shown before
    alert_matrix.py [--jobs N] NAME…       some faults alone
    alert_matrix.py --normal 60m           normal life alone, for so long by the shortened times: six minutes by the clock
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
import threading
import time
import traceback

import another_version
import faults
import live
import normal
from live import say

SCALE = 10
# Seconds by the clock: an alert that waits longer before it fires waits for so long here. Above what is left of 5m, or
# one moment would be seen for as long as RpcErrorsHigh waits.
FOR_MAX = 35
# Clusters at a time: four keep one of two processors busy.
JOBS = 4
# Bytes of a block.
HEAVY = 10_000
# Before each fault: nothing fires while nothing is done.
CALM_FOR = 12
NORMAL_FOR = "60m"
SETTINGS = {"snapshot.threshold": 100, "snapshot.trailing_logs": 50, "store.min_free": "64MiB"}
RULES = live.ROOT / "dashboards/alerts.yml"
TABLE = live.ROOT / "dashboards/alert-matrix.md"
# Alerts that no fault here raises, and why.
ELSEWHERE = {"PositionsInconsistent": "promise 8: no fault is known that does it"}


def seconds(text):
    return sum(int(n) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[u] for n, u in re.findall(r"(\d+)(ms|s|m|h|d)", text))


def shorten(text):
    """`5m` → `30s`, and what the expressions count in seconds."""

    def short(m, most=float("inf")):
        return f"{int(1000 * min(seconds(m) / SCALE, most))}ms"

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
    took: int = 0


@contextlib.contextmanager
def staged(name, number, settings, fired, unscraped=(), load=None, **nodes):
    """A cluster of its own under load, watched by a Prometheus. What fired is in `fired` in the end, however it ended."""
    settings = live.CALM | SETTINGS | settings
    with live.Cluster(name, apart=True, settings=settings, subnet=f"10.213.{number}", tag=number, **nodes) as cluster:
        targets = [n.api for n in cluster.nodes if n.id not in unscraped]
        cluster.leader()
        with live.Prometheus({"blockraft": targets}, rules=shorten(RULES.read_text())) as prometheus:
            producer = live.Producer(cluster, **(load or {}))
            producer.start()
            watch = Watch(prometheus)
            watch.start()
            scene = faults.Scene(cluster, producer, prometheus, watch)
            try:
                yield scene
            finally:
                scene.close()
                producer.end()
                fired.update(watch.end())


def attack(fault, number):
    """One fault on a cluster of its own."""
    if live.STOP.is_set():
        return Outcome(fault, {}, ["stopped before it began"])
    begun, wrong, fired = time.monotonic(), [], {}
    try:
        programs = {ident: another_version.binary() for ident in fault.upgraded}
        nodes = {"per_node": fault.per_node, "programs": programs}
        load = {"rate": fault.rate, "size": fault.size}
        with staged(f"matrix-{number}", number, fault.settings, fired, unscraped=fault.unscraped, load=load, **nodes) as scene:
            watch = scene.watch
            scene.wait(CALM_FOR)
            if watch.fired:
                wrong.append(f"before the fault: {watch.fired}")
            watch.begun = time.monotonic()
            fault.act(scene)
            # What must fire may take its time; what must not has as long as the longest `for`, and more.
            done = time.monotonic()
            while True:
                since = time.monotonic() - done
                if fault.hold < since or fault.least < since and fault.must <= set(watch.fired):
                    break
                scene.tick()
    except Exception as e:
        # Of this fault alone: the others go on.
        wrong.append(str(e) if isinstance(e, live.Failed) else traceback.format_exc())
    names = set(fired)
    if missing := fault.must - names:
        wrong.append(f"did not fire: {', '.join(sorted(missing))}")
    if more := names - fault.must - fault.may:
        wrong.append(f"fired too: {', '.join(f'{n} after {fired[n]} s' for n in sorted(more))}")
    took = round(time.monotonic() - begun)
    say(f"{fault.name}, {took} s: {', '.join(f'{n} ({s} s)' for n, s in sorted(fired.items())) or 'nothing'}", *(f"— WRONG: {w}" for w in wrong))
    return Outcome(fault, fired, wrong, took)


def live_normally(text, number):
    """Normal life for so long by the shortened times: nothing fires."""
    begun, wrong, fired = time.monotonic(), [], {}
    life = faults.Fault("normal life", f"{text} of normal life: load and idle times, readers, rolling restarts, transfers, pauses", None)
    told = "nothing"
    try:
        with staged("matrix-normal", number, faults.WATCHED, fired) as scene:
            told = normal.life(scene, seconds(text) / SCALE, SCALE)
    except Exception as e:
        wrong.append(str(e) if isinstance(e, live.Failed) else traceback.format_exc())
    if fired:
        wrong.append(f"fired: {', '.join(f'{n} after {s} s' for n, s in sorted(fired.items()))}")
    say(f"{text} of normal life ({told}), {round(time.monotonic() - begun)} s: nothing" if not wrong else "normal life", *(f"— WRONG: {w}" for w in wrong))
    life.says += f" ({told})"
    return Outcome(life, fired, wrong, round(time.monotonic() - begun))


def table(outcomes, alerts, version):
    """Only columns that something raises."""
    columns = [a for a in alerts if any(a in o.fired for o in outcomes)]
    lines = [
        "# Which fault raises which alert",
        "",
        f"Written by `make alert-matrix`, all of one build ({version}): each fault on a real cluster of three nodes, under load, watched by a real Prometheus with the shipped rules, their times divided by {SCALE} "
        f"(and no `for` above {FOR_MAX} s by the clock). ● fires, ○ fired and depends on the moment, empty: silent. Alertmanager sends less: see the inhibition in alertmanager.yml.",
        "",
        "| fault | alerts, and the second each fired in |",
        "| --- | --- |",
    ]
    for o in outcomes:
        said = [f"● {a} {o.fired[a]}" for a in columns if a in o.fired and a in o.fault.must] + [f"○ {a} {o.fired[a]}" for a in columns if a in o.fired and a not in o.fault.must]
        lines.append(f"| {o.fault.says} | {', '.join(said) or '–'} |")
    lines += ["", "## The same as a matrix", "", "| | " + " | ".join(columns) + " |", "| --- |" + " :-: |" * len(columns)]
    for o in outcomes:
        marks = ["●" if a in o.fired and a in o.fault.must else "○" if a in o.fired else "" for a in columns]
        lines.append(f"| {o.fault.name} | " + " | ".join(marks) + " |")
    lines += ["", "## Not raised here", "", "Tested by `promtool test rules` (`alerts_*test.yml`) alone.", "", "| alert | why |", "| --- | --- |"]
    lines += [f"| {a} | {ELSEWHERE[a]} |" for a in alerts if a not in columns]
    return "\n".join(lines) + "\n"


class Shown:
    """What each fault raised with this binary and these rules, when it was last tried here and raised what it should."""

    def __init__(self):
        self.path = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft/alert-matrix.json"
        of = hashlib.sha256(pathlib.Path(live.binary()).read_bytes() + RULES.read_bytes()).hexdigest()
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        # What another build showed is of no use to this one.
        self.kept = kept if kept.get("of") == of else {"of": of, "fired": {}, "says": {}}
        self.lock = threading.Lock()

    def add(self, outcome):
        with self.lock:
            self.kept["fired"].pop(outcome.fault.name, None)
            if not outcome.wrong:
                self.kept["fired"][outcome.fault.name] = outcome.fired
                self.kept["says"][outcome.fault.name] = outcome.fault.says
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.kept, indent=1))

    def outcome(self, fault):
        return Outcome(fault, self.kept["fired"][fault.name], [])

    def has(self, name):
        return name in self.kept["fired"]


def option(args, name, default=None):
    if name not in args:
        return default
    at = args.index(name)
    args.pop(at)
    return args.pop(at)


def main(args):
    jobs, life = int(option(args, "--jobs", JOBS)), option(args, "--normal")
    is_again = "--again" in args
    names = [a for a in args if a != "--again"]
    if os.geteuid() != 0:
        raise live.Failed("namespaces and disks want root")
    if not os.path.exists(faults.LIBFAKETIME):
        raise live.Failed("a clock that is wrong wants libfaketime: apt-get install faketime")
    if unknown := set(names) - {f.name for f in faults.FAULTS}:
        raise live.Failed(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in faults.FAULTS)}")
    alerts = re.findall(r"alert: Blockraft(\w+)", RULES.read_text())
    if unknown := set().union(*(f.must | f.may for f in faults.FAULTS)) - set(alerts):
        raise live.Failed(f"faults.py names alerts that there are not: {', '.join(sorted(unknown))}")
    if unproven := set(alerts) - set().union(*(f.must for f in faults.FAULTS)) - set(ELSEWHERE):
        raise live.Failed(f"no fault must raise {', '.join(sorted(unproven))}")
    live.stop_on_signals()
    shown = Shown()
    is_whole = not names and not life
    chosen = [] if life else [f for f in faults.FAULTS if f.name in names or is_whole and (is_again or not shown.has(f.name))]
    if any(f.upgraded for f in chosen):
        another_version.binary()
    begun = time.monotonic()

    def run(what, *more):
        outcome = what(*more)
        if not life or seconds(NORMAL_FOR) <= seconds(life):
            shown.add(outcome)
        return outcome

    # One at a time of those that move megabytes a second, beside the others.
    with concurrent.futures.ThreadPoolExecutor(1) as heavy, concurrent.futures.ThreadPoolExecutor(max(1, jobs - 1)) as light:
        tasks = []
        if life or is_whole and (is_again or not shown.has("normal life")):
            tasks.append(light.submit(run, live_normally, life or NORMAL_FOR, 200))
        for number, fault in enumerate(chosen, 1):
            pool = heavy if HEAVY <= fault.size and 1 < jobs else light
            tasks.append(pool.submit(run, attack, fault, number))
        outcomes = [task.result() for task in tasks]
    wrong = [o for o in outcomes if o.wrong]
    if not wrong and all(shown.has(name) for name in ["normal life", *(f.name for f in faults.FAULTS)]):
        life = faults.Fault("normal life", shown.kept["says"]["normal life"], None)
        version = live.run(live.binary(), "--version").strip()
        TABLE.write_text(table([shown.outcome(f) for f in [life, *faults.FAULTS]], alerts, version))
        say("written:", TABLE)
    for o in wrong:
        say("WRONG:", o.fault.name, *o.wrong)
    say(f"{len(outcomes)} tried in {round(time.monotonic() - begun)} s, {len(wrong)} with other alerts than theirs")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except live.Failed as e:
        sys.exit(f"alert-matrix: {e}")
