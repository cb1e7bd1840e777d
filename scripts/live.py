"""A cluster of real nodes and a real Prometheus, for what is tried against both. Standard library only.

Nodes on loopback need nothing. With `apart`, each has a network namespace and a small disk of its own (root), so that
its network can be cut and its disk filled, slowed, or hung.
"""

import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Long enough for a machine that does something else too.
PATIENCE = 90


# For a machine that does something else too: what is tried is not how quick an election is.
CALM = {"raft.heartbeat_interval": "100ms", "raft.heartbeat_timeout": "2s", "raft.leader_lease_timeout": "1s", "raft.election_timeout": "2s"}


# Set: whoever waits gives up, so that everything that was started is ended.
STOP = threading.Event()


class Failed(Exception):
    """What was waited for did not come, or a tool is missing."""


def stop_on_signals():
    """An end from outside leaves nothing behind."""
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: STOP.set())


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def until(what, look, within=PATIENCE, every=0.2):
    """The first true answer of `look`; an error that it raises is a no."""
    end, last = time.monotonic() + within, None
    while True:
        try:
            if got := look():
                return got
        except (OSError, http.client.HTTPException, ValueError, KeyError, Refused) as e:
            last = e
        if STOP.is_set():
            raise Failed(f"stopped while waiting: {what}")
        if end < time.monotonic():
            raise Failed(f"after {within} s still not: {what}{f' ({last})' if last else ''}")
        time.sleep(every)


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def ask(address, method, path, body=None, headers=None, timeout=5):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Refused(Exception):
    """A JSON-RPC error: `code`, `message`, `data`."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code, self.data = error.get("code"), error.get("data") or {}


def call(address, method, params=None, timeout=5):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}})
    _, answer = ask(address, "POST", "/", body, {"Content-Type": "application/json"}, timeout)
    answer = json.loads(answer)
    if "error" in answer:
        raise Refused(answer["error"])
    return answer["result"]


def run(*argv, **more):
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, argv))}: {done.stdout.decode(errors='replace').strip()[-300:]}")
    return done.stdout.decode()


def find(program, package):
    """In PATH, or unpacked out of Debian's package: installing it would start a server."""
    if path := shutil.which(program):
        return path
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft" / package
    if not (cache / "usr/bin" / program).exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as part:
            try:
                run("apt-get", "download", "-qq", package, cwd=part)
            except (Failed, OSError) as e:
                raise Failed(f"there is no {program}, and Debian's package {package} cannot be had: {e}") from e
            for deb in pathlib.Path(part).glob("*.deb"):
                run("dpkg-deb", "-x", deb, pathlib.Path(part) / "x")
            os.chmod(pathlib.Path(part) / "x", 0o755)
            shutil.rmtree(cache, ignore_errors=True)
            os.rename(pathlib.Path(part) / "x", cache)
    return str(cache / "usr/bin" / program)


def binary():
    """$BLOCKRAFT_BIN, or what `make build` builds."""
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = os.environ.get("BLOCKRAFT_BIN", f"{target}/release/blockraft")
    if not os.access(path, os.X_OK):
        raise Failed(f"there is no {path}: `make build`, or set BLOCKRAFT_BIN")
    return path


def toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value) if isinstance(value, int) else json.dumps(value)


def lay_disk(image, folder, mib):
    """An ext4 of so many MiB in a file, mounted; it takes only the space that is used."""
    with open(image, "wb") as f:
        f.truncate(mib << 20)
    run("mkfs.ext4", "-q", "-m", "0", image)
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, folder)


