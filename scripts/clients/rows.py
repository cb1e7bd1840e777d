"""The clients that are tried, each with its pin, how it is started, and the lines of its program that the table shows."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import textwrap

from programs import HERE, Program

import live

JSON_RPC, EVENTS = "JSON-RPC", "server-sent events"


class Missing(Exception):
    """What a client needs is not to be had here."""


@dataclasses.dataclass
class Row:
    name: str
    table: str
    language: str
    # The environment of a Python client: a file of `locks`.
    lock: str = ""
    source: str = ""
    # Where its lines begin.
    mark: str = "how:"
    scheme: str = "http"
    has_batch: bool = True
    has_feed: bool = False
    is_quick: bool = False
    # By feature: an error of the client's own that comes in some runs and not in others, as its text names it.
    fickle: dict = dataclasses.field(default_factory=dict)

    def url(self, address):
        return f"{self.scheme}://{address}/"

    def how(self):
        """The lines between the marks, as they ran."""
        lines = (HERE / self.source).read_text().splitlines()
        first = next(i for i, l in enumerate(lines) if l.strip().lstrip("#/ ") == self.mark)
        last = next(i for i, l in enumerate(lines) if first < i and l.strip() in ("# end", "// end"))
        return textwrap.dedent("\n".join(lines[first + 1:last]))

    # `prepare` sets these.
    argv = ()
    version = ""

    def start(self, address, *rest):
        return Program([*self.argv, self.url(address), *rest])

    def ask(self, program, **command):
        """An answer: `result`, or `error` with `text` and what of code and data can be read."""
        return program.ask(**command) if self.name != "curl" else by_text(program, command)


def by_text(program, command):
    """For curl, to which the JSON-RPC text is given, and which gives back the text of the answer."""

    def ask(method, params, url=None):
        request = {"jsonrpc": "2.0", "id": 1, "method": method} | ({} if params is None else {"params": params})
        return read(program.ask(do="call", body=json.dumps(request), url=url or command.get("url")))

    def read(said):
        answer = said.get("answer")
        if not isinstance(answer, dict) or "result" in answer:
            return {"result": answer["result"]} if isinstance(answer, dict) else {"error": {"text": f"status {said.get('status')}: {answer}"}}
        return {"error": {**answer["error"], "text": json.dumps(answer)}}

    if command["do"] == "how":
        return read(program.ask(do="how"))
    if command["do"] == "batch":
        many = [{"jsonrpc": "2.0", "id": i, "method": m, "params": p} for i, (m, p) in enumerate(command["calls"])]
        return {"result": [a.get("result") for a in program.ask(do="call", body=json.dumps(many))["answer"]]}
    if command["do"] == "big":
        block = ask("block_get", [command["height"]])["result"]["block"]
        answer = ask("block_propose", [{k: block[k] for k in ("height", "hash", "timestamp", "header", "data")}], command["leader"])
        data = block["data"][2:]
        return {"result": {"bytes": len(data) // 2, "first": data[:16], "last": data[-16:], "duplicate": answer["result"]["duplicate"]}}
    return ask(command["method"], command.get("params"))


def python(name, table, lock, source, **more):
    return Row(name, table, "Python", lock=lock, source=f"python/{source}", **more)


ROWS = [
    Row("curl", JSON_RPC, "sh", source="curl.sh", is_quick=True),
    python("jsonrpcclient", JSON_RPC, "jsonrpcclient", "jsonrpcclient-http.py", is_quick=True),
    python("web3.py 7, HTTP", JSON_RPC, "web3-7", "web3-http.py"),
    python("web3.py 7, WebSocket", JSON_RPC, "web3-7", "web3-ws.py", scheme="ws"),
    python("web3.py 8, HTTP", JSON_RPC, "web3-8", "web3-http.py", is_quick=True),
    python("web3.py 8, WebSocket", JSON_RPC, "web3-8", "web3-ws.py", scheme="ws"),
    python("substrate-interface", JSON_RPC, "substrate-interface", "substrate-interface.py", scheme="ws", has_batch=False, has_feed=True),
    python("async-substrate-interface", JSON_RPC, "async-substrate-interface", "async-substrate-interface.py", scheme="ws", has_batch=False, has_feed=True, fickle={"3 MiB": "RecursionError"}),
    python("jsonrpc-websocket", JSON_RPC, "jsonrpc-websocket", "jsonrpc-websocket.py", scheme="ws", has_batch=False, has_feed=True),
    python("aiohttp-rpc, HTTP", JSON_RPC, "aiohttp-rpc", "aiohttp-rpc.py"),
    python("aiohttp-rpc, WebSocket", JSON_RPC, "aiohttp-rpc", "aiohttp-rpc.py", mark="how-ws:", scheme="ws", has_feed=True),
    python("jsonrpclib-pelix", JSON_RPC, "jsonrpclib-pelix", "jsonrpclib-pelix.py"),
    python("pjrpc", JSON_RPC, "pjrpc", "pjrpc-http.py"),
    Row("jsonrpsee, HTTP", JSON_RPC, "Rust", source="rust/src/jsonrpsee.rs"),
    Row("jsonrpsee, WebSocket", JSON_RPC, "Rust", source="rust/src/jsonrpsee.rs", mark="how-ws:", scheme="ws", has_feed=True),
    Row("alloy, HTTP", JSON_RPC, "Rust", source="rust/src/alloy.rs"),
    Row("alloy, WebSocket", JSON_RPC, "Rust", source="rust/src/alloy.rs", mark="how-ws:", scheme="ws", has_feed=True),
    Row("Chromium", EVENTS, "JavaScript", source="page.html"),
    Row("Firefox", EVENTS, "JavaScript", source="page.html"),
    python("httpx-sse", EVENTS, "httpx-sse", "httpx-sse.py", is_quick=True),
    python("sseclient-py", EVENTS, "sseclient-py", "sseclient-py.py"),
    python("aiohttp-sse-client2", EVENTS, "aiohttp-sse-client2", "aiohttp-sse-client2.py"),
    python("requests-sse", EVENTS, "requests-sse", "requests-sse.py"),
    Row("eventsource-client", EVENTS, "Rust", source="rust/src/eventsource.rs"),
]
BROWSERS = {"Chromium": "chromium", "Firefox": "firefox-esr"}


def cache():
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "blockraft/clients"


def environment(lock, instead):
    """A virtual environment with what the lock names; `instead` is a pin to try in place of the lock's."""
    pins = (HERE / "locks" / f"{lock}.txt").read_text()
    if instead:
        name = instead.split("==")[0]
        if not re.search(rf"(?mi)^{re.escape(name)}==", pins):
            return environment(lock, None)
        pins = re.sub(rf"(?mi)^{re.escape(name)}==.*$", instead, pins)
    # Another interpreter needs other wheels.
    key = hashlib.sha256(f"{sys.version_info[:2]} {pins}".encode()).hexdigest()[:12]
    folder = cache() / f"{lock}-{key}"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        live.say("makes the environment of", lock)
        try:
            live.run(sys.executable, "-m", "venv", folder)
            (folder / "pins.txt").write_text(pins)
            live.run(folder / "bin/pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--timeout", "15", "--retries", "1", "-r", folder / "pins.txt")
        except (live.Failed, OSError) as e:
            shutil.rmtree(folder, ignore_errors=True)
            raise Missing(f"its Python packages are not to be had: {str(e)[-160:]}") from None
        (folder / "made").write_text("")
    return folder, pins


