#!/usr/bin/env bash
# aiohttp-sse-client2 0.3.0 glues half an event of a broken connection to the first event of the next one.
#
# WHATWG HTML, "server-sent events", 9.2.6: what is pending when a connection ends is discarded; a reader that
# reconnects begins with empty buffers. Here the first connection breaks in the middle of event 8; the client
# reconnects by itself, sends Last-Event-ID: 7, and the server answers with event 8, whole. Output seen with
# Python 3.11 and aiohttp 3.13.2:
#
#   event id=7 data='{"height": 1}'
#   reconnected with Last-Event-ID 7
#   event id=8 data='{"height": 12\n{"height": 1234}'
#
# The data of event 8 is half of it, a line feed, and all of it: no JSON, after every break in the middle of an
# event. A reader must be ready to drop such an event, close, and come back with the id before it. Fails when
# the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check aiohttp-sse-client2==0.3.0 aiohttp==3.13.2
cat >"$dir/try.py" <<'PY'
import asyncio
import datetime
import socket
import threading

from aiohttp_sse_client2 import client as sse

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CONNECTIONS = [
    b'id: 7\ndata: {"height": 1}\n\nid: 8\ndata: {"height": 12',
    b'id: 8\ndata: {"height": 1234}\n\n',
]


def serve(listener):
    for body in CONNECTIONS:
        client, _ = listener.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        for line in request.decode().split("\r\n"):
            if line.lower().startswith("last-event-id:"):
                print("reconnected with Last-Event-ID", line.split(":")[1].strip())
        client.sendall(HEAD + body)
        client.close()


async def read(url):
    seen = []
    pause = datetime.timedelta(milliseconds=100)
    async with sse.EventSource(url, reconnection_time=pause, max_connect_retry=3) as events:
        async for event in events:
            print(f"event id={event.last_event_id} data={event.data!r}")
            seen.append((event.last_event_id, event.data))
            if len(seen) == 2:
                return seen


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
seen = asyncio.run(asyncio.wait_for(read(url), 20))
if seen != [("7", '{"height": 1}'), ("8", '{"height": 12\n{"height": 1234}')]:
    raise SystemExit("finding no longer holds: the events of two connections are not glued together")
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: aiohttp-sse-client2 0.3.0 glues two connections' events together"