class Node:
    def __init__(self, cluster, ident, peer, api, folder):
        self.cluster, self.id, self.peer, self.api, self.folder, self.process = cluster, ident, peer, api, folder, None
        # None: binary()'s. Another one makes a cluster of two versions.
        self.program = None
        self.space = f"br{cluster.tag}n{ident}" if cluster.apart else None
        self.data = folder / "data"
        # Beside the disk, not on it: that is frozen, filled, and swapped.
        self.config, self.log = cluster.folder / f"n{ident}.toml", cluster.folder / f"n{ident}.log"

    def write(self, settings):
        lines = [f"{key} = {toml(value)}" for key, value in settings.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, env=None):
        argv = [self.program or binary(), "node", "--config", str(self.config)]
        if self.space:
            argv = ["ip", "netns", "exec", self.space, *argv]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, which):
        if self.is_running():
            self.process.send_signal(which)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, within=30):
        self.signal(signal.SIGTERM)
        self.process.wait(within)

    def status(self):
        code, body = ask(self.api, "GET", "/status", timeout=2)
        return json.loads(body) if code == 200 else {}

    # What only `apart` allows.
    def cut_from(self, *others):
        """Nothing that the others send arrives here."""
        for other in others:
            run("ip", "netns", "exec", self.space, "iptables", "-A", "INPUT", "-s", other.api.split(":")[0], "-j", "DROP")

    def heal(self):
        run("ip", "netns", "exec", self.space, "iptables", "-F", "INPUT")

    def freeze(self, is_frozen=True):
        run("fsfreeze", "-f" if is_frozen else "-u", self.folder)

    def slow_link(self, rate, buffer):
        """What the peers send to it passes at `rate` (as tc writes it), with so many bytes on their way; scrapes pass freely."""
        tc = ["ip", "netns", "exec", self.cluster.switch, "tc"]
        port = f"node{self.id}"
        run(*tc, "qdisc", "add", "dev", port, "root", "handle", "1:", "htb", "default", "2")
        for number in (1, 2):
            run(*tc, "class", "add", "dev", port, "parent", "1:", "classid", f"1:{number}", "htb", "rate", "1gbit", "quantum", "60000")
        # Not htb's own rate: segments that are joined are 64 KiB, and tbf takes them apart.
        run(*tc, "qdisc", "add", "dev", port, "parent", "1:1", "tbf", "rate", rate, "burst", "10kb", "limit", buffer)
        for end in ("sport", "dport"):
            run(*tc, "filter", "add", "dev", port, "parent", "1:", "protocol", "ip", "u32", "match", "ip", end, "7500", "0xffff", "flowid", "1:1")

    def own_state_disk(self, mib):
        """Moves `state/` to a disk of its own, over a restart. Its folder is a mount point from then on."""
        state, was = self.data / "state", self.cluster.folder / f"n{self.id}-state-was"
        self.stop()
        shutil.move(state, was)
        lay_disk(self.cluster.folder / f"n{self.id}-state.img", state, mib)
        for path in was.iterdir():
            shutil.copy2(path, state)
        self.start()
        return state


class Cluster:
    """`settings` are dotted keys for every node. Nothing of it is left after the `with`."""

    def __init__(self, ident, n=3, apart=False, settings=None, subnet="10.213.0", disk_mib=16000, per_node=None, programs=None, tag=0, first=1, peers=None):
        self.id, self.apart, self.subnet = ident, apart, subnet
        # Of namespaces and bridges, whose names are short.
        self.tag = f"{os.getpid() % 10000}x{tag}"
        self.settings, self.per_node = settings or {}, per_node or {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-live-"))
        self.disk_mib, self.switch = disk_mib, f"br{self.tag}s"
        ports = free_ports(2 * n)
        self.nodes = []
        # Who founds it; a node that is to be added founds nothing.
        self.peers = peers
        for i in range(first, first + n):
            folder = self.folder / f"n{i}"
            folder.mkdir()
            host = f"{subnet}.{10 + i}" if apart else "127.0.0.1"
            peer, api = (7500, 7400) if apart else (ports.pop(), ports.pop())
            self.nodes.append(Node(self, i, f"{host}:{peer}", f"{host}:{api}", folder))
            self.nodes[-1].program = (programs or {}).get(i)

    def __enter__(self):
        try:
            if self.apart:
                self._lay_network()
                for node in self.nodes:
                    lay_disk(self.folder / f"n{node.id}.img", node.folder, self.disk_mib)
            for node in self.nodes:
                self.write(node)
                node.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def write(self, node, **more):
        peers = [{"id": x.id, "peer": x.peer, "api": x.api, "name": f"n{x.id}"} for x in self.nodes] if self.peers is None else self.peers
        own = {
            "cluster.id": self.id, "cluster.peers": peers, "node.id": node.id, "node.name": f"n{node.id}", "node.data_dir": str(node.data),
            "peer.listen": node.peer, "api.listen": node.api, "telemetry.log_format": "json",
        }
        if self.apart:
            own |= {"peer.insecure": True, "api.insecure": True}
        node.write(own | self.settings | self.per_node.get(node.id, {}) | more)

    def _lay_network(self):
        """A switch in a namespace of its own: a firewall of this machine, such as Docker's, drops what crosses a bridge."""
        switch = self.switch

        def plug(outside, inside, space):
            run("ip", "link", "add", outside, "netns", switch, "type", "veth", "peer", "name", inside, *(("netns", space) if space else ()))
            run("ip", "-n", switch, "link", "set", outside, "master", "switch", "up")
            at = ("-n", space) if space else ()
            host = self.subnet + ".1" if not space else next(n.api.split(":")[0] for n in self.nodes if n.space == space)
            run("ip", *at, "addr", "add", f"{host}/24", "dev", inside)
            run("ip", *at, "link", "set", inside, "up")

        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "switch", "up")
        plug("host", f"br{self.tag}", None)
        for node in self.nodes:
            run("ip", "netns", "add", node.space)
            run("ip", "-n", node.space, "link", "set", "lo", "up")
            plug(f"node{node.id}", "eth0", node.space)

    def __exit__(self, *_):
        for node in self.nodes:
            # A frozen disk lets no process end.
            if self.apart:
                subprocess.run(["fsfreeze", "-u", node.folder], stderr=subprocess.DEVNULL)
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGKILL)
        for node in self.nodes:
            if node.process:
                node.process.wait()
            if self.apart:
                for argv in (["umount", "-R", node.folder], ["ip", "netns", "del", node.space]):
                    subprocess.run(argv, stderr=subprocess.DEVNULL)
        if self.apart:
            subprocess.run(["ip", "netns", "del", self.switch], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def node(self, ident):
        return next(n for n in self.nodes if n.id == ident)

    def leader(self, within=PATIENCE):
        """The ready leader, once there is one and the running nodes follow it."""

        def look():
            ready = [n for n in self.nodes if n.is_running() and n.status().get("ready")]
            return ready[0] if len(ready) == 1 else None

        try:
            return until("one ready leader", look, within)
        except Failed as e:
            last = [f"node {n.id}: {n.log.read_text().strip().splitlines()[-1:]}" for n in self.nodes if n.log.exists()]
            raise Failed(f"{e}; {'; '.join(last)}") from None

    def followers(self):
        leader = self.leader()
        return [n for n in self.nodes if n is not leader]


def varint(n):
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def encode(height, block_hash, timestamp, data=b""):
    """A RaftBlockState: height 1, hash 4, timestamp 5, data 7."""
    out = b"\x08" + varint(height) + b"\x22" + varint(len(block_hash)) + block_hash + b"\x28" + varint(timestamp)
    return out + (b"\x3a" + varint(len(data)) + data if data else b"")


class Producer(threading.Thread):
    """Proposes blocks at a rate, one at a time, under the leader's fence, as long as it runs."""

    def __init__(self, cluster, rate=10, size=256):
        super().__init__(daemon=True)
        self.cluster, self.rate, self.size, self.is_over, self.agreed = cluster, rate, size, threading.Event(), 0
        # Height and hash of each block that was acknowledged.
        self.acknowledged = {}
        self.is_paused = threading.Event()

    def run(self):
        at, n = 0, len(self.cluster.nodes)
        pending = None
        while not self.is_over.wait(1 / self.rate):
            if self.is_paused.is_set():
                continue
            api = self.cluster.nodes[at % n].api
            try:
                code, body = ask(api, "GET", "/leader", timeout=2)
                leader = json.loads(body)
                if code != 200:
                    # What was sent and not answered may be in flight: never another block at its height.
                    at = leader["leaderId"] - 1 if leader.get("leaderId") else at + 1
                    continue
                if pending is None:
                    head = call(api, "block_head", timeout=2)
                    height = head["block"]["height"] + 1 if head else 1
                    now = max(time.time_ns(), int(head["block"]["timestamp"]) + 1 if head else 0)
                    block_hash = os.urandom(32)
                    pending = height, encode(height, block_hash, now, os.urandom(self.size)), block_hash
                headers = {"Content-Type": "application/x-protobuf", "Blockraft-Fence": str(leader["fence"])}
                code, body = ask(api, "POST", "/v1/blocks", pending[1], headers, timeout=4)
                # Unknown: the same block again, which is always safe.
                if code == 200:
                    self.agreed += 1
                    self.acknowledged[pending[0]] = pending[2]
                if code != 504:
                    pending = None
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, Refused):
                at += 1

    def end(self):
        self.is_over.set()
        self.join(10)