def rust_program():
    """Built by its own lock, beside blockraft's own target folder."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", live.ROOT / "target")) / "clients"
    argv = ["cargo", "build", "--release", "--locked", "--manifest-path", HERE / "rust/Cargo.toml", "--target-dir", target]
    try:
        live.run(*argv)
    except (live.Failed, OSError) as e:
        raise Missing(f"cargo does not build it: {str(e)[-300:]}") from None
    return target / "release/blockraft-clients"


def version_of(package, pins):
    return re.search(rf"(?mi)^{re.escape(package)}==(.*)$", pins)[1]


def prepare(row, instead=None, rust=rust_program):
    """Sets `argv` and `version`; `Missing` where the client cannot be had."""
    if row.lock:
        folder, pins = environment(row.lock, instead)
        row.argv = [folder / "bin/python", "-B", HERE / row.source]
        row.version = version_of("web3" if row.lock.startswith("web3") else row.lock, pins)
    elif row.name == "curl":
        if missing := [t for t in ("curl", "jq") if not shutil.which(t)]:
            raise Missing(f"there is no {' and no '.join(missing)}")
        row.argv, row.version = ["sh", HERE / row.source], live.run("curl", "--version").split()[1]
    elif row.name in BROWSERS:
        if not shutil.which(BROWSERS[row.name]):
            raise Missing(f"there is no {BROWSERS[row.name]} (Debian's package of that name)")
        said = live.run(BROWSERS[row.name], "--version")
        row.version = re.search(r"(\d+)\.\d", said)[1]
    else:
        crate = row.name.split(",")[0]
        lock = (HERE / "rust/Cargo.lock").read_text()
        row.argv, row.version = [rust(), crate], re.search(rf'name = "{crate if crate != "alloy" else "alloy-rpc-client"}"\nversion = "(.*)"', lock)[1]
