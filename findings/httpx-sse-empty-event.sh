#!/usr/bin/env bash
# httpx-sse 0.4.3 makes an event without data of every keep-alive comment that a blank line follows.
#
# WHATWG HTML, "server-sent events", 9.2.6: at a blank line nothing is dispatched while the data buffer is
# empty. Most servers keep a stream alive by a comment and a blank line (axum's and Starlette's do). httpx-sse
# 0.4.3 takes the blank line for the end of an event as soon as any event before had an id. Output seen with
# Python 3.11 and httpx 0.28.1, for one event with an id and two keep-alives around it:
#
#   event id='7' event='message' data='{"height": 1}'
#   event id='7' event='message' data=''
#
# The first keep-alive, before any id, gives nothing; the second gives an event with the id of the one before
# and no data, which json() raises on. So blockraft's feed sends its comment without a blank line behind it.
# Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check httpx-sse==0.4.3 httpx==0.28.1
cat >"$dir/try.py" <<'PY'
import socket
import threading

import httpx
import httpx_sse

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
KEEP_ALIVE = b": keep-alive\n\n"
EVENT = b'id: 7\ndata: {"height": 1}\n\n'


def read(body):
    def serve(listener):
        client, _ = listener.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        client.sendall(HEAD + body)
        client.close()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with httpx.Client(trust_env=False, timeout=10) as http:
        with httpx_sse.connect_sse(http, "GET", url) as source:
            return [(e.id, e.event, e.data) for e in source.iter_sse()]


whole = ("7", "message", '{"height": 1}')
seen = read(KEEP_ALIVE + EVENT + KEEP_ALIVE)
for ident, name, data in seen:
    print(f"event id={ident!r} event={name!r} data={data!r}")
if seen != [whole, ("7", "message", "")]:
    raise SystemExit("finding no longer holds: a keep-alive is no event without data")
# A comment alone, as blockraft sends it, is no event.
assert read(EVENT + b":\n" + EVENT) == [whole, whole]
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: httpx-sse 0.4.3 makes an empty event of a keep-alive"