class Prometheus:
    """Scrapes the targets of `jobs`; `rules` is a text, `flags` go behind the shipped ones."""

    def __init__(self, jobs, rules=None, every="1s", alertmanager=None, flags=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-prometheus-"))
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in jobs.items()],
        }
        if rules:
            (self.folder / "rules.yml").write_text(rules)
            config["rule_files"] = ["rules.yml"]
        if alertmanager:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        # JSON is YAML.
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        self.flags = flags

    def __enter__(self):
        argv = [find("prometheus", "prometheus"), f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data",
                f"--web.listen-address={self.address}", "--enable-feature=exemplar-storage", "--rules.alert.resend-delay=30s", *self.flags]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.folder)
        try:
            until("Prometheus is ready", lambda: ask(self.address, "GET", "/-/ready")[0] == 200)
        except Failed:
            say((self.folder / "log").read_text()[-800:])
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, path, **params):
        code, body = ask(self.address, "GET", f"/api/v1/{path}?{urllib.parse.urlencode(params)}", timeout=60)
        answer = json.loads(body)
        if answer["status"] != "success":
            raise Failed(f"Prometheus on {params}: {answer.get('error')}")
        return answer["data"]

    def query(self, expr):
        return self.get("query", query=expr)["result"]


class Posted:
    """Listens on loopback and takes what is posted to it."""

    MEDIA = "application/json"

    def take(self, body):
        """What a POST carried."""

    def __enter__(self):
        posted = self

        class Take(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                posted.take(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.send_response(200)
                self.send_header("Content-Type", posted.MEDIA)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Collector(Posted):
    """Takes OTLP over HTTP and keeps nothing: nodes mark what they exported, and exemplars are of that alone."""

    MEDIA = "application/x-protobuf"
