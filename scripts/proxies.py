#!/usr/bin/env python3
"""Debian's nginx and HAProxy before a node: what of the feed, the ordered stream and the WebSocket comes through.

Writes docs/proxies.md. With the lines that it gives nothing may be held back, and a killed node must be told from a
proper end; without them what is seen is written down, and only a change of it is told.
"""

import base64
import http.client
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

import live
from live import say, until

PAGE = live.ROOT / "docs/proxies.md"
# Longer than anything that is not held back takes, shorter than a proxy's own time-outs.
SOON = 8

PACKAGES = {"nginx": ["nginx", "nginx-common"], "haproxy": ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"]}

PLAIN = ["proxy_pass http://NODE;"]
TWO = [*PLAIN, "proxy_http_version 1.1;", 'proxy_set_header Connection "";']
FULL = [
    *PLAIN,
    "proxy_http_version 1.1;",
    "proxy_set_header Upgrade $http_upgrade;           # the WebSocket",
    "proxy_set_header Connection $connection_upgrade;  # and no `close`, with which a killed node looks like a proper end",
    "proxy_request_buffering off;                      # the ordered stream: each block as it comes",
    "client_max_body_size 32m;                         # api.max_body; 1m else",
]
MAP = "map $http_upgrade $connection_upgrade { default upgrade; '' ''; }"
HAPROXY = """defaults
  mode http
  timeout connect 5s
  timeout client 60s       # above 30s: a feed is silent for 4s, a WebSocket for 20s
  timeout server 60s
  timeout tunnel 1h        # a WebSocket
frontend api
  bind LISTEN
  default_backend node
backend node
  server n1 NODE
"""


def program(name):
    """In PATH, or unpacked out of Debian's packages: installing them would start a server. Its path and environment."""
    if path := shutil.which(name) or shutil.which(name, path="/usr/sbin"):
        return path, os.environ
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft" / name
    if not (cache / "usr/sbin" / name).exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as part:
            try:
                live.run("apt-get", "download", "-qq", *PACKAGES[name], cwd=part)
            except (live.Failed, OSError) as e:
                raise live.Failed(f"there is no {name}, and Debian's package cannot be had: {e}") from e
            for deb in pathlib.Path(part).glob("*.deb"):
                live.run("dpkg-deb", "-x", deb, pathlib.Path(part) / "x")
            os.chmod(pathlib.Path(part) / "x", 0o755)
            shutil.rmtree(cache, ignore_errors=True)
            os.rename(pathlib.Path(part) / "x", cache)
    libraries = ":".join(str(p) for p in cache.glob("usr/lib/*-linux-gnu"))
    return str(cache / "usr/sbin" / name), {**os.environ, "LD_LIBRARY_PATH": libraries}


def version(name):
    path, env = program(name)
    said = subprocess.run([path, "-v"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    return next(w for w in said.replace("nginx/", " ").split() if w[0].isdigit()).split("-")[0]


class Proxy:
    def __init__(self, name, lines, node):
        self.name, self.lines, self.node = name, lines, node

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="blockraft-proxy-"))
        self.address = f"127.0.0.1:{live.free_ports(1)[0]}"
        path, env = program(self.name)
        config = self.folder / "config"
        if self.name == "nginx":
            folders = "\n".join(f"  {d}_temp_path {self.folder}/{d};" for d in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            location = "\n      ".join(self.lines).replace("NODE", self.node)
            # As Debian ships it, but for where it writes: gzip on, one process here.
            config.write_text(f"""daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log;
events {{ worker_connections 768; }}
http {{
  access_log off; sendfile on; tcp_nopush on; gzip on;
{folders}
  {MAP}
  server {{
    listen {self.address};
    location / {{
      {location}
    }}
  }}
}}
""")
            argv = [path, "-e", f"{self.folder}/error.log", "-p", str(self.folder), "-c", str(config)]
        else:
            config.write_text(self.lines.replace("LISTEN", self.address).replace("NODE", self.node))
            argv = [path, "-db", "-f", str(config)]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        until(f"{self.name} listens", lambda: live.ask(self.address, "GET", "/livez")[0] == 200, within=20)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Feed:
    """GET /v1/applied, as bytes come."""

    def __init__(self, address):
        host, port = address.split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=SOON)
        self.connection.request("GET", "/v1/applied?fromHeight=1", headers={"Accept-Encoding": "gzip"})
        self.text, self.response = "", None

    def wait(self, word):
        """Whether it comes soon."""
        end = time.monotonic() + SOON
        try:
            self.response = self.response or self.connection.getresponse()
            while word not in self.text and time.monotonic() < end:
                got = self.response.read1(65536)
                if not got:
                    break
                self.text += got.decode(errors="replace")
        except (OSError, http.client.HTTPException):
            pass
        return word in self.text

    def rest(self):
        """How it ends."""
        try:
            self.response = self.response or self.connection.getresponse()
            while got := self.response.read1(65536):
                self.text += got.decode(errors="replace")
            return "a proper end"
        except (http.client.HTTPException, ConnectionError):
            return "broken off"
        except OSError:
            return "nothing"


class Socket:
    """A WebSocket, as far as is needed here."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SOON)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        while self.status == 101 and self.file.readline().strip():
            pass

    def call(self, method, params):
        data = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        # A mask of zeros is a mask.
        self.socket.sendall(bytes([0x81, 0x80 | 126]) + struct.pack(">H", len(data)) + bytes(4) + data)

    def next(self):
        """A message, a close code, or None for a connection that is gone."""
        try:
            head = self.file.read(2)
            if len(head) < 2:
                return None
            length = head[1] & 127
            if length == 126:
                length = struct.unpack(">H", self.file.read(2))[0]
            elif length == 127:
                length = struct.unpack(">Q", self.file.read(8))[0]
            data = self.file.read(length)
        except OSError:
            return None
        if head[0] & 15 == 8:
            return struct.unpack(">H", data[:2])[0] if len(data) >= 2 else 1005
        return json.loads(data) if head[0] & 15 == 1 else self.next()

    def wait(self, word):
        while isinstance(got := self.next(), dict):
            if word in json.dumps(got):
                return True
        return False

    def rest(self):
        while isinstance(got := self.next(), dict):
            pass
        return f"closed with {got}" if got else "broken off"


def framed(height):
    block = live.encode(height, os.urandom(32), time.time_ns(), os.urandom(200))
    return live.varint(len(block)) + block


def stream(address, height):
    """Two blocks on the ordered stream, the second only when the line of the first is there."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=SOON) as s:
        s.sendall(f"POST /v1/blocks/stream HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        seen, as_they_come = b"", True
        for h in (height, height + 1):
            block = framed(h)
            s.sendall(b"%x\r\n%s\r\n" % (len(block), block))
            try:
                while b'"height":%d' % h not in seen:
                    got = s.recv(65536)
                    if not got:
                        break
                    seen += got
            except socket.timeout:
                as_they_come = False
        s.sendall(b"0\r\n\r\n")
        try:
            while b'"height":%d' % (height + 1) not in seen and (got := s.recv(65536)):
                seen += got
        except OSError:
            pass
    if b'"height":%d' % (height + 1) not in seen:
        return "no: " + seen.split(b"\r\n")[0].decode()
    return "as they come" if as_they_come else "held back to the end"


def height_of(cluster):
    head = live.call(cluster.leader().api, "block_head")
    return head["block"]["height"] if head else 0


def add(cluster):
    block = {"height": height_of(cluster) + 1, "hash": "0x" + os.urandom(32).hex(), "timestamp": str(time.time_ns()), "header": "0x", "data": "0x"}
    return live.call(cluster.leader().api, "block_propose", {"block": block})["height"]


def look(cluster, title, name, lines):
    """What comes through one proxy: by column, in words."""
    seen = {}
    leader = cluster.leader()
    with Proxy(name, lines, leader.api) as proxy:
        seen["stream"] = stream(proxy.address, height_of(cluster) + 1)
        feed = Feed(proxy.address)
        is_early = feed.wait("caughtUp")
        height = add(cluster)
        seen["feed"] = "as it comes" if is_early and feed.wait(f'"height":{height},') else "held back to the end"
        big = {"height": 1, "hash": "0x01", "timestamp": "1", "header": "0x", "data": "0x" + "00" * (3 << 20)}
        status, _ = live.ask(proxy.address, "POST", "/", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "block_propose", "params": [big]}), {"Content-Type": "application/json"}, timeout=20)
        seen["3 MiB"] = "through" if status == 200 else f"HTTP {status}"
        # What a caller says of itself is not believed, by whatever proxy it comes.
        said = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
        live.ask(proxy.address, "POST", "/", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "raft_resume"}), said)
        remote = {r["remoteAddr"].rsplit(":", 1)[0] for r in live.call(leader.api, "audit_list")["records"] if r["method"] == "raft_resume"}
        seen["recorded as"] = "the proxy" if remote == {"127.0.0.1"} else " ".join(remote)
        sock = Socket(proxy.address)
        if sock.status == 101:
            sock.call("block_subscribeApplied", [1])
            seen["WebSocket"] = "as it comes" if sock.wait("caughtUp") else "held back"
        else:
            seen["WebSocket"] = f"no: HTTP {sock.status}"
        # The node ends: its feeds say so.
        leader.stop()
        end = feed.rest()
        seen["SIGTERM"] = ("`end`, then " if '"shuttingDown"' in feed.text else "no `end`, ") + end
        seen["SIGTERM, WebSocket"] = "–" if sock.status != 101 else ("`end`, then " if sock.wait('"shuttingDown"') else "no `end`, ") + sock.rest()
        leader.start()
        until("the node is back", lambda: live.ask(leader.api, "GET", "/readyz")[0] == 200)
        # The node is killed, which says nothing.
        feed, sock = Feed(proxy.address), Socket(proxy.address)
        feed.wait("caughtUp")
        if sock.status == 101:
            sock.call("block_subscribeApplied", [1])
            sock.wait("caughtUp")
        leader.kill()
        seen["kill -9"] = feed.rest()
        seen["kill -9, WebSocket"] = sock.rest() if sock.status == 101 else "–"
        leader.start()
        until("the node is back", lambda: live.ask(leader.api, "GET", "/readyz")[0] == 200)
    for what, words in seen.items():
        say(f"{title}: {what}: {words}")
    return seen


COLUMNS = ["feed", "stream", "WebSocket", "3 MiB", "SIGTERM", "SIGTERM, WebSocket", "kill -9", "kill -9, WebSocket", "recorded as"]
GOOD = {"feed": "as it comes", "stream": "as they come", "WebSocket": "as it comes", "3 MiB": "through", "SIGTERM": "`end`, then a proper end",
        "SIGTERM, WebSocket": "`end`, then closed with 1000", "kill -9": "broken off", "kill -9, WebSocket": "broken off", "recorded as": "the proxy"}


def page(versions, seen):
    lines = "\n".join(f"    {l}" for l in FULL).replace("NODE", "127.0.0.1:7400")
    rows = "\n".join(f"| {name} | {' | '.join(cells[c] for c in COLUMNS)} |" for name, cells in seen.items())
    return f"""# Behind a proxy

Written by `make proxies`, which puts Debian's nginx {versions['nginx']} and HAProxy {versions['haproxy']} before a node, each as shipped and with the lines below.

| proxy | {' | '.join(COLUMNS)} |
|{'---|' * (1 + len(COLUMNS))}
{rows}

*feed* is `GET /v1/applied`, *stream* the ordered `POST /v1/blocks/stream`: whether each thing comes while the connection is open. *3 MiB*: a block of
that size over JSON-RPC. *SIGTERM* and *kill -9*: what the reader of a feed sees when the node ends. *recorded as*: whom the audit names for a call
that claims another address in `X-Forwarded-For`, `X-Real-IP` and `Forwarded`.

## nginx

```nginx
{MAP}
server {{
  listen 80;
  location / {{
{lines}
  }}
}}
```

For the feed alone two lines do: `proxy_http_version 1.1;` and `proxy_set_header Connection "";`. A `proxy_pass` to an `upstream` sends its name as
`Host`: add `proxy_set_header Host $host;`, and the name that clients use to `api.allowed_hosts`. Leave `text/event-stream` out of `gzip_types`.
The node answers what streams with `X-Accel-Buffering: no`, so `proxy_buffering` may stay on.

## HAProxy

```haproxy
{HAPROXY.replace('LISTEN', ':80').replace('NODE', '127.0.0.1:7400 check').rstrip()}
```

Clients follow `leaderApi` and the addresses that nodes advertise: a proxy before each node, or one that asks `/leader`, not one before all for
whoever proposes.

## Who asks

A node knows the address that is connected to it, and no other: `X-Forwarded-For`, `X-Real-IP` and `Forwarded` are never believed, so a caller cannot
choose who it is for `api.rate_limit`, `api.max_connections_per_address` or the audit. Behind a proxy all callers are one address: set these limits with
that in mind (0 = off), and let the proxy limit its callers. `X-Forwarded-Host` is not read either: only `Host` counts.
"""


def main():
    versions = {name: version(name) for name in PACKAGES}
    seen = {}
    with live.Cluster("proxies", settings=live.CALM) as cluster:
        add(cluster)
        for title, name, lines in (("nginx, `proxy_pass` alone", "nginx", PLAIN), ("nginx, the two lines", "nginx", TWO), ("nginx, all lines", "nginx", FULL), ("HAProxy, as below", "haproxy", HAPROXY)):
            seen[title] = look(cluster, title, name, lines)
    text, wrong = page(versions, seen), []
    for title in ("nginx, all lines", "HAProxy, as below"):
        wrong += [f"{title}: {c}: {seen[title][c]}, not {GOOD[c]}" for c in COLUMNS if seen[title][c] != GOOD[c]]
    if any(cells["recorded as"] != GOOD["recorded as"] for cells in seen.values()):
        wrong.append("a forwarded address was believed")
    old = PAGE.read_text() if PAGE.exists() else text
    PAGE.write_text(text)
    say("wrote", PAGE.relative_to(live.ROOT), "" if old == text else "(it differs from the one that was there)")
    for line in wrong:
        say("wrong:", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except live.Failed as e:
        sys.exit(f"proxies: {e}")
